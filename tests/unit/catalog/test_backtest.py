"""The backtest of one customer by hand: what is billed in the span, and what is left out and named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

import pytest

from aggregators.backtest import PriceChange, Span, back_bills, compared, months_before, past_usage, price_change
from aggregators.catalog_plan import catalog_hash
from aggregators.catalog_prices import all_prices
from pipeline.commands.backtest import Backtest, backtest_lines, major, months_of, run_backtest
from schemas.backtest import BackBill, LeftOut, PaidItem, PaidSubscription, Payer, PeriodTotal
from schemas.catalog_changes import CatalogKind, KnownPlan, PlanState, Standing, StripeRecord
from schemas.clock import DAY_MS, MINUTE_MS
from schemas.errors import InvalidInput
from schemas.periods import Period
from tests.unit.catalog.files import catalog_of

MAY_MS: Final = 1_777_593_600_000  # 2026-05-01T00:00:00Z
JUNE_MS: Final = MAY_MS + 31 * DAY_MS
NOVEMBER_MS: Final = 1_793_491_200_000
DECEMBER_MS: Final = NOVEMBER_MS + 30 * DAY_MS
OCTOBER_MS: Final = NOVEMBER_MS - 31 * DAY_MS
NOW_MS: Final = DECEMBER_MS + 10 * DAY_MS + 7
SPAN: Final = Span(months_before(NOW_MS, 2), NOW_MS, NOW_MS - 60 * MINUTE_MS)
HEAD: Final = """\
version: 1
meters:
  - {slug: calls, event_type: call, aggregation: sum, value_path: $.n, unit: calls, stripe_event_name: calls}
  - {slug: rows, event_type: row, aggregation: count, unit: rows, stripe_event_name: rows}
currencies: {usd: 2, eur: 2}
features:
  seats: {type: seat, merge: sum}
plans:
"""
OLD: Final = (
    HEAD
    + """\
  team:
    version: 1
    prices:
      - {component: seat, quantity: seats, month: {usd: "10", eur: "9"}, year: {usd: "100", eur: "90"}}
      - {component: calls, meter: calls, unit: calls, month: {usd: "0.02", eur: "0.02"}}
  solo:
    version: 1
    prices:
      - {component: base, month: {usd: "5"}}
addons:
  boost: {version: 1, for: [team], price: {month: {usd: "3"}}}
