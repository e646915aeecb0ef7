"""Decides how a wanted change of a subscription is made at Stripe, or why not. docs/plan-changes.md has the table.

An upgrade is a plan of a higher rank or a longer interval; it holds at once. What is less holds from the end of what is
paid on, by a schedule. An account has one open change at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from schemas.catalog import Changes, OverLimit
from schemas.periods import Interval
from schemas.plan_changes import (
    Call,
    CallKind,
    Calls,
    ChangeKind,
    HeldItem,
    Owner,
    Refusal,
    RefusalCode,
    SubscriptionView,
    Wanted,
    WantedItem,
    When,
)
from schemas.trials import TrialTerms

ENDED: Final = frozenset({"", "canceled", "incomplete_expired"})
_OWING: Final = frozenset({"past_due", "unpaid"})
_LENGTHS: Final = (Interval.DAY, Interval.WEEK, Interval.MONTH, Interval.YEAR)
# A change that is not paid within 23 hours does not happen. Only a card that is charged at once can fail so.
_WHEN_PAID: Final = {"payment_behavior": "pending_if_incomplete"}
_UNDONE: Final = {"payment_behavior": "error_if_incomplete"}
_TRUSTED: Final = {"payment_behavior": "allow_incomplete"}
_RELEASE: Final = Call(CallKind.RELEASE)
_EXPIRE: Final = Call(CallKind.EXPIRE_CHECKOUT)
_RESUME: Final = Call(
    CallKind.RESUME,
    {"billing_cycle_anchor": {"type": "now"}, "payment_behavior": "resume_on_payment_success"},
)


def decide(now: SubscriptionView, wanted: Wanted, policy: Changes) -> Calls | Refusal:
    """The calls that make a change, or why the change is refused. Equal arguments give an equal answer."""
    if wanted.kind is ChangeKind.SEEN:
        return Calls(26, When.NOW, (), wanted.excess)
    if now.is_contract and not wanted.by_operator:
        return _refused(22, RefusalCode.CONTRACT, "account", "a contract has the terms: ask an operator for the change")
    if now.is_update_pending:
        message = "an earlier change waits for its payment: pay its invoice, or wait until it expires within 23 hours"
        return _refused(20, RefusalCode.UPDATE_PENDING, "account", f"{message}{_at(now)}")
    if now.status in ENDED:
        return _first(now, wanted)
    if wanted.kind is ChangeKind.CANCEL_NOW:
        return _cancel_now(now, wanted)
    if now.status == "incomplete":
        return _incomplete(now, wanted)
    if now.status == "paused":
        return _paused(now, wanted)
    return _running(now, wanted, policy)


def item_changes(held: Iterable[HeldItem], wanted: Iterable[WantedItem]) -> list[dict[str, Any]]:
    """The parameter `items` that turns items into the wanted ones. An item keeps its id if its component stays."""
    left = {item.component: item for item in held}
    changes: list[dict[str, Any]] = []
    for item in wanted:
        before = left.pop(item.component, None)
        if before is None or (before.price, before.quantity) != (item.price, item.quantity):
            same = {} if before is None else {"id": before.id}
            changes.append(same | _priced(item))
    return changes + [{"id": item.id, "deleted": True} for item in left.values()]


def _priced(item: WantedItem) -> dict[str, Any]:
    return {"price": item.price} | ({} if item.quantity is None else {"quantity": item.quantity})


def _refused(row: int, code: RefusalCode, field: str, message: str) -> Refusal:
    return Refusal(row, code, field, message)


def _at(now: SubscriptionView) -> str:
    return f": {now.pay_url}" if now.pay_url else ""


def _first(now: SubscriptionView, wanted: Wanted) -> Calls | Refusal:
    """Rows 1 to 3: there is no subscription, or the last one has ended."""
    if wanted.kind not in (ChangeKind.PLAN, ChangeKind.TRIAL):
        message = "the account has no subscription: nothing can be canceled or taken back"
        return _refused(1, RefusalCode.NO_SUBSCRIPTION, "account", message)
    if over := _blocked(2, wanted):
        return over
    items = [_priced(item) for item in wanted.items]
    trial, more = _trial(wanted.trial)
    row = 3 if wanted.trial else 2
    if now.has_card and not wanted.by_page:
        params = {"customer": now.customer, "items": items, "billing_mode": {"type": "flexible"}, **_UNDONE, **trial}
        if wanted.trial and wanted.trial.card == "cancel":
            params["cancel_at_period_end"] = True
        calls = (_EXPIRE, Call(CallKind.CREATE, params))
        return Calls(row, When.NOW, calls, wanted.excess, wanted.trial)
    data = {"billing_mode": {"type": "flexible"}, **trial}
    params = {"mode": "subscription", "customer": now.customer, "line_items": items, "subscription_data": data}
    params |= {"tax_id_collection": {"enabled": True}, "customer_update": {"address": "auto", "name": "auto"}, **more}
    calls = (_EXPIRE, Call(CallKind.CHECKOUT, params))
    return Calls(3 if wanted.trial else 1, When.NOW, calls, wanted.excess, wanted.trial)


def _trial(terms: TrialTerms | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parameters of a trial: of the subscription, and of the page of checkout."""
    if terms is None:
        return {}, {}
    ends = {"missing_payment_method": "pause" if terms.no_card == "pause" else "cancel"}
    found = {"trial_period_days": terms.days, "trial_settings": {"end_behavior": ends}}
    return found, {"payment_method_collection": "always" if terms.is_card_required else "if_required"}


