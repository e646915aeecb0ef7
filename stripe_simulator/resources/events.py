"""Snapshot events, thin events of API v2, and the reports of rejected meter events.

Sources: docs.stripe.com/api/events, …/api/v2/core/events. `Store.save` creates snapshot events. The rejected meter
events of a validation window become one thin event for each meter, with counts and samples, not every identifier.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final

from stripe_simulator.deliveries import pending, publish
from stripe_simulator.errors import no_such
from stripe_simulator.mode import Call, Mode, Route
from stripe_simulator.pagination import COMPARISONS, LIST, page, page_v2
from stripe_simulator.resources.conventions import Object, check
from stripe_simulator.resources.meter_events import NO_METER
from stripe_simulator.times import milliseconds_of, rfc3339
from stripe_simulator.usage import REPORT, MeterEvent

ERROR_REPORT: Final = "v1.billing.meter.error_report_triggered"
NO_METER_FOUND: Final = "v1.billing.meter.no_meter_found"
RETENTION_MS: Final = 30 * 86_400_000
SAMPLES_MAX: Final = 5
TYPES_MAX: Final = 20
_THIN: Final = "v2.core.event"


def _retrieve(mode: Mode, call: Call) -> Object:
    event = mode.fetch(_THIN if call.path.startswith("/v2/") else "event", call.id, "event")
    if not _is_kept(mode, event):
        raise no_such("event", call.id, "id")
    return event if event["object"] == _THIN else _with_pending(mode, event)


def _list(mode: Mode, call: Call) -> Object:
    """A type may end with `*`. `delivery_success` is whether no webhook of the event is pending or given up."""
    types = _types(call)
    if "type" in call.params:
        message = "You may only specify one of these parameters: type, types."
        check(not types, message, "type", "parameters_exclusive")
        types = [call.params["type"]]
    wanted = call.params.get("delivery_success")

    def keep(event: Object) -> bool:
        is_wanted = _is_kept(mode, event) and _is_of(event["type"], types)
        return is_wanted and (wanted is None or (pending(mode, event["id"]) == 0) == wanted)

    listed = page(mode, call, "event", keep=keep)
    return {**listed, "data": [_with_pending(mode, event) for event in listed["data"]]}


def _list_thin(mode: Mode, call: Call) -> Object:
    types, about = _types(call), call.params.get("object_id")
    bounds = {name: milliseconds_of(text, f"created[{name}]") for name, text in call.params.get("created", {}).items()}

    def keep(event: Object) -> bool:
        is_wanted = _is_kept(mode, event) and (not types or event["type"] in types)
        is_wanted = is_wanted and about in (None, event.get("related_object", {}).get("id"))
        return is_wanted and all(COMPARISONS[name](_created_ms(event), bound) for name, bound in bounds.items())

    return page_v2(mode, call, _THIN, keep)


def _types(call: Call) -> list[str]:
    types = list(call.params.get("types", ()))
    check(len(types) <= TYPES_MAX, f"You may pass at most {TYPES_MAX} types.", "types")
    return types


def _is_of(event_type: str, types: Sequence[str]) -> bool:
    return not types or any(
        event_type == wanted or (wanted.endswith("*") and event_type.startswith(wanted[:-1])) for wanted in types
    )


def _with_pending(mode: Mode, event: Object) -> Object:
    return {**event, "pending_webhooks": pending(mode, event["id"])}


def _is_kept(mode: Mode, event: Object) -> bool:
    return _created_ms(event) >= mode.now_ms() - RETENTION_MS


def _created_ms(event: Object) -> int:
    created = event["created"]
    return milliseconds_of(created, "created") if isinstance(created, str) else created * 1_000


def _report(mode: Mode, window: dict[str, Any]) -> None:
    """The job that reports the rejected meter events of a validation window."""
    by_meter: defaultdict[str, list[MeterEvent]] = defaultdict(list)
    for event in mode.usage.rejected(window["start_ms"]):
        by_meter["" if event.code == NO_METER else event.meter].append(event)
    for meter, events in sorted(by_meter.items()):
        reason = {"error_count": len(events), "error_types": _error_types(events)}
        data = {
            "developer_message_summary": f"There were {len(events)} errors while validating meter events.",
            "validation_start": rfc3339(window["start_ms"]), "validation_end": rfc3339(window["end_ms"]),
            "reason": reason,
        }  # fmt: skip
        body: Object = {
            "id": mode.store.new_id("evt_live" if mode.livemode else "evt_test", 24), "object": _THIN,
            "type": ERROR_REPORT if meter else NO_METER_FOUND, "livemode": mode.livemode,
            "created": rfc3339(mode.now_ms()), "context": None, "reason": None, "changes": None,
            "snapshot_event": None, "data": data,
        }  # fmt: skip
        if meter:
            body["related_object"] = {"id": meter, "type": "billing.meter", "url": f"/v1/billing/meters/{meter}"}
        publish(mode, mode.store.put(body))


def _error_types(events: Sequence[MeterEvent]) -> list[Object]:
    by_code: defaultdict[str, list[Object]] = defaultdict(list)
    for event in events:
        message = f"The meter event was rejected: {event.code}."
        by_code[event.code].append({"error_message": message, "request": {"identifier": event.identifier}})
    return [
        {"code": code, "error_count": len(errors), "sample_errors": errors[:SAMPLES_MAX]}
        for code, errors in sorted(by_code.items())
    ]


JOBS = {REPORT: _report}
ROUTES = (
    Route("GET", "/v1/events", _list, (*LIST, "created", "delivery_success", "type", "types")),
    Route("GET", "/v1/events/{id}", _retrieve),
    Route("GET", "/v2/core/events", _list_thin, ("created", "limit", "object_id", "types")),
    Route("GET", "/v2/core/events/{id}", _retrieve),
)
