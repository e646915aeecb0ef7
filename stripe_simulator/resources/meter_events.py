"""Meter events of API v1 and v2, API v2's stream of meter events with its sessions, and adjustments that cancel events.

Sources: docs.stripe.com/api/billing/meter-event, …/meter-event-adjustment, …/v2/billing/meter-event-streams.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from stripe_simulator.contract.parameters import Params
from stripe_simulator.errors import ApiError, missing_parameter, unauthorized
from stripe_simulator.mode import Call, Mode, Route
from stripe_simulator.resources.meters import named
from stripe_simulator.store import Object
from stripe_simulator.times import milliseconds_of, rfc3339, seconds_of
from stripe_simulator.usage import ADD_UP, MeterEvent, number_of

_SESSION: Final = "v2.billing.meter_event_session"
INDEXED = {_SESSION: ("authentication_token",)}
NO_METER: Final = "no_meter"
PAST_MAX_S: Final = 35 * 86_400
FUTURE_MAX_S: Final = 300
SIGNIFICANT_DIGITS_MAX: Final = 15
SESSION_MS: Final = 15 * 60_000
STREAM_EVENTS_MAX: Final = 100
_CREATE: Final = ("event_name", "identifier", "payload", "timestamp")
# As observed, API v1 sends these errors without a code.
_WITHOUT_CODE: Final = (NO_METER, "archived_meter", "duplicate_meter_event")


def inject(mode: Mode, event_name: str, customer: str, value: str, timestamp_s: int) -> MeterEvent:
    """Add an event that no client sent. Raises `ValueError` without an active meter of this name."""
    meter = named(mode, event_name)
    if meter is None or meter["status"] != "active":
        raise ValueError(f"no active meter of event name {event_name}")
    identifier = f"injected_{len(mode.usage.events) + 1}"
    return mode.usage.receive(MeterEvent(identifier, event_name, meter["id"], customer, value, timestamp_s, injected=1))


def _create(mode: Mode, call: Call) -> Object:
    """Answers before the event counts. API v1 has seconds, API v2 has RFC 3339."""
    params, now_ms, is_v2 = call.params, mode.now_ms(), call.path.startswith("/v2/")
    given = params.get("timestamp")
    event, error = _read(mode, params, seconds_of(given, "timestamp") if given and is_v2 else given)
    if mode.usage.latest_of(event.identifier):
        message = f"An event already exists with identifier {event.identifier}."
        headers = {"Stripe-Should-Retry": "false"}
        error = error or ApiError(400, message, headers=headers, code="duplicate_meter_event")
    if error:
        error.code = None if error.code in _WITHOUT_CODE and not is_v2 else error.code
        raise error
    event.code = call.rejection
    mode.usage.receive(event)
    return {
        "object": "v2.billing.meter_event" if is_v2 else "billing.meter_event",
        "created": rfc3339(now_ms) if is_v2 else now_ms // 1_000,
        "event_name": event.event_name,
        "identifier": event.identifier,
        "livemode": mode.livemode,
        "payload": params["payload"],
        "timestamp": (given or rfc3339(now_ms)) if is_v2 else event.timestamp_s,
    }


def _lock(mode: Mode, call: Call) -> tuple[str, ...]:
    """The name of an event's lock: mode, event name and customer. Stripe executes one at a time."""
    event, _ = _read(mode, call.params, 0)
    return (str(mode.livemode), event.event_name, event.customer or "")


def _stream(mode: Mode, call: Call) -> Object:
    """What API v1 refuses at once is reported later; an event whose identifier is taken is dropped."""
    if len(call.params["events"]) > STREAM_EVENTS_MAX:
        raise ApiError(400, f"You may pass at most {STREAM_EVENTS_MAX} events.", param="events")
    for params in call.params["events"]:
        given = params.get("timestamp")
        event, error = _read(mode, params, seconds_of(given, "timestamp") if given else None)
        if mode.usage.latest_of(event.identifier) is None:
            event.code = (error and error.code) or call.rejection
            mode.usage.receive(event)
    return {}


