"""The states of dunning: from what Stripe says of a subscription's invoices, and the times of the catalog.

A case is looked at again whenever something happens to its account, and at its `next_ms`. What it becomes follows from
the case, the facts and the time; a second look at the same instant changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Final, NamedTuple

import msgspec

from schemas.catalog import Dunning
from schemas.clock import DAY_MS
from schemas.dunning import Collecting, Debt, DunningCase, DunningOutcome, DunningState, Owing
from schemas.plan_changes import Call, CallKind

OPEN: Final = "open"
# An invoice that Stripe or a person gave up. While the subscription is behind, it can still be paid and is still owed.
UNCOLLECTIBLE: Final = "uncollectible"
PAID: Final = "paid"
# After these Stripe tries no card again that it knows (docs.stripe.com/billing/revenue-recovery/smart-retries).
HARD_DECLINES: Final = frozenset(
    ["authentication_required", "highest_risk_level", "incorrect_number", "lost_card", "pickup_card",
     "revocation_of_all_authorizations", "revocation_of_authorization", "stolen_card", "transaction_not_allowed"]
)  # fmt: skip
_ORDER: Final = tuple(DunningState)
PAYING: Final = frozenset({"active", "trialing"})
# The reason of a pause, and that of an end, after the last retry failed.
PAUSED_UNPAID: Final = "final_payment_failure"
CANCELED_UNPAID: Final = "payment_failed"


def advanced(case: DunningCase | None, owing: Owing, policy: Dunning, now_ms: int) -> DunningCase | None:
    """What a subscription's case is now; `case` is its open one, or a closed one that withholds the plan: one that was
    given up, or one that was paid and that Stripe does not bill. None: there is none, and none begins."""
    owed = [debt for debt in owing.debts if _is_owed(debt, owing)]
    if case is None:
        if not any(debt.status == OPEN for debt in owed):
            return None
        case = _opened(owing, owed, policy, now_ms)
    if case.outcome is DunningOutcome.RECOVERED:
        return case if _bills_nothing(owing) else case._replace(downgrade_ms=None)
    if case.closed_ms is not None:
        # A late payment, or the end of the subscription, lifts what a churned case withholds.
        return case if owed and owing.ended_ms is None else case._replace(downgrade_ms=None)
    if not owed:
        if not any(debt.status == PAID for debt in owing.debts):
            return closed(case, DunningOutcome.WRITTEN_OFF, now_ms)
        # Nobody has a plan for ever that Stripe bills no more: a person has days to set that right.
        ends_ms = now_ms + policy.downgrade_after_final_days * DAY_MS if _bills_nothing(owing) else None
        return closed(case, DunningOutcome.RECOVERED, now_ms)._replace(downgrade_ms=ends_ms)
    case = case._replace(amount_minor=max(case.amount_minor, sum(debt.remaining_minor for debt in owed)))
    if owing.ended_ms is not None and owing.cancellation_reason != CANCELED_UNPAID:
        return closed(case._replace(downgrade_ms=None), DunningOutcome.CHURNED, now_ms)
    if case.downgrade_ms is None and _is_final(case, owing, owed, policy, now_ms):
        case = case._replace(downgrade_ms=now_ms + policy.downgrade_after_final_days * DAY_MS)
    if case.downgrade_ms is not None and owing.ended_ms is not None:
        # The plan ended with the subscription.
        case = case._replace(downgrade_ms=min(case.downgrade_ms, owing.ended_ms))
    if case.downgrade_ms is None:
        return _warned(case, owed, policy, now_ms)
    lost = _lost(case, policy, now_ms)
    return lost if lost.closed_ms is None or owing.ended_ms is None else lost._replace(downgrade_ms=None)


class Wish(NamedTuple):
    """Calls of Stripe that a case needs. `name` names them among all of the case: the same name is made once. `card`:
    the new one, or ""."""

    name: str
    words: str
    calls: tuple[Call, ...]
    card: str = ""


def wish_of(found: Collecting, policy: Dunning, now_ms: int) -> Wish | None:
    """What is to be done at Stripe about a case now: a new card pays what is open, a case that was given up is cleared
    away as the catalog says, and a pause ends once all is paid."""
    case = found.case
    if case.closed_ms is None:
        return _paying(found)
    # What Stripe refuses is tried again on another day.
    day = now_ms // DAY_MS
    if case.outcome is DunningOutcome.RECOVERED:
        is_in_period = now_ms < found.paid_until_ms
        anchor = {"billing_cycle_anchor": {"type": "unchanged" if is_in_period else "now"}}
        call = Call(CallKind.RESUME, {**anchor, "payment_behavior": "resume_on_payment_success"})
        return Wish(f"resume {day}", "All is paid: the pause ends.", (call,))
    if policy.give_up == "propose":
        return None
    # A proration would credit a time that nobody paid.
    end = Call(CallKind.CANCEL, {"prorate": False, "invoice_now": False})
    how = {"void": "void", "uncollectible": "mark_uncollectible"}[policy.give_up]
    calls: tuple[Call, ...] = () if found.has_ended else (end,)
    if found.invoices:
        calls += (Call(CallKind.GIVE_UP, {"invoices": list(found.invoices), "how": how}),)
    words = f"Nobody paid: the subscription ends without a credit, and its open invoices are {policy.give_up}."
    return Wish(f"give up {day}", words, calls)


def _paying(found: Collecting) -> Wish | None:
    """A new card that is set on the subscription itself comes before the customer's. Stripe goes on with the
    subscription's own card, so a customer's new one replaces that."""
    known = (found.case.cards or "").split()
    new = [card for card in (found.own_card, found.customer_card) if card and card not in known]
    if not new or not found.invoices:
        return None
    card, pay = new[0], (Call(CallKind.PAY, {"invoices": list(found.invoices)}),)
    is_other = found.own_card not in ("", card)
    set_card = (Call(CallKind.UPDATE, {"default_payment_method": card}),) if is_other else ()
    return Wish(f"pay {card}", "The new payment method pays what is open.", set_card + pay, card)


def closed(case: DunningCase, outcome: DunningOutcome, now_ms: int) -> DunningCase:
    """A case that ends. One that was given up goes on withholding the plan."""
    keeps_ms = case.downgrade_ms if outcome is DunningOutcome.CHURNED else None
    return case._replace(
        state=DunningState.CLOSED, downgrade_ms=keeps_ms, next_ms=None, closed_ms=now_ms, outcome=outcome
    )


def _bills_nothing(owing: Owing) -> bool:
    """Whether Stripe makes drafts, or nothing, until somebody asks for more."""
    is_paused = owing.status == "paused" and owing.pause_reason == PAUSED_UNPAID
    return owing.ended_ms is None and (owing.status == "unpaid" or is_paused)


def _opened(owing: Owing, owed: Sequence[Debt], policy: Dunning, now_ms: int) -> DunningCase:
    oldest = min(owed, key=lambda debt: (debt.first_failed_ms, debt.invoice))
    about = msgspec.json.encode([owing.subscription, oldest.invoice])
    identifier = "dun_" + blake2b(about, digest_size=16, person=b"tidemark dunning").hexdigest()
    case = DunningCase(
        identifier, owing.account, owing.subscription, oldest.first_failed_ms, now_ms,
        DunningState.NOTIFIED, 0, oldest.currency, oldest.exponent,
    )  # fmt: skip
    # Found late, such as after the loss of the database: what Stripe gave up and was lost long ago is not given back.
    lost_ms = case.opened_ms + (policy.final_days + policy.downgrade_after_final_days) * DAY_MS
    return case._replace(downgrade_ms=lost_ms) if lost_ms <= now_ms and _has_given_up(owing) else case


def _is_owed(debt: Debt, owing: Owing) -> bool:
    return debt.status == OPEN or (debt.status == UNCOLLECTIBLE and owing.status not in PAYING)


def _has_given_up(owing: Owing) -> bool:
    """Whether Stripe's final action has been taken."""
    if owing.status == "paused":
        return owing.pause_reason == PAUSED_UNPAID
    return owing.status == "unpaid" or owing.ended_ms is not None


