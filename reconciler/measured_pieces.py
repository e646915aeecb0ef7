"""What the pieces of measured meters must hold, computed a second time (S15).

This module must not share code with `aggregators.measures`, which the measurer uses. It adds up steps: a level that
begins to stand is a step up, and its end a step down. With L, the sum of the steps until t, and M, the sum of
step × instant, the area until t is L·t − M. All numbers are integers: areas are minor units × microseconds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Final, NamedTuple

from schemas.clock import HOUR_MS, MILLISECOND_US, SECOND_US
from schemas.measured_recount import RecountedSample
from schemas.meters import SPAN_S_MAX, Meter
from schemas.periods import Period

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_RFC3339: Final = re.compile(
    r"\d{4}-\d\d-\d\d[Tt]([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d+)?([Zz]|[+-]([01]\d|2[0-3]):[0-5]\d)", re.ASCII
)


class Piece(NamedTuple):
    """A piece of one set of dimensions, by the piece's start."""

    dimensions: str
    start_ms: int


class Step(NamedTuple):
    """By how much the sum of the levels changes at an instant."""

    at_us: int
    minor: int


def last_ms(period: Period, until_ms: int) -> int:
    """The end of the last piece of a period that has ended at `until_ms`; not after the period's start without one."""
    return period.end_ms if period.end_ms <= until_ms else until_ms - until_ms % HOUR_MS


def bounds_ms(period: Period, until_ms: int) -> list[int]:
    """Where the pieces of a period begin that have ended at `until_ms`, and the end of the last one. Empty without
    pieces."""
    end_ms = last_ms(period, until_ms)
    if end_ms <= period.start_ms:
        return []
    first_ms = period.start_ms - period.start_ms % HOUR_MS + HOUR_MS
    return [period.start_ms, *range(first_ms, end_ms, HOUR_MS), end_ms]


def held(
    meter: Meter, samples: Iterable[RecountedSample], periods: Sequence[Period], until_ms: int
) -> dict[Piece, int]:
    """What each piece of an account's periods must hold, in minor units; pieces with 0 are left out."""
    cut = [bounds for period in periods if (bounds := bounds_ms(period, until_ms))]
    found: dict[Piece, int] = {}
    for dimensions, steps in _steps(meter, samples).items():
        for bounds in cut:
            bounds_us = [bound_ms * MILLISECOND_US for bound_ms in bounds]
            if meter.aggregation.rule.greatest:
                totals = _greatest(steps, bounds_us)
            else:
                totals = _rounded_areas(steps, bounds_us, meter.per.us)
            before = 0
            for start_ms, total in zip(bounds, totals, strict=False):
                if total != before:
                    found[Piece(dimensions, start_ms)] = total - before
                before = total
    return found


def _steps(meter: Meter, samples: Iterable[RecountedSample]) -> dict[str, list[Step]]:
    """The steps by dimensions, in the order of time. A level that stands for ever has no step down."""
    series: dict[tuple[str, str], list[RecountedSample]] = {}
    steps: dict[str, list[Step]] = {}
    for sample in samples:
        if meter.start_path is None:
            series.setdefault((sample.dimensions, sample.text), []).append(sample)
        else:
            begun_us = instant_us(sample.text)
            if begun_us is not None and 0 <= sample.time_us - begun_us <= SPAN_S_MAX * SECOND_US:
                covered = (Step(begun_us, sample.minor), Step(sample.time_us, -sample.minor))
                steps.setdefault(sample.dimensions, []).extend(covered)
    for (dimensions, _), own in series.items():
        own.sort(key=lambda sample: (sample.time_us, sample.arrived))
        made = _session_steps(meter, own) if meter.session_path is not None else _level_steps(meter, own)
        steps.setdefault(dimensions, []).extend(made)
    return {dimensions: sorted(of) for dimensions, of in steps.items()}


def _level_steps(meter: Meter, own: Sequence[RecountedSample]) -> list[Step]:
    steps = []
    for number, sample in enumerate(own):
        ends_us = [own[number + 1].time_us] if number + 1 < len(own) else []
        if meter.stands_s_max is not None:
            ends_us.append(sample.time_us + meter.stands_s_max * SECOND_US)
        steps.append(Step(sample.time_us, sample.minor))
        if ends_us:
            steps.append(Step(min(ends_us), -sample.minor))
    return steps


def _session_steps(meter: Meter, own: Sequence[RecountedSample]) -> list[Step]:
    steps = []
    for number in range(1, len(own)):
        begun, ended = own[number - 1], own[number]
        if ended.time_us - begun.time_us <= meter.session_gap_s_max * SECOND_US:
            steps += [Step(begun.time_us, begun.minor), Step(ended.time_us, -begun.minor)]
    return steps


def _rounded_areas(steps: Sequence[Step], bounds_us: Sequence[int], unit_us: int) -> list[int]:
    """The area from the first bound to each later one, in units of time, rounded half up."""
    level = weighted = number = 0
    areas = []
    for bound_us in bounds_us:
        while number < len(steps) and steps[number].at_us <= bound_us:
            level += steps[number].minor
            weighted += steps[number].minor * steps[number].at_us
            number += 1
        areas.append(level * bound_us - weighted)
    return [(2 * (area - areas[0]) + unit_us) // (2 * unit_us) for area in areas[1:]]


def _greatest(steps: Sequence[Step], bounds_us: Sequence[int]) -> list[int]:
    """The greatest sum of levels from the first bound to each later one, at least 0. A sum counts once all steps of
    its instant are made."""
    level = number = greatest = 0
    found = []
    for start_us, end_us in pairwise(bounds_us):
        at_us = start_us
        while True:
            while number < len(steps) and steps[number].at_us <= at_us:
                level += steps[number].minor
                number += 1
            greatest = max(greatest, level)
            if number == len(steps) or steps[number].at_us >= end_us:
                break
            at_us = steps[number].at_us
        found.append(greatest)
    return found


def instant_us(text: str) -> int | None:
    """The instant of an RFC 3339 text, in microseconds; None for any other text."""
    if _RFC3339.fullmatch(text) is None:
        return None
    try:
        return (datetime.fromisoformat(text.upper()) - _EPOCH) // timedelta(microseconds=1)
    except ValueError:
        return None
