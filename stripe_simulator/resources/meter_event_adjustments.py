"""Adjustments that cancel a meter event (docs.stripe.com/api/billing/meter-event-adjustment)."""

from __future__ import annotations

from typing import Final

from stripe_simulator.errors import ApiError, missing_parameter
from stripe_simulator.mode import Call, Mode, Route
from stripe_simulator.store import Object
from stripe_simulator.times import rfc3339

CREATE: Final = ("cancel", "event_name", "type")


def create(mode: Mode, call: Call) -> Object:
    """`POST /v1/billing/meter_event_adjustments`: the event leaves the sums at once, the answer says `pending`."""
    identifier = (call.params.get("cancel") or {}).get("identifier")
    if not identifier:
        raise missing_parameter("cancel[identifier]")
    event = mode.usage.latest_of(identifier)
    # Stripe cancels an event for as long as its identifier stays unique.
    is_known = event is not None and event.event_name == call.params["event_name"]
    if event is None or not is_known or not mode.usage.is_taken(identifier, mode.now_ms()):
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


def create_v2(mode: Mode, call: Call) -> Object:
    """`POST /v2/billing/meter_event_adjustments`."""
    identifier, created = mode.store.new_id("mtr_event_adj", 24), rfc3339(mode.now_ms())
    kind = "v2.billing.meter_event_adjustment"
    return {**create(mode, call), "object": kind, "id": identifier, "created": created}


ROUTES = (
    Route("POST", "/v1/billing/meter_event_adjustments", create, CREATE),
    Route("POST", "/v2/billing/meter_event_adjustments", create_v2, CREATE),
)
