"""Thin events of API v2 (docs.stripe.com/api/v2/core/events), and the reports of rejected meter events.

The rejected events of a validation window become one event for each meter. The event contains counts and samples, not
every identifier.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final

from stripe_simulator.deliveries import publish
from stripe_simulator.errors import ApiError
from stripe_simulator.mode import Call, Mode, Route
from stripe_simulator.pagination import COMPARISONS, page_v2
from stripe_simulator.store import Object
from stripe_simulator.times import milliseconds_of, rfc3339
from stripe_simulator.usage import REPORT, MeterEvent

ERROR_REPORT: Final = "v1.billing.meter.error_report_triggered"
NO_METER_FOUND: Final = "v1.billing.meter.no_meter_found"
NO_METER: Final = "no_meter"
RETENTION_MS: Final = 30 * 86_400_000
SAMPLES_MAX: Final = 5
TYPES_MAX: Final = 20

_MESSAGES: Final = {
    "archived_meter": "The meter of the meter event's name is inactive.",
    "meter_event_customer_not_found": "The customer in the meter event's payload was not found.",
    "meter_event_no_customer_defined": "The meter event's payload names no customer.",
    "meter_event_value_not_found": "The meter event's payload has no value.",
    "meter_event_invalid_value": "The meter event's value is not a number.",
    "meter_event_value_too_many_digits": "The meter event's value has too many digits.",
    NO_METER: "No meter has the meter event's name.",
}


def retrieve(mode: Mode, call: Call) -> Object:
    """`GET /v2/core/events/{id}`, for 30 days."""
    event = mode.fetch("v2.core.event", call.id, "event")
    if _created_ms(event) < mode.now_ms() - RETENTION_MS:
        raise ApiError(404, f"No such event: '{call.id}'", code="resource_missing", param="id")
    return event


def list_all(mode: Mode, call: Call) -> Object:
    """`GET /v2/core/events`, for 30 days, newest first, filtered by `types`, `object_id` and `created`."""
    types, object_id = call.params.get("types", ()), call.params.get("object_id")
    if len(types) > TYPES_MAX:
        raise ApiError(400, f"You may pass at most {TYPES_MAX} types.", param="types")
    bounds = {name: milliseconds_of(text, f"created[{name}]") for name, text in call.params.get("created", {}).items()}
    oldest_ms = mode.now_ms() - RETENTION_MS

    def keep(event: Object) -> bool:
        created_ms = _created_ms(event)
        return (
            created_ms >= oldest_ms
            and (not types or event["type"] in types)
            and (object_id is None or event.get("related_object", {}).get("id") == object_id)
            and all(COMPARISONS[name](created_ms, bound_ms) for name, bound_ms in bounds.items())
        )

    return page_v2(mode, call, "v2.core.event", keep)


def report(mode: Mode, arguments: dict[str, Any]) -> None:
    """The job that reports the rejected meter events of a validation window."""
    by_meter: defaultdict[str, list[MeterEvent]] = defaultdict(list)
    for event in mode.usage.rejected(arguments["start_ms"]):
        by_meter["" if event.code == NO_METER else event.meter].append(event)
    for meter, events in sorted(by_meter.items()):
        _create(mode, meter, events, arguments)


def _create(mode: Mode, meter: str, events: Sequence[MeterEvent], window: dict[str, Any]) -> None:
    by_code: defaultdict[str, list[MeterEvent]] = defaultdict(list)
    for event in events:
        by_code[event.code].append(event)
    body: Object = {
        "id": mode.store.new_id("evt_live" if mode.livemode else "evt_test", 24),
        "object": "v2.core.event",
        "type": ERROR_REPORT if meter else NO_METER_FOUND,
        "livemode": mode.livemode,
        "created": rfc3339(mode.now_ms()),
        "context": None,
        "reason": None,
        "changes": None,
        "snapshot_event": None,
        "data": {
            "developer_message_summary": f"There were {len(events)} errors while validating meter events.",
            "validation_start": rfc3339(window["start_ms"]),
            "validation_end": rfc3339(window["end_ms"]),
            "reason": {
                "error_count": len(events),
                "error_types": [
                    {"code": code, "error_count": len(failed), "sample_errors": _samples(code, failed)}
                    for code, failed in sorted(by_code.items())
                ],
            },
        },
    }
    if meter:
        body["related_object"] = {"id": meter, "type": "billing.meter", "url": f"/v1/billing/meters/{meter}"}
    publish(mode, mode.store.put(body))


def _samples(code: str, events: Sequence[MeterEvent]) -> list[Object]:
    return [
        {
            "error_message": _MESSAGES.get(code, f"The meter event was rejected: {code}."),
            "request": {"identifier": event.identifier},
        }
        for event in events[:SAMPLES_MAX]
    ]


def _created_ms(event: Object) -> int:
    return milliseconds_of(event["created"], "created")


JOBS = {REPORT: report}
ROUTES = (
    Route("GET", "/v2/core/events", list_all, ("created", "limit", "object_id", "types")),
    Route("GET", "/v2/core/events/{id}", retrieve),
)
