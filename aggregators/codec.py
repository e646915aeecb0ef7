"""The texts of cells, totals and report entries (S6, S7, S9). Only this module writes and parses them; stores do not.

An account may contain any character, so it comes last, after a unit separator that JSON escapes.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final, NamedTuple

import msgspec

from schemas.aggregations import Aggregation, Value
from schemas.log import POSITION_BITS
from schemas.meters import Policy

_SEPARATOR: Final = "\x1f"
_VOID: Final = "-"
# Of a flush, the field says all.
FLUSH_TEXT: Final = "flush"

# How many heads of cells are kept as they were parsed: meters, hours and dimensions of the cells that are relayed.
HEADS_MAX: Final = 16_384

_CODES: Final = {aggregation: aggregation.rule.code for aggregation in Aggregation}
_AGGREGATIONS: Final = {code: aggregation for aggregation, code in _CODES.items()}


class CellKey(NamedTuple):
    """Identifies a cell within one arrival bucket. The period's start identifies the period."""

    hour_ms: int
    period_start_ms: int
    meter: str
    dimensions: str
    account: str


class ReportKey(NamedTuple):
    """Identifies a report entry within one report bucket."""

    period_start_ms: int
    meter: str
    account: str


class ReportValue(msgspec.Struct, frozen=True, gc=False):
    """A total at the start of its report bucket and now, with the meter's scale and Stripe event name."""

    base_minor: int
    current_minor: int
    period_end_ms: int
    scale: int
    event_name: str


class FlushKey(NamedTuple):
    """Identifies a flush that the relay has not seen: the account's report bucket from `start_ms` ended at `end_ms`."""

    start_ms: int
    end_ms: int
    account: str


def version(generation: int, position: int) -> int:
    """The version of a write of a cell: a later generation wins, then the later contributing event."""
    return generation << POSITION_BITS | position


def value_text(value: Value) -> str:
    """`minor`, or `minor:time:position` if the value has a time or a position."""
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
    return CellKey(*_parse_head(head), account)


@lru_cache(HEADS_MAX)
def _parse_head(head: str) -> tuple[int, int, str, str]:
    # The cells of many accounts have the same head.
    hour, start, meter, dimensions = head.split("|", 3)
    return int(hour), int(start), meter, dimensions


def cell_text(aggregation: Aggregation, scale: int, period_end_ms: int, value: Value) -> str:
    """A cell's text: its aggregation, scale, value, and the end of its period as last known."""
    return cell_prefix(aggregation, scale, period_end_ms) + value_text(value)


def cell_prefix(aggregation: Aggregation, scale: int, period_end_ms: int) -> str:
    """A cell's text up to its value."""
    return f"{_CODES[aggregation]}{scale}:{period_end_ms}:"


def void_text(aggregation: Aggregation, scale: int, period_start_ms: int) -> str:
    """The text of a cell that a restatement has emptied: its period ends at its start."""
    return _VOID + cell_text(aggregation, scale, period_start_ms, Value(0))


def parse_cell_text(text: str) -> tuple[Aggregation, int, int, Value]:
    """The inverse of `cell_text`, and of `void_text` with the value 0."""
    code, end, value = text.removeprefix(_VOID).split(":", 2)
    return *_parse_prefix(code, end), parse_value(value)


@lru_cache(HEADS_MAX)
def _parse_prefix(code: str, end: str) -> tuple[Aggregation, int, int]:
    return _AGGREGATIONS[code[0]], int(code[1:]), int(end)


def parse_cell_value(text: str) -> Value | None:
    """The value of a cell's text; None if a restatement emptied the cell."""
    return None if text[0] == _VOID else parse_value(text.split(":", 2)[2])


def report_field(key: ReportKey) -> str:
    """A report entry's field in its bucket's hash."""
    return f"{key.period_start_ms}|{key.meter}{_SEPARATOR}{key.account}"


def parse_report_field(text: str) -> ReportKey:
    """The inverse of `report_field`."""
    head, account = text.split(_SEPARATOR, 1)
    start, meter = head.split("|")
    return ReportKey(int(start), meter, account)


def flushes_bucket_ms(bucket_end_ms: int) -> int:
    """The key of the flushes of the report bucket that ends at `bucket_end_ms`, among the report buckets' keys. It is
    negative, so flushes come before report entries."""
    return -bucket_end_ms


def report_bucket_end_ms(bucket_ms: int, policy: Policy) -> int:
    """Where the report bucket of a key ends for all accounts; also of a key of flushes."""
    return -bucket_ms if bucket_ms < 0 else policy.report_bucket_end_ms(bucket_ms)


def flush_field(key: FlushKey) -> str:
    """A flush's field in the hash of its bucket's flushes. It ends with the account, as that of a report entry does."""
    return f"{key.start_ms}|{key.end_ms}{_SEPARATOR}{key.account}"


def parse_flush_field(text: str) -> FlushKey:
    """The inverse of `flush_field`."""
    head, account = text.split(_SEPARATOR, 1)
    start, end = head.split("|")
    return FlushKey(int(start), int(end), account)


def report_text(value: ReportValue) -> str:
    """A report entry's text. The event name comes last, because it may contain any character."""
    return moved_report_text(value, value.current_minor, value.period_end_ms)


def moved_report_text(value: ReportValue, current_minor: int, period_end_ms: int) -> str:
    """The text of a report entry with another total now, and another end of its period."""
    return f"{value.base_minor}:{current_minor}:{period_end_ms}:{value.scale}:{value.event_name}"


def parse_report_text(text: str) -> ReportValue:
    """The inverse of `report_text`."""
    base, current, end, scale, event_name = text.split(":", 4)
    return ReportValue(int(base), int(current), int(end), int(scale), event_name)
