"""Paid seats whose process ends after any call, loses answers, or runs beside another one, are charged once."""

from __future__ import annotations

import asyncio
from typing import Final, NamedTuple

import pytest

from pipeline.changes.following import follow
from pipeline.changes.operating import PATIENCE_MS, turn
from pipeline.changes.seating import SeatsFull, SeatWish, seat_parts, take_seat
from schemas.clock import DAY_MS
from schemas.seats import QUIET_MS
from stripe_simulator.faults import Fault, FaultKind
from tests.worlds.ending import Ends
from tests.worlds.seated import SEATS, Seated, seats_catalog


class Change(NamedTuple):
    """A change of the holders of an account that pays three seats on March 11, and what follows.

    `before`: holders who left since, and whose seats were followed. `is_pending`: the account goes to a lower plan with
    the next period. `ends`: how often the process can end, at the quote, the intent, around each call, at the end of
    the operation, at what is granted and what notes that all is followed; and once more, when it does not end.
    """

    policy: str
    comes: int
    leaves: int
    quantity: int
    invoices: list[int]
    ends: int
    before: int = 0
    is_pending: bool = False


CHANGES: Final = {
    "more than is paid": Change("keep_paid", 2, 0, 4, [678], 11, before=1),
    "fewer": Change("keep_paid", 0, 2, 1, [], 9),
    "fewer with a credit": Change("prorate", 0, 2, 1, [], 8),
    "more before a lower plan": Change("keep_paid", 2, 0, 5, [1355], 8, is_pending=True),
}


async def begun(change: Change, accounts: int) -> tuple[Seated, list[tuple[str, str, str]]]:
    """Accounts with three holders each, on March 11."""
    business, found = Seated(), []
    await business.begin(seats_catalog(change.policy))
    business.clock.ms += QUIET_MS
    for number in range(accounts):
        await business.join(f"account {number}")
        await business.subscribed(SEATS, quantity=3)
        found.append((business.account, business.customer, business.subscription))
    await business.settle()
    for who in found:
        business.about(*who)
        for each in range(3):
            await business.take(f"holder {each}")
        for each in range(change.before):
            await business.release(f"holder {each}")
    await business.paid()
    await business.until("2027-03-11")
    if change.is_pending:
        for who in found:
            business.about(*who)
            await business.changed("small")
        await business.settle()
    return business, found


async def changed(business: Seated, change: Change) -> int:
    """The holders come and go; returns how many invoices there are."""
    for number in range(change.comes):
        await business.take(f"new {number}")
    for number in range(change.before, change.before + change.leaves):
        await business.release(f"holder {number}")
    business.clock.ms += QUIET_MS
    return len(business.invoices())


async def is_followed(business: Seated, change: Change, before: int) -> None:
    assert (business.quantity(), business.invoices()[before:]) == (change.quantity, change.invoices)
    assert await business.waits() == 0
    if change.is_pending:
        ((state, phases),) = business.schedules()
        assert (state, phases) == ("active", 2)


@pytest.mark.parametrize("name", CHANGES)
async def test_a_change_whose_process_ends_after_any_call_is_charged_once(name: str) -> None:
    """With Stripe's events at the mirror before another process goes on, or after."""
    change = CHANGES[name]
    business, accounts = await begun(change, 2 * change.ends)
    ends, has_ended = 0, True
    while has_ended:
        ends += 1
        for is_heard in (False, True):
            business.about(*accounts.pop())
            before = await changed(business, change)
            has_ended = False
            try:
                await follow(business.parts([ends], after=True))
            except Ends:
                has_ended = True
            if is_heard:
                await business.settle()
            # The change goes on after a minute, at the instant that was quoted.
            business.clock.ms += PATIENCE_MS
            assert await turn(business.parts()) <= has_ended
            business.clock.ms -= PATIENCE_MS
            await follow(business.parts())
            await is_followed(business, change, before)
            business.clock.ms -= QUIET_MS
    assert ends == change.ends
    await business.settle()
    if change.is_pending:
        await business.until("2027-04-01T02:00:00")
        assert business.invoices()[-1] == 500 * change.quantity


async def test_answers_that_are_lost_charge_once() -> None:
    change = CHANGES["more than is paid"]
    business, _ = await begun(change, 1)
    before = await changed(business, change)
    fault = Fault(FaultKind.SERVER_ERROR_AFTER_COMMIT, count=2, path="/v1/subscription", method="POST")
    business.stripe.simulator.faults.add(fault)
    for _ in range(4):
        await follow(business.parts())
        business.clock.ms += PATIENCE_MS
        await turn(business.parts())
    assert business.stripe.simulator.faults.happened
    await is_followed(business, change, before)


async def test_two_processes_that_follow_at_once_charge_once() -> None:
    change = CHANGES["more than is paid"]
    business, _ = await begun(change, 1)
    before = await changed(business, change)
    await asyncio.gather(*(follow(business.parts()) for _ in range(4)))
    for _ in range(3):
        business.clock.ms += DAY_MS // 24
        await follow(business.parts())
    await is_followed(business, change, before)


async def test_twenty_clients_at_once_lose_nothing_and_charge_once() -> None:
    """Two processes follow while they come."""
    change = CHANGES["more than is paid"]
    business, _ = await begun(change, 1)
    before = len(business.invoices())

    async def client(number: int) -> None:
        wish = SeatWish(business.account, "seats", f"new {number}", is_reserved=number % 2 == 0)
        found = await take_seat(seat_parts(business.parts()), wish, f"client {number}")
        assert not isinstance(found, SeatsFull)
        business.clock.ms += 300
        await follow(business.parts())

    await asyncio.gather(*(client(number) for number in range(20)))
    for _ in range(4):
        business.clock.ms += QUIET_MS
        await follow(business.parts())

    assert (await business.held(), business.quantity(), await business.waits()) == (22, 22, 0)
    # Nineteen seats beyond the three that are paid, for 21 of 31 days, in one step or in several: each one may round.
    made = business.invoices()[before:]
    assert abs(sum(made) - 19 * 1000 * 21 // 31) <= len(made) + 1
