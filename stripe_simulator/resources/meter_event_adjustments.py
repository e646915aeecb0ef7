"""Adjustments that cancel a meter event (docs.stripe.com/api/billing/meter-event-adjustment)."""

from __future__ import annotations

from stripe_simulator.errors import ApiError, missing_parameter
from stripe_simulator.mode import Call, Mode, Route
from stripe_simulator.store import Object


def create(mode: Mode, call: Call) -> Object:
    """`POST /v1/billing/meter_event_adjustments`: the event leaves the sums at once, the answer says `pending`."""
    identifier = (call.params.get("cancel") or {}).get("identifier")
    if not identifier:
        raise missing_parameter("cancel[identifier]")
    # The identifier is taken for the same 24 hours in which Stripe cancels the event.
    event = mode.usage.latest_of(identifier) if mode.usage.is_taken(identifier, mode.now_ms()) else None
    if event is None or event.event_name != call.params["event_name"]:
        message = f"No meter event of the last 24 hours has the identifier {identifier}."
        raise ApiError(400, message, code="resource_missing", param="cancel[identifier]")
    mode.usage.cancel(event)
    return {
        "object": "billing.meter_event_adjustment",
        "cancel": {"identifier": identifier},
        "event_name": event.event_name,
        "livemode": mode.livemode,
        "status": "pending",
        "type": "cancel",
    }


ROUTES = (Route("POST", "/v1/billing/meter_event_adjustments", create, ("cancel", "event_name", "type")),)