def _cancel_now(now: SubscriptionView, wanted: Wanted) -> Calls | Refusal:
    if not wanted.by_operator:
        message = "only an operator ends a subscription inside what is paid: cancel at the end of the period instead"
        return _refused(16, RefusalCode.OPERATOR_ONLY, "cancel", message)
    calls = [Call(CallKind.FLUSH)] if any(item.quantity is None for item in now.items) else []
    # Stripe refuses to cancel a subscription that a schedule has.
    calls += [_RELEASE] if now.pending else []
    calls.append(Call(CallKind.CANCEL, {"invoice_now": True, "prorate": True}))
    return Calls(16, When.NOW, tuple(calls))


def _incomplete(now: SubscriptionView, wanted: Wanted) -> Calls | Refusal:
    """Row 19: the first payment has not succeeded yet."""
    if wanted.kind is ChangeKind.UNDO:
        return _refused(19, RefusalCode.NOTHING_PENDING, "account", "no change is pending")
    if wanted.kind is ChangeKind.CANCEL:
        return Calls(19, When.NOW, (Call(CallKind.CANCEL),))
    if not item_changes(now.items, wanted.items):
        return Calls(19, When.NOW, (Call(CallKind.INVOICE, {"url": now.pay_url}),))
    again = _first(now._replace(status="", id=""), wanted)
    if isinstance(again, Refusal):
        return again._replace(row=19)
    return again._replace(row=19, calls=(Call(CallKind.CANCEL), *again.calls))


def _paused(now: SubscriptionView, wanted: Wanted) -> Calls | Refusal:
    """Row 18: what is owed is paid first, then the subscription goes on, with a new period. Nothing of a period is
    paid yet, so another plan follows at once, higher or lower: it is in the first invoice."""
    if wanted.kind is ChangeKind.UNDO:
        return _refused(18, RefusalCode.NOTHING_PENDING, "account", "no change is pending: nothing is to be taken back")
    if wanted.kind is ChangeKind.TRIAL:
        message = "a trial is for an account without a subscription, and this one is paused: ask for the plan itself"
        return _refused(18, RefusalCode.TRIAL_USED, "trial", message)
    if wanted.kind is ChangeKind.CANCEL:
        return Calls(18, When.NOW, (Call(CallKind.CANCEL),))
    if wanted.currency != now.currency:
        return _other_currency(now, wanted)
    if over := _blocked(18, wanted):
        return over
    if not now.has_card:
        message = "the subscription is paused, and no card can pay it: have one stored by the portal, then ask again"
        return _refused(18, RefusalCode.PAY_FIRST, "account", f"{message}{_at(now)}")
    pays = (Call(CallKind.PAY),) if now.pay_url else ()
    changes = item_changes(now.items, wanted.items)
    others = (Call(CallKind.UPDATE, {"items": changes, "proration_behavior": "none"}),) if changes else ()
    return Calls(18, When.NOW, (*pays, *others, _RESUME), wanted.excess)


