"""Meter events of API v1 and, one event for each request, of API v2 (docs.stripe.com/api/billing/meter-event)."""

from __future__ import annotations

from typing import Final

from stripe_simulator.errors import ApiError
from stripe_simulator.mode import Call, Mode, Route
from stripe_simulator.resources.meters import active
from stripe_simulator.store import Object
from stripe_simulator.times import rfc3339, seconds_of
from stripe_simulator.usage import ADD_UP, VALIDATE, MeterEvent, number_of

CREATE: Final = ("event_name", "identifier", "payload", "timestamp")
PAST_MAX_S: Final = 35 * 86_400
FUTURE_MAX_S: Final = 300
SIGNIFICANT_DIGITS_MAX: Final = 15


def create(mode: Mode, call: Call) -> Object:
    """`POST /v1/billing/meter_events`. Answers before the event is validated."""
    now_s = mode.now_s()
    event = _receive(mode, call, call.params.get("timestamp", now_s))
    return {
        "object": "billing.meter_event",
        "created": now_s,
        "event_name": event.event_name,
        "identifier": event.identifier,
        "livemode": mode.livemode,
        "payload": call.params["payload"],
        "timestamp": event.timestamp_s,
    }


def create_v2(mode: Mode, call: Call) -> Object:
    """`POST /v2/billing/meter_events`."""
    now_ms = mode.now_ms()
    timestamp = call.params.get("timestamp")
    event = _receive(mode, call, now_ms // 1_000 if timestamp is None else seconds_of(timestamp, "timestamp"))
    return {
        "object": "v2.billing.meter_event",
        "created": rfc3339(now_ms),
        "event_name": event.event_name,
        "identifier": event.identifier,
        "livemode": mode.livemode,
        "payload": call.params["payload"],
        "timestamp": timestamp or rfc3339(now_ms),
    }


def lock(mode: Mode, call: Call) -> tuple[str, ...]:
    """The name of an event's lock: mode, event name and customer. Stripe executes one at a time."""
    event_name = call.params["event_name"]
    meter = active(mode, event_name)
    customer_key = meter["customer_mapping"]["event_payload_key"] if meter else "stripe_customer_id"
    return (str(mode.livemode), event_name, str(call.params["payload"].get(customer_key, "")))


def inject(mode: Mode, event_name: str, customer: str, value: str, timestamp_s: int) -> MeterEvent:
    """Add an event that no client sent. Raises `ValueError` without an active meter of this name."""
    meter = active(mode, event_name)
    if meter is None:
        raise ValueError(f"no active meter of event name {event_name}")
    identifier = f"injected_{len(mode.usage.events) + 1}"
    return mode.usage.receive(MeterEvent(identifier, event_name, meter["id"], customer, value, timestamp_s, injected=1))


def _receive(mode: Mode, call: Call, timestamp_s: int) -> MeterEvent:
    params = call.params
    is_v2 = call.path.startswith("/v2/")
    event_name, payload = params["event_name"], params["payload"]
    meter = active(mode, event_name)
    customer = payload.get(meter["customer_mapping"]["event_payload_key"]) if meter else None
    check_timestamp(timestamp_s, max(mode.now_s(), mode.now_s(mode.clock_of(customer or ""))))
    if meter is None:
        message = f"No active meter found for event name {event_name}."
        raise ApiError(400, message, param="event_name", code="no_meter" if is_v2 else None)
    value = payload.get(meter["value_settings"]["event_payload_key"])
    check_digits(value, meter["value_settings"]["event_payload_key"])
    identifier = params.get("identifier") or f"{len(mode.usage.events) + 1:032x}"
    if mode.usage.is_taken(identifier, mode.now_ms()):
        # API v1 sends no code here, as observed; API v2 documents one.
        message = f"An event already exists with identifier {identifier}."
        code = "duplicate_meter_event" if is_v2 else None
        raise ApiError(400, message, headers={"Stripe-Should-Retry": "false"}, code=code)
    event = MeterEvent(identifier, event_name, meter["id"], customer, value, timestamp_s, call.rejection)
    return mode.usage.receive(event)


def check_timestamp(timestamp_s: int, now_s: int) -> None:
    """Raise `ApiError` for a timestamp out of bounds."""
    if timestamp_s < now_s - PAST_MAX_S:
        message = "The timestamp is too far in the past: it must be within the past 35 calendar days."
        raise ApiError(400, message, code="timestamp_too_far_in_past", param="timestamp")
    if timestamp_s > now_s + FUTURE_MAX_S:
        message = "The timestamp is in the future: it must be at most 5 minutes ahead."
        raise ApiError(400, message, code="timestamp_in_future", param="timestamp")


def check_digits(value: str | None, key: str) -> None:
    """Since 2026-04-22.dahlia, more than 15 significant digits are refused. Final zeros count after the point."""
    number = None if value is None else number_of(value)
    if number is None:
        return
    digits = "".join(map(str, number.as_tuple().digits)).lstrip("0")
    significant = digits if "." in str(value) else digits.rstrip("0")
    if len(significant) > SIGNIFICANT_DIGITS_MAX:
        message = f"The meter event value {value} has more than {SIGNIFICANT_DIGITS_MAX} significant digits."
        raise ApiError(400, message, code="meter_event_value_too_many_digits", param=f"payload[{key}]")


JOBS = {
    VALIDATE: lambda mode, _: mode.usage.settle(VALIDATE),
    ADD_UP: lambda mode, _: mode.usage.settle(ADD_UP),
}
ROUTES = (
    Route("POST", "/v1/billing/meter_events", create, CREATE, lock),
    Route("POST", "/v2/billing/meter_events", create_v2, CREATE, lock),
)
