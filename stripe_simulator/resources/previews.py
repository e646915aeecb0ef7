"""Previews of invoices (docs.stripe.com/api/invoices/create_preview).

A preview makes the change and lets time pass until the next invoice is drafted, and then undoes everything. So a change
bills what its preview showed.
"""

from __future__ import annotations

from typing import Final

from stripe_simulator import invoicing
from stripe_simulator.contract.parameters import Params
from stripe_simulator.errors import ApiError, not_simulated, require_one
from stripe_simulator.invoice_lines import details_of
from stripe_simulator.mode import Call, Mode, Route
from stripe_simulator.resources import subscription_changes, subscription_cycle, subscription_schedules, subscriptions
from stripe_simulator.store import Object

_DETAILS: Final = (
    "billing_cycle_anchor", "cancel_at", "cancel_at_period_end", "cancel_now", "items", "proration_behavior",
    "proration_date", "resume_at", "start_date", "trial_end",
)  # fmt: skip
TAKES: Final = (
    "automatic_tax[enabled]", "customer", "discounts", "preview_mode", "schedule", "schedule_details[end_behavior]",
    "schedule_details[phases]", "schedule_details[proration_behavior]", "subscription",
    *(f"subscription_details[{name}]" for name in _DETAILS),
)  # fmt: skip
# More jobs than a subscription has between two invoices.
JOBS_MAX: Final = 50


def create(mode: Mode, call: Call) -> Object:
    """`POST /v1/invoices/create_preview`. `recurring` leaves out prorations and pending invoice items."""
    recurring = call.params.get("preview_mode") == "recurring"
    with mode.journal.discarded():
        try:
            _until_the_invoice(mode, call, recurring=recurring)
        except invoicing.Drafted as drafted:
            invoice, lines = drafted.args
            if recurring:
                lines = [line for line in lines if details_of(line)["invoice_item"] is None]
                invoicing.set_lines(mode, invoice, lines)
            return {**invoice, "id": f"upcoming_{invoice['id']}"}
    raise ApiError(404, "No upcoming invoices for customer", code="invoice_upcoming_none")


def _until_the_invoice(mode: Mode, call: Call, *, recurring: bool) -> None:
    params = call.params
    own = {key: params[key] for key in ("automatic_tax", "discounts") if key in params}
    change = params.get("subscription_details", {}) | own
    if recurring:
        change["proration_behavior"] = "none"
        change.pop("proration_date", None)
    is_new = "customer" in params and not params.keys() & {"subscription", "schedule"}
    anchor = change.get("billing_cycle_anchor", {})
    if anchor.get("type") == "timestamp" and not is_new:
        raise not_simulated("a preview of another billing_cycle_anchor than now")
    if is_new:
        change["billing_cycle_anchor"] = anchor.get("timestamp")
        subscriptions.create(mode, Call(call.path, {**change, "customer": params["customer"]}))
        return
    identifier = params[require_one(params, "subscription", "schedule")]
    if "schedule" in params:
        schedule = mode.fetch("subscription_schedule", identifier, param="schedule")
        if "schedule_details" in params:
            subscription_schedules.update(mode, Call(call.path, params["schedule_details"], (identifier,)))
        identifier = schedule["subscription"]
    body = mode.fetch("subscription", identifier or "", param="subscription")
    resumes = change.pop("resume_at", None) == "now"
    starts_s = change.pop("start_date", None)
    if change.pop("cancel_now", False):
        subscriptions.cancel(mode, Call(call.path, {"invoice_now": True, "prorate": True}, (identifier,)))
        return
    if resumes:
        anchor = change.pop("billing_cycle_anchor", {"type": "now"})
        if change:
            subscriptions.change(mode, body, {**change, "proration_behavior": "none"})
        subscriptions.resume(mode, Call(call.path, {"billing_cycle_anchor": anchor}, (identifier,)))
        return
    if change:
        body = _changed(mode, body, change, starts_s)
    if body["billing_thresholds"]:
        # Without usage to come, the hourly looks at the threshold find nothing.
        subscription_changes.watch(mode, mode.store.save({**body, "billing_thresholds": None})["id"])
    for _ in range(JOBS_MAX):
        due_s = subscription_changes.ledger(mode, identifier)["due"]
        if not due_s:
            return
        mode.clockwork.set_time(body["test_clock"] or "", due_s * 1_000)
        subscription_cycle.tick(mode, {"subscription": identifier})


def _changed(mode: Mode, body: Object, change: Params, starts_s: int | None) -> Object:
    """Change a subscription. What is added began at `start_date`, if that is given, and has the usage since then."""
    before = {item["id"] for item in subscription_changes.items_of(mode, body["id"])}
    body = subscriptions.change(mode, body, change)
    for item in subscription_changes.items_of(mode, body["id"]) if starts_s is not None else ():
        if item["id"] not in before:
            mode.store.save({**item, "current_period_start": starts_s})
    return body


ROUTES = (Route("POST", "/v1/invoices/create_preview", create, TAKES),)