def _running(now: SubscriptionView, wanted: Wanted, policy: Changes) -> Calls | Refusal:
    if now.pending and now.pending.owner is Owner.OTHER and not wanted.by_operator:
        message = f"the schedule {now.pending.schedule} of somebody else is open: release it at Stripe, or let it end"
        return _refused(26, RefusalCode.OTHERS_SCHEDULE, "account", message)
    if now.pending and now.pending.is_over:
        # What was pending has happened. Stripe keeps the schedule for one more period, and its rules.
        found = _running(now._replace(pending=None), wanted, policy)
        return found if isinstance(found, Refusal) else found._replace(calls=(_RELEASE, *found.calls))
    if wanted.kind is ChangeKind.UNDO:
        return _undo(now)
    if wanted.kind is ChangeKind.CANCEL:
        return _blocked(14, wanted) or _cancel(now)
    if wanted.currency != now.currency:
        return _other_currency(now, wanted)
    if _is_ending(now) and not _is_seats_until_the_end(now, wanted):
        message = "the subscription is about to end: take the cancellation back first"
        return _refused(15, RefusalCode.CANCEL_PENDING, "account", message)
    if now.status == "trialing":
        return _in_trial(now, wanted)
    if wanted.kind is ChangeKind.TRIAL:
        message = "a trial is for an account without a subscription: ask for the plan itself"
        return _refused(3, RefusalCode.TRIAL_USED, "trial", message)
    if over := _blocked(8, wanted):
        return over
    return _changed(now, wanted, policy)


def _is_ending(now: SubscriptionView) -> bool:
    return now.cancel_at_ms is not None or bool(now.pending and now.pending.ends)


def _is_seats_until_the_end(now: SubscriptionView, wanted: Wanted) -> bool:
    """Whether only quantities change, which a cancellation without a schedule leaves possible."""
    is_same = (now.plan, now.interval) == (wanted.plan, wanted.interval) and not now.pending
    return is_same and bool(item_changes(now.items, wanted.items))


def _undo(now: SubscriptionView) -> Calls | Refusal:
    """Rows 9 and 15."""
    if now.pending:
        if now.pending.owner is Owner.MOVE:
            message = "what is pending is the next version of the plan: change the plan or cancel instead"
            return _refused(9, RefusalCode.OTHERS_SCHEDULE, "account", message)
        return Calls(15 if now.pending.ends else 9, When.NOW, (_RELEASE,))
    if now.cancel_at_ms is not None:
        # Stripe takes one of the two parameters at a time.
        params: dict[str, Any] = {"cancel_at_period_end": False} if now.ends_with_period else {"cancel_at": ""}
        return Calls(15, When.NOW, (Call(CallKind.UPDATE, params),))
    return _refused(9, RefusalCode.NOTHING_PENDING, "account", "no change is pending: nothing is to be taken back")


def _cancel(now: SubscriptionView) -> Calls | Refusal:
    """Row 14: at the end of what is paid."""
    if _is_ending(now):
        return _refused(14, RefusalCode.NOTHING_CHANGES, "cancel", "the subscription is about to end already")
    if now.pending:
        # Stripe refuses a direct cancellation. A phase after the present one would begin before the end.
        calls = (Call(CallKind.PHASES, {"items": None, "end_behavior": "cancel"}),)
        return Calls(14, When.PERIOD_END, calls)
    if len({item.interval for item in now.items}) > 1:
        return Calls(14, When.PERIOD_END, (Call(CallKind.UPDATE, {"cancel_at": "max_period_end"}),))
    return Calls(14, When.PERIOD_END, (Call(CallKind.UPDATE, {"cancel_at_period_end": True}),))


def _other_currency(now: SubscriptionView, wanted: Wanted) -> Refusal:
    """Row 23. Stripe bills a customer in one currency for as long as one subscription, schedule or invoice item of the
    customer is open, so the next subscription cannot be made before this one has ended."""
    if not wanted.by_operator:
        message = f"the subscription is paid in {now.currency}: ask an operator for another currency, or use that one"
        return _refused(23, RefusalCode.OTHER_CURRENCY, "currency", message)
    message = (
        f"Stripe makes no subscription in {wanted.currency} while one in {now.currency} is open: end it with its "
        "period, and ask again when it has ended"
    )
    return _refused(23, RefusalCode.NOT_OFFERED, "currency", message)


