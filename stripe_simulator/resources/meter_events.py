"""Meter events of API v1 and v2, API v2's stream of meter events with its sessions, and adjustments that cancel events.

Sources: docs.stripe.com/api/billing/meter-event, …/meter-event-adjustment, …/v2/billing/meter-event-streams.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from stripe_simulator.errors import ApiError, unauthorized
from stripe_simulator.mode import Call, Mode, Route
from stripe_simulator.resources.conventions import Object, Params, check, require
from stripe_simulator.resources.meters import named
from stripe_simulator.times import milliseconds_of, rfc3339, seconds_of
from stripe_simulator.usage import ADD_UP, MeterEvent, number_of

_SESSION: Final = "v2.billing.meter_event_session"
INDEXED = {_SESSION: ("authentication_token",)}
NO_METER: Final = "no_meter"
DUPLICATE: Final = "duplicate_meter_event"
PAST_MAX_S: Final = 35 * 86_400
FUTURE_MAX_S: Final = 300
SIGNIFICANT_DIGITS_MAX: Final = 15
SESSION_MS: Final = 15 * 60_000
STREAM_EVENTS_MAX: Final = 100
_CREATE: Final = ("event_name", "identifier", "payload", "timestamp")
# As observed, API v1 sends these errors without a code.
_WITHOUT_CODE: Final = (NO_METER, "archived_meter", DUPLICATE)


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
    event, meter = _read(mode, params)
    try:
        _check(mode, event, meter)
        is_new = mode.usage.latest_of(event.identifier) is None
        check(is_new, f"An event already exists with identifier {event.identifier}.", code=DUPLICATE)
    except ApiError as error:
        if error.code == DUPLICATE:
            error.headers = {**error.headers, "Stripe-Should-Retry": "false"}
        error.code = None if error.code in _WITHOUT_CODE and not is_v2 else error.code
        raise
    event.code = call.rejection
    event = mode.usage.receive(event)
    return {
        "object": "v2.billing.meter_event" if is_v2 else "billing.meter_event",
        "created": rfc3339(now_ms) if is_v2 else now_ms // 1_000, "event_name": event.event_name,
        "identifier": event.identifier, "livemode": mode.livemode, "payload": params["payload"],
        "timestamp": params.get("timestamp", rfc3339(now_ms)) if is_v2 else event.timestamp_s,
    }  # fmt: skip


def _lock(mode: Mode, call: Call) -> tuple[str, ...]:
    """The name of an event's lock: mode, event name and customer. Stripe executes one at a time."""
    event, _ = _read(mode, call.params)
    return (str(mode.livemode), event.event_name, event.customer or "")


def _stream(mode: Mode, call: Call) -> Object:
    """What API v1 refuses at once is reported later; an event whose identifier is taken is dropped."""
    events = call.params["events"]
    check(len(events) <= STREAM_EVENTS_MAX, f"You may pass at most {STREAM_EVENTS_MAX} events.", "events")
    for event, meter in [_read(mode, params) for params in events]:
        if mode.usage.latest_of(event.identifier):
            continue
        event.code = call.rejection
        try:
            _check(mode, event, meter)
        except ApiError as error:
            event.code = error.code or ""
        mode.usage.receive(event)
    return {}


def _read(mode: Mode, params: Params) -> tuple[MeterEvent, Object | None]:
    """An event, unchecked, and its meter. The event is of now without a timestamp."""
    name, payload, meter = params["event_name"], params["payload"], named(mode, params["event_name"])
    timestamp, identifier = params.get("timestamp", mode.now_s()), params.get("identifier", "")
    timestamp_s = seconds_of(timestamp, "timestamp") if isinstance(timestamp, str) else timestamp
    if meter is None:
        return MeterEvent(identifier, name, "", None, None, timestamp_s), None
    customer, value = (
        payload.get(meter[field]["event_payload_key"]) for field in ("customer_mapping", "value_settings")
    )
    return MeterEvent(identifier, name, meter["id"], customer, value, timestamp_s), meter


def _check(mode: Mode, event: MeterEvent, meter: Object | None) -> None:
    """Raises `ApiError` for what Stripe sees at first sight."""
    if meter is None or meter["status"] != "active":
        message = f"No active meter found for event name {event.event_name}."
        raise ApiError(400, message, code="archived_meter" if meter else NO_METER, param="event_name")
    now_s = max(mode.now_s(), mode.now_s(mode.clock_of(event.customer or "")))
    message = "The timestamp is too far in the past: it must be within the past 35 calendar days."
    check(event.timestamp_s >= now_s - PAST_MAX_S, message, "timestamp", "timestamp_too_far_in_past")
    message = "The timestamp is in the future: it must be at most 5 minutes ahead."
    check(event.timestamp_s <= now_s + FUTURE_MAX_S, message, "timestamp", "timestamp_in_future")
    message = f"The meter event value {event.value} has more than {SIGNIFICANT_DIGITS_MAX} significant digits."
    param = f"payload[{meter['value_settings']['event_payload_key']}]"
    is_short = _significant_digits(event.value or "") <= SIGNIFICANT_DIGITS_MAX
    check(is_short, message, param, "meter_event_value_too_many_digits")


def _significant_digits(value: str) -> int:
    """Since 2026-04-22.dahlia, more than 15 are refused. Final zeros count only after the point."""
    number = number_of(value)
    digits = "" if number is None else "".join(map(str, number.as_tuple().digits)).lstrip("0")
    return len(digits if "." in value else digits.rstrip("0"))


def _create_session(mode: Mode, _call: Call) -> Object:
    check(mode.livemode, "Meter event streams are available in live mode only.")
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
    params, cancel = call.params, call.params.get("cancel") or {}
    require(cancel, "identifier", within="cancel")
    event = mode.usage.latest_of(cancel["identifier"])
    message = f"No meter event of the last 24 hours has the identifier {cancel['identifier']}."
    if event is None or event.event_name != params["event_name"]:
        raise ApiError(400, message, code="resource_missing", param="cancel[identifier]")
    mode.usage.cancel(event)
    body: dict[str, Any] = {"object": "billing.meter_event_adjustment", "cancel": cancel, "type": "cancel"}
    return body | {"event_name": event.event_name, "livemode": mode.livemode, "status": "pending"}


JOBS = {ADD_UP: lambda mode, _: mode.usage.add_up()}
ROUTES = (
    Route("POST", "/v1/billing/meter_events", _create, _CREATE, _lock),
    Route("POST", "/v2/billing/meter_events", _create, _CREATE, _lock),
    Route("POST", "/v2/billing/meter_event_session", _create_session),
    Route("POST", "/v2/billing/meter_event_stream", _stream, ("events",), authenticate=_authenticate),
    Route("POST", "/v1/billing/meter_event_adjustments", _adjust, ("cancel", "event_name", "type")),
)
