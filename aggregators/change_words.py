"""A quote in English words. Amounts come from Stripe's previews and not from arithmetic of ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from aggregators.upgrade_words import date_text, money_text
from schemas.catalog import OverLimit
from schemas.clock import DAY_MS
from schemas.plan_changes import ChangeKind, Excess, When
from schemas.upgrades import Money

_POLICIES: Final = {
    OverLimit.ALLOW_UNTIL_PERIOD_END: "what is too much can be used until then",
    OverLimit.READ_ONLY_EXCESS: "the newest ones can only be read from then on; nothing is deleted",
    OverLimit.FORCE_AT_END: "what is too much can no longer be used from then on",
    OverLimit.BLOCK_DOWNGRADE: "give back what is too much before",
}


class Said(NamedTuple):
    """What a quote says. `plan`: the name of the plan after the change. `due`: what is charged today, or credited if it
    is negative, and `owed` what of it pays open invoices; `until_ms`: the end of the time that it pays for, if that is
    the rest of a period. `following`: the next invoice, None if there is none. `from_ms`: when the change holds, if
    that is later. `has_usage`: usage is billed beside it. `not_refunded`: time that is paid is given up."""

    kind: ChangeKind
    when: When
    plan: str
    due: Money
    tax: Money
    until_ms: int | None
    following: Money | None
    following_ms: int | None
    from_ms: int | None
    has_usage: bool
    not_refunded: bool = False
    excess: Sequence[Excess] = ()
    owed: Money | None = None


def change_words(said: Said, now_ms: int) -> str:
    """A quote in a few sentences."""
    sentences = [*_main(said, now_ms)]
    if said.owed is not None and said.owed.minor:
        sentences.append(f"{money_text(said.owed)} of that pays your open invoices")
    if said.tax.minor and said.due.minor:
        sentences.append(f"The charge has {money_text(said.tax)} of tax")
    if said.not_refunded:
        sentences.append("What is paid until then is not refunded")
    day = "now" if said.from_ms is None else date_text(said.from_ms, now_ms)
    for each in said.excess:
        allowed = f"{each.feature}: {each.used} in use, {each.allowed} allowed from {day} on"
        sentences.append(f"{allowed}: {_POLICIES[each.policy]}")
    return " ".join(f"{sentence}." for sentence in sentences)


def _main(said: Said, now_ms: int) -> Sequence[str]:
    if said.kind is ChangeKind.CANCEL_NOW:
        return "Your subscription ends today", _settled(said)
    today, following = _today(said, now_ms), _following(said, now_ms)
    if said.kind is ChangeKind.UNDO:
        return (today, f"Your plan stays {said.plan}{following}") if said.plan else (today,)
    if said.from_ms is None and said.kind is ChangeKind.CANCEL:
        return ("Your subscription ends today",)
    if said.from_ms is None:
        return (f"{today}{following}",)
    day = date_text(said.from_ms, now_ms)
    if said.kind is ChangeKind.CANCEL:
        usage = ", and your last invoice bills the usage until then" if said.has_usage else ""
        return today, f"Your subscription ends on {day}{usage}"
    if said.when is When.PERIOD_END:
        amount = f", and your invoice on that day will be {_amount(said)}" if said.following else ""
        return today, f"Your plan changes to {said.plan} on {day}{amount}"
    return today, f"Your trial goes on until {day} with {said.plan}{following}"


def _settled(said: Said) -> str:
    """What an end inside a period credits or charges."""
    if said.due.minor < 0:
        return f"{money_text(said.due)} of what is paid is credited to your account"
    if said.due.minor:
        return f"You will be charged {money_text(said.due)} today for your usage"
    return "Nothing is charged or credited"


def _today(said: Said, now_ms: int) -> str:
    if said.due.minor < 0:
        return f"You will be credited {money_text(said.due)} today"
    amount = money_text(said.due) if said.due.minor else "nothing"
    if said.until_ms is None or not said.due.minor:
        return f"You will be charged {amount} today"
    days = -((now_ms - said.until_ms) // DAY_MS)
    rest = f"the remaining {days} days" if days > 1 else "the remaining day"
    return f"You will be charged {amount} today for {rest} of your billing cycle"


def _following(said: Said, now_ms: int) -> str:
    if said.following is None or said.following_ms is None:
        return ""
    return f", and your next invoice on {date_text(said.following_ms, now_ms)} will be {_amount(said)}"


def _amount(said: Said) -> str:
    if said.following is None:
        return ""
    if said.has_usage:
        return f"{money_text(said.following)} and your usage" if said.following.minor else "your usage"
    return money_text(said.following)
