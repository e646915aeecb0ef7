"""Billing meters, meter events and their summaries (docs.stripe.com/api/billing/meter)."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections import defaultdict
from collections.abc import Sequence
from decimal import Decimal

from stripe_simulator import forms
from stripe_simulator.errors import ApiError, no_such
from stripe_simulator.forms import Params, Spec
from stripe_simulator.simulator import FUTURE_MAX_S, IDENTIFIER_WINDOW_MS, PAST_MAX_S, Simulator
from stripe_simulator.validation import settle

CREATE = Spec(
    plain=("display_name", "event_name", "event_time_window"),
    required=("display_name", "event_name", "default_aggregation"),
    nested={
        "default_aggregation": ("formula",),
        "customer_mapping": ("type", "event_payload_key"),
        "value_settings": ("event_payload_key",),
    },
)
UPDATE = Spec(plain=("display_name",))
NOTHING = Spec()
LIST = Spec(plain=("status", "starting_after", "ending_before"), integers=("limit",))
EVENT = Spec(
    plain=("event_name", "identifier"),
    required=("event_name", "payload"),
    integers=("timestamp",),
    open_maps=("payload",),
)
SUMMARIES = Spec(
    plain=("customer", "value_grouping_window", "starting_after", "ending_before"),
    required=("customer", "start_time", "end_time"),
    integers=("start_time", "end_time", "limit"),
)
WINDOW_S = {"hour": 3_600, "day": 86_400}


def create(simulator: Simulator, livemode: bool, params: Params) -> dict[str, object]:
    """`POST /v1/billing/meters`."""
    formula = str(forms.mapping(params, "default_aggregation").get("formula", ""))
    if formula not in ("sum", "count", "last"):
        raise ApiError(400, "Invalid default_aggregation[formula]: must be one of count, last, or sum")
    window = forms.text(params, "event_time_window") or None
    if window not in (None, "hour", "day"):
        raise ApiError(400, "Invalid event_time_window: must be one of day or hour", param="event_time_window")
    event_name = forms.text(params, "event_name")
    if active_meter(simulator, livemode, event_name) is not None:
        message = f"An active meter already exists for event name {event_name}."
        raise ApiError(400, message, param="event_name")
    now_s = simulator.now_ms() // 1_000
    customer_key = str(forms.mapping(params, "customer_mapping").get("event_payload_key", "stripe_customer_id"))
    value_key = str(forms.mapping(params, "value_settings").get("event_payload_key", "value"))
    sequence = simulator.database.next_seq("meters")
    body: dict[str, object] = {
        "id": f"mtr_{'' if livemode else 'test_'}{sequence:014d}",
        "object": "billing.meter",
        "created": now_s,
        "customer_mapping": {"event_payload_key": customer_key, "type": "by_id"},
        "default_aggregation": {"formula": formula},
        "display_name": forms.text(params, "display_name"),
        "event_name": event_name,
        "event_time_window": window,
        "livemode": livemode,
        "status": "active",
        "status_transitions": {"deactivated_at": None},
        "updated": now_s,
        "value_settings": {"event_payload_key": value_key},
    }
    simulator.database.insert(
        "INSERT INTO meters(seq, id, livemode, event_name, status, body) VALUES (?, ?, ?, ?, 'active', ?)",
        (sequence, str(body["id"]), int(livemode), event_name, json.dumps(body)),
    )
    return body


def retrieve(simulator: Simulator, livemode: bool, identifier: str) -> dict[str, object]:
    """`GET /v1/billing/meters/{id}`."""
    meter = simulator.database.row("SELECT body FROM meters WHERE id = ? AND livemode = ?", (identifier, int(livemode)))
    if meter is None:
        raise no_such("billing meter", identifier, "id")
    return _body(meter)


def update(simulator: Simulator, livemode: bool, identifier: str, params: Params) -> dict[str, object]:
    """`POST /v1/billing/meters/{id}`: only the display name can change."""
    body = retrieve(simulator, livemode, identifier)
    if "display_name" in params:
        body["display_name"] = forms.text(params, "display_name")
    return _save(simulator, livemode, body)


def set_active(simulator: Simulator, livemode: bool, identifier: str, active: bool) -> dict[str, object]:
    """`POST /v1/billing/meters/{id}/deactivate` and `/reactivate`."""
    body = retrieve(simulator, livemode, identifier)
    wanted = "active" if active else "inactive"
    if body["status"] == wanted:
        raise ApiError(400, f"The meter {identifier} is already {wanted}.")
    if active and active_meter(simulator, livemode, str(body["event_name"])) is not None:
        raise ApiError(400, f"An active meter already exists for event name {body['event_name']}.")
    now_s = simulator.now_ms() // 1_000
    body["status"] = wanted
    body["status_transitions"] = {"deactivated_at": None if active else now_s}
    return _save(simulator, livemode, body)


def list_all(simulator: Simulator, livemode: bool, params: Params) -> dict[str, object]:
    """`GET /v1/billing/meters`, newest first."""
    status = forms.text(params, "status")
    if status not in ("", "active", "inactive"):
        raise ApiError(400, "Invalid status: must be one of active or inactive", param="status")
    rows = simulator.database.rows(
        "SELECT body FROM meters WHERE livemode = ? AND (? = '' OR status = ?) ORDER BY seq DESC",
        (int(livemode), status, status),
    )
    return forms.page([_body(row) for row in rows], params, "/v1/billing/meters")


def locked(simulator: Simulator, livemode: bool, params: Params) -> tuple[str, ...]:
    """The name of the lock of a meter event: mode, event name and customer. Stripe executes one at a time."""
    meter = active_meter(simulator, livemode, forms.text(params, "event_name"))
    customer_key = payload_keys(meter)[0] if meter else "stripe_customer_id"
    customer = str(forms.mapping(params, "payload").get(customer_key, ""))
    return (str(livemode), forms.text(params, "event_name"), customer)


def create_event(simulator: Simulator, livemode: bool, params: Params, rejection: str = "") -> dict[str, object]:
    """`POST /v1/billing/meter_events`. With a `rejection` code, the event is taken now and rejected later."""
    now_ms = simulator.now_ms()
    timestamp_s = forms.integer(params, "timestamp", now_ms // 1_000)
    _check_timestamp(timestamp_s, now_ms // 1_000)
    event_name = forms.text(params, "event_name")
    meter = active_meter(simulator, livemode, event_name)
    if meter is None:
        raise ApiError(400, f"No active meter found for event name {event_name}.", param="event_name")
    identifier = forms.text(params, "identifier") or f"{simulator.database.next_seq('meter_events'):032x}"
    taken = simulator.database.row(
        "SELECT 1 FROM meter_events WHERE identifier = ? AND livemode = ? AND received_ms > ?",
        (identifier, int(livemode), now_ms - IDENTIFIER_WINDOW_MS),
    )
    if taken is not None:
        message = f"An event already exists with identifier {identifier}."
        raise ApiError(400, message, headers={"Stripe-Should-Retry": "false"})
    payload = forms.mapping(params, "payload")
    insert_event(simulator, livemode, meter, identifier, payload, timestamp_s, rejection=rejection)
    return {
        "object": "billing.meter_event",
        "created": now_ms // 1_000,
        "event_name": event_name,
        "identifier": identifier,
        "livemode": livemode,
        "payload": payload,
        "timestamp": timestamp_s,
    }


def insert_event(
    simulator: Simulator,
    livemode: bool,
    meter: dict[str, object],
    identifier: str,
    payload: dict[str, object],
    timestamp_s: int,
    *,
    rejection: str = "",
    injected: bool = False,
) -> int:
    """Write one meter event without checking its identifier. Returns the row's number."""
    customer_key, value_key = payload_keys(meter)
    customer, value = payload.get(customer_key), payload.get(value_key)
    return simulator.database.insert(
        "INSERT INTO meter_events(livemode, identifier, event_name, meter, customer, value, timestamp_s,"
        " received_ms, status, code, injected) VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'received', ?, ?)",
        (
            int(livemode),
            identifier,
            str(meter["event_name"]),
            str(meter["id"]),
            None if customer is None else str(customer),
            None if value is None else str(value),
            timestamp_s,
            simulator.now_ms(),
            rejection,
            int(injected),
        ),
    )


