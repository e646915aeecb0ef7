"""The texts of Redis fields: accounts and dimensions of any characters survive encoding and decoding."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregators.codec import (
    CellKey,
    ReportKey,
    ReportValue,
    cell_field,
    cell_text,
    parse_cell_field,
    parse_cell_text,
    parse_cell_value,
    parse_report_field,
    parse_report_text,
    parse_value,
    report_field,
    report_text,
    value_text,
    version,
)
from schemas.aggregations import Aggregation, Value
from schemas.log import OFFSET_MAX, RECORD_EVENTS_MAX, position
from schemas.periods import INSTANT_MAX_MS, INSTANT_MIN_MS

ODD = st.text(max_size=256) | st.sampled_from(["|", ":", "{}", "\x1f", "\x00", "\n", "a|b\x1fc|d", "🙂", "x" * 256])
SLUGS = st.from_regex(r"[a-z][a-z0-9_]{0,62}", fullmatch=True)
INSTANTS = st.integers(INSTANT_MIN_MS, INSTANT_MAX_MS)
MINORS = st.integers(-(10**40), 10**40)
DIMENSIONS = st.dictionaries(SLUGS, ODD, max_size=4).map(
    lambda held: msgspec.json.Encoder(order="sorted").encode(held).decode()
)
POSITIONS = st.integers(0, position(OFFSET_MAX, RECORD_EVENTS_MAX - 1))
VALUES = st.builds(Value, minor=MINORS, time_us=st.integers(-(10**18), 10**18), position=POSITIONS)
CELL_KEYS = st.builds(
    CellKey, hour_ms=INSTANTS, period_start_ms=INSTANTS, meter=SLUGS, dimensions=DIMENSIONS, account=ODD
)
REPORT_VALUES = st.builds(
    ReportValue,
    base_minor=MINORS,
    current_minor=MINORS,
    period_end_ms=INSTANTS,
    scale=st.integers(0, 12),
    event_name=ODD,
)


@given(CELL_KEYS)
def test_cell_fields_are_read_back(key: CellKey) -> None:
    """Accounts and dimensions that contain every separator."""
    assert parse_cell_field(cell_field(key)) == key


@given(st.builds(ReportKey, period_start_ms=INSTANTS, meter=SLUGS, account=ODD))
def test_report_fields_are_read_back(key: ReportKey) -> None:
    """The same for report fields."""
    assert parse_report_field(report_field(key)) == key


@given(aggregation=st.sampled_from(Aggregation), scale=st.integers(0, 12), end_ms=INSTANTS, value=VALUES)
def test_cell_texts_are_read_back(aggregation: Aggregation, scale: int, end_ms: int, value: Value) -> None:
    """For every aggregation: the whole cell, and the value alone."""
    text = cell_text(aggregation, scale, end_ms, value)

    assert parse_cell_text(text) == (aggregation, scale, end_ms, value)
    assert parse_cell_value(text) == value


@given(VALUES | st.builds(Value, minor=MINORS))
def test_values_are_read_back_at_any_size(value: Value) -> None:
    """Beyond 2^53 and 2^64, because totals grow for ever."""
    assert parse_value(value_text(value)) == value


@given(REPORT_VALUES)
def test_report_texts_are_read_back(value: ReportValue) -> None:
    """The event name at Stripe may contain any character."""
    assert parse_report_text(report_text(value)) == value


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param((1, position(7, 1)), (1, position(7, 2)), id="later event of one record"),
        pytest.param((1, position(7, 65_535)), (1, position(8)), id="later record"),
        pytest.param((1, position(OFFSET_MAX, 65_535)), (2, 0), id="later generation"),
    ],
)
def test_versions_order_the_writes_of_a_cell(before: tuple[int, int], after: tuple[int, int]) -> None:
    """ClickHouse keeps the highest version. A version must fit UInt64."""
    assert version(*before) < version(*after) < 2**64