"""
)
NEW: Final = OLD.replace("team:\n    version: 1", "team:\n    version: 2").replace('usd: "10"', 'usd: "12"')
SEAT: Final = "tm.team.v1.seat.month.usd"
CALLS: Final = "tm.team.v1.calls.month.usd"


def change_to(new: str) -> PriceChange:
    """The change from the prices in force to a file. Price ids are the lookup keys."""
    old = catalog_of(OLD)
    records = {
        (CatalogKind.PRICE, key): StripeRecord(key, CatalogKind.PRICE, key, price.plan, price.component)
        for key, price in all_prices(old).items()
    }
    plans = {plan: KnownPlan(sold, PlanState.OPEN) for plan, sold in old.sold().items()}
    return price_change(Standing(old, catalog_hash(old), plans=plans, records=records), catalog_of(new))


def subscription(*items: str | tuple[str, int | None], **fields: Any) -> PaidSubscription:
    """A subscription that began on May 1, with its running period."""
    rows = tuple(
        PaidItem(*(item if isinstance(item, tuple) else (item, None)), DECEMBER_MS + 31 * DAY_MS) for item in items
    )
    made = PaidSubscription("sub_1", "usd", MAY_MS, MAY_MS, is_discounted=False, items=rows)
    return made._replace(**fields)


def payer(*subscriptions: PaidSubscription, account: str = "acme") -> Payer:
    """A customer."""
    return Payer("cus_1", account, subscriptions)


TEAM: Final = subscription((SEAT, 3), CALLS)
USED: Final = (
    PeriodTotal("acme", "calls", Period(OCTOBER_MS, NOVEMBER_MS), Decimal(100)),
    PeriodTotal("acme", "calls", Period(NOVEMBER_MS, DECEMBER_MS), Decimal("7.5")),
)


def backtest(
    who: Payer,
    new: str = NEW,
    totals: Sequence[PeriodTotal] = USED,
    span: Span = SPAN,
    first: Mapping[str, int] | None = None,
) -> tuple[list[BackBill], dict[LeftOut, int]]:
    """The bills, and how often something is left out."""
    subscriptions, omitted = compared(who, change_to(new), span.to_ms)
    bills, more = back_bills(who, subscriptions, past_usage(totals, first or {}), span)
    counts: dict[LeftOut, int] = {}
    for each in (*omitted, *more):
        counts[each.reason] = counts.get(each.reason, 0) + each.times
    return bills, counts


def amounts(bills: Sequence[BackBill]) -> list[tuple[str, int, int, int]]:
    """By currency: the invoices, and both amounts."""
    return [(bill.currency, bill.invoices, bill.before_minor, bill.after_minor) for bill in bills]


def test_the_invoices_of_a_span_have_the_fees_of_a_period_and_the_usage_of_the_one_before() -> None:
    """On November 1 and December 1: 3 * 1000 each, 100 * 2 and 7.5 * 2; the new seats cost 1200. December runs."""
    bills, omitted = backtest(payer(TEAM))

    assert [("usd", 2, 6_000 + 215, 7_200 + 215)] == amounts(bills)
    assert ("team@1 → team@2", 1_200) == (bills[0].plans, bills[0].difference_minor)
    assert {LeftOut.RUNNING: 1} == omitted


def test_what_does_not_change_is_not_compared() -> None:
    assert ([], {}) == backtest(payer(subscription(("tm.solo.v1.base.month.usd", 1))))
    assert ([], {}) == backtest(payer(TEAM), OLD)


def test_an_add_on_that_stays_is_on_both_sides() -> None:
    """Two invoices with 300 more."""
    bills, _ = backtest(payer(subscription((SEAT, 3), CALLS, ("tm.boost.v1.addon.month.usd", 1))))

    assert [("usd", 2, 6_815, 8_015)] == amounts(bills)


def test_subscriptions_are_added_up_by_currency() -> None:
    euros = subscription(("tm.team.v1.seat.month.eur", 1), id="sub_2", currency="eur")
    more = subscription((SEAT, 1), id="sub_3")

    bills, _ = backtest(payer(TEAM, euros, more))

    assert [("usd", 4, 8_215, 9_815), ("eur", 2, 1_800, 1_800)] == amounts(bills)


def test_a_yearly_fee_counts_where_its_period_begins_in_the_span() -> None:
    """Paid ahead: on May 1, which two months do not reach and a year does. Usage is monthly all the same."""
    yearly = TEAM._replace(
        items=(PaidItem("tm.team.v1.seat.year.usd", 3, MAY_MS + 365 * DAY_MS), TEAM.items[1]),
    )
    new = NEW.replace('year: {usd: "100"', 'year: {usd: "120"')

    short, _ = backtest(payer(yearly), new)
    long, _ = backtest(payer(yearly), new, span=SPAN._replace(from_ms=months_before(NOW_MS, 12)))

    assert [("usd", 2, 215, 215)] == amounts(short)
    assert [("usd", 8, 30_000 + 215, 36_000 + 215)] == amounts(long)


def test_what_the_customer_did_not_buy_is_not_added_and_what_is_new_is() -> None:
    """Who has no usage price of the old version gets none; a new fee is once, a renamed seat keeps its quantity."""
    new = NEW.replace("component: seat", "component: person").replace(
        "      - {component: calls",
        '      - {component: base, month: {usd: "1", eur: "1"}, year: {usd: "1", eur: "1"}}\n      - {component: calls',
    )

    bills, omitted = backtest(payer(subscription((SEAT, 3))), new)

    assert [("usd", 2, 6_000, 7_400)] == amounts(bills)
    assert {} == omitted


CUT: Final = PeriodTotal("acme", "calls", Period(NOVEMBER_MS, NOVEMBER_MS + 4 * DAY_MS), Decimal(1))
ROWS: Final = NEW.replace(
    "      - {component: calls",
    """\
      - {component: rows, meter: rows, unit: rows, month: {usd: "1", eur: "1"}}
      - {component: calls""",
)
EURO: Final = subscription(("tm.team.v1.seat.month.eur", 3), currency="eur")
WEEKLY: Final = NEW.replace('unit: calls, month: {usd: "0.02"', 'unit: calls, week: {usd: "0.02"')
PEOPLE: Final = NEW.replace("  seats: {type", "  people: {type: seat, merge: sum}\n  seats: {type").replace(
    "      - {component: calls", '      - {component: p, quantity: people, month: {usd: "1", eur: "1"}, '
    'year: {usd: "1", eur: "1"}}\n      - {component: calls',
)  # fmt: skip

# (customer, file, totals, first usage, amounts, what is left out)
Expected = tuple[str, int, int, int]
Case = tuple[Payer, str, Sequence[PeriodTotal], dict[str, int], list[Expected], dict[LeftOut, int]]
OMISSIONS: Final[Mapping[str, Case]] = {
    "a price that no plan has": (
        payer(TEAM, subscription(("price_x", 1))), NEW, USED, {}, [("usd", 2, 6_215, 7_415)],
        {LeftOut.OTHER_PRICE: 1, LeftOut.RUNNING: 1},
    ),
    "usage without an account": (payer(TEAM, account=""), NEW, (), {}, [], {LeftOut.NO_ACCOUNT: 1}),
    "fees without an account": (
        payer(subscription((SEAT, 1)), account=""), NEW, (), {}, [("usd", 2, 2_000, 2_400)], {},
    ),
    "another period than the subscription's": (
        payer(TEAM), NEW, (USED[0], CUT), {}, [("usd", 2, 6_200, 7_400)], {LeftOut.RUNNING: 1, LeftOut.CUT: 1},
    ),
    "a meter that was counted since the middle of October": (
        payer(TEAM), ROWS, (*USED, PeriodTotal("acme", "rows", Period(NOVEMBER_MS, DECEMBER_MS), Decimal(2))),
        {"rows": OCTOBER_MS + 14 * DAY_MS}, [("usd", 2, 6_015, 7_415)], {LeftOut.RUNNING: 1, LeftOut.NO_USAGE: 1},
    ),
    "a meter without any usage": (
        payer(TEAM), ROWS, USED, {}, [("usd", 2, 6_000, 7_200)], {LeftOut.RUNNING: 1, LeftOut.NO_USAGE: 2},
    ),
    "no price in the currency": (
        payer(EURO),
        NEW.replace(', eur: "9"', "").replace(', eur: "90"', "").replace(', eur: "0.02"', ""), USED, {}, [],
        {LeftOut.NO_PRICE: 1},
    ),
    "no price by the year": (
        payer(TEAM._replace(items=(PaidItem("tm.team.v1.seat.year.usd", 3, MAY_MS + 365 * DAY_MS),))),
        NEW.replace(', year: {usd: "100", eur: "90"}', ""), USED, {}, [], {LeftOut.NO_PRICE: 1},
    ),
    "a new seat whose number nobody knows": (payer(TEAM), PEOPLE, USED, {}, [], {LeftOut.NO_QUANTITY: 1}),
    "a fee without a quantity": (payer(subscription(SEAT)), NEW, USED, {}, [], {LeftOut.NO_QUANTITY: 1}),
    "usage by the week": (payer(TEAM), WEEKLY, USED, {}, [], {LeftOut.OTHER_INTERVAL: 1}),
    "another period at Stripe than the anchor says": (
        payer(TEAM._replace(items=(PaidItem(SEAT, 3, DECEMBER_MS + 4 * DAY_MS),))), NEW, USED, {}, [],
        {LeftOut.OTHER_PERIODS: 1},
    ),
    "begun within a period": (
        payer(TEAM._replace(starts_ms=NOVEMBER_MS + 9 * DAY_MS + 7)), NEW, USED, {}, [("usd", 1, 3_000, 3_600)],
        {LeftOut.BEGUN_WITHIN: 1, LeftOut.RUNNING: 1},
    ),
    "begun on November 1": (
        payer(
            TEAM._replace(
                starts_ms=NOVEMBER_MS + 59_000, anchor_ms=NOVEMBER_MS + 59_000,
                items=tuple(item._replace(period_end_ms=item.period_end_ms + 59_000) for item in TEAM.items),
            )
        ), NEW, USED, {},
        [("usd", 2, 6_015, 7_215)], {LeftOut.RUNNING: 1},
    ),
    "in a trial": (
        payer(TEAM._replace(starts_ms=NOW_MS + DAY_MS, anchor_ms=NOW_MS + DAY_MS)), NEW, USED, {}, [],
        {LeftOut.NOTHING_DUE: 1},
    ),
    "a discount": (
        payer(TEAM._replace(is_discounted=True)), NEW, USED, {}, [("usd", 2, 6_215, 7_415)],
        {LeftOut.DISCOUNTED: 1, LeftOut.RUNNING: 1},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("who", "new", "totals", "first", "expected", "left_out"), OMISSIONS.values(), ids=OMISSIONS)
def test_what_is_not_known_is_named_and_not_guessed(
    who: Payer,
    new: str,
    totals: Sequence[PeriodTotal],
    first: dict[str, int],
    expected: list[Expected],
    left_out: dict[LeftOut, int],
) -> None:
    bills, omitted = backtest(who, new, totals, first=first)

    assert (expected, left_out) == (amounts(bills), omitted)


def test_usage_that_may_still_grow_is_not_compared() -> None:
    """The relay is a minute behind the end of November: that invoice has its fees alone."""
    bills, omitted = backtest(payer(TEAM), span=SPAN._replace(complete_up_to_ms=DECEMBER_MS - MINUTE_MS))

    assert [("usd", 2, 6_200, 7_400)] == amounts(bills)
    assert {LeftOut.RUNNING: 2} == omitted


class Pages:
    """Payers in pages, who used nothing."""

    def __init__(self, count: int) -> None:
        self.count = count

    async def payers(self, after: str, limit: int, _now_ms: int) -> Sequence[Payer]:
        first = int(after or "0") + 1
        return [
            Payer(f"{number:06}", "", (subscription((SEAT, number % 7)),))
            for number in range(first, min(first + limit, self.count + 1))
        ]

    async def totals(self, *_: object) -> Sequence[PeriodTotal]:
        return ()

    async def first_usage_ms(self, *_: object) -> Mapping[str, int]:
        return {}


async def run_pages(count: int, time_limit_s: float = 60) -> tuple[Backtest, list[BackBill]]:
    """The backtest of many customers, and all bills in the order in which they are written."""
    pages: Any = Pages(count)
    written: list[BackBill] = []
    result = await run_backtest(pages, pages, change_to(NEW), SPAN, written.append, time_limit_s)
    return result, written


async def test_all_customers_are_counted_and_the_greatest_differences_are_kept() -> None:
    """Customers with 0 to 6 seats: 400 more for each seat. Memory has a thousand of them, the file all."""
    result, written = await run_pages(2_100)

    assert [f"{number:06}" for number in range(1, 2_101)] == [bill.customer for bill in written]
    total = result.totals["usd"]
    assert (1_800, 0, 300, 1_800 * 1_400) == (total.more, total.less, total.same, total.more_minor)
    kept = result.bills()
    assert 1_000 == len(kept)
    assert (2_400, 1_200) == (kept[0].difference_minor, kept[-1].difference_minor)
    assert sorted((-bill.difference_minor, bill.customer) for bill in kept) == [
        (-bill.difference_minor, bill.customer) for bill in kept
    ]
    assert "  and 2080 customers with lesser differences: --csv FILE has all" in backtest_lines(result)


async def test_a_backtest_ends_at_its_time_limit_and_says_so() -> None:
    result, written = await run_pages(1_200, time_limit_s=0)

    assert 500 == len(written) == result.payers
    assert ["those after 000500"] == list(result.omitted[LeftOut.NOT_REACHED].names)


async def test_names_that_a_terminal_cannot_show_are_escaped() -> None:
    result = Backtest(0, NOW_MS)
    result.add(BackBill("cus_1", "a\x1b[2J" + "b" * 90, "p", "usd", 2, 1, 5, 7))

    text = "\n".join(backtest_lines(result))

    assert r"a\x1b[2Jb" in text
    assert "\x1b" not in text
    assert "b" * 60 not in text


@pytest.mark.parametrize(
    ("minor", "exponent", "text"),
    [(0, 2, "0.00"), (5, 2, "0.05"), (-5, 2, "-0.05"), (-12_345, 2, "-123.45"), (7, 0, "7"), (1_234, 3, "1.234")],
)
def test_amounts_have_all_decimals_of_their_currency(minor: int, exponent: int, text: str) -> None:
    assert text == major(minor, exponent)


@pytest.mark.parametrize("text", ["", "6", "0m", "37m", "100m", "6M", "-6m", "6m ", "½m", "٦m"])
def test_a_span_that_is_no_number_of_months_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="--backtest"):
        months_of(text)


def test_months_are_those_of_the_calendar() -> None:
    """Six months before November 30 is May 30; a month before March 31 is the end of February."""
    assert MAY_MS + 29 * DAY_MS == months_before(DECEMBER_MS - DAY_MS, 6)
    march_31_ms = MAY_MS - 31 * DAY_MS
    assert march_31_ms - 31 * DAY_MS == months_before(march_31_ms, 1)
    assert 6 == months_of("6m")
