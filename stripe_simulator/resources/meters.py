"""Billing meters that add up, and their summaries (docs.stripe.com/api/billing/meter, …/meter-event-summary)."""

from __future__ import annotations

import hashlib
from typing import Final

from stripe_simulator.errors import no_such, not_simulated
from stripe_simulator.mode import Call, Mode, Route, new_object
from stripe_simulator.pagination import LIST, page_of
from stripe_simulator.resources.conventions import Object, check, reads
from stripe_simulator.usage import DECIMAL_PLACES_MAX

KIND: Final = "billing.meter"
INDEXED = {KIND: ("event_name",)}
UNIT: Final = 10**DECIMAL_PLACES_MAX
_CREATE: Final = ("customer_mapping", "default_aggregation", "display_name", "event_name", "value_settings")
_SUMMARIES: Final = (*LIST, "customer", "start_time", "end_time", "value_grouping_window")
_LABEL: Final = "billing meter"
WINDOW_S: Final = {"minute": 60, "hour": 3_600, "day": 86_400}


def named(mode: Mode, event_name: str) -> Object | None:
    """The active meter with this event name, or else the newest inactive one, or None. Do not change the meter."""
    meters = mode.store.newest(KIND, "event_name", event_name)
    return max(meters, key=lambda meter: bool(meter["status"] == "active"), default=None)


def _create(mode: Mode, call: Call) -> Object:
    params = call.params
    if params["default_aggregation"]["formula"] != "sum":
        raise not_simulated("a meter with another formula than sum")
    _check_free(mode, params["event_name"])
    body = new_object(mode, KIND, "mtr" if mode.livemode else "mtr_test", {})
    del body["metadata"]
    defaults = {
        "customer_mapping": {"event_payload_key": "stripe_customer_id", "type": "by_id"}, "event_time_window": None,
        "status": "active", "status_transitions": {"deactivated_at": None}, "updated": body["created"],
        "value_settings": {"event_payload_key": "value"},
    }  # fmt: skip
    return mode.store.save(body | defaults | {name: params[name] for name in _CREATE if name in params})


def _turn(mode: Mode, call: Call, status: str) -> Object:
    meter, now_s, is_active = mode.fetch(KIND, call.id, _LABEL), mode.now_s(), status == "active"
    check(meter["status"] != status, f"The meter {meter['id']} is already {status}.")
    if is_active:
        _check_free(mode, meter["event_name"])
    transitions = {"deactivated_at": None if is_active else now_s}
    meter |= {"status": status, "status_transitions": transitions, "updated": now_s}
    return mode.store.save(meter, f"billing.meter.{'reactivated' if is_active else 'deactivated'}")


def _check_free(mode: Mode, event_name: str) -> None:
    meter = named(mode, event_name)
    is_free = meter is None or meter["status"] != "active"
    check(is_free, f"An active meter already exists for event name {event_name}.", "event_name")


def _summaries(mode: Mode, call: Call) -> Object:
    """Over the events that are older than the lag: one row, or newest first a row for each window with events."""
    params, meter = call.params, mode.fetch(KIND, call.id, _LABEL)
    start_s, end_s, customer = (params[name] for name in ("start_time", "end_time", "customer"))
    window = params.get("value_grouping_window", "minute")
    width_s = WINDOW_S[window]
    for param, instant_s in (("start_time", start_s), ("end_time", end_s)):
        check(instant_s % width_s == 0, f"Invalid {param}: must be aligned with {window} boundaries.", param)
    check(start_s < end_s, "Invalid end_time: must be after start_time.", "end_time")
    if mode.store.get("customer", customer) is None:
        raise no_such("customer", customer, "customer")
    spans = [(start_s, end_s)]
    if window != "minute":
        starts = {
            minute_s // width_s * width_s for minute_s in mode.usage.minutes(meter["id"], customer, start_s, end_s)
        }
        spans = [(begin_s, begin_s + width_s) for begin_s in sorted(starts, reverse=True)]
    return page_of(call, [_summary(mode, meter, customer, *span) for span in spans])


def _summary(mode: Mode, meter: Object, customer: str, start_s: int, end_s: int) -> Object:
    digest = hashlib.sha256(repr((meter["id"], customer, start_s, end_s)).encode()).hexdigest()
    return {
        "id": f"mtrusg_{digest[:24]}", "object": "billing.meter_event_summary",
        "aggregated_value": mode.usage.total(meter["id"], customer, start_s, end_s) / UNIT, "end_time": end_s,
        "livemode": meter["livemode"], "meter": meter["id"], "start_time": start_s,
    }  # fmt: skip


_PATH: Final = "/v1/billing/meters"
ROUTES = (
    Route("POST", _PATH, _create, _CREATE),
    *reads(f"{_PATH}/{{id}}", KIND, "status", label=_LABEL),
    Route("POST", f"{_PATH}/{{id}}/deactivate", lambda mode, call: _turn(mode, call, "inactive")),
    Route("POST", f"{_PATH}/{{id}}/reactivate", lambda mode, call: _turn(mode, call, "active")),
    Route("GET", f"{_PATH}/{{id}}/event_summaries", _summaries, _SUMMARIES),
)
