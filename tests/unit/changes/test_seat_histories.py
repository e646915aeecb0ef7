"""Random histories of seats: what Stripe's simulator bills is what a small model of the policies says.

The model knows days, holders and the words of docs/seats.md. It shares no code with the product and the simulator.
"""

from __future__ import annotations

from calendar import monthrange
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from math import floor
from random import Random
from typing import Final

import pytest

from pipeline.changes.following import follow
from schemas.seats import QUIET_MS, SeatState
from tests.worlds.seated import SEATS, Seated, seats_catalog

BEGIN: Final = datetime(2027, 3, 1, tzinfo=UTC)
PRICE: Final = 1000
RESERVED_DAYS: Final = 7
STEPS: Final = 18


def rounded(amount: Fraction) -> int:
    return floor(amount + Fraction(1, 2))


@dataclass
class Model:
    """An account that pays for each holder by the month. `holders` has the end of a reservation, None for a seat that
    is active; `billed` is what the present month is billed for."""

    credits: bool
    now: datetime = BEGIN
    holders: dict[str, datetime | None] = field(default_factory=dict)
    quantity: int = 1
    billed: int = 1
    pending: int = 0
    invoices: list[int] = field(default_factory=lambda: [PRICE])

    def pass_days(self, days: int) -> None:
        """Months begin at midnight of their first day."""
        for _ in range(days):
            self.now += timedelta(days=1)
            if self.now.day == 1:
                self.invoices.append(self.quantity * PRICE + self.pending)
                self.billed, self.pending = self.quantity, 0
        self.holders = {name: end for name, end in self.holders.items() if end is None or end > self.now}

    def left(self, quantity: int) -> int:
        """What a quantity costs for the rest of the month."""
        days = monthrange(self.now.year, self.now.month)[1]
        return rounded(Fraction(quantity * PRICE * (days - self.now.day + 1), days))

    def follow(self) -> None:
        wanted = max(1, len(self.holders))
        before = self.quantity if self.credits else self.billed
        amount = self.left(wanted) - self.left(before)
        if wanted > before:
            # What waits for the next invoice is on this one.
            self.invoices.append(amount + self.pending)
            self.billed, self.pending = wanted, 0
        elif self.credits:
            self.pending += amount
        self.quantity = wanted


async def played(business: Seated, model: Model, random: Random) -> None:
    """One step: some holders come, accept or go; days pass; what is paid follows."""
    for _ in range(random.randrange(4)):
        name = f"holder {random.randrange(6)}"
        seats = {seat.holder: seat for seat in await business.sql.seats.listed("acme", "", business.clock.ms, 100)}
        choice = random.choice(("add", "add", "reserve", "activate", "release"))
        if choice == "add":
            await business.take(name)
            model.holders[name] = None
        elif choice == "reserve":
            await business.take(name, is_reserved=True)
            model.holders.setdefault(name, model.now + timedelta(days=RESERVED_DAYS))
        elif name in seats:
            move = business.sql.seats.activate if choice == "activate" else business.sql.seats.release
            await move("acme", seats[name].id, "ann", business.clock.ms)
            if choice == "activate":
                model.holders[name] = None
            else:
                del model.holders[name]
        assert seats.keys() <= {f"holder {number}" for number in range(6)}
    await business.sql.seats.sweep(business.clock.ms, 100)
    if random.random() < 0.8:
        business.clock.ms += QUIET_MS
        await follow(business.parts())
        business.clock.ms -= QUIET_MS
        model.follow()
    days = random.choice((0, 1, 1, 2, 5, 8, 15))
    model.pass_days(days)
    await business.days(days)


@pytest.mark.parametrize("policy", ["keep_paid", "prorate"])
@pytest.mark.parametrize("seed", range(3))
async def test_stripe_bills_what_the_model_says(policy: str, seed: int) -> None:
    """Requests are made in the last two seconds of a day, and followed in the first of the next."""
    random, model = Random(f"{policy} {seed}"), Model(credits=policy == "prorate")
    business = Seated()
    await business.begin(seats_catalog(policy))
    business.clock.ms += QUIET_MS
    await business.subscribed(SEATS, quantity=1)
    await business.settle()
    business.clock.ms -= QUIET_MS
    for _ in range(STEPS):
        await played(business, model, random)
        assert await business.held() == len(model.holders)
        assert business.quantity() == model.quantity
    model.follow()
    model.pass_days(30)
    await business.sql.seats.sweep(business.clock.ms, 100)
    business.clock.ms += QUIET_MS
    await follow(business.parts())
    await business.days(30)

    assert business.invoices() == model.invoices
    held = await business.sql.seats.listed("acme", "seats", business.clock.ms, 100)
    assert {seat.holder for seat in held} == set(model.holders)
    assert {seat.holder for seat in held if seat.state is SeatState.ACTIVE} == {
        name for name, end in model.holders.items() if end is None
    }
