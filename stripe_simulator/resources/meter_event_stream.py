"""The stream of meter events and its sessions (docs.stripe.com/api/v2/billing/meter-event-streams), live mode only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from stripe_simulator.errors import ApiError, unauthorized
from stripe_simulator.mode import Call, Mode, Route
from stripe_simulator.resources.core_events import NO_METER
from stripe_simulator.resources.meter_events import check_digits, check_timestamp
from stripe_simulator.store import Object
from stripe_simulator.times import milliseconds_of, rfc3339, seconds_of
from stripe_simulator.usage import MeterEvent

INDEXED = {"v2.billing.meter_event_session": ("authentication_token",)}
SESSION_MS: Final = 15 * 60_000
EVENTS_MAX: Final = 100
_KIND: Final = "v2.billing.meter_event_session"


def create_session(mode: Mode, _call: Call) -> Object:
    """`POST /v2/billing/meter_event_session`."""
    if not mode.livemode:
        raise ApiError(400, "Meter event streams are available in live mode only.")
    return mode.store.put(
        {
            "id": mode.store.new_id("mtr_session", 24),
            "object": _KIND,
            "authentication_token": mode.store.new_id("mtr_token", 48),
            "created": rfc3339(mode.now_ms()),
            "expires_at": rfc3339(mode.now_ms() + SESSION_MS),
            "livemode": mode.livemode,
        }
    )


def authenticate(modes: Sequence[Mode], authorization: str) -> Mode:
    """The mode of a session's token. Raises `ApiError` (401)."""
    token = authorization.partition(" ")[2]
    if not token:
        raise unauthorized("You did not provide an API key.")
    for mode in modes:
        for session in mode.store.newest(_KIND, "authentication_token", token):
            if mode.now_ms() < milliseconds_of(session["expires_at"], "expires_at"):
                return mode
    raise ApiError(
        401,
        "The billing meter event session has expired.",
        kind="temporary_session_expired",
        code="billing_meter_event_session_expired",
    )


def create(mode: Mode, call: Call) -> Object:
    """`POST /v2/billing/meter_event_stream`. Validates later; an identifier that is taken is dropped."""
    events, now_s = call.params["events"], mode.now_s()
    if len(events) > EVENTS_MAX:
        raise ApiError(400, f"You may pass at most {EVENTS_MAX} events.", param="events")
    meters: dict[str, Object | None] = {}
    for params in events:
        name = params["event_name"]
        if name not in meters:
            meters[name] = next(iter(mode.store.newest("billing.meter", "event_name", name)), None)
        event = _event(params, meters[name], now_s)
        event.identifier = event.identifier or f"{len(mode.usage.events) + 1:032x}"
        if not mode.usage.is_taken(event.identifier, mode.now_ms()):
            event.code = event.code or call.rejection
            mode.usage.receive(event)
    return {}


def _event(params: dict[str, Any], meter: Object | None, now_s: int) -> MeterEvent:
    payload, timestamp = params["payload"], params.get("timestamp")
    timestamp_s = now_s if timestamp is None else seconds_of(timestamp, "timestamp")
    event = MeterEvent(params.get("identifier", ""), params["event_name"], "", None, None, timestamp_s, NO_METER)
    if meter is None:
        return event
    value_key = meter["value_settings"]["event_payload_key"]
    event.meter, event.value = meter["id"], payload.get(value_key)
    event.customer = payload.get(meter["customer_mapping"]["event_payload_key"])
    event.code = "" if meter["status"] == "active" else "archived_meter"
    try:
        check_timestamp(timestamp_s, now_s)
        check_digits(event.value, value_key)
    except ApiError as error:
        event.code = event.code or str(error.code)
    return event


ROUTES = (
    Route("POST", "/v2/billing/meter_event_session", create_session),
    Route("POST", "/v2/billing/meter_event_stream", create, ("events",), authenticate=authenticate),
)