def _in_trial(now: SubscriptionView, wanted: Wanted) -> Calls | Refusal:
    """Rows 4 and 5. An update that ends the trial is undone if the payment fails, and so is its discount: the code
    that gives it is redeemed by the same call."""
    changes = item_changes(now.items, wanted.items)
    release = (_RELEASE,) if now.pending else ()
    ends: dict[str, Any] = {"trial_end": "now", **_UNDONE}
    promotion: tuple[Call, ...] = ()
    if now.early_percent:
        end_s = max(item.end_ms for item in now.items) // 1_000
        promotion = (Call(CallKind.PROMOTION, {"percent": now.early_percent, "expires_at": end_s}),)
        ends["discounts"] = [*({"discount": each} for each in now.discounts), {"promotion_code": ""}]
    if not changes:
        if wanted.kind is ChangeKind.TRIAL:
            return _refused(4, RefusalCode.NOTHING_CHANGES, "plan", "the trial of this plan runs already")
        return Calls(4, When.NOW, (*release, *promotion, Call(CallKind.UPDATE, ends)))
    if over := _blocked(5, wanted):
        return over
    params = {"items": changes, "proration_behavior": "none"}
    if now.plan is not None and (wanted.plan == now.plan or wanted.family == now.family != ""):
        return Calls(5, When.NOW, (*release, Call(CallKind.UPDATE, params)), wanted.excess)
    if wanted.kind is ChangeKind.TRIAL:
        message = "another trial runs: take the plan itself, which ends the trial"
        return _refused(5, RefusalCode.TRIAL_USED, "trial", message)
    return Calls(5, When.NOW, (*release, *promotion, Call(CallKind.UPDATE, params | ends)), wanted.excess)


def _blocked(row: int, wanted: Wanted) -> Refusal | None:
    """That a feature of which the account uses too much forbids the change."""
    found = [each for each in wanted.excess if each.policy is OverLimit.BLOCK_DOWNGRADE]
    if not found:
        return None
    uses = "; ".join(f"{each.feature}: {each.used} are in use, {wanted.plan} allows {each.allowed}" for each in found)
    message = f"{uses}: give back what is too much, and ask again"
    return _refused(row, RefusalCode.OVER_LIMIT, found[0].feature, message)


def _changed(now: SubscriptionView, wanted: Wanted, policy: Changes) -> Calls | Refusal:
    """The rows of an active subscription, and of one that owes something."""
    if not item_changes(now.items, wanted.items):
        if now.pending:
            return _undo(now)
        return _refused(24, RefusalCode.NOTHING_CHANGES, "plan", "the account has this plan in these quantities")
    length = _length(wanted.interval) - _length(now.interval)
    is_same = length == 0 and now.plan is not None and wanted.plan is not None and wanted.plan.name == now.plan.name
    is_more = wanted.rank > now.rank or length > 0
    if is_same and wanted.plan != now.plan:
        return _at_end(25, now, wanted)
    if is_same:
        is_more = _is_more(now.items, wanted.items)
    if is_more and now.status in _OWING:
        return _refused(17, RefusalCode.PAY_FIRST, "account", f"pay the open invoice first{_at(now)}")
    if is_same:
        return _quantities(now, wanted, policy)
    if length > 0 and policy.interval_longer == "now":
        params = {"items": item_changes(now.items, wanted.items), "billing_cycle_anchor": {"type": "now"}}
        return _now(12, now, wanted, [params | {"proration_behavior": "always_invoice"}])
    if length:
        return _at_end(12 if length > 0 else 13, now, wanted)
    return _upgraded(now, wanted, policy) if is_more else _at_end(10 if now.pending else 8, now, wanted)


def _length(interval: Interval | None) -> int:
    return _LENGTHS.index(interval) if interval is not None else 0


def _is_more(held: Iterable[HeldItem], wanted: Iterable[WantedItem]) -> bool:
    before = {item.component: item.quantity or 0 for item in held}
    return any((item.quantity or 0) > before.get(item.component, 0) for item in wanted)


