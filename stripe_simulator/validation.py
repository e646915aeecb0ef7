"""Stripe's asynchronous validation of meter events, after they were answered with 200, and its error reports.

A validated event is `accepted`, or `rejected` with one of Stripe's codes. The rejected events of a window become one
thin event `v1.billing.meter.error_report_triggered`, which contains samples and counts, not every identifier.
"""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation

from stripe_simulator.simulator import Simulator

REPORT_TYPE = "v1.billing.meter.error_report_triggered"
SAMPLES_MAX = 5
DECIMAL_PLACES_MAX = 12
EVENT_RETENTION_MS = 30 * 86_400_000

_MESSAGES = {
    "meter_event_customer_not_found": "The customer in the meter event's payload was not found.",
    "meter_event_no_customer_defined": "The meter event's payload names no customer.",
    "meter_event_value_not_found": "The meter event's payload has no value.",
    "meter_event_invalid_value": "The meter event's value is not a number.",
    "meter_event_value_too_many_digits": "The meter event's value has too many digits.",
}


def settle(simulator: Simulator) -> None:
    """Validate due events and report rejected ones. Called before every read; harmless when repeated."""
    now_ms = simulator.now_ms()
    settings = simulator.settings
    patience_ms = min(settings.summary_lag_ms, round(settings.validation_delay_s * 1_000))
    with simulator.database.transaction():
        due = simulator.database.rows(
            "SELECT * FROM meter_events WHERE status = 'received' AND received_ms <= ?", (now_ms - patience_ms,)
        )
        for event in due:
            code = _judge(simulator, event)
            simulator.database.execute(
                "UPDATE meter_events SET status = ?, code = ? WHERE seq = ?",
                ("rejected" if code else "accepted", code, int(event["seq"])),
            )
        _report(simulator, now_ms)


def _judge(simulator: Simulator, event: sqlite3.Row) -> str:
    if event["code"]:
        return str(event["code"])
    if not event["customer"]:
        return "meter_event_no_customer_defined"
    if not simulator.customer_exists(bool(event["livemode"]), str(event["customer"])):
        return "meter_event_customer_not_found"
    if event["value"] is None:
        return "meter_event_value_not_found"
    try:
        value = Decimal(str(event["value"]))
    except InvalidOperation:
        return "meter_event_invalid_value"
    if not value.is_finite():
        return "meter_event_invalid_value"
    exponent = value.as_tuple().exponent
    if isinstance(exponent, int) and -exponent > DECIMAL_PLACES_MAX:
        return "meter_event_value_too_many_digits"
    return ""


def _report(simulator: Simulator, now_ms: int) -> None:
    window_ms = max(1, round(simulator.settings.validation_window_s * 1_000))
    delay_ms = round(simulator.settings.validation_delay_s * 1_000)
    windows: defaultdict[tuple[int, str, bool], list[sqlite3.Row]] = defaultdict(list)
    for event in simulator.database.rows("SELECT * FROM meter_events WHERE status = 'rejected' AND reported = 0"):
        start_ms = int(event["received_ms"]) // window_ms * window_ms
        if start_ms + window_ms + delay_ms <= now_ms:
            windows[start_ms, str(event["meter"]), bool(event["livemode"])].append(event)
    for (start_ms, meter, livemode), events in sorted(windows.items(), key=lambda item: item[0]):
        _write_report(simulator, meter, livemode, (start_ms, start_ms + window_ms), events)


def _write_report(
    simulator: Simulator, meter: str, livemode: bool, window: tuple[int, int], events: Sequence[sqlite3.Row]
) -> None:
    by_code: defaultdict[str, list[sqlite3.Row]] = defaultdict(list)
    for event in events:
        by_code[str(event["code"])].append(event)
    error_types = [
        {
            "code": code,
            "error_count": len(failed),
            "sample_errors": [
                {
                    "error_message": _MESSAGES.get(code, f"The meter event was rejected: {code}."),
                    "request": {"identifier": str(event["identifier"])},
                }
                for event in failed[:SAMPLES_MAX]
            ],
        }
        for code, failed in sorted(by_code.items())
    ]
    sequence = simulator.database.next_seq("core_events")
    created_ms = simulator.now_ms()
    body = {
        "id": f"evt_{'live' if livemode else 'test'}_{sequence:014d}",
        "object": "v2.core.event",
        "type": REPORT_TYPE,
        "livemode": livemode,
        "created": rfc3339(created_ms),
        "context": None,
        "reason": None,
        "changes": None,
        "snapshot_event": None,
        "related_object": {"id": meter, "type": "billing.meter", "url": f"/v1/billing/meters/{meter}"},
        "data": {
            "developer_message_summary": f"There were {len(events)} errors while validating meter events.",
            "validation_start": rfc3339(window[0]),
            "validation_end": rfc3339(window[1]),
            "reason": {"error_count": len(events), "error_types": error_types},
        },
    }
    simulator.database.insert(
        "INSERT INTO core_events(seq, id, livemode, type, object_id, created_ms, body) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (sequence, str(body["id"]), int(livemode), REPORT_TYPE, meter, created_ms, json.dumps(body)),
    )
    for event in events:
        simulator.database.execute("UPDATE meter_events SET reported = 1 WHERE seq = ?", (int(event["seq"]),))


def rfc3339(instant_ms: int) -> str:
    """An instant as Stripe's v2 API writes it: UTC, milliseconds, `Z`."""
    moment = datetime.fromtimestamp(instant_ms // 1_000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{instant_ms % 1_000:03d}Z"
