"""Prorations: Stripe's documented examples, and random histories against a recomputation by seconds."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Final, Literal, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stripe_simulator.engine.lines import Item, Line, cycle_lines
from stripe_simulator.engine.periods import Period, period_containing
from stripe_simulator.engine.proration import BillingMode, Debit, debits_of, net_amounts, prorate
from stripe_simulator.engine.totals import totals
from tests.unit.stripe_engine.catalog import MONTH, YEAR, amount, at, between, cents, flat, percent, seats

APRIL: Final = between("2027-04-01", "2027-05-01")
FEBRUARY: Final = between("2027-02-01", "2027-03-01")


@pytest.mark.parametrize(("mode", "expected"), [("flexible", [-417]), ("classic", [-250])])
def test_a_coupon_over_two_items_when_one_is_removed(mode: BillingMode, expected: list[int]) -> None:
    """ "Credit prorations": 5 over 10 + 20, the first item removed at half; flexible uses 1.66, classic the whole 5."""
    ten, twenty = seats(flat("ten", 1000), 1, FEBRUARY), seats(flat("twenty", 2000), 1, FEBRUARY, "si_2")
    first = totals(cycle_lines([ten, twenty], {}), discounts=[amount(500)])
    discounted = {item.id: line.cuts[0].amount for item, line in zip((ten, twenty), first.lines, strict=True)}

    lines = prorate(
        mode,
        [ten, twenty],
        [twenty],
        at("2027-02-15"),
        discounts=[amount(500)],
        debits=debits_of([ten, twenty], discounted),
    ).lines

    assert first.amount_due == 2500
    assert cents(lines) == expected


def test_a_time_that_was_billed_by_two_debits_is_credited_by_two_lines() -> None:
    """ "One for each corresponding original debit" (billing-mode/compare): here with an earlier `proration_date`."""
    one, two, three = (seats(flat("seat", 3000), quantity, APRIL) for quantity in (1, 2, 3))

    up = prorate("flexible", [one], [two], at("2027-04-21"), debits=debits_of([one], {}))
    back = prorate("flexible", [two], [three], at("2027-04-11"), debits=up.debits)

    assert cents(up.lines) == [-1000, 2000]
    assert cents(back.lines) == [-1000, -2000, 6000]
    assert [line.period for line in back.lines] == [
        between("2027-04-11", "2027-04-21"),
        between("2027-04-21", "2027-05-01"),
        between("2027-04-11", "2027-05-01"),
    ]


def test_an_unchanged_item_and_a_discount_alone_are_not_prorated() -> None:
    """ "Discount changes and prorations": a new discount alone creates no proration."""
    ten, twenty = seats(flat("ten", 1000), 1, APRIL), seats(flat("twenty", 2000), 1, APRIL, "si_2")
    more = twenty._replace(quantity=2)

    lines = prorate("classic", [ten, twenty], [ten, more], at("2027-04-16"), discounts=[percent(50)]).lines

    assert [(line.item, line.amount) for line in lines] == [("si_2", -500), ("si_2", 1000)]


def test_mixed_intervals_share_no_coupon() -> None:
    """Items that are billed for different periods are on different invoices: each invoice has the whole coupon."""
    year = between("2027-01-01", "2028-01-01")
    items = [
        seats(flat("base", 36_500, YEAR), 1, year),
        seats(flat("addon", 1000), 1, APRIL, "si_2"),
        seats(flat("addon", 3000), 1, APRIL, "si_3"),
    ]

    assert net_amounts(items, [amount(500)], "flexible") == {"si_1": 36_000, "si_2": 875, "si_3": 2625}
    assert net_amounts(items, [amount(500)], "classic") == {"si_1": 36_000, "si_2": 500, "si_3": 2500}


def test_a_restart_credits_and_charges_every_item() -> None:
    """Unchanged items begin the new period too, and the invoice discounts the full lines."""
    ten, twenty = seats(flat("ten", 1000), 1, APRIL), seats(flat("twenty", 2000), 1, APRIL, "si_2")
    now = between("2027-04-16", "2027-05-16")
    new = [ten._replace(period=now), twenty._replace(period=now)]

    result = prorate(
        "flexible",
        [ten, twenty],
        new,
        now.start,
        discounts=[percent(10)],
        debits=debits_of([ten, twenty], {"si_1": 100, "si_2": 200}),
    )

    assert cents(result.lines) == [-450, 1000, -900, 2000]
    assert totals(result.lines, discounts=[percent(10)]).total == -450 + 900 - 900 + 1800
    assert {debit.item.id: debit.net for debit in result.debits if debit.item.period == now} == {
        "si_1": 900,
        "si_2": 1800,
    }


def test_a_proration_is_never_discounted_again() -> None:
    """All prorations are `discountable=false`."""
    lines = prorate("classic", [], [seats(flat("ten", 1000), 1, APRIL)], at("2027-04-16")).lines

    assert cents(lines) == [500]
    assert totals(lines, discounts=[percent(50)]).amount_due == 500


@pytest.mark.parametrize(("prorations", "expected"), [(True, [500]), (False, [])])
def test_a_first_period_that_ends_at_a_later_anchor(prorations: bool, expected: list[int]) -> None:
    """The time until the anchor is charged, or free with `none`; the first full period begins at the anchor."""
    start, anchor = at("2027-04-16"), at("2027-05-01")
    item = seats(flat("ten", 1000), 1, period_containing(anchor, MONTH, start))

    assert item.period == APRIL
    assert cents(prorate("flexible", [], [item], start, prorations=prorations).lines) == expected


@pytest.mark.parametrize("mode", ["classic", "flexible"])
@pytest.mark.parametrize("moment", ["2027-04-01", "2027-05-01"])
def test_the_edges_of_a_period(moment: str, mode: BillingMode) -> None:
    """The first second credits and charges everything, and the end nothing."""
    before, after = seats(flat("a", 1000), 1, APRIL), seats(flat("b", 2000), 1, APRIL)

    lines = prorate(mode, [before], [after], at(moment), debits=debits_of([before], {})).lines

    assert cents(lines) == ([-1000, 2000] if moment == "2027-04-01" else [])


def test_metered_items_are_not_prorated() -> None:
    """ "Usage-based billing isn't subject to proration"; a licensed item that becomes metered is credited."""
    licensed = seats(flat("a", 1000), 1, APRIL)
    by_use = licensed._replace(price=licensed.price._replace(id="m", metered=True))

    there = prorate("flexible", [licensed], [by_use], at("2027-04-16"), debits=debits_of([licensed], {}))
    back = prorate("flexible", [by_use], [licensed], at("2027-04-16"), debits=there.debits)

    assert (cents(there.lines), cents(back.lines)) == ([-500], [500])


# A random history. The model below knows nothing of the engine: it keeps a rate for each second.


class Event(NamedTuple):
    """A request `gap` seconds after the previous one."""

    gap: int
    kind: Literal["change", "restart", "remove"]
    item: int
    unit: int
    quantity: int
    prorations: bool


def events(*, always_prorated: bool) -> st.SearchStrategy[list[Event]]:
    """Up to eight requests within some months."""
    event = st.builds(
        Event,
        gap=st.one_of(st.integers(1, 100), st.integers(1, 40 * 86_400)),
        kind=st.sampled_from(["change", "change", "change", "restart", "remove"]),
        item=st.integers(0, 2),
        unit=st.integers(1, 30),
        quantity=st.integers(0, 9),
        prorations=st.just(True) if always_prorated else st.booleans(),
    )
    return st.lists(event, max_size=8)


def month_later(anchor: int, months: int) -> int:
    """The anchor's day `months` later, or the last day of that month; not the engine's arithmetic."""
    first = datetime.fromtimestamp(anchor, UTC)
    month = first.replace(day=1)
    for _ in range(months):
        month = (month + timedelta(days=31)).replace(day=1)
    last = (month + timedelta(days=31)).replace(day=1) - timedelta(days=1)
    return int(month.replace(day=min(first.day, last.day)).timestamp())


class Subscription:
    """A subscription on the engine, as a resource would keep it: items, debits, the anchor, and all lines."""

    def __init__(self, mode: BillingMode, start: int, scale: int, discount: int) -> None:
        self.mode = mode
        self.anchor = start
        self.scale = scale
        self.discounts = [percent(discount)] if discount else []
        self.added = 0
        self.items: dict[int, Item] = {}
        self.items = {0: self.item(0, 1, 1, start)}
        self.debits: tuple[Debit, ...] = ()
        self.billed = 0
        self.line_count = 0
        self.renew(start)

    def item(self, number: int, unit: int, quantity: int, now: int) -> Item:
        # `flat` refuses the large amounts that make every line whole.
        price = flat(f"unit_{unit}", 0)._replace(unit_amount=Fraction(unit * self.scale))
        # An item that is removed and added again is another item.
        self.added += number not in self.items
        name = self.items[number].id if number in self.items else f"si_{self.added}"
        return seats(price, quantity, period_containing(self.anchor, MONTH, now), name)

    def bill(self, lines: tuple[Line, ...]) -> None:
        self.billed += totals(lines, discounts=self.discounts).total
        self.line_count += len(lines) * (2 if self.discounts else 1)

    def renew(self, now: int) -> None:
        period = period_containing(self.anchor, MONTH, now)
        self.items = {number: item._replace(period=period) for number, item in self.items.items()}
        lines = cycle_lines(list(self.items.values()), {})
        cuts = totals(lines, discounts=self.discounts).lines
        discounted = {line.item: sum(cut.amount for cut in of.cuts) for line, of in zip(lines, cuts, strict=True)}
        self.bill(lines)
        self.debits = debits_of(self.items.values(), discounted)

    def request(self, event: Event, now: int) -> None:
        after = dict(self.items)
        if event.kind == "remove":
            after.pop(event.item, None)
        else:
            if event.kind == "restart":
                self.anchor = now
                period = period_containing(now, MONTH, now)
                after = {number: item._replace(period=period) for number, item in after.items()}
            after[event.item] = self.item(event.item, event.unit, event.quantity, now)
        result = prorate(
            self.mode,
            list(self.items.values()),
            list(after.values()),
            now,
            discounts=self.discounts,
            debits=self.debits,
            prorations=event.prorations,
        )
        self.bill(result.lines)
        self.items, self.debits = after, result.debits


class Model:
    """What a customer owes, second by second: the rate of each item that was last billed, and what cannot come back."""

    def __init__(self, start: int, scale: int, discount: int) -> None:
        self.factor = scale * Fraction(100 - discount, 100)
        self.anchor, self.index = start, 0
        self.end = start
        self.actual: dict[int, tuple[int, int]] = {0: (1, 1)}
        self.billed: dict[int, Fraction] = {}
        self.owed = Fraction(0)
        self.now = start
        self.renew()

    def rate(self, number: int) -> Fraction:
        unit, quantity = self.actual[number]
        return unit * quantity * self.factor / (self.end - month_later(self.anchor, self.index - 1))

    def renew(self) -> None:
        self.index += 1
        self.end = month_later(self.anchor, self.index)
        self.billed = {number: self.rate(number) for number in self.actual}

    def pass_until(self, now: int) -> None:
        self.owed += sum(self.billed.values()) * (now - self.now)
        self.now = now

    def keep(self, number: int) -> None:
        """The rest of the period stays billed, and no later change can credit it."""
        self.owed += self.billed.pop(number, Fraction(0)) * (self.end - self.now)

    def request(self, event: Event) -> None:
        was = dict(self.actual)
        if event.kind == "remove":
            self.actual.pop(event.item, None)
            if event.item in was and event.prorations:
                self.billed.pop(event.item, None)
            elif event.item in was:
                self.keep(event.item)
            return
        self.actual[event.item] = (event.unit, event.quantity)
        if event.kind == "restart":
            if not event.prorations:
                for number in list(self.billed):
                    self.keep(number)
            self.anchor, self.index = self.now, 0
            self.renew()
        elif event.prorations and self.actual != was:
            self.billed[event.item] = self.rate(event.item)


def run(
    mode: BillingMode, history: list[Event], scale: int, discount: int, check: Callable[[Subscription], None]
) -> tuple[Subscription, Model]:
    """Both after the history and the end of its last period."""
    start = at("2027-01-31 08:15:00")
    subscription, model = Subscription(mode, start, scale, discount), Model(start, scale, discount)
    now = start
    for event in history:
        now += event.gap
        while model.end <= now:
            model.pass_until(model.end)
            subscription.renew(model.end)
            model.renew()
        model.pass_until(now)
        subscription.request(event, now)
        model.request(event)
        check(subscription)
    model.pass_until(model.end)
    return subscription, model


def covers_each_second_once(subscription: Subscription) -> None:
    """The debits of an item are billed for parts of its period that touch and do not overlap."""
    for item in subscription.items.values():
        parts = sorted(debit.billed for debit in subscription.debits if debit.item.id == item.id)
        assert all(first.end == second.start for first, second in itertools.pairwise(parts))
        assert all(part.end <= item.period.end for part in parts[-1:])
        assert all(part.start < part.end for part in parts)


def nothing(_: Subscription) -> None:
    """No check after each step."""


# A multiple of every month's seconds and of 100: each line is whole cents, so that the comparison is exact.
WHOLE: Final = 28 * 29 * 30 * 31 * 86_400 * 100


@given(history=events(always_prorated=False), discount=st.sampled_from([0, 20, 50]))
@settings(max_examples=250, deadline=None)
def test_any_history_bills_each_second_once_in_flexible_mode(history: list[Event], discount: int) -> None:
    """Also with `none`: a credit takes back what was billed, no less and no more."""
    subscription, model = run("flexible", history, WHOLE, discount, covers_each_second_once)

    assert subscription.billed == model.owed


@given(history=events(always_prorated=True), discount=st.sampled_from([0, 20, 50]))
@settings(max_examples=150, deadline=None)
def test_any_history_bills_each_second_once_in_classic_mode(history: list[Event], discount: int) -> None:
    """Classic mode is exact when every change is prorated."""
    subscription, model = run("classic", history, WHOLE, discount, nothing)

    assert subscription.billed == model.owed


@given(history=events(always_prorated=False), scale=st.integers(1, 9_999), discount=st.sampled_from([0, 7, 33]))
@settings(max_examples=150, deadline=None)
def test_rounding_costs_at_most_half_a_cent_for_each_line(history: list[Event], scale: int, discount: int) -> None:
    """Real prices: each line, and each discount of a line, is rounded by itself."""
    subscription, model = run("flexible", history, scale, discount, nothing)

    assert abs(subscription.billed - model.owed) <= Fraction(subscription.line_count, 2)


@given(changes=st.lists(st.tuples(st.integers(0, 30 * 86_400 - 1), st.integers(0, 9)), max_size=6))
def test_any_order_of_proration_dates_bills_each_second_once(changes: list[tuple[int, int]]) -> None:
    """A later request with an earlier `proration_date` replaces everything from that date on. A seat is 1 cent/s."""
    item = seats(flat("seat", 30 * 86_400), 1, APRIL)
    debits, billed = debits_of([item], {}), 30 * 86_400
    timeline = {0: 1}
    for second, quantity in changes:
        result = prorate("flexible", [item], [item._replace(quantity=quantity)], APRIL.start + second, debits=debits)
        if quantity != item.quantity:
            timeline = {start: seats_then for start, seats_then in timeline.items() if start < second} | {
                second: quantity
            }
        item, debits = item._replace(quantity=quantity), result.debits
        billed += sum(cents(result.lines))

    edges = [*sorted(timeline), 30 * 86_400]
    assert billed == sum(timeline[start] * (end - start) for start, end in itertools.pairwise(edges))


@given(first=st.integers(0, 99_999), second=st.integers(0, 99_999), seconds=st.integers(1, 30 * 86_400 - 1))
def test_a_change_and_its_inverse_in_one_second_cancel(first: int, second: int, seconds: int) -> None:
    """Both modes: the two credits equal the two charges."""
    a, b = seats(flat("a", first), 1, APRIL), seats(flat("b", second), 1, APRIL)
    moment = APRIL.start + seconds

    there = prorate("flexible", [a], [b], moment, debits=debits_of([a], {}))
    back = prorate("flexible", [b], [a], moment, debits=there.debits)
    classic = prorate("classic", [a], [b], moment).lines + prorate("classic", [b], [a], moment).lines

    assert sum(cents(there.lines + back.lines)) == 0
    assert sum(cents(classic)) == 0


@given(unit=st.integers(0, 99_999), cuts=st.sets(st.integers(1, 30 * 86_400 - 1), min_size=1, max_size=5))
def test_a_cancellation_leaves_what_was_used(unit: int, cuts: set[int]) -> None:
    """After changes and a cancellation, the sum is the price of the seconds until then, within the lines' rounding."""
    item = seats(flat("a", unit), 1, APRIL)
    debits, lines = debits_of([item], {}), [unit]
    moments = [APRIL.start + seconds for seconds in sorted(cuts)]
    for moment in moments[:-1]:
        result = prorate("flexible", [item], [item._replace(quantity=item.quantity + 1)], moment, debits=debits)
        item, debits = item._replace(quantity=item.quantity + 1), result.debits
        lines += cents(result.lines)
    lines += cents(prorate("flexible", [item], [], moments[-1], debits=debits).lines)

    edges = [APRIL.start, *moments]
    seconds = sum(quantity * (end - start) for quantity, (start, end) in enumerate(itertools.pairwise(edges), start=1))
    used = Fraction(unit * seconds, 30 * 86_400)
    assert abs(sum(lines) - used) <= Fraction(len(lines), 2)


def test_a_period_is_a_share_of_itself() -> None:
    """Seconds outside the period do not count."""
    assert [APRIL.share(part) for part in (APRIL, Period(0, APRIL.end), Period(0, APRIL.start))] == [1, 1, 0]