def _is_final(case: DunningCase, owing: Owing, owed: Sequence[Debt], policy: Dunning, now_ms: int) -> bool:
    """Whether the last warning is due. Stripe sometimes says the next attempt a moment after the failure, so an attempt
    that is missing counts only when the urgent mail would be due."""
    if _has_given_up(owing) or now_ms >= case.opened_ms + policy.final_days * DAY_MS:
        return True
    is_due = now_ms >= case.opened_ms + policy.urgent_days * DAY_MS
    return is_due and all(debt.next_attempt_ms is None for debt in owed)


def _warned(case: DunningCase, owed: Sequence[Debt], policy: Dunning, now_ms: int) -> DunningCase:
    """A case before its last warning."""
    urgent_ms, final_ms = (case.opened_ms + days * DAY_MS for days in (policy.urgent_days, policy.final_days))
    is_urgent = now_ms >= urgent_ms and max(debt.attempts for debt in owed) > 1
    state = DunningState.URGENT if is_urgent or case.state is DunningState.URGENT else DunningState.NOTIFIED
    return case._replace(state=state, next_ms=urgent_ms if now_ms < urgent_ms else final_ms)


def _lost(case: DunningCase, policy: Dunning, now_ms: int) -> DunningCase:
    """A case whose downgrade has its instant. It does not go back, also if another catalog has later times."""
    downgrade_ms = case.downgrade_ms or 0
    win_back_ms, give_up_ms = (downgrade_ms + days * DAY_MS for days in (policy.win_back_days, policy.give_up_days))
    if now_ms >= give_up_ms:
        return closed(case, DunningOutcome.CHURNED, now_ms)
    if now_ms >= win_back_ms:
        state, next_ms = DunningState.WIN_BACK, give_up_ms
    elif now_ms >= downgrade_ms:
        state, next_ms = DunningState.DOWNGRADED, win_back_ms
    else:
        state, next_ms = DunningState.FINAL_WARNING, downgrade_ms
    return case._replace(state=max(case.state, state, key=_ORDER.index), next_ms=next_ms)
