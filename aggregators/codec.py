"""The texts of cells, totals and report entries (S6, S7, S9). Made and parsed here only; stores treat them as opaque.

An account may hold any character, so it stands last, behind a unit separator that JSON escapes.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

from schemas.aggregations import Aggregation, Value
from schemas.log import POSITION_BITS

_SEPARATOR: Final = "\x1f"
_VOID: Final = "-"

_CODES: Final = {aggregation: aggregation.rule.code for aggregation in Aggregation}
_AGGREGATIONS: Final = {code: aggregation for aggregation, code in _CODES.items()}


class CellKey(NamedTuple):
    """What a cell is per, within one arrival bucket. A period is known by its start."""

    hour_ms: int
    period_start_ms: int
    meter: str
    dimensions: str
    account: str


class ReportKey(NamedTuple):
    """What a report entry is per, within one report bucket."""

    period_start_ms: int
    meter: str
    account: str


class ReportValue(msgspec.Struct, frozen=True, gc=False):
    """A total at the start of its report bucket and now, with what Stripe is to be told about the meter."""

    base_minor: int
    current_minor: int
    period_end_ms: int
    scale: int
    event_name: str


def version(generation: int, position: int) -> int:
    """Orders the writes of one cell: a later generation wins, then the later contributing event."""
    return generation << POSITION_BITS | position


def value_text(value: Value) -> str:
    """`minor`, or `minor:time:position` where those matter."""
    return f"{value.minor}:{value.time_us}:{value.position}" if value.position or value.time_us else str(value.minor)


def parse_value(text: str) -> Value:
    """The inverse of `value_text`."""
    return Value(*map(int, text.split(":"))) if ":" in text else Value(int(text))


def cell_field(key: CellKey) -> str:
    """A cell's field in its bucket's hash."""
    return f"{key.hour_ms}|{key.period_start_ms}|{key.meter}|{key.dimensions}{_SEPARATOR}{key.account}"


def parse_cell_field(text: str) -> CellKey:
    """The inverse of `cell_field`."""
    head, account = text.split(_SEPARATOR, 1)
    hour, start, meter, dimensions = head.split("|", 3)
    return CellKey(int(hour), int(start), meter, dimensions, account)


def cell_text(aggregation: Aggregation, scale: int, period_end_ms: int, value: Value) -> str:
    """A cell's text: what it aggregates by, at which scale, where its period ends as last known, and its value."""
    return f"{_CODES[aggregation]}{scale}:{period_end_ms}:{value_text(value)}"


def void_text(aggregation: Aggregation, scale: int, period_start_ms: int) -> str:
    """The text of a cell that a restatement has emptied: of a period that ends where it begins."""
    return _VOID + cell_text(aggregation, scale, period_start_ms, Value(0))


def parse_cell_text(text: str) -> tuple[Aggregation, int, int, Value]:
    """The inverse of `cell_text`, and of `void_text` with the value 0."""
    head, end, value = text.removeprefix(_VOID).split(":", 2)
    return _AGGREGATIONS[head[0]], int(head[1:]), int(end), parse_value(value)


def parse_cell_value(text: str) -> Value | None:
    """The value alone of a cell's text; None of an emptied one."""
    return None if text[0] == _VOID else parse_value(text.split(":", 2)[2])


def report_field(key: ReportKey) -> str:
    """A report entry's field in its bucket's hash."""
    return f"{key.period_start_ms}|{key.meter}{_SEPARATOR}{key.account}"


def parse_report_field(text: str) -> ReportKey:
    """The inverse of `report_field`."""
    head, account = text.split(_SEPARATOR, 1)
    start, meter = head.split("|")
    return ReportKey(int(start), meter, account)


def report_text(value: ReportValue) -> str:
    """A report entry's text; the event name stands last, because it may hold any character."""
    return f"{value.base_minor}:{value.current_minor}:{value.period_end_ms}:{value.scale}:{value.event_name}"


def parse_report_text(text: str) -> ReportValue:
    """The inverse of `report_text`."""
    base, current, end, scale, event_name = text.split(":", 4)
    return ReportValue(int(base), int(current), int(end), int(scale), event_name)
