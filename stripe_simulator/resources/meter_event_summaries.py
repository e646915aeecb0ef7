"""Summaries of meter events (docs.stripe.com/api/billing/meter-event-summary)."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from typing import Final

from stripe_simulator.errors import ApiError, no_such
from stripe_simulator.mode import Call, Mode, Route
from stripe_simulator.pagination import LIST, page_of
from stripe_simulator.store import Object
from stripe_simulator.usage import DECIMAL_PLACES_MAX, MINUTE_S, WINDOW_S, Cell

_UNIT: Final = 10**DECIMAL_PLACES_MAX


def list_all(mode: Mode, call: Call) -> Object:
    """`GET /v1/billing/meters/{id}/event_summaries`, newest first, over the events that are older than the lag."""
    params = call.params
    meter = mode.fetch("billing.meter", call.id, "billing meter")
    start_s, end_s, customer = params["start_time"], params["end_time"], params["customer"]
    window = params.get("value_grouping_window", "")
    _check_span(start_s, end_s, window)
    if mode.store.get("customer", customer) is None:
        raise no_such("customer", customer, "customer")
    width_s = WINDOW_S.get(window, 0)
    spans: defaultdict[tuple[int, int], list[tuple[int, Cell]]] = defaultdict(list)
    if not window:
        spans[start_s, end_s] = []
    for hour_s, cell in mode.usage.cells(meter["id"], customer, start_s, end_s):
        begin_s = hour_s // width_s * width_s if width_s else start_s
        spans[begin_s, begin_s + width_s if width_s else end_s].append((hour_s, cell))
    rows = [_summary(meter, customer, span, cells) for span, cells in sorted(spans.items(), reverse=True)]
    return page_of(call, rows)


def _summary(meter: Object, customer: str, span: tuple[int, int], cells: list[tuple[int, Cell]]) -> Object:
    digest = hashlib.sha256(f"{meter['id']}|{customer}|{span[0]}|{span[1]}".encode()).hexdigest()[:24]
    return {
        "id": f"mtrusg_{digest}",
        "object": "billing.meter_event_summary",
        "aggregated_value": aggregate(meter, cells) / _UNIT,
        "end_time": span[1],
        "livemode": meter["livemode"],
        "meter": meter["id"],
        "start_time": span[0],
    }


def aggregate(meter: Object, cells: list[tuple[int, Cell]]) -> int:
    """The aggregated value in multiples of 10^-12. In a pre-aggregated meter, only the event that was received last in
    an hour or day counts."""
    width_s = WINDOW_S.get(meter["event_time_window"], 0)
    whole = Cell()
    if width_s:
        survivors: dict[int, tuple[int, int, int]] = {}
        for hour_s, cell in cells:
            window = hour_s // width_s
            survivors[window] = max(survivors.get(window, (-1, 0, 0)), cell.newest)
        for entry in survivors.values():
            whole.add(Cell(entry[2], 1, entry, entry))
    else:
        for _, cell in cells:
            whole.add(cell)
    match meter["default_aggregation"]["formula"]:
        case "count":
            return whole.count * _UNIT
        case "last":
            return whole.last[2]
        case _:
            return whole.total


def _check_span(start_s: int, end_s: int, window: str) -> None:
    width_s, name = WINDOW_S.get(window, MINUTE_S), window or "minute"
    for param, instant_s in (("start_time", start_s), ("end_time", end_s)):
        if instant_s % width_s:
            raise ApiError(400, f"Invalid {param}: must be aligned with {name} boundaries.", param=param)
    if start_s >= end_s:
        raise ApiError(400, "Invalid end_time: must be after start_time.", param="end_time")


ROUTES = (
    Route(
        "GET",
        "/v1/billing/meters/{id}/event_summaries",
        list_all,
        (*LIST, "customer", "start_time", "end_time", "value_grouping_window"),
    ),
)
