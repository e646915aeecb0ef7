"""The timeline of one account: what will happen, before it happens, and what happened, in one list.

The future follows from what Stripe and SQL say now: it changes if somebody changes something. The past is the audit.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from aggregators.notices import REMIND_DAYS
from aggregators.upgrade_words import date_text, money_text
from portal.account import Facts
from portal.subscribed import Seen, card_expires_ms, seen_of, subscriptions_of
from portal.words import paid_for, plan_name, price_words
from schemas.catalog import Dunning
from schemas.clock import DAY_MS
from schemas.dunning import DunningCase
from schemas.entitlements import Override, SourceKind
from schemas.notices import Delivery
from schemas.seats import SeatState
from schemas.side_tables import AuditRow
from schemas.upgrades import Money

# An account has a few; more than that are left off, the last ones first.
FUTURE_MAX: Final = 100
_EVENTS: Final = {
    "customer.created": "The customer was made at Stripe",
    "customer.deleted": "The customer was deleted at Stripe",
    "customer.subscription.created": "A subscription began",
    "customer.subscription.updated": "The subscription changed",
    "customer.subscription.deleted": "The subscription ended",
    "customer.subscription.paused": "The subscription was paused",
    "customer.subscription.resumed": "The subscription was resumed",
    "subscription_schedule.created": "A change was planned",
    "subscription_schedule.updated": "The planned change was changed",
    "subscription_schedule.completed": "The planned change was made",
    "subscription_schedule.released": "The planned change was taken back",
    "subscription_schedule.canceled": "The planned change was canceled",
    "invoice.finalized": "An invoice was made",
    "invoice.paid": "An invoice was paid",
    "invoice.payment_failed": "A payment failed",
    "invoice.payment_action_required": "The bank asks the customer to confirm a payment",
    "invoice.voided": "An invoice was voided",
    "invoice.marked_uncollectible": "An invoice was given up",
    "payment_method.attached": "A payment method was stored",
    "checkout.session.completed": "A checkout was completed",
    "customer.updated": "The customer changed at Stripe",
    "invoice.created": "An invoice was begun",
    "invoice.payment_succeeded": "A payment was made",
    "tidemark.resync": "Read again from Stripe",
}
# Steps that another one says better.
_SMALL: Final = frozenset(
    ["customer.created", "customer.updated", "invoice.created", "invoice.payment_succeeded", "tidemark.resync"]
)
_ENTITIES: Final = {
    "account_customer": "The account's Stripe customer was set",
    "override": "An override was made or taken back",
    "operation": "A change of plan was accepted or made",
    "plan_move": "A move to another version of the plan",
    "migration_item": "A migration to a price for usage went on",
    "dunning": "Dunning moved on",
    "invoice_item": "Late usage was billed or given back",
    "overlap": "Two subscriptions overlap",
    "acknowledgement": "Somebody looked, and left it as it is",
    "subscription": "The subscription",
    "invoice": "An invoice",
    "customer": "The customer",
    "subscription_schedule": "The planned change",
}


class Entry(NamedTuple):
    """Something that happens or happened. `kind`: a word for programs; of the past, what it was about. `about`: the id
    of that thing. `actor`, `cause` and `reason`: of the past, as the audit says; "" of the future."""

    at_ms: int
    is_future: bool
    kind: str
    text: str
    about: str = ""
    amount: Money | None = None
    actor: str = ""
    cause: str = ""
    reason: str = ""


class Timeline(NamedTuple):
    """One page, the latest instant first. `before`: the number of the audit behind which the next page begins; None on
    the last page. Only the first page has the future."""

    account: str
    now_ms: int
    entries: tuple[Entry, ...]
    before: int | None


def future(facts: Facts, overrides: Sequence[Override] = (), waiting: Sequence[Delivery] = ()) -> tuple[Entry, ...]:
    """What will happen to an account if nobody changes anything, the next first; at most `FUTURE_MAX` entries."""
    seen = seen_of(facts)
    found = [
        *_charges(facts, seen), *_changes(facts, seen), *_trial(facts, seen), *_card(facts, seen), *_retries(facts),
        *(entry for listed in facts.cases for entry in _dunning(listed.case, facts.shop.commerce.catalog.dunning)),
        *_granted(overrides, facts.now_ms), *(_notice(each) for each in waiting), *_invitations(facts),
    ]  # fmt: skip
    coming = sorted((entry for entry in found if entry.at_ms > facts.now_ms), key=lambda entry: entry[:4])
    return tuple(coming[:FUTURE_MAX])


def is_told(row: AuditRow) -> bool:
    """Whether an audit row says something that the customer cares about."""
    return row.reason in _EVENTS and row.reason not in _SMALL


def past(row: AuditRow) -> Entry:
    """An audit row as an entry."""
    text = _EVENTS.get(row.reason) or _ENTITIES.get(row.entity, row.entity.replace("_", " "))
    money = _amount(row)
    shown = f"{text}: {money_text(money)}" if money and row.reason in _EVENTS else text
    if row.reason not in _EVENTS and row.reason:
        shown = f"{shown}: {row.reason}"
    return Entry(row.at_ms, False, row.entity, shown, row.entity_id, money, row.actor, row.cause, row.reason)


def _amount(row: AuditRow) -> Money | None:
    """The total of the invoice that an audit row is about, if the row says it."""
    if row.entity != "invoice" or not row.after:
        return None
    document: Any = json.loads(row.after)
    rows = document.get("invoices") if isinstance(document, dict) else None
    found: Mapping[str, Any] = (rows or {}).get(row.entity_id) or {}
    if not {"total_minor", "currency", "exponent"} <= found.keys() or found["total_minor"] is None:
        return None
    return Money(int(found["total_minor"]), str(found["currency"]), int(found["exponent"] or 0))


def _entry(at_ms: int, kind: str, text: str, about: str = "", amount: Money | None = None) -> Entry:
    return Entry(at_ms, True, kind, text, about, amount)


def _charges(facts: Facts, seen: Seen) -> Iterator[Entry]:
    """The next invoice of each interval of the subscription."""
    view, shop = seen.view, facts.shop
    if view.status not in ("active", "trialing", "past_due"):
        return
    for at_ms in sorted({item.end_ms for item in view.items}):
        due = [item for item in view.items if item.end_ms == at_ms]
        bought: Sequence[tuple[str, int | None]] = [(item.price, item.quantity) for item in due]
        usage = "" if all(item.quantity is not None for item in due) else "the usage until then"
        if seen.ends_ms is not None and seen.ends_ms <= at_ms:
            if usage:
                yield _entry(at_ms, "charge", f"The last invoice bills {usage}", view.id)
            continue
        if seen.phases and seen.phases[0][0] <= at_ms:
            bought = seen.phases[0][1]
        paid = [paid_for(shop, price, quantity or 0, view.currency) for price, quantity in bought]
        amount = paid[0]._replace(minor=sum(each.minor for each in paid)) if paid else None
        parts = [money_text(amount) if amount and amount.minor else "", usage]
        what = " and ".join(part for part in parts if part) or "nothing"
        yield _entry(at_ms, "charge", f"The next invoice bills {what}", view.id, amount)


def _changes(facts: Facts, seen: Seen) -> Iterator[Entry]:
    """What was planned: the phases of the schedule, and the end."""
    view, shop = seen.view, facts.shop
    for start_ms, items in seen.phases:
        plan = next((pin.plan for price, _ in items if (pin := shop.commerce.pins.get(price))), None)
        prices = "; ".join(price_words(shop, items, view.currency))
        yield _entry(start_ms, "plan_change", f"The plan becomes {plan_name(shop, plan)}: {prices}", view.id)
    for each in subscriptions_of(facts.mirror):
        if each.cancel_at_ms is not None and (each.id != view.id or seen.ends_ms is None):
            yield _entry(each.cancel_at_ms, "subscription_end", "A subscription ends", each.id)
    if seen.ends_ms is not None:
        after = plan_name(shop, None)
        yield _entry(seen.ends_ms, "subscription_end", f"The subscription ends; the plan is {after} then", view.id)


def _trial(facts: Facts, seen: Seen) -> Iterator[Entry]:
    if seen.trial_end_ms is None:
        return
    yield _entry(seen.trial_end_ms, "trial_end", "The trial ends", seen.view.id)
    for days in REMIND_DAYS:
        text = f"A notice says that the trial ends on {date_text(seen.trial_end_ms, facts.now_ms)}"
        yield _entry(seen.trial_end_ms - days * DAY_MS, "notice", text, seen.view.id)


def _card(facts: Facts, seen: Seen) -> Iterator[Entry]:
    expires_ms = card_expires_ms(facts)
    if expires_ms is None or not seen.view.id:
        return
    yield _entry(expires_ms, "card_expiry", "The card expires", seen.view.id)
    for days in facts.shop.commerce.catalog.dunning.card_expiry_days:
        text = f"A notice says that the card expires on {date_text(expires_ms, facts.now_ms)}"
        yield _entry(expires_ms - days * DAY_MS, "notice", text, seen.view.id)


def _retries(facts: Facts) -> Iterator[Entry]:
    for row in facts.invoices:
        if row["status"] == "open" and row["next_attempt_ms"] is not None:
            amount = Money(int(row["remaining_minor"] or 0), str(row["currency"]), int(row["exponent"] or 0))
            text = f"Stripe tries to collect {money_text(amount)} again"
            yield _entry(int(row["next_attempt_ms"]), "payment_retry", text, str(row["id"]), amount)


def _dunning(case: DunningCase, policy: Dunning) -> Iterator[Entry]:
    """The states that a case reaches if nobody pays."""
    if case.next_ms is None or case.closed_ms is not None:
        return
    opened_ms, lost_ms = case.opened_ms, case.downgrade_ms
    if lost_ms is None:
        final_ms = opened_ms + policy.final_days * DAY_MS
        yield _entry(opened_ms + policy.urgent_days * DAY_MS, "dunning", "A second notice, if nobody pays", case.id)
        yield _entry(final_ms, "dunning", "The last warning, if nobody pays; sooner if Stripe gives up", case.id)
        lost_ms = final_ms + policy.downgrade_after_final_days * DAY_MS
    yield _entry(lost_ms, "dunning", "The plan is lost, if nobody pays", case.id)
    yield _entry(lost_ms + policy.win_back_days * DAY_MS, "dunning", "A notice offers everything back", case.id)
    yield _entry(lost_ms + policy.give_up_days * DAY_MS, "dunning", "The case is closed, if nobody pays", case.id)


def _granted(overrides: Sequence[Override], now_ms: int) -> Iterator[Entry]:
    for made in overrides:
        grant = made.grant
        if made.revoked_ms is not None:
            continue
        what = "contract" if grant.kind is SourceKind.CONTRACT else "override"
        if grant.starts_ms > now_ms:
            yield _entry(grant.starts_ms, what, f"The {what} of {grant.feature} begins", str(made.number))
        if grant.ends_ms is not None:
            yield _entry(grant.ends_ms, what, f"The {what} of {grant.feature} ends", str(made.number))


def _invitations(facts: Facts) -> Iterator[Entry]:
    for seat in facts.seats:
        if seat.state is SeatState.RESERVED and seat.expires_ms is not None:
            yield _entry(seat.expires_ms, "seat", f"The invitation of {seat.holder} expires: {seat.feature}", seat.id)


def _notice(delivery: Delivery) -> Entry:
    notice = delivery.notice
    what = notice.kind.value.replace("_", " ")
    return _entry(delivery.due_ms, "notice", f"A notice is sent by {delivery.channel}: {what}", notice.id)
