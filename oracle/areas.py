"""A naive measure of gauges, spans and sessions: exact fractions, one stretch of constant level after the other (S15).

Written only from the definitions of docs/invariants.md and docs/catalog.md; shares no code with the measurer. Times are
int microseconds UTC (`*_us`), levels are int minor units. A meter is the JSON form of `schemas.meters.Meter`, and the
samples given to a function are those of one account, one meter and one set of dimensions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any, NamedTuple

HOUR_US = 3_600_000_000
UNITS_US = {"second": 1_000_000, "minute": 60_000_000, "hour": HOUR_US}
GAP_S = 3600
_FOREVER_US = 1 << 62


class Sample(NamedTuple):
    """A valid sample that no correction has voided, once. `position` orders the samples of one instant.

    `minor` is the level, or the weight of a duration. `series` is the text of the series or the session. `start_us` is
    set for a meter with `start_path`.
    """

    time_us: int
    position: int
    minor: int = 1
    series: str = ""
    start_us: int | None = None


class Stretch(NamedTuple):
    """A level that one series adds in `[start_us, end_us)`."""

    start_us: int
    end_us: int
    minor: int


def stretches(meter: Mapping[str, Any], samples: Iterable[Sample]) -> list[Stretch]:
    """Where each series adds which level. Stretches of different series may overlap, and their levels add up."""
    samples = list(samples)
    if meter.get("start_path"):
        return [Stretch(s.start_us, s.time_us, s.minor) for s in samples if s.start_us is not None]
    series: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        series[sample.series].append(sample)
    made = _levels if meter["aggregation"] in ("time_weighted", "peak") else _covered
    return [stretch for own in series.values() for stretch in made(meter, sorted(own))]


def _levels(meter: Mapping[str, Any], own: Sequence[Sample]) -> list[Stretch]:
    """A level stands until the next sample of the series, at most `stands_s_max`. The later of two equal times wins,
    because the stretch of the earlier one is empty."""
    stands_s = meter.get("stands_s_max")
    stands_us = _FOREVER_US if stands_s is None else stands_s * 1_000_000
    ends_us = [sample.time_us for sample in own[1:]] + [_FOREVER_US]
    return [
        Stretch(sample.time_us, min(end_us, sample.time_us + stands_us), sample.minor)
        for sample, end_us in zip(own, ends_us, strict=True)
    ]


def _covered(meter: Mapping[str, Any], own: Sequence[Sample]) -> list[Stretch]:
    """A session covers the time between two neighbouring events, unless the gap between them is too long."""
    gap_us = (meter.get("session_gap_s_max") or GAP_S) * 1_000_000
    return [
        Stretch(first.time_us, second.time_us, first.minor)
        for first, second in pairwise(own)
        if second.time_us - first.time_us <= gap_us
    ]


def area(meter: Mapping[str, Any], samples: Iterable[Sample], from_us: int, to_us: int) -> Fraction:
    """Level × time in `[from_us, to_us)`, in minor units × the meter's unit of time."""
    return _area(stretches(meter, samples), from_us, to_us, UNITS_US[meter.get("per") or "hour"])


def _area(of: Iterable[Stretch], from_us: int, to_us: int, unit_us: int) -> Fraction:
    overlaps = ((min(s.end_us, to_us) - max(s.start_us, from_us), s.minor) for s in of)
    return Fraction(sum(lasts_us * minor for lasts_us, minor in overlaps if lasts_us > 0), unit_us)


def _greatest(of: Sequence[Stretch], from_us: int, to_us: int) -> int:
    """The greatest sum of levels at an instant of `[from_us, to_us)`; at least 0."""
    instants = {from_us, *(s.start_us for s in of if from_us <= s.start_us < to_us)}
    sums = (sum(s.minor for s in of if s.start_us <= at_us < s.end_us) for at_us in instants)
    return max(0, *sums)


def rounded(exact: Fraction) -> int:
    """The nearest int; of two that are equally near, the greater."""
    return (exact + Fraction(1, 2)).__floor__()


def cuts(start_us: int, end_us: int, until_us: int) -> list[int]:
    """Where the pieces of the period `[start_us, end_us)` begin and end that have ended at `until_us`."""
    first_hour_us = (start_us // HOUR_US + 1) * HOUR_US
    hours = range(first_hour_us, min(end_us, until_us + 1), HOUR_US)
    return [start_us, *hours, *([end_us] if end_us <= until_us else [])]


def pieces(
    meter: Mapping[str, Any], samples: Iterable[Sample], period: tuple[int, int], until_us: int
) -> dict[int, int]:
    """What each piece of a period must hold, in minor units, by its start; pieces that hold 0 are left out.

    A piece holds what the rounded area, or the greatest level, from the period's start grows by. So the pieces of a
    period add up to its rounded area, and no piece rounds alone.
    """
    of, unit_us = stretches(meter, samples), UNITS_US[meter.get("per") or "hour"]
    held: dict[int, int] = {}
    grown, exact = 0, Fraction(0)
    for start_us, end_us in pairwise(cuts(*period, until_us)):
        if meter["aggregation"] == "peak":
            exact = max(exact, Fraction(_greatest(of, start_us, end_us)))
        else:
            exact += _area(of, start_us, end_us, unit_us)
        if rounded(exact) != grown:
            held[start_us] = rounded(exact) - grown
        grown = rounded(exact)
    return held
