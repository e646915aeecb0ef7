"""The time of an event: its own, or its arrival in the log if it has none; and how old an event may be."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest

from aggregators.meters import definition_change
from aggregators.scan import LogState, Scan, scan
from aggregators.steps import Arrival
from schemas.clock import DAY_MS, HOUR_MS, MINUTE_MS
from schemas.log import EVENTS_TOPIC, Record
from schemas.meters import MeterSet
from schemas.reasons import Reason

NOON_MS: Final = 1_773_144_000_000  # 2026-03-10T12:00:00Z
QUICKSTART: Final = {
    "specversion": "1.0", "type": "request", "id": "00001", "source": "service-0", "subject": "customer-1",
    "data": {"method": "GET", "route": "/hello", "duration_ms": "10"},
}  # fmt: skip
"""The event of OpenMeter's quickstart. It has no time."""


def scanned(
    *records: tuple[int, list[dict[str, Any]]], stream_time_ms: int = 0, late_max_ms: int = 35 * DAY_MS
) -> Scan:
    """The scan of records (append time, events), under a meter set that wants nothing."""
    meter_set = MeterSet.model_validate({"version": 1, "meters": [], "policy": {"late_max_ms": late_max_ms}})
    return scan(0, LogState("log", 1, stream_time_ms, meter_set), b"secret", [
        Record(EVENTS_TOPIC, 0, offset, append_ms, None, json.dumps(events).encode())
        for offset, (append_ms, events) in enumerate(records)
    ], events_max=1_000)  # fmt: skip


def times_ms(scan: Scan) -> list[float]:
    assert not scan.quarantined
    return [step.time_us / 1000 for step in scan.steps if isinstance(step, Arrival)]


@pytest.mark.parametrize("time", [{}, {"time": None}], ids=["absent", "null"])
def test_an_event_without_a_time_has_the_time_of_its_arrival(time: dict[str, Any]) -> None:
    """CloudEvents' `time` is optional. All events of a record arrive together."""
    event = {**QUICKSTART, **time}
    own = {**QUICKSTART, "time": "2026-03-10T11:00:00Z"}

    assert times_ms(scanned((NOON_MS, [event, own, event]), (NOON_MS + 7, [event]))) == [
        NOON_MS, NOON_MS - HOUR_MS, NOON_MS, NOON_MS + 7,
    ]  # fmt: skip


def test_arrival_is_stream_time_also_when_the_brokers_clock_goes_back() -> None:
    """Stream time is the fold's only time. Such an event is never late, deferred, too old or in the future."""
    result = scanned((NOON_MS - 40 * DAY_MS, [QUICKSTART]), stream_time_ms=NOON_MS)

    assert times_ms(result) == [NOON_MS]
    assert [step.deferred for step in result.steps if isinstance(step, Arrival)] == [None]


@pytest.mark.parametrize("data", [{}, {"data": None}, {"data": {}}], ids=["absent", "null", "empty"])
def test_null_data_is_no_data(data: dict[str, Any]) -> None:
    """Serializers write absent fields as null."""
    event = {name: value for name, value in QUICKSTART.items() if name != "data"} | data

    result = scanned((NOON_MS, [event]))

    assert [step.data for step in result.steps if isinstance(step, Arrival)] == [{}]


@pytest.mark.parametrize(
    ("time", "reason"),
    [
        pytest.param("2026-02-03T12:00:00Z", None, id="the limit itself"),
        pytest.param("2026-02-03T11:59:59.999999Z", Reason.TOO_OLD, id="a microsecond older"),
        pytest.param("2023-05-01T00:00:00Z", Reason.TOO_OLD, id="years older"),
        pytest.param("1970-01-01T00:00:00Z", Reason.TOO_OLD, id="1970"),
        pytest.param("1969-12-31T23:59:59Z", Reason.TOO_FAR_IN_PAST, id="before 1970"),
    ],
)
def test_an_event_older_than_the_late_limit_is_rejected(time: str, reason: Reason | None) -> None:
    """35 days before stream time: without a limit, usage of 1970 is billed in the running month."""
    result = scanned((NOON_MS, [{**QUICKSTART, "time": time}]))

    assert [entry.reason for entry in result.quarantined] == ([] if reason is None else [reason])
    if reason is Reason.TOO_OLD:
        assert result.quarantined[0].detail == f"time: {time} is before 2026-02-03T12:00:00Z"


@pytest.mark.parametrize(
    ("time", "reason"),
    [
        pytest.param("2023-05-01T00:00:00Z", None, id="years old"),
        pytest.param("1970-01-01T00:00:00Z", None, id="1970"),
        pytest.param("1969-12-31T23:59:59Z", Reason.TOO_FAR_IN_PAST, id="before 1970"),
    ],
)
def test_an_adjustment_is_never_too_old(time: str, reason: Reason | None) -> None:
    """A job that arrives at the late limit began before it, and a correction may come at any time."""
    result = scanned((NOON_MS, [{**QUICKSTART, "type": "tidemark.adjusted.calls", "time": time}]))

    assert [entry.reason for entry in result.quarantined] == ([] if reason is None else [reason])


def test_a_longer_late_limit_takes_what_was_too_old() -> None:
    """An operator raises the limit, redrives, and sets the limit back."""
    years = scanned((NOON_MS, [{**QUICKSTART, "time": "2023-05-01T00:00:00Z"}]), late_max_ms=3_000 * DAY_MS)

    assert len(years.steps) == 1
    before, after = (
        MeterSet.model_validate({"version": version, "meters": [], "policy": {"late_max_ms": limit_ms}})
        for version, limit_ms in ((1, 3_000 * DAY_MS), (2, HOUR_MS))
    )
    assert definition_change(before, after) is None


@pytest.mark.parametrize("limit_ms", [0, MINUTE_MS, -1, 36_601 * DAY_MS, "long"])
def test_the_late_limit_has_bounds(limit_ms: object) -> None:
    """Without an hour of room, the limit would reject punctual events."""
    with pytest.raises(ValueError, match="late_max_ms"):
        MeterSet.model_validate({"version": 1, "meters": [], "policy": {"late_max_ms": limit_ms}})