def _quantities(now: SubscriptionView, wanted: Wanted, policy: Changes) -> Calls | Refusal:
    """Row 24. With a schedule, the quantities change in the present phase and in the later one.

    Unless what is given back is credited, it stays paid until the period ends, and Stripe's next proration would credit
    it. So a quantity first rises to what is paid, for nothing, and then beyond that.
    """
    if now.pending and not now.pending.later:
        message = f"the schedule {now.pending.schedule} has other phases: release it at Stripe, or let it end"
        return _refused(24, RefusalCode.NOT_OFFERED, "quantities", message)
    steps: list[tuple[Sequence[WantedItem], str]] = [(wanted.items, "create_prorations")]
    if policy.seats_down == "prorate":
        if _is_more(now.items, wanted.items):
            steps = [(wanted.items, "always_invoice")]
    else:
        steps = [(_paid_already(now.items, wanted.items), "none"), (wanted.items, "always_invoice")]
    calls, held = [], now.items
    for items, prorations in steps:
        if changes := item_changes(held, items):
            calls.append(_quantity_call(now, wanted, items, changes, prorations))
            quantities = {item.component: item.quantity for item in items}
            held = tuple(item._replace(quantity=quantities.get(item.component, item.quantity)) for item in held)
    return Calls(24, When.NOW, tuple(calls), wanted.excess)


def _paid_already(held: Iterable[HeldItem], wanted: Iterable[WantedItem]) -> list[WantedItem]:
    """The wanted items in quantities that cost nothing more in the present period; without new items."""
    paid = {item.component: max(item.quantity or 0, item.paid or 0) for item in held}
    return [
        item if item.quantity is None else item._replace(quantity=min(item.quantity, paid[item.component]))
        for item in wanted
        if item.component in paid
    ]


def _quantity_call(
    now: SubscriptionView, wanted: Wanted, items: Sequence[WantedItem], changes: Sequence[Any], prorations: str
) -> Call:
    """A change of quantities. Only one that charges at once can fail for want of its payment."""
    how: dict[str, Any] = {"proration_behavior": prorations}
    if now.pending:
        later, present = ([_priced(each) for each in listed] for listed in (wanted.later, items))
        how |= {"now": present, "items": later, "changes": changes, "end_behavior": "release"}
        return Call(CallKind.PHASES, how)
    paid = _TRUSTED if _is_trusted(now) else _WHEN_PAID
    return Call(CallKind.UPDATE, {"items": changes, **how, **(paid if prorations == "always_invoice" else {})})


def _upgraded(now: SubscriptionView, wanted: Wanted, policy: Changes) -> Calls:
    """Rows 6, 7, 11 and 21. A metered price changes at the period's end: a swap inside it loses usage that comes late.
    A metered price that the plan did not have counts from now on."""
    prices = {item.price for item in wanted.items}
    swapped = {item.component for item in now.items if item.quantity is None and item.price not in prices}
    held = [item for item in now.items if item.component not in swapped]
    soon = [item for item in wanted.items if item.component not in swapped or item.quantity is not None]
    params: dict[str, Any] = {"items": item_changes(held, soon), "proration_behavior": "always_invoice"}
    if policy.upgrade == "full_price":
        params |= {"billing_cycle_anchor": {"type": "now"}, "proration_behavior": "none"}
    row = 11 if now.pending else 7 if swapped else 21 if _is_trusted(now) else 6
    found = _now(row, now, wanted, [params] if params["items"] else [])
    later = _later(wanted, with_schedule=True) if swapped else ()
    return found._replace(calls=(*found.calls, *later))


def _now(row: int, now: SubscriptionView, wanted: Wanted, updates: Sequence[dict[str, Any]]) -> Calls:
    """Updates that charge at once. A pending schedule is released first: a crash between leaves the paid plan."""
    paid = _TRUSTED if _is_trusted(now) else _WHEN_PAID
    calls = [_RELEASE] if now.pending else []
    return Calls(row, When.NOW, (*calls, *(Call(CallKind.UPDATE, each | paid) for each in updates)), wanted.excess)


def _is_trusted(now: SubscriptionView) -> bool:
    """Whether the customer pays later, by an invoice. There are no pending updates then."""
    return now.collection == "send_invoice"


def _at_end(row: int, now: SubscriptionView, wanted: Wanted) -> Calls:
    """A change at the end of what is paid. Stripe refuses a second schedule."""
    calls = _later(wanted, with_schedule=now.pending is None)
    return Calls(row, When.PERIOD_END, calls, wanted.excess)


def _later(wanted: Wanted, *, with_schedule: bool) -> tuple[Call, ...]:
    phases = Call(CallKind.PHASES, {"items": [_priced(item) for item in wanted.items], "end_behavior": "release"})
    return (Call(CallKind.SCHEDULE), phases) if with_schedule else (phases,)
