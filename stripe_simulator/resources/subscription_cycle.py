"""What happens to a subscription by itself: renewal, end of a trial, cancellation, and the result of its invoices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stripe_simulator import invoicing, payments
from stripe_simulator.engine.collection import after_failure, after_payment
from stripe_simulator.engine.lines import Line
from stripe_simulator.engine.periods import Period
from stripe_simulator.invoice_lines import owner_of
from stripe_simulator.mode import Mode
from stripe_simulator.resources import subscription_changes as changes
from stripe_simulator.resources import subscription_schedules
from stripe_simulator.store import Object

INDEXED = {"subscription": ("customer", "test_clock"), "subscription_item": ("subscription",)}


def tick(mode: Mode, arguments: dict[str, Any]) -> None:
    """The job of a subscription: everything that is due at this instant, in Stripe's order."""
    body = mode.fetch("subscription", arguments["subscription"])
    at = mode.now_of(body)
    pending = changes.ledger(mode, body["id"])["pending"]
    if body["status"] == "incomplete" or (pending and pending["expires_at"] == at):
        # Nobody paid within 23 hours: `invoice_voided` does the rest.
        invoice = mode.store.edit("invoice", body["latest_invoice"] or "")
        if invoice and invoice["status"] == "open":
            invoicing.void(mode, invoice)
        body = mode.fetch("subscription", body["id"])
    if body["status"] in ("trialing", "active", "past_due", "unpaid"):
        _run(mode, body, at)
    changes.watch(mode, body["id"])


def _run(mode: Mode, body: Object, at: int) -> None:
    if body["status"] == "trialing" and body["trial_end"] - changes.WILL_END_S == at:
        mode.store.save(body, "customer.subscription.trial_will_end")
    ended = [item for item in changes.items_of(mode, body["id"]) if item["current_period_end"] <= at]
    was_trial = body["status"] == "trialing" and body["trial_end"] <= at
    if was_trial:
        body = _end_trial(mode, body, at)
    lines: Sequence[Line] = ()
    is_over = bool(body["cancel_at"] and body["cancel_at"] <= at)
    if body["schedule"] and not is_over:
        body, lines, is_over = subscription_schedules.move_on(mode, body, at, at_boundary=bool(ended))
    if body["status"] in ("canceled", "paused"):
        return
    if is_over:
        # Inside a period, the unused time is always credited.
        lines = changes.closing_lines(mode, body, at, credit=not ended, usage=not was_trial)
    elif ended:
        renewed = changes.renewal(mode, body, at, was_trial=was_trial)
        changes.apply(mode, body, renewed.state)
        lines = [*lines, *renewed.lines]
    if lines or (ended and (not is_over or invoicing.waiting_for(mode, body["customer"], body["id"]))):
        spans = ended or changes.items_of(mode, body["id"])
        period = Period(min(item["current_period_start"] for item in spans), at)
        grace_s = mode.settings.invoice_grace_s
        changes.invoice(mode, body["id"], lines, "subscription_cycle", draft_grace_s=grace_s, period=period)
    body = mode.fetch("subscription", body["id"])
    if is_over:
        changes.end(mode, body, at)
    elif changes.has_threshold(body) and (reached := changes.threshold(mode, body, at)):
        changes.apply(mode, body, reached.state)
        changes.invoice(mode, body["id"], reached.lines, "subscription_threshold")


def _end_trial(mode: Mode, subscription: Object, at: int) -> Object:
    """End a trial. Without a payment method, `trial_settings` can cancel or pause instead of billing."""
    method = subscription["default_payment_method"] or payments.default_method(mode, subscription["customer"])
    behavior = subscription["trial_settings"]["end_behavior"]["missing_payment_method"]
    if method is None and subscription["collection_method"] == "charge_automatically":
        if behavior == "cancel":
            return changes.end(mode, subscription, at)
        if behavior == "pause":
            return pause(mode, subscription, at, "trial_end_without_payment_method")
    return mode.store.save({**subscription, "status": "active"})


def pause(mode: Mode, subscription: Object, at: int, why: str = "pause_requested") -> Object:
    """Pause a subscription. `why` is the type of `status_details`."""
    details = {"paused": {"subscription": {"type": why}, "transitioned_at": at, "type": "subscription"}}
    body = {**subscription, "status": "paused", "status_details": details}
    return mode.store.save(body, "customer.subscription.paused")


def follow(mode: Mode, invoice: Object) -> None:
    """The listener of `invoicing`: a subscription's invoice was paid, was voided, or could not be collected."""
    body, notes = mode.store.get("subscription", owner_of(invoice)), changes.ledger(mode, owner_of(invoice))
    pending, outcome = notes["pending"], invoice["status"]
    if body is None:
        return
    # A pending change does not know the invoice's id until both are stored.
    if pending and pending["invoice"] in (None, invoice["id"]):
        if outcome in ("paid", "void"):
            mode.store.put({**notes, "pending": None})
            _end_pending(mode, body, pending, is_paid=outcome == "paid")
    elif outcome == "paid":
        status = after_payment(body["status"], latest_invoice=_is_latest(mode, body, invoice))
        if status != body["status"]:
            mode.store.save({**body, "status": status})
            changes.watch(mode, body["id"])
    elif outcome == "void" and body["status"] == "incomplete":
        mode.store.save({**body, "status": "incomplete_expired", "ended_at": mode.now_of(body)})
    elif outcome == "void":
        if body["status"] in ("past_due", "unpaid") and _is_latest(mode, body, invoice):
            mode.store.save({**body, "status": "active"})
    else:
        _follow_policy(mode, body, invoice)


def _end_pending(mode: Mode, body: Object, pending: Object, *, is_paid: bool) -> None:
    """A pending update is applied or dropped, a pause ends or stays."""
    if is_paid:
        moved = {"status": "active", "status_details": None} if pending["resumes"] else {"pending_update": None}
        stored = changes.apply(mode, body | moved, pending["state"])
        # What is paid at once was never pending.
        if pending["resumes"] or pending["invoice"]:
            event = "resumed" if pending["resumes"] else "pending_update_applied"
            mode.store.save(stored, f"customer.subscription.{event}")
        changes.watch(mode, body["id"])
    elif not pending["resumes"]:
        mode.store.save({**body, "pending_update": None}, "customer.subscription.pending_update_expired")


def _follow_policy(mode: Mode, body: Object, invoice: Object) -> None:
    """After a failed attempt, the account's retry policy decides."""
    policy, finalized_at = mode.settings.retry_policy, invoice["status_transitions"]["finalized_at"]
    status = after_failure(policy, body["status"], finalized_at, invoice["attempt_count"]).subscription
    if status == "past_due" and not _is_latest(mode, body, invoice):
        status = body["status"]
    if status == "canceled" != body["status"]:
        changes.end(mode, body, mode.now_of(body), "payment_failed")
    elif status == "paused" != body["status"]:
        pause(mode, body, mode.now_of(body), "final_payment_failure")
    else:
        mode.store.save({**body, "status": status})


def _is_latest(mode: Mode, subscription: Object, invoice: Object) -> bool:
    """Whether no later invoice of the subscription is final: the latest one decides on `past_due`."""
    final = (
        other["id"]
        for other in mode.store.newest("invoice", "customer", subscription["customer"])
        if owner_of(other) == subscription["id"] and other["status"] != "draft"
    )
    return bool(next(final, invoice["id"]) == invoice["id"])


JOBS = {changes.TICK: tick}
ROUTES = ()
