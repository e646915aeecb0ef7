"""`python -m tests.scenarios.histories [--histories 5000] [--seed 1]`: random lives of subscriptions, recomputed.

A history subscribes, changes prices and seats, adds and removes items, schedules, redeems coupons, restarts periods,
cancels, and lets time pass, all through stripe-python. `Model` follows with arithmetic of its own: what is billed of
each item from one second to another. It shares no code with the simulator. Afterwards

- the lines of all invoices and the pending ones add up to the model's, to the cent, and to the price of the billed
  seconds, to half a cent for each line;
- every second of every item is billed as often as the model says: once, or not at all;
- the journal replays to the same objects, jobs and times.
"""

from __future__ import annotations

import argparse
import asyncio
import calendar
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

from stripe_simulator import Simulator, SimulatorSettings
from tests.services.stripe import check_shapes, running
from tests.services.stripe_sdk import Sdk
from tests.services.stripe_shapes import problems
from tests.services.stripe_wire import NOW_MS
from tests.worlds.clock import ManualClock

DAY_S: Final = 86_400
# Nothing is changed in the last two hours of a period: a credit of 0 cents has no sign.
QUIET_S: Final = 7_200
STEPS: Final = 14
MONTHLY: Final = (1_000, 2_900, 4_900, 7_900, 14_900)
# Percentages that divide every price here: no cent is left over.
PERCENTAGES: Final = (10, 20, 50)


def months_later(start: int, months: int) -> int:
    """The same day and time some months later, or the last day of a shorter month."""
    moment = datetime.fromtimestamp(start, UTC)
    year, month = moment.year + (moment.month - 1 + months) // 12, (moment.month - 1 + months) % 12 + 1
    day = min(moment.day, calendar.monthrange(year, month)[1])
    return calendar.timegm((year, month, day, moment.hour, moment.minute, moment.second))


def part(cents: int, seconds: int, of_seconds: int) -> int:
    """The price of some seconds, rounded half up."""
    return (2 * cents * seconds + of_seconds) // (2 * of_seconds)


@dataclass
class Span:
    """Seconds of an item that are billed, at `cents` for the whole period."""

    start: int
    end: int
    cents: int
    period_s: int


@dataclass
class Item:
    """What an item costs for a period, and the spans that are billed of it."""

    cents: int
    spans: list[Span] = field(default_factory=list)
    is_live: bool = True


