"""The naive measure of gauges, spans and sessions, by tables that were calculated by hand."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import pytest

from oracle.areas import HOUR_US, Sample, area, pieces, rounded
from tests.worlds.oracle import APRIL, DAY, HOUR, MARCH, MAY

MINUTE = 60_000
GAUGE = {"aggregation": "time_weighted", "value_path": "$.level"}
SPAN = {"aggregation": "duration", "start_path": "$.start"}
SESSION = {"aggregation": "duration", "session_path": "$.call"}
END = MAY + 31 * DAY
PERIOD = (MARCH, APRIL)


def at(time_ms: int, minor: int = 1, series: str = "", position: int = 0, start: int | None = None) -> Sample:
    return Sample(time_ms * 1000, position, minor, series, None if start is None else start * 1000)


def held(
    meter: Mapping[str, Any], samples: list[Sample], period: tuple[int, int] = PERIOD, until: int = END
) -> dict[int, int]:
    """The pieces by their starts in milliseconds."""
    found = pieces(meter, samples, (period[0] * 1000, period[1] * 1000), until * 1000)
    return {start_us // 1000: minor for start_us, minor in found.items()}


HOURS = [
    pytest.param(GAUGE, [], {}, id="no sample: the level is 0"),
    pytest.param(GAUGE, [at(APRIL - HOUR, 3)], {APRIL - HOUR: 3}, id="a level of one hour"),
    pytest.param(
        GAUGE, [at(APRIL - 90 * MINUTE, 4)], {APRIL - 2 * HOUR: 2, APRIL - HOUR: 4}, id="a level from half an hour on"
    ),
    pytest.param(
        GAUGE, [at(APRIL - HOUR, 4), at(APRIL - 45 * MINUTE, 8)], {APRIL - HOUR: 7}, id="4 for 15 minutes, then 8"
    ),
    pytest.param(
        GAUGE, [at(APRIL - 45 * MINUTE, 8), at(APRIL - HOUR, 4)], {APRIL - HOUR: 7}, id="the earlier sample comes late"
    ),
    pytest.param(
        GAUGE, [at(APRIL - HOUR, 5, position=2), at(APRIL - HOUR, 9, position=1)], {APRIL - HOUR: 5},
        id="equal times: the later position wins",
    ),
    pytest.param(
        GAUGE, [at(APRIL - HOUR, 5, "a", 2), at(APRIL - HOUR, 9, "b", 1)], {APRIL - HOUR: 14},
        id="two series add up, also at equal times",
    ),
    pytest.param(
        GAUGE, [at(APRIL - 2 * HOUR, 5, "a"), at(APRIL - HOUR, 2, "b"), at(APRIL - HOUR, 1, "a")],
        {APRIL - 2 * HOUR: 5, APRIL - HOUR: 3}, id="a sample ends the level of its own series only",
    ),
    pytest.param(GAUGE, [at(APRIL - 2 * HOUR, 5), at(APRIL - HOUR, 0)], {APRIL - 2 * HOUR: 5}, id="0 ends a level"),
    pytest.param(
        GAUGE, [at(APRIL - 2 * HOUR, -2), at(APRIL - 30 * MINUTE, 6)], {APRIL - 2 * HOUR: -2, APRIL - HOUR: 2},
        id="a negative level: -1 and 3 in the last hour",
    ),
    pytest.param(
        GAUGE | {"stands_s_max": 5400}, [at(APRIL - 3 * HOUR, 4)], {APRIL - 3 * HOUR: 4, APRIL - 2 * HOUR: 2},
        id="a lost heartbeat costs an hour and a half",
    ),
    pytest.param(
        GAUGE | {"stands_s_max": 5400}, [at(APRIL - 3 * HOUR, 4), at(APRIL - 2 * HOUR, 4)],
        {APRIL - 3 * HOUR: 4, APRIL - 2 * HOUR: 4, APRIL - HOUR: 2}, id="the last heartbeat decides",
    ),
    pytest.param(
        GAUGE | {"per": "minute"}, [at(APRIL - 10 * MINUTE, 3)], {APRIL - HOUR: 30}, id="per minute: 10 minutes of 3"
    ),
    pytest.param(GAUGE | {"per": "second"}, [at(APRIL - 1500, 2)], {APRIL - HOUR: 3}, id="per second: 1.5 s of 2"),
    pytest.param(
        SPAN, [at(APRIL - 10 * DAY + 90 * MINUTE, 2, start=APRIL - 10 * DAY - 90 * MINUTE)],
        {APRIL - 10 * DAY - 2 * HOUR: 1, APRIL - 10 * DAY - HOUR: 2, APRIL - 10 * DAY: 2, APRIL - 10 * DAY + HOUR: 1},
        id="a job over midnight: 3 hours on 2 processors",
    ),
    pytest.param(
        SPAN, [at(APRIL, start=APRIL - HOUR), at(APRIL, start=APRIL - HOUR)], {APRIL - HOUR: 2}, id="two jobs at once"
    ),
    pytest.param(SPAN, [at(APRIL, start=APRIL)], {}, id="a job that took no time"),
    pytest.param(
        SPAN, [at(APRIL + HOUR, start=APRIL - HOUR)], {APRIL - HOUR: 1}, id="a job over the period's end: its part"
    ),
    pytest.param(
        SPAN, [at(MARCH + HOUR, start=MARCH - HOUR)], {MARCH: 1}, id="a job over the period's start: its part"
    ),
    pytest.param(SESSION, [at(APRIL - HOUR, series="x")], {}, id="a session of one event covers nothing"),
    pytest.param(
        SESSION | {"per": "minute"}, [at(APRIL - HOUR, series="x"), at(APRIL - 50 * MINUTE, series="x"),
                                      at(APRIL - 30 * MINUTE, series="x")],
        {APRIL - HOUR: 30}, id="a session from its first to its last event",
    ),
    pytest.param(
        SESSION, [at(APRIL - HOUR, series="x"), at(APRIL, series="x")], {APRIL - HOUR: 1},
        id="a gap of exactly the default hour is covered",
    ),
    pytest.param(
        SESSION, [at(APRIL - HOUR - 1, series="x"), at(APRIL, series="x")], {}, id="a longer gap covers nothing"
    ),
    pytest.param(
        SESSION | {"per": "minute", "session_gap_s_max": 600},
        [at(APRIL - 60 * MINUTE), at(APRIL - 50 * MINUTE), at(APRIL - 39 * MINUTE), at(APRIL - 34 * MINUTE)],
        {APRIL - HOUR: 15}, id="both sides of a gap count",
    ),
    pytest.param(
        SESSION | {"per": "minute"},
        [at(APRIL - 9 * MINUTE, series="x"), at(APRIL - 6 * MINUTE, series="y"), at(APRIL - 4 * MINUTE, series="x"),
         at(APRIL - 3 * MINUTE, series="y")],
        {APRIL - HOUR: 8}, id="two sessions cover the same minutes",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("meter", "samples", "expected"), HOURS)
def test_what_hours_hold(meter: dict[str, Any], samples: list[Sample], expected: dict[int, int]) -> None:
    assert held(meter, samples) == expected


def test_a_gauge_over_the_end_of_a_month_without_events_stands_in_every_hour_of_the_next() -> None:
    """April has 720 hours, of 7 each."""
    samples = [at(APRIL - 30 * MINUTE, 7)]

    assert held(GAUGE, samples, (APRIL, MAY)) == {APRIL + number * HOUR: 7 for number in range(720)}
    assert held(GAUGE, samples) == {APRIL - HOUR: 4}  # 3.5


def test_a_boundary_inside_an_hour_cuts_a_job_in_two() -> None:
    """The job covers 40 minutes of the hour, 10 of them before the boundary."""
    cut, job = MARCH + 20 * MINUTE, at(MARCH + 50 * MINUTE, start=MARCH + 10 * MINUTE)
    meter = SPAN | {"per": "minute"}

    assert held(meter, [job], (MARCH - DAY, cut)) == {MARCH: 10}
    assert held(meter, [job], (cut, MARCH + DAY)) == {cut: 30}


@pytest.mark.parametrize(
    ("until", "expected"),
    [
        pytest.param(APRIL + HOUR - 1, {}, id="an hour that has not ended"),
        pytest.param(APRIL + HOUR, {APRIL: 1}, id="an hour that has"),
        pytest.param(APRIL + 90 * MINUTE - 1, {APRIL: 1}, id="the last piece has not ended"),
        pytest.param(APRIL + 90 * MINUTE, {APRIL: 1, APRIL + HOUR: 1}, id="the last piece is shorter: 1.5 rounds up"),
    ],
)
def test_a_piece_holds_nothing_until_it_has_ended(until: int, expected: dict[int, int]) -> None:
    assert held(GAUGE, [at(MARCH, 1)], (APRIL, APRIL + 90 * MINUTE), until) == expected


def test_pieces_round_the_period_and_not_themselves() -> None:
    """A third per hour: 0.33, 0.67, 1, 1.33, 1.67 and 2 at the ends of six hours."""
    samples = [at(MARCH + number * HOUR + 20 * MINUTE, start=MARCH + number * HOUR) for number in range(6)]

    assert held(SPAN, samples) == {MARCH + HOUR: 1, MARCH + 4 * HOUR: 1}


def test_each_period_rounds_alone() -> None:
    """Half an hour on either side of the boundary is 1 and 1, though the job took one hour."""
    job = [at(APRIL + 30 * MINUTE, start=APRIL - 30 * MINUTE)]

    assert held(SPAN, job) == {APRIL - HOUR: 1}
    assert held(SPAN, job, (APRIL, MAY)) == {APRIL: 1}


@pytest.mark.parametrize(
    ("exact", "expected"),
    [(Fraction(1, 2), 1), (Fraction(49, 100), 0), (Fraction(3, 2), 2), (Fraction(-1, 2), 0), (Fraction(-51, 100), -1),
     (Fraction(-3, 2), -1), (Fraction(7), 7)],
    ids=str,
)  # fmt: skip
def test_halves_are_rounded_up(exact: Fraction, expected: int) -> None:
    assert rounded(exact) == expected


def test_an_area_is_exact_to_the_microsecond() -> None:
    samples = [Sample(MARCH * 1000 + 1, 0, 5)]

    assert area(GAUGE, samples, MARCH * 1000, MARCH * 1000 + HOUR_US) == 5 - Fraction(5, HOUR_US)