def _read(mode: Mode, params: Params, timestamp_s: int | None) -> tuple[MeterEvent, ApiError | None]:
    """An event, now without a timestamp, and what is wrong with the event at first sight."""
    name, payload, meter = params["event_name"], params["payload"], named(mode, params["event_name"])
    identifier = params.get("identifier") or f"{len(mode.usage.events) + 1:032x}"
    if meter is None:
        return MeterEvent(identifier, name, "", None, None, timestamp_s or mode.now_s()), _no_meter(name, NO_METER)
    value_key = meter["value_settings"]["event_payload_key"]
    customer, value = payload.get(meter["customer_mapping"]["event_payload_key"]), payload.get(value_key)
    now_s = max(mode.now_s(), mode.now_s(mode.clock_of(customer or "")))
    timestamp_s = mode.now_s() if timestamp_s is None else timestamp_s
    event = MeterEvent(identifier, name, meter["id"], customer, value, timestamp_s)
    if meter["status"] != "active":
        return event, _no_meter(name, "archived_meter")
    return event, _bad_timestamp(timestamp_s, now_s) or _bad_digits(value, value_key)


def _no_meter(event_name: str, code: str) -> ApiError:
    return ApiError(400, f"No active meter found for event name {event_name}.", param="event_name", code=code)


def _bad_timestamp(timestamp_s: int, now_s: int) -> ApiError | None:
    if timestamp_s < now_s - PAST_MAX_S:
        message = "The timestamp is too far in the past: it must be within the past 35 calendar days."
        return ApiError(400, message, code="timestamp_too_far_in_past", param="timestamp")
    if timestamp_s > now_s + FUTURE_MAX_S:
        message = "The timestamp is in the future: it must be at most 5 minutes ahead."
        return ApiError(400, message, code="timestamp_in_future", param="timestamp")
    return None


def _bad_digits(value: str | None, key: str) -> ApiError | None:
    """Since 2026-04-22.dahlia, more than 15 significant digits are refused. Final zeros count after the point."""
    number = None if value is None else number_of(value)
    if number is None:
        return None
    digits = "".join(map(str, number.as_tuple().digits)).lstrip("0")
    significant = digits if "." in str(value) else digits.rstrip("0")
    if len(significant) <= SIGNIFICANT_DIGITS_MAX:
        return None
    message = f"The meter event value {value} has more than {SIGNIFICANT_DIGITS_MAX} significant digits."
    return ApiError(400, message, code="meter_event_value_too_many_digits", param=f"payload[{key}]")


def _create_session(mode: Mode, _call: Call) -> Object:
    if not mode.livemode:
        raise ApiError(400, "Meter event streams are available in live mode only.")
    body = {
        "id": mode.store.new_id("mtr_session", 24), "object": _SESSION,
        "authentication_token": mode.store.new_id("mtr_token", 48), "created": rfc3339(mode.now_ms()),
        "expires_at": rfc3339(mode.now_ms() + SESSION_MS), "livemode": mode.livemode,
    }  # fmt: skip
    return mode.store.put(body)


def _authenticate(modes: Sequence[Mode], authorization: str) -> Mode:
    """The mode of a session's token. Raises `ApiError` (401)."""
    token = authorization.partition(" ")[2]
    if not token:
        raise unauthorized("You did not provide an API key.")
    for mode in modes:
        for session in mode.store.newest(_SESSION, "authentication_token", token):
            if mode.now_ms() < milliseconds_of(session["expires_at"], "expires_at"):
                return mode
    message, kind = "The billing meter event session has expired.", "temporary_session_expired"
    raise ApiError(401, message, kind=kind, code="billing_meter_event_session_expired")


def _adjust(mode: Mode, call: Call) -> Object:
    """The event leaves the sums at once, and the answer says `pending`. Stripe cancels events of the last 24 h."""
    identifier = (call.params.get("cancel") or {}).get("identifier")
    if not identifier:
        raise missing_parameter("cancel[identifier]")
    event = mode.usage.latest_of(identifier)
    if event is None or event.event_name != call.params["event_name"]:
        message = f"No meter event of the last 24 hours has the identifier {identifier}."
        raise ApiError(400, message, code="resource_missing", param="cancel[identifier]")
    mode.usage.cancel(event)
    body: dict[str, Any] = {"object": "billing.meter_event_adjustment", "cancel": {"identifier": identifier}}
    return body | {"event_name": event.event_name, "livemode": mode.livemode, "status": "pending", "type": "cancel"}


JOBS = {ADD_UP: lambda mode, _: mode.usage.add_up()}
ROUTES = (
    Route("POST", "/v1/billing/meter_events", _create, _CREATE, _lock),
    Route("POST", "/v2/billing/meter_events", _create, _CREATE, _lock),
    Route("POST", "/v2/billing/meter_event_session", _create_session),
    Route("POST", "/v2/billing/meter_event_stream", _stream, ("events",), authenticate=_authenticate),
    Route("POST", "/v1/billing/meter_event_adjustments", _adjust, ("cancel", "event_name", "type")),
)
