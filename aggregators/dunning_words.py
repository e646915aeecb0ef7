"""What a customer is told of a dunning case, in English words."""

from __future__ import annotations

from typing import Final

from aggregators.upgrade_words import date_text, money_text
from schemas.dunning import DunningState, ListedCase
from schemas.upgrades import Money

_BANNERS: Final = {
    DunningState.NOTIFIED: "A payment of {amount} failed. Please check your card.",
    DunningState.URGENT: "The payment of {amount} failed again. Please pay with another card.",
    DunningState.FINAL_WARNING: "{amount} are open. On {day} you lose your plan. Your data stays.",
    DunningState.DOWNGRADED: "You have lost your plan, because {amount} are open. A payment restores it at once.",
    DunningState.WIN_BACK: "Have your plan back: pay {amount}, and everything is as before.",
}
_ENDED: Final = "Your subscription has ended, because {amount} are open."


def banner_text(listed: ListedCase, now_ms: int) -> str:
    """What an application shows its users while a case is open; "" of a closed one."""
    case = listed.case
    if case.closed_ms is not None:
        return ""
    amount = money_text(Money(listed.open_minor or case.amount_minor, case.currency, case.exponent))
    words = _ENDED if listed.has_ended else _BANNERS[case.state]
    return words.format(amount=amount, day=date_text(case.downgrade_ms or now_ms, now_ms))
