"""Monthly recurring revenue: histories as tables, and an example business whose figures were computed by hand."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from fractions import Fraction
from itertools import pairwise
from typing import Any, Final

import pytest

from aggregators.mrr import account_revenue, cohorts, monthly, months
from schemas.clock import DAY_MS
from schemas.periods import Interval
from schemas.revenue import AuditChange, Movement, MovementKind

# Cents for one, by price.
PRICES: Final = {"basic": 9_900, "pro": 14_900, "yearly": 154_800, "weekly": 1_000, "daily": 100}
INTERVALS: Final = {"yearly": "year", "weekly": "week", "daily": "day"}
NEW, BACK = MovementKind.NEW, MovementKind.REACTIVATION
UP, DOWN = MovementKind.EXPANSION, MovementKind.CONTRACTION
CHURN, UNPAID = MovementKind.CHURN, MovementKind.INVOLUNTARY_CHURN


def ms(day: str) -> int:
    """An instant of a text such as `2027-02-01` or `2027-02-01 10:30`."""
    return int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()) * 1_000


def amount_of(price: str, quantity: int, _currency: str) -> Fraction | None:
    return Fraction(PRICES[price] * quantity) if price in PRICES else None


def item(price: str, quantity: int | None = 1, subscription: str = "sub") -> dict[str, Any]:
    return {
        "id": f"si_{subscription}", "subscription_id": subscription, "price_id": price, "quantity": quantity,
        "interval": INTERVALS.get(price, "month"), "interval_count": 1,
    }  # fmt: skip


def begun(day: str, price: str = "basic", quantity: int | None = 1, status: str = "active", **more: Any) -> AuditChange:
    """A subscription is made."""
    name = more.pop("name", "sub")
    row = {
        "id": name, "status": status, "currency": "usd", "start_ms": ms(day), "trial_end_ms": None, "ended_ms": None,
        "cancellation_reason": None, "deleted": 0, **more,
    }  # fmt: skip
    after = {"subscriptions": {name: row}, "subscription_items": {f"si_{name}": item(price, quantity, name)}}
    return AuditChange("acme", ms(day), "subscription", name, {}, after)


def now(day: str, price: str, quantity: int = 1) -> AuditChange:
    """The item becomes another one."""
    after = {"subscription_items": {"si_sub": {"price_id": price, "quantity": quantity, **_terms(price)}}}
    return AuditChange("acme", ms(day), "subscription", "sub", {}, after)


def _terms(price: str) -> dict[str, Any]:
    return {"interval": INTERVALS.get(price, "month")}


def became(day: str, **columns: Any) -> AuditChange:
    """Columns of the subscription change."""
    return AuditChange("acme", ms(day), "subscription", "sub", {}, {"subscriptions": {"sub": columns}})


def ended(day: str, reason: str = "cancellation_requested") -> AuditChange:
    return became(day, status="canceled", ended_ms=ms(day), cancellation_reason=reason)


def case(day: str, downgrade: str | None, **columns: Any) -> AuditChange:
    """A dunning case says from when on the plan is lost."""
    after = {**columns, "downgrade_ms": downgrade and ms(downgrade)}
    return AuditChange("acme", ms(day), "dunning", "dun_1", {}, after)


def off(minor: int | None = None, *, more: Sequence[Mapping[str, Any]] = (), **columns: Any) -> str:
    """The discounts of a subscription: one, and perhaps more."""
    usual = {
        "id": "di_1", "coupon": "c", "percent": None, "amount_minor": None, "currency": "usd", "duration": "forever",
        "start_ms": 0, "end_ms": None,
    }  # fmt: skip
    return json.dumps([{**usual, "amount_minor": minor, **columns}, *({**usual, **each} for each in more)])


OPENED: Final = {"subscription_id": "sub"}
HISTORIES: Final[Mapping[str, tuple[Sequence[AuditChange], Sequence[tuple[str, MovementKind, int]]]]] = {
    "a month": ([begun("2027-01-05")], [("2027-01-05", NEW, 9_900)]),
    "three seats": ([begun("2027-01-05", "pro", 3)], [("2027-01-05", NEW, 44_700)]),
    "a year is twelve months": ([begun("2027-01-05", "yearly", 2)], [("2027-01-05", NEW, 25_800)]),
    "a week is 52 / 12": ([begun("2027-01-05", "weekly")], [("2027-01-05", NEW, 4_333)]),
    "a day is 365 / 12": ([begun("2027-01-05", "daily")], [("2027-01-05", NEW, 3_042)]),
    "usage is not recurring": ([begun("2027-01-05", quantity=None)], []),
    "a trial brings nothing until its end": (
        [begun("2027-01-05", status="trialing", trial_end_ms=ms("2027-01-19")), became("2027-01-19", status="active")],
        [("2027-01-19", NEW, 9_900)],
    ),
    "a first payment that fails brings nothing": (
        [begun("2027-01-05", status="incomplete"), became("2027-01-06", status="incomplete_expired")], [],
    ),
    "up and down": (
        [begun("2027-01-05"), now("2027-02-10", "pro"), now("2027-03-05", "basic", 1)],
        [("2027-01-05", NEW, 9_900), ("2027-02-10", UP, 14_900), ("2027-03-05", DOWN, 9_900)],
    ),
    "a month becomes a year": (
        [begun("2027-01-05", "pro"), now("2027-02-10", "yearly")],
        [("2027-01-05", NEW, 14_900), ("2027-02-10", DOWN, 12_900)],
    ),
    "the end counts from the end": (
        [begun("2027-01-05"), became("2027-01-20", cancel_at_ms=ms("2027-02-05")), ended("2027-02-05")],
        [("2027-01-05", NEW, 9_900), ("2027-02-05", CHURN, 0)],
    ),
    "back after a month": (
        [begun("2027-01-05"), ended("2027-02-05"), begun("2027-03-05", "pro", name="sub2")],
        [("2027-01-05", NEW, 9_900), ("2027-02-05", CHURN, 0), ("2027-03-05", BACK, 14_900)],
    ),
    "an end and a start within a day are one change": (
        [begun("2027-01-05"), ended("2027-02-05"), begun("2027-02-05 23:59", "pro", name="sub2")],
        [("2027-01-05", NEW, 9_900), ("2027-02-05 23:59", UP, 14_900)],
    ),
    "an end and the same again within a day are no change": (
        [begun("2027-01-05"), ended("2027-02-05"), begun("2027-02-05 10:00", name="sub2")],
        [("2027-01-05", NEW, 9_900)],
    ),
    "who owes is counted until the downgrade": (
        [
            begun("2027-01-05"), became("2027-02-05", status="past_due"), case("2027-02-05", None, **OPENED),
            case("2027-02-19", "2027-02-22"), case("2027-02-23", "2027-02-22"),
        ],
        [("2027-01-05", NEW, 9_900), ("2027-02-22", UNPAID, 0)],
    ),
    "who pays after the downgrade is back": (
        [
            begun("2027-01-05"), became("2027-02-05", status="past_due"), case("2027-02-05", None, **OPENED),
            case("2027-02-19", "2027-02-22"), became("2027-03-01", status="active"), case("2027-03-01", None),
        ],
        [("2027-01-05", NEW, 9_900), ("2027-02-22", UNPAID, 0), ("2027-03-01", BACK, 9_900)],
    ),
    "a downgrade that payment prevents": (
        [
            begun("2027-01-05"), became("2027-02-05", status="past_due"), case("2027-02-19", "2027-02-22", **OPENED),
            became("2027-02-20", status="active"), case("2027-02-20", None),
        ],
        [("2027-01-05", NEW, 9_900)],
    ),
    "Stripe calls it unpaid": (
        [begun("2027-01-05"), became("2027-02-19", status="unpaid")],
        [("2027-01-05", NEW, 9_900), ("2027-02-19", UNPAID, 0)],
    ),
    "Stripe ends it for the payment": (
        [begun("2027-01-05"), ended("2027-02-19", "payment_failed")],
        [("2027-01-05", NEW, 9_900), ("2027-02-19", UNPAID, 0)],
    ),
    "first seen by a link long after": (
        [begun("2027-01-05")._replace(at_ms=ms("2027-03-01"))], [("2027-01-05", NEW, 9_900)],
    ),
    "two subscriptions are one account": (
        [begun("2027-01-05"), begun("2027-01-06", "pro", name="sub2"), ended("2027-02-05")],
        [("2027-01-05", NEW, 9_900), ("2027-01-06", UP, 24_800), ("2027-02-05", DOWN, 14_900)],
    ),
    "a percentage is taken off": (
        [begun("2027-01-05", discounts_json=off(percent="12.5"))], [("2027-01-05", NEW, 8_663)],
    ),
    "an amount is taken off": (
        [begun("2027-01-05", "pro", 2, discounts_json=off(1_000))], [("2027-01-05", NEW, 28_800)],
    ),
    "one after the other": (
        [begun("2027-01-05", discounts_json=off(900, more=[{"percent": "50"}]))], [("2027-01-05", NEW, 4_500)],
    ),
    "no more than all": ([begun("2027-01-05", "daily", discounts_json=off(1_000))], []),
    "an amount in another currency": (
        [begun("2027-01-05", discounts_json=off(1_000, currency="eur"))], [("2027-01-05", NEW, 9_900)],
    ),
    "an amount of a year is a twelfth": (
        [begun("2027-01-05", "yearly", discounts_json=off(12_000))], [("2027-01-05", NEW, 11_900)],
    ),
    "a coupon for once does not recur": (
        [begun("2027-01-05", discounts_json=off(1_000, duration="once"))], [("2027-01-05", NEW, 9_900)],
    ),
    "a discount of which only the id is known": (
        [begun("2027-01-05", discounts_json='["di_1"]')], [("2027-01-05", NEW, 9_900)],
    ),
    "three months of a discount, and no row at their end": (
        [begun("2027-01-05", discounts_json=off(1_000, duration="repeating", end_ms=ms("2027-04-05")))],
        [("2027-01-05", NEW, 8_900), ("2027-04-05", UP, 9_900)],
    ),
    "a discount that comes later": (
        [begun("2027-01-05"), became("2027-02-01", discounts_json=off(percent="10", start_ms=ms("2027-02-01")))],
        [("2027-01-05", NEW, 9_900), ("2027-02-01", DOWN, 8_910)],
    ),
    "an item that is taken away": (
        [
            begun("2027-01-05"),
            AuditChange("acme", ms("2027-02-01"), "subscription", "sub", {"subscription_items": {"si_sub": {}}}, {}),
        ],
        [("2027-01-05", NEW, 9_900), ("2027-02-01", CHURN, 0)],
    ),
    "what happens later than now": (
        [begun("2027-01-05"), case("2027-07-30", "2027-08-02", **OPENED)], [("2027-01-05", NEW, 9_900)],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "expected"), HISTORIES.values(), ids=HISTORIES)
def test_a_history_moves_revenue(
    changes: Sequence[AuditChange], expected: Sequence[tuple[str, MovementKind, int]]
) -> None:
    found = account_revenue(changes, amount_of, ms("2027-08-01"))
    assert [(each.at_ms, each.kind, each.after_minor) for each in found.movements] == [
        (ms(day), kind, minor) for day, kind, minor in expected
    ]


def test_two_currencies_are_two_accounts() -> None:
    changes = [begun("2027-01-05"), begun("2027-01-06", name="sub2", currency="eur"), ended("2027-02-05")]
    found = account_revenue(changes, amount_of, ms("2027-08-01")).movements
    assert [(each.currency, each.kind) for each in found] == [("usd", NEW), ("eur", NEW), ("usd", CHURN)]


def test_what_no_catalog_sells_is_said() -> None:
    found = account_revenue([begun("2027-01-05", "price_other")], amount_of, ms("2027-08-01"))
    assert (found.movements, found.unpriced_items) == ((), 1)


def test_a_month_of_every_interval() -> None:
    expected = {Interval.DAY: Fraction(36_500, 12), Interval.WEEK: Fraction(5_200, 12), Interval.MONTH: 100}
    found = {each: monthly(Fraction(100), each, 1) for each in Interval}
    assert found == expected | {Interval.YEAR: Fraction(100, 12)}
    assert monthly(Fraction(300), Interval.MONTH, 3) == 100


# An example business: what each account pays a month, in dollars, from the day on. It is docs/revenue.md's.
BUSINESS: Final = """
ann     2026-09-03 100
bob     2026-09-20 200   2026-10-10 300
cleo    2026-10-01 100   2026-11-15   0
dora    2026-10-05 500   2026-11-05 400   2026-12-05 600
emil    2026-10-31 100   2026-11-30   0   2026-12-20 150
fay     2026-11-01 250
gus     2026-11-11 100   2026-12-11   0x
hana    2026-12-01 700
ivo     2026-12-24 100   2026-12-24   0   2026-12-24 100
june    2027-01-02 100
"""
# Month: start, new, back, up, down, left, unpaid, end; net and gross retention in cents of what the start had.
FIGURES: Final = """
2026-09      0    300     0     0     0      0      0    300      0      0
2026-10    300    700     0   100     0      0      0   1100    400    300
2026-11   1100    350     0     0  -100   -200      0   1150    800    800
2026-12   1150    800   150   200     0      0   -100   2200   1250   1050
"""


def business() -> list[Movement]:
    found = []
    for line in BUSINESS.strip().splitlines():
        account, *steps = line.split()
        before, was_ever = 0, False
        points: dict[int, str] = {}
        for day, dollars in zip(steps[::2], steps[1::2], strict=True):
            points[ms(day)] = dollars
        for at_ms, dollars in points.items():
            after = 100 * int(dollars.rstrip("x"))
            if not after:
                kind = UNPAID if dollars.endswith("x") else CHURN
            elif not before:
                kind = BACK if was_ever else NEW
            else:
                kind = UP if after > before else DOWN
            found.append(Movement(account, "usd", at_ms, kind, before, after))
            before, was_ever = after, True
    return found


STARTS: Final = [ms(f"{month}-01") for month in ("2026-09", "2026-10", "2026-11", "2026-12", "2027-01")]


def test_the_example_business_by_month() -> None:
    found = [
        [each.start_minor, *(each.changes.get(kind, 0) for kind in (NEW, BACK, UP, DOWN, CHURN, UNPAID)),
         each.end_minor, each.retained_minor, each.kept_minor]
        for each in months(business(), STARTS)
    ]  # fmt: skip
    assert found == [[100 * int(cell) for cell in line.split()[1:]] for line in FIGURES.strip().splitlines()]


def test_the_example_business_by_cohort() -> None:
    found = [(each.start_ms, each.minor, each.accounts) for each in cohorts(business(), STARTS)]
    assert found == [
        (STARTS[0], (30_000, 40_000, 40_000, 40_000), (2, 2, 2, 2)),
        (STARTS[1], (70_000, 40_000, 75_000), (3, 1, 2)),
        (STARTS[2], (35_000, 25_000), (2, 1)),
        (STARTS[3], (80_000,), (2,)),
    ]


@pytest.mark.parametrize("seed", range(30))
def test_a_random_history_adds_up(seed: int) -> None:
    """Each day's revenue is that of a naive count of what is active, and the movements of any span add up to it."""
    dice = random.Random(seed)
    first_ms, changes, days = ms("2027-01-01"), [], {}
    held: dict[str, tuple[str, int]] = {}
    for day in range(0, 200, 2):
        at_ms = first_ms + day * DAY_MS
        at = datetime.fromtimestamp(at_ms / 1_000, UTC).strftime("%Y-%m-%d")
        name, price, quantity = dice.choice(["sub", "sub2", "sub3"]), dice.choice([*PRICES]), dice.randrange(1, 5)
        done = dice.random()
        if name not in held and done < 0.5:
            changes.append(begun(at, price, quantity, name=name))
            held[name] = (price, quantity)
        elif name in held and done < 0.2:
            columns = {"status": "canceled", "ended_ms": at_ms, "cancellation_reason": None}
            changes.append(AuditChange("acme", at_ms, "subscription", name, {}, {"subscriptions": {name: columns}}))
            del held[name]
        elif name in held and done < 0.6:
            row = {"price_id": price, "quantity": quantity, **_terms(price)}
            changes.append(
                AuditChange("acme", at_ms, "subscription", name, {}, {"subscription_items": {f"si_{name}": row}})
            )
            held[name] = (price, quantity)
        per_year = {"yearly": 1, "weekly": 52, "daily": 365}
        a_year = sum(PRICES[each] * count * per_year.get(each, 12) for each, count in held.values())
        days[at_ms + 1] = (2 * a_year + 12) // 24
    movements = account_revenue(changes, amount_of, first_ms + 300 * DAY_MS).movements
    for start, end in pairwise(days):
        for month in months(movements, [start, end]):
            assert (month.start_minor, month.end_minor) == (days[start], days[end]), f"seed {seed}"
            assert sum(month.changes.values()) == days[end] - days[start]
    kinds = Counter(each.kind for each in movements)
    assert kinds[NEW] == 1