@dataclass
class Model:
    """The billed seconds of one subscription, and the sum of its lines in cents."""

    anchor: int
    months: int = 1
    number: int = 0
    percent_off: int = 0
    is_once: bool = False
    items: dict[str, Item] = field(default_factory=dict)
    total: int = 0
    lines: int = 0
    ends: bool = False

    @property
    def start(self) -> int:
        """The start of the current period."""
        return months_later(self.anchor, self.number * self.months)

    @property
    def end(self) -> int:
        """The end of the current period."""
        return months_later(self.anchor, (self.number + 1) * self.months)

    def bill_period(self) -> None:
        """The lines of the current period of all items."""
        for item in self.items.values():
            if item.is_live:
                self._charge(item, self.start)
        if self.is_once:
            self.percent_off, self.is_once = 0, False

    def change(self, identifier: str, cents: int, at: int, *, prorated: bool) -> None:
        """Another price or number of seats; a new item has another identifier."""
        item = self.items.setdefault(identifier, Item(0))
        if item.cents != cents and prorated:
            self.credit(item, at)
            item.cents = cents
            self._charge(item, at)
        item.cents = cents

    def remove(self, identifier: str, at: int, *, prorated: bool) -> None:
        """End an item now."""
        if prorated:
            self.credit(self.items[identifier], at)
        self.items[identifier].is_live = False

    def restart(self, at: int, months: int, cents: dict[str, int]) -> None:
        """A new period from now on for all items, at new prices."""
        for identifier, item in self.items.items():
            if item.is_live:
                self.credit(item, at)
                item.cents = cents[identifier]
        self.anchor, self.months, self.number = at, months, 0
        for item in self.items.values():
            if item.is_live:
                self._charge(item, at)

    def credit(self, item: Item, at: int) -> None:
        """Give the billed seconds from now on back."""
        for span in item.spans:
            if span.end > at:
                self.total -= part(span.cents, span.end - max(at, span.start), span.period_s)
                self.lines += 1
                span.end = max(at, span.start)

    def pass_time(self, until: int) -> None:
        """Renew until a moment; the end of a subscription that was cancelled renews nothing."""
        while self.end <= until and not self.ends:
            self.number += 1
            self.bill_period()

    def value(self) -> Fraction:
        """The exact price of all billed seconds."""
        spans = (span for item in self.items.values() for span in item.spans)
        return sum((Fraction(span.cents * (span.end - span.start), span.period_s) for span in spans), Fraction(0))

    def _charge(self, item: Item, at: int) -> None:
        net = item.cents * (100 - self.percent_off)
        assert net % 100 == 0
        span = Span(at, self.end, net // 100, self.end - self.start)
        item.spans.append(span)
        self.total += part(span.cents, span.end - span.start, span.period_s)
        self.lines += 1


class History:
    """One random history. Each step is a call or two of stripe-python, and the same step of the model."""

    def __init__(self, sdk: Sdk, seed: int) -> None:
        self.sdk = sdk
        self.random = random.Random(seed)
        self.done: list[str] = []
        self.now = calendar.timegm((2027, 1, 1, 0, 0, 0)) + self.random.randrange(365 * DAY_S)
        self.model = Model(self.now)
        self.prices: dict[tuple[int, int], str] = {}
        self.clock = self.customer = self.subscription = ""
        self.schedule: tuple[str, str, int] | None = None
        self.is_classic = self.random.random() < 0.2

    async def run(self) -> None:
        """Live the history."""
        await self._subscribe()
        for _ in range(self.random.randrange(3, STEPS)):
            await self._step()
            if self.model.ends:
                break
        await self._advance(self.now + self.random.randrange(QUIET_S, 40 * DAY_S))

    async def check(self) -> None:
        """Compare every line with the model."""
        lines = await self._lines()
        assert sum(amount for _, amount, _, _, _ in lines) == self.model.total, "the lines do not add up"
        assert abs(self.model.total - self.model.value()) <= Fraction(self.model.lines, 2), (
            "not the price of the seconds"
        )
        billed: dict[str, Counter[int]] = {key: Counter() for key in self.model.items}
        for item, amount, start, end, is_proration in lines:
            sign = -1 if is_proration and amount < 0 else 1
            billed[item][start] += sign
            billed[item][end] -= sign
        for key, model in self.model.items.items():
            steps: Counter[int] = Counter()
            for span in model.spans:
                steps[span.start] += 1
                steps[span.end] -= 1
            assert _steps(billed[key]) == _steps(steps), f"seconds of {key} are billed twice or not at all"

    async def _step(self) -> None:
        model, draw = self.model, self.random
        if model.end - self.now < QUIET_S:
            await self._advance(model.end + draw.randrange(QUIET_S))
        if self.now == model.start:
            # In the first second of a period, a new item is billed for the whole period.
            await self._advance(self.now + draw.randrange(1, QUIET_S))
        steps = [self._wait, self._wait, self._coupon, self._preview]
        if self.schedule:
            steps += [self._release]
        else:
            steps += [self._change, self._change, self._seats, self._seats, self._add, self._remove]
            steps += [self._restart, self._plan_ahead]
            if draw.random() < 0.3:
                steps += [self._cancel, self._cancel_later]
        step = draw.choice(steps)
        self.done.append(f"{datetime.fromtimestamp(self.now, UTC):%Y-%m-%d %H:%M:%S} {step.__name__.strip('_')}")
        await step()

    async def _subscribe(self) -> None:
        draw, sdk = self.random, self.sdk
        self.clock = (await sdk("v1.test_helpers.test_clocks.create", {"frozen_time": self.now}))["id"]
        self.customer = (await sdk("v1.customers.create", {"test_clock": self.clock}))["id"]
        method = await sdk("v1.payment_methods.attach", "pm_card_visa", {"customer": self.customer})
        settings = {"invoice_settings": {"default_payment_method": method["id"]}}
        await sdk("v1.customers.update", self.customer, settings)
        params: dict[str, Any] = {"billing_mode": {"type": "classic"}} if self.is_classic else {}
        if draw.random() < 0.3 and not self.is_classic:
            params["discounts"] = [{"coupon": await self._new_coupon()}]
        wanted = [(draw.choice(MONTHLY), draw.randrange(1, 9)) for _ in range(draw.randrange(1, 4))]
        items = [{"price": await self._price(cents), "quantity": seats} for cents, seats in wanted]
        body = await sdk("v1.subscriptions.create", {"customer": self.customer, "items": items, **params})
        self.subscription = body["id"]
        for row, (cents, seats) in zip(body["items"]["data"], wanted, strict=True):
            self.model.items[row["id"]] = Item(cents * seats)
        self.model.bill_period()

    async def _wait(self) -> None:
        await self._advance(
            self.now + self.random.choice((3_600, 10 * DAY_S, 45 * DAY_S)) + self.random.randrange(DAY_S)
        )

    async def _change(self) -> None:
        key, _, seats = await self._any_item()
        cents = self.random.choice(MONTHLY) * self._factor()
        await self._update(key, cents, seats)

    async def _seats(self) -> None:
        key, cents, seats = await self._any_item()
        await self._update(key, cents, max(1, seats + self.random.choice((-3, -1, 1, 2, 10))))

    async def _update(self, key: str, cents: int, seats: int) -> None:
        behavior = self._behavior()
        items = [{"id": key, "price": await self._price(cents), "quantity": seats}]
        await self._subscription({"items": items, "proration_behavior": behavior})
        self.model.change(key, cents * seats, self.now, prorated=behavior != "none")

    async def _add(self) -> None:
        cents, seats, behavior = (
            self.random.choice(MONTHLY) * self._factor(),
            self.random.randrange(1, 5),
            self._behavior(),
        )
        body = {"subscription": self.subscription, "price": await self._price(cents), "quantity": seats}
        row = await self.sdk("v1.subscription_items.create", {**body, "proration_behavior": behavior})
        self.model.change(row["id"], cents * seats, self.now, prorated=behavior != "none")

    async def _remove(self) -> None:
        if sum(item.is_live for item in self.model.items.values()) > 1:
            key, _, _ = await self._any_item()
            behavior = self._behavior()
            await self._subscription({"items": [{"id": key, "deleted": True}], "proration_behavior": behavior})
            self.model.remove(key, self.now, prorated=behavior != "none")

    async def _restart(self) -> None:
        """A new period now: the other interval, or the same one."""
        months = self.random.choice((1, 1, 12))
        items, cents = [], {}
        for row in await self._rows():
            amount = self.random.choice(MONTHLY) * (10 if months == 12 else 1)
            price = await self._price(amount, months)
            items.append({"id": row["id"], "price": price, "quantity": row["quantity"]})
            cents[row["id"]] = amount * row["quantity"]
        anchor = {"billing_cycle_anchor": {"type": "now"}, "proration_behavior": "always_invoice"}
        await self._subscription({"items": items, **anchor})
        self.model.restart(self.now, months, cents)

    async def _plan_ahead(self) -> None:
        """Another price of one item from the next period on, by a schedule."""
        key, _, seats = await self._any_item()
        cents = self.random.choice(MONTHLY) * self._factor()
        created = await self.sdk("v1.subscription_schedules.create", {"from_subscription": self.subscription})
        now = created["phases"][0]
        first = {name: now[name] for name in ("start_date", "end_date")}
        first["items"] = [{"price": row["price"], "quantity": row["quantity"]} for row in now["items"]]
        then = [
            {"price": await self._price(cents) if row["id"] == key else row["price"]["id"], "quantity": row["quantity"]}
            for row in await self._rows()
        ]
        if len({row["price"] for row in [*then, *first["items"]]}) < len(then) + 1:
            # Two items of one price, or nothing new: which item is meant would be a guess.
            await self.sdk("v1.subscription_schedules.release", created["id"])
            return
        await self.sdk("v1.subscription_schedules.update", created["id"], {"phases": [first, {"items": then}]})
        self.schedule = (created["id"], key, cents * seats)

    async def _release(self) -> None:
        assert self.schedule is not None
        await self.sdk("v1.subscription_schedules.release", self.schedule[0])
        self.schedule = None

    async def _coupon(self) -> None:
        """Redeem a coupon, or take the discount away. What is billed stays as it is."""
        if self.is_classic:
            return
        if self.random.random() < 0.3:
            self.model.percent_off, self.model.is_once = 0, False
            await self._subscription({"discounts": ""})
        else:
            await self._subscription({"discounts": [{"coupon": await self._new_coupon()}]})

    async def _preview(self) -> None:
        """A preview changes nothing."""
        key, _, seats = await self._any_item()
        details = {"items": [{"id": key, "quantity": seats + 1}], "proration_behavior": "always_invoice"}
        body = {"subscription": self.subscription, "subscription_details": details}
        await self.sdk("v1.invoices.create_preview", body)

    async def _cancel(self) -> None:
        prorated = self.random.random() < 0.5
        params = {"prorate": prorated, "invoice_now": self.random.random() < 0.5}
        await self.sdk("v1.subscriptions.cancel", self.subscription, params)
        for item in self.model.items.values():
            if prorated and item.is_live:
                self.model.credit(item, self.now)
        self.model.ends = True

    async def _cancel_later(self) -> None:
        await self._subscription({"cancel_at_period_end": True})
        self.model.ends = True

    async def _advance(self, to: int) -> None:
        self.now = to
        await self.sdk("v1.test_helpers.test_clocks.advance", self.clock, {"frozen_time": to})
        if self.schedule and self.model.end <= to and not self.model.ends:
            _, key, cents = self.schedule
            self.model.change(key, cents, self.model.end, prorated=False)
            await self._until_scheduled()
        self.model.pass_time(to)

    async def _until_scheduled(self) -> None:
        """The phase lasts one period, and the schedule is over then."""
        assert self.schedule is not None
        body = await self.sdk("v1.subscription_schedules.retrieve", self.schedule[0])
        if body["status"] == "active":
            await self.sdk("v1.subscription_schedules.release", self.schedule[0])
        self.schedule = None

    async def _new_coupon(self) -> str:
        percent, duration = self.random.choice(PERCENTAGES), self.random.choice(("forever", "once"))
        self.model.percent_off, self.model.is_once = percent, duration == "once"
        return str((await self.sdk("v1.coupons.create", {"percent_off": percent, "duration": duration}))["id"])

    async def _price(self, cents: int, months: int = 0) -> str:
        key = (cents, months or self.model.months)
        if key not in self.prices:
            recurring = {"interval": "year" if key[1] == 12 else "month"}
            params = {"currency": "usd", "unit_amount": cents, "product_data": {"name": "Plan"}, "recurring": recurring}
            self.prices[key] = (await self.sdk("v1.prices.create", params))["id"]
        return self.prices[key]

    async def _subscription(self, params: dict[str, Any]) -> None:
        await self.sdk("v1.subscriptions.update", self.subscription, params)

    async def _rows(self) -> list[dict[str, Any]]:
        body = await self.sdk("v1.subscription_items.list", {"subscription": self.subscription, "limit": 100})
        return list(body["data"])

    async def _any_item(self) -> tuple[str, int, int]:
        """(id, cents for a seat, seats) of an item."""
        row = self.random.choice(await self._rows())
        return row["id"], row["price"]["unit_amount"], row["quantity"]

    def _behavior(self) -> str:
        return self.random.choice(("create_prorations", "always_invoice", "none")[: 2 if self.is_classic else 3])

    def _factor(self) -> int:
        return 10 if self.model.months == 12 else 1

    async def _lines(self) -> list[tuple[str, int, int, int, bool]]:
        """(item, cents after discounts, start, end, is a proration) of every line and of every pending invoice item."""
        lines = []
        invoices = await self.sdk("v1.invoices.list", {"customer": self.customer, "limit": 100})
        for invoice in invoices["data"]:
            rows = await self.sdk("v1.invoices.line_items.list", invoice["id"], {"limit": 100})
            for row in rows["data"]:
                details = row["parent"][row["parent"]["type"]]
                amount = row["amount"] - sum(cut["amount"] for cut in row["discount_amounts"])
                lines.append((details["subscription_item"], amount, row, details["proration"]))
        pending = await self.sdk("v1.invoice_items.list", {"customer": self.customer, "pending": True, "limit": 100})
        for row in pending["data"]:
            owner = row["parent"]["subscription_details"]["subscription_item"]
            lines.append((owner, row["amount"], row, row["proration"]))
        return [
            (item, amount, row["period"]["start"], row["period"]["end"], proration)
            for item, amount, row, proration in lines
        ]


def _steps(steps: Counter[int]) -> dict[int, int]:
    return {moment: step for moment, step in steps.items() if step}


def contents(simulator: Simulator) -> dict[str, Any]:
    """All that a journal must bring back."""
    mode = simulator.test
    kinds = {kind: dict(rows.objects) for kind, rows in mode.store._collections.items() if rows.objects}
    clocks = [body["id"] for body in mode.store.newest("test_helpers.test_clock")]
    return {**kinds, "jobs": mode.clockwork.waiting(), "times": [mode.now_ms(clock) for clock in clocks]}


async def live(seed: int, folder: Path) -> int:
    """One history with all checks. Returns the number of its lines. Raises `AssertionError` with the replay command."""
    path = folder / f"{seed}.journal"
    settings = SimulatorSettings(seed=seed)
    clock = ManualClock(NOW_MS)
    simulator = Simulator(clock, settings, path, problems)
    sdk = Sdk(simulator, clock)
    history = History(sdk, seed)
    try:
        async with running(simulator):
            await history.run()
            await history.check()
        simulator.close()
        replayed = Simulator(clock, settings, path)
        replayed.close()
        assert contents(replayed) == contents(simulator), "the journal replays to other objects"
        check_shapes(simulator.violations, simulator.checked)
    except Exception as error:
        steps = "\n".join(history.done)
        command = f"python -m tests.scenarios.histories --seed {seed} --histories 1"
        raise AssertionError(f"{error}\n{steps}\nreplay: {command}") from error
    finally:
        simulator.close()
        await sdk.close()
        path.unlink(missing_ok=True)
    return history.model.lines


async def _main(histories: int, seed: int) -> None:
    began, lines, failures = time.perf_counter(), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        for number in range(histories):
            try:
                lines += await live(seed + number, Path(folder))
            except AssertionError as failure:
                failures += 1
                print(failure)
            if number % 500 == 499:
                sys.stderr.write(f"{number + 1} histories\n")
    seconds = time.perf_counter() - began
    print(f"{histories - failures} of {histories} histories from seed {seed} agree: {lines} lines, {seconds:.0f} s")
    sys.exit(failures > 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Random histories of subscriptions, recomputed by seconds.")
    parser.add_argument("--histories", type=int, default=5_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    asyncio.run(_main(arguments.histories, arguments.seed))