def summaries(simulator: Simulator, livemode: bool, identifier: str, params: Params) -> dict[str, object]:
    """`GET /v1/billing/meters/{id}/event_summaries`, over the accepted events that are older than the lag."""
    meter = retrieve(simulator, livemode, identifier)
    start_s, end_s = forms.integer(params, "start_time"), forms.integer(params, "end_time")
    customer = forms.text(params, "customer")
    window = forms.text(params, "value_grouping_window")
    _check_span(start_s, end_s, window)
    if not simulator.customer_exists(livemode, customer):
        raise no_such("customer", customer, "customer")
    settle(simulator)
    accepted = simulator.database.rows(
        "SELECT seq, value, timestamp_s FROM meter_events WHERE meter = ? AND customer = ? AND livemode = ?"
        " AND timestamp_s >= ? AND timestamp_s < ? AND status = 'accepted' AND received_ms <= ? ORDER BY seq",
        (
            identifier,
            customer,
            int(livemode),
            start_s,
            end_s,
            simulator.now_ms() - simulator.settings.summary_lag_ms,
        ),
    )
    spans: defaultdict[tuple[int, int], list[sqlite3.Row]] = defaultdict(list)
    if not window:
        spans[start_s, end_s] = []
    for event in accepted:
        width_s = WINDOW_S.get(window, 0)
        event_s = int(event["timestamp_s"])
        begin_s = event_s // width_s * width_s if width_s else start_s
        spans[begin_s, begin_s + width_s if width_s else end_s].append(event)
    rows = [_summary(meter, customer, span, events) for span, events in sorted(spans.items(), reverse=True)]
    return forms.page(rows, params, f"/v1/billing/meters/{identifier}/event_summaries")


