"""Amounts and upgrades in English words."""

from __future__ import annotations

from decimal import Decimal
from typing import Final

from aggregators.instants import civil_from_days
from schemas.clock import DAY_MS
from schemas.periods import Interval
from schemas.upgrades import Money, Recurring

_SIGNS: Final = {"usd": "$", "eur": "€", "gbp": "£", "jpy": "¥"}
_MONTHS: Final = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip


def money_text(money: Money) -> str:
    """An amount without its sign: `$1,548.00`, `¥21,800`, or `12.00 CHF` in a currency without a sign of its own."""
    digits = f"{abs(Decimal(money.minor)).scaleb(-money.exponent):,.{money.exponent}f}"
    sign = _SIGNS.get(money.currency)
    return f"{sign}{digits}" if sign else f"{digits} {money.currency.upper()}"


def date_text(instant_ms: int, now_ms: int) -> str:
    """A day in UTC: `December 10`, and `January 10, 2027` in another year than now."""
    year, month, day = civil_from_days(instant_ms // DAY_MS)
    text = f"{_MONTHS[month - 1]} {day}"
    return text if year == civil_from_days(now_ms // DAY_MS)[0] else f"{text}, {year}"


def upgrade_words(what: str, due_now: Money, until_ms: int | None, recurring: Recurring | None, now_ms: int) -> str:
    """What an upgrade costs. `what`: who does what, such as `Professional includes it`. `until_ms`: the end of the time
    that `due_now` pays for, if that is the rest of a period. `recurring` None: the subscription will have ended."""
    today = "nothing today"
    if due_now.minor:
        today = f"{'a credit of ' if due_now.minor < 0 else ''}{money_text(due_now)} today"
    if until_ms is not None and due_now.minor:
        days = -((now_ms - until_ms) // DAY_MS)
        today += f" for the {days} days left" if days > 1 else " for the day left"
    return f"{what}: {today}{_then(recurring, now_ms)}."


def usage_words(cost: Money, interval: Interval) -> str:
    """What usage costs that took part in the choice: the usage of this period, with what was asked."""
    return f" As much usage as in this {interval}, with what was asked, costs {money_text(cost)}."


def _then(recurring: Recurring | None, now_ms: int) -> str:
    if recurring is None:
        return ""
    amount = f"{money_text(recurring.amount)} a {recurring.interval}" if recurring.amount.minor else ""
    usage = "the usage" if recurring.has_usage else ""
    paid = " and ".join(part for part in (amount, usage) if part) or "nothing"
    return f", then {paid} from {date_text(recurring.from_ms, now_ms)}"
