"""Monthly recurring revenue from the audit: the subscriptions of an account are replayed, row by row.

MRR is a function of the audit and of the catalog's prices, so it is the same whenever it is computed, also for the
past. The formulas are in docs/revenue.md.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from math import floor
from typing import Any, Final, NamedTuple

from schemas.clock import DAY_MS
from schemas.periods import Interval
from schemas.revenue import AccountRevenue, AuditChange, Cohort, MonthRevenue, Movement, MovementKind

# What an item costs for its whole period in minor units, by price id, quantity and currency; None if no catalog knows.
AmountOf = Callable[[str, int, str], Fraction | None]

DUNNING: Final = "dunning"
# An end and a new start within so long are one change.
NET_MS: Final = DAY_MS
# Weeks and days of a year of 365 days, in months.
_MONTHS: Final = {
    Interval.DAY: Fraction(12, 365),
    Interval.WEEK: Fraction(12, 52),
    Interval.MONTH: Fraction(1),
    Interval.YEAR: Fraction(12),
}
_PAYING: Final = frozenset({"active", "past_due"})
_FAILED: Final = frozenset({"unpaid", "paused"})
_PAYMENT_FAILED: Final = "payment_failed"
_TABLES: Final = ("subscriptions", "subscription_items")


def monthly(amount: Fraction, interval: Interval, interval_count: int) -> Fraction:
    """What an amount for a period is in a month: a year has 12 months, 52 weeks and 365 days."""
    return amount / (_MONTHS[interval] * interval_count)


class Discount(NamedTuple):
    """What a coupon takes off each invoice in `[start_ms, end_ms)`: a percentage, or an amount in minor units."""

    percent: Fraction | None
    minor: int
    currency: str
    start_ms: int
    end_ms: int | None


@dataclass
class _Account:
    """What was replayed of an account. `downgrades`: from when on a subscription gives only the fallback plan."""

    rows: dict[str, dict[str, dict[str, Any]]] = field(default_factory=lambda: {name: {} for name in _TABLES})
    downgrades: dict[str, int] = field(default_factory=dict)
    cases: dict[str, str] = field(default_factory=dict)
    points: list[tuple[int, Counter[str], bool]] = field(default_factory=list)
    unpriced: set[str] = field(default_factory=set)


def account_revenue(changes: Sequence[AuditChange], amount_of: AmountOf, now_ms: int) -> AccountRevenue:
    """The movements of one account up to `now_ms`, from its rows in their order."""
    state, at_ms = _Account(), 0
    for change in changes:
        # A row may be written later than a later one's event.
        at_ms = max(at_ms, _effective_ms(change))
        if at_ms > now_ms:
            break
        _pass(state, at_ms, amount_of)
        _apply(state, change)
        _note(state, at_ms, amount_of)
    _pass(state, now_ms, amount_of)
    movements = [each for currency in sorted(_currencies(state)) for each in _movements(changes, state, currency)]
    movements.sort(key=lambda each: (each.at_ms, each.currency))
    return AccountRevenue(changes[0].account if changes else "", tuple(movements), len(state.unpriced))


def _effective_ms(change: AuditChange) -> int:
    """When what a row says took effect. A subscription that ended says so itself. One that is first seen long after its
    start, such as by a link, is taken to have been the same since."""
    found = change.at_ms
    for row in change.after.get("subscriptions", {}).values():
        if row.get("ended_ms") is not None:
            found = int(row["ended_ms"])
        elif "start_ms" in row and row.get("status") in _PAYING:
            found = min(found, max(int(row["start_ms"] or found), int(row.get("trial_end_ms") or 0)))
    return found


def _apply(state: _Account, change: AuditChange) -> None:
    if change.entity == DUNNING:
        _apply_case(state, change)
        return
    for table in _TABLES:
        rows, after = state.rows[table], change.after.get(table, {})
        for key in change.before.get(table, {}).keys() - after.keys():
            rows.pop(key, None)
        for key, row in after.items():
            rows[key] = rows.get(key, {}) | row


def _apply_case(state: _Account, change: AuditChange) -> None:
    subscription = str(change.after.get("subscription_id") or state.cases.get(change.entity_id, ""))
    state.cases[change.entity_id] = subscription
    if "downgrade_ms" in change.after:
        downgrade_ms = change.after["downgrade_ms"]
        state.downgrades.pop(subscription, None)
        if downgrade_ms is not None:
            state.downgrades[subscription] = int(downgrade_ms)


def _pass(state: _Account, until_ms: int, amount_of: AmountOf) -> None:
    """Note what takes effect without any row until an instant: downgrades, and ends of discounts."""
    last_ms = state.points[-1][0] if state.points else -1
    ends = {each.end_ms for row in state.rows["subscriptions"].values() for each in _discounts(row) if each.end_ms}
    for at_ms in sorted(each for each in ends | set(state.downgrades.values()) if last_ms < each <= until_ms):
        _note(state, at_ms, amount_of)


def _note(state: _Account, at_ms: int, amount_of: AmountOf) -> None:
    """Note the MRR by currency at an instant, and whether a missing one is missing because of payments."""
    found: dict[str, Fraction] = defaultdict(Fraction)
    is_failed = False
    for name, subscription in state.rows["subscriptions"].items():
        status, currency = subscription.get("status"), str(subscription.get("currency"))
        is_downgraded = state.downgrades.get(name, at_ms + 1) <= at_ms
        is_failed |= is_downgraded or status in _FAILED or subscription.get("cancellation_reason") == _PAYMENT_FAILED
        if status not in _PAYING or is_downgraded or subscription.get("deleted"):
            continue
        amounts: dict[tuple[Interval, int], Fraction] = defaultdict(Fraction)
        for item_name, item in state.rows["subscription_items"].items():
            if item.get("subscription_id") == name and item.get("quantity") is not None:
                amount = amount_of(str(item["price_id"]), int(item["quantity"]), currency)
                if amount is None:
                    state.unpriced.add(item_name)
                else:
                    amounts[Interval(item["interval"]), int(item["interval_count"] or 1)] += amount
        for discount in _discounts(subscription):
            if discount.start_ms <= at_ms and (discount.end_ms is None or at_ms < discount.end_ms):
                _take_off(discount, amounts, currency)
        found[currency] += sum((monthly(amount, *period) for period, amount in amounts.items()), Fraction())
    minor = Counter({currency: _rounded(amount) for currency, amount in found.items()})
    state.points.append((at_ms, minor, is_failed))


def _discounts(subscription: Mapping[str, Any]) -> Sequence[Discount]:
    return _read_discounts(str(subscription.get("discounts_json") or "[]"))


@lru_cache(maxsize=1_024)
def _read_discounts(text: str) -> Sequence[Discount]:
    """The discounts of a subscription that recur. One of which only the id is known takes nothing off."""
    return [
        Discount(
            None if each["percent"] is None else Fraction(each["percent"]),
            int(each["amount_minor"] or 0),
            str(each["currency"]),
            int(each["start_ms"]),
            None if each["end_ms"] is None else int(each["end_ms"]),
        )
        for each in json.loads(text)
        if isinstance(each, dict) and each["duration"] != "once"
    ]


def _take_off(discount: Discount, amounts: dict[tuple[Interval, int], Fraction], currency: str) -> None:
    """Take a discount off what a subscription's items cost by period, after the discounts before. An amount is taken
    off each invoice, so off what is billed most often."""
    if discount.percent is not None:
        for period in amounts:
            amounts[period] *= 1 - discount.percent / 100
    elif amounts and discount.currency == currency:
        often = max(amounts, key=lambda period: monthly(Fraction(1), *period))
        amounts[often] = max(Fraction(), amounts[often] - discount.minor)


def _rounded(amount: Fraction) -> int:
    """Half up, once for each account and currency."""
    return floor(amount + Fraction(1, 2))


def _currencies(state: _Account) -> set[str]:
    return {currency for _, minor, _ in state.points for currency in minor}


def _movements(changes: Sequence[AuditChange], state: _Account, currency: str) -> Iterator[Movement]:
    """The movements of one currency. What is nothing for less than a day is no end."""
    points: list[tuple[int, int, bool]] = []
    for at_ms, minor, is_failed in state.points:
        amount = minor[currency]
        if points and points[-1][0] == at_ms:
            points.pop()
        if points and amount and not points[-1][1] and len(points) > 1 and at_ms - points[-1][0] < NET_MS:
            points.pop()
        if amount != (points[-1][1] if points else 0):
            points.append((at_ms, amount, is_failed))
    before, was_ever = 0, False
    for at_ms, amount, is_failed in points:
        kind = _kind(before, amount, was_ever=was_ever, is_failed=is_failed)
        yield Movement(changes[0].account, currency, at_ms, kind, before, amount)
        before, was_ever = amount, was_ever or bool(amount)


def _kind(before: int, after: int, *, was_ever: bool, is_failed: bool) -> MovementKind:
    if not before:
        return MovementKind.REACTIVATION if was_ever else MovementKind.NEW
    if not after:
        return MovementKind.INVOLUNTARY_CHURN if is_failed else MovementKind.CHURN
    return MovementKind.EXPANSION if after > before else MovementKind.CONTRACTION


def months(movements: Iterable[Movement], starts_ms: Sequence[int]) -> Sequence[MonthRevenue]:
    """The months between consecutive instants, of each currency that ever had MRR before the last one."""
    by_account: dict[tuple[str, str], list[Movement]] = defaultdict(list)
    for each in movements:
        by_account[each.currency, each.account].append(each)
    found = []
    for currency in sorted({currency for currency, _ in by_account}):
        own = [each for (its, _), each in by_account.items() if its == currency]
        found += [_month(own, currency, *span) for span in pairwise(starts_ms)]
    return found


def _month(accounts: Sequence[Sequence[Movement]], currency: str, start_ms: int, end_ms: int) -> MonthRevenue:
    changes: Counter[MovementKind] = Counter()
    start = end = retained = kept = paying = 0
    for movements in accounts:
        first, last = at(movements, start_ms), at(movements, end_ms)
        start, end, paying = start + first, end + last, paying + bool(last)
        if first:
            retained, kept = retained + last, kept + min(first, last)
        for each in movements:
            if start_ms <= each.at_ms < end_ms:
                changes[each.kind] += each.change_minor
    return MonthRevenue(start_ms, end_ms, currency, start, end, changes, retained, kept, paying)


def at(movements: Sequence[Movement], instant_ms: int) -> int:
    """The MRR of one account in one currency just before an instant, in minor units."""
    return next((each.after_minor for each in reversed(movements) if each.at_ms < instant_ms), 0)


def cohorts(movements: Iterable[Movement], starts_ms: Sequence[int]) -> Sequence[Cohort]:
    """The accounts by the month of their first MRR, for the months between consecutive instants."""
    by_account: dict[tuple[str, str], list[Movement]] = defaultdict(list)
    for each in movements:
        by_account[each.currency, each.account].append(each)
    members: dict[tuple[str, int], list[list[Movement]]] = defaultdict(list)
    for (currency, _), own in by_account.items():
        number = sum(start_ms <= own[0].at_ms for start_ms in starts_ms) - 1
        if 0 <= number < len(starts_ms) - 1:
            members[currency, number].append(own)
    found = []
    for (currency, number), accounts in sorted(members.items()):
        amounts = [[at(own, end_ms) for own in accounts] for end_ms in starts_ms[number + 1 :]]
        minor, paying = tuple(map(sum, amounts)), tuple(sum(map(bool, each)) for each in amounts)
        found.append(Cohort(starts_ms[number], currency, minor, paying))
    return found