def _summary(
    meter: dict[str, object], customer: str, span: tuple[int, int], events: Sequence[sqlite3.Row]
) -> dict[str, object]:
    digest = hashlib.sha256(f"{meter['id']}|{customer}|{span[0]}|{span[1]}".encode()).hexdigest()[:24]
    return {
        "id": f"mtrusg_{digest}",
        "object": "billing.meter_event_summary",
        "aggregated_value": float(_aggregate(meter, events)),
        "end_time": span[1],
        "livemode": meter["livemode"],
        "meter": meter["id"],
        "start_time": span[0],
    }


def _aggregate(meter: dict[str, object], events: Sequence[sqlite3.Row]) -> Decimal:
    """The aggregated value of events. In a pre-aggregated meter, only the last event of an hour or day counts."""
    width_s = WINDOW_S.get(str(meter["event_time_window"]), 0)
    if width_s:
        events = list({int(event["timestamp_s"]) // width_s: event for event in events}.values())
    aggregation = meter["default_aggregation"]
    formula = aggregation["formula"] if isinstance(aggregation, dict) else "sum"
    if formula == "count":
        return Decimal(len(events))
    if formula == "last":
        ordered = sorted(events, key=lambda event: (int(event["timestamp_s"]), int(event["seq"])))
        return Decimal(str(ordered[-1]["value"])) if ordered else Decimal(0)
    return sum((Decimal(str(event["value"])) for event in events), Decimal(0))


def payload_keys(meter: dict[str, object]) -> tuple[str, str]:
    """The keys of a meter event's payload that name its customer and its value."""
    mapping, settings = meter["customer_mapping"], meter["value_settings"]
    customer = str(mapping["event_payload_key"]) if isinstance(mapping, dict) else "stripe_customer_id"
    return customer, str(settings["event_payload_key"]) if isinstance(settings, dict) else "value"


def active_meter(simulator: Simulator, livemode: bool, event_name: str) -> dict[str, object] | None:
    """The active meter with this event name, or None."""
    meter = simulator.database.row(
        "SELECT body FROM meters WHERE event_name = ? AND livemode = ? AND status = 'active'",
        (event_name, int(livemode)),
    )
    return None if meter is None else _body(meter)


def _save(simulator: Simulator, livemode: bool, body: dict[str, object]) -> dict[str, object]:
    body["updated"] = simulator.now_ms() // 1_000
    simulator.database.execute(
        "UPDATE meters SET status = ?, body = ? WHERE id = ? AND livemode = ?",
        (str(body["status"]), json.dumps(body), str(body["id"]), int(livemode)),
    )
    return body


def _body(row: sqlite3.Row) -> dict[str, object]:
    body: dict[str, object] = json.loads(row["body"])
    return body


def _check_timestamp(timestamp_s: int, now_s: int) -> None:
    if timestamp_s < now_s - PAST_MAX_S:
        message = "The timestamp is too far in the past: it must be within the past 35 calendar days."
        raise ApiError(400, message, code="timestamp_too_far_in_past", param="timestamp")
    if timestamp_s > now_s + FUTURE_MAX_S:
        message = "The timestamp is in the future: it must be at most 5 minutes ahead."
        raise ApiError(400, message, code="timestamp_in_future", param="timestamp")


def _check_span(start_s: int, end_s: int, window: str) -> None:
    if window not in ("", "hour", "day"):
        raise ApiError(400, "Invalid value_grouping_window: must be one of day or hour", param="value_grouping_window")
    width_s, name = WINDOW_S.get(window, 60), window or "minute"
    for param, instant_s in (("start_time", start_s), ("end_time", end_s)):
        if instant_s % width_s:
            raise ApiError(400, f"Invalid {param}: must be aligned with {name} boundaries.", param=param)
    if start_s >= end_s:
        raise ApiError(400, "Invalid end_time: must be after start_time.", param="end_time")
