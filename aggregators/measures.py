"""What measured meters hold: levels and spans become areas, and areas become the quantities of pieces (S15).

All arithmetic is in integers. An *area* is minor units × microseconds. A *piece* is an hour, cut at the boundaries of
the account's periods. The quantities of a period's pieces add up to its area, rounded once: each piece is the
difference of two rounded areas that both begin at the period's start.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from aggregators.meters import Sample, dimensions_text, sample_reader
from aggregators.periods import period_at
from aggregators.quantities import at_most, minor_of
from schemas.clock import HOUR_MS, MILLISECOND_US, SECOND_US
from schemas.measures import ArchivedAdjustment, ArchivedSample
from schemas.meters import SPAN_S_MAX, Meter
from schemas.periods import AccountState, Period
from schemas.reasons import Reason

ID_PREFIX: Final = "m:"
_FOR_EVER_US: Final = 1 << 62


class Span(NamedTuple):
    """A level that stands, or a weight that covers, from one instant to another (microseconds)."""

    start_us: int
    end_us: int
    minor: int


class Told(NamedTuple):
    """What the adjustments of one piece add up to, and how many there are."""

    minor: int = 0
    adjustments: int = 0


class PieceKey(NamedTuple):
    """A piece of one set of dimensions, by the piece's start."""

    dimensions: str
    start_ms: int


class Difference(NamedTuple):
    """What a piece lacks: `minor` is the signed quantity to add. `number`: how many adjustments came before."""

    key: PieceKey
    end_ms: int
    minor: int
    number: int


class Read(NamedTuple):
    """A sample as its meter reads it, with the time and position of its event."""

    time_us: int
    position: int
    sample: Sample


def read_samples(meter: Meter, rows: Iterable[ArchivedSample], decoded: Mapping[str, dict[str, object]]) -> list[Read]:
    """The samples among archived events; `decoded` has the data of each text. What the meter cannot use is left out."""
    reader = sample_reader(meter)
    read = ((row, reader(decoded[row.data], row.time_us)) for row in rows)
    return [Read(row.time_us, row.position, sample) for row, sample in read if isinstance(sample, Sample)]


def reaches_back_us(meter: Meter) -> int:
    """How far before its own time a sample may change what was covered, in microseconds."""
    if meter.start_path is not None:
        return SPAN_S_MAX * SECOND_US
    return meter.session_gap_s_max * SECOND_US if meter.session_path is not None else 0


def spans_of(meter: Meter, samples: Iterable[Read]) -> dict[str, list[Span]]:
    """The spans of an account by dimensions. A level without an end stands for ever."""
    spans: dict[str, list[Span]] = {}
    groups: dict[tuple[str, str], list[Read]] = {}
    for read in samples:
        sample = read.sample
        if sample.start_us is not None:
            spans.setdefault(sample.dimensions, []).append(Span(sample.start_us, read.time_us, sample.minor))
        else:
            groups.setdefault((sample.dimensions, sample.group), []).append(read)
    for (dimensions, _), reads in groups.items():
        reads.sort(key=lambda read: (read.time_us, read.position))
        made = _session(meter, reads) if meter.session_path is not None else _levels(meter, reads)
        spans.setdefault(dimensions, []).extend(made)
    return spans


def _levels(meter: Meter, reads: Sequence[Read]) -> Iterator[Span]:
    stands_us = _FOR_EVER_US if meter.stands_s_max is None else meter.stands_s_max * SECOND_US
    ends_us = [*(read.time_us for read in reads[1:]), _FOR_EVER_US]
    for read, end_us in zip(reads, ends_us, strict=True):
        yield Span(read.time_us, min(end_us, read.time_us + stands_us), read.sample.minor)


def _session(meter: Meter, reads: Sequence[Read]) -> Iterator[Span]:
    gap_us = meter.session_gap_s_max * SECOND_US
    for first, second in pairwise(reads):
        if second.time_us - first.time_us <= gap_us:
            yield Span(first.time_us, second.time_us, first.sample.minor)


def reaches_beyond(meter: Meter, samples: Iterable[Read], until_ms: int) -> bool:
    """Whether something is covered in the hour of `until_ms` or after it, so that a later piece may hold something."""
    until_us = until_ms // HOUR_MS * HOUR_MS * MILLISECOND_US
    return any(read.time_us > until_us for read in samples) or any(
        span.minor and span.end_us > until_us for spans in spans_of(meter, samples).values() for span in spans
    )


def pieces(state: AccountState, from_ms: int, until_ms: int) -> list[tuple[Period, list[int]]]:
    """The periods of an account from the one that contains `from_ms`, with the bounds of their pieces: every instant at
    which a piece begins, and the end of the last one, which is not after `until_ms`."""
    found: list[tuple[Period, list[int]]] = []
    period = period_at(state, from_ms)
    while period.start_ms < until_ms:
        last_ms = period.end_ms if period.end_ms <= until_ms else until_ms // HOUR_MS * HOUR_MS
        hours = range(period.start_ms // HOUR_MS * HOUR_MS + HOUR_MS, last_ms, HOUR_MS)
        if last_ms > period.start_ms:
            found.append((period, [period.start_ms, *hours, last_ms]))
        period = period_at(state, period.end_ms)
    return found


def areas(spans: Sequence[Span], bounds_ms: Sequence[int]) -> list[int]:
    """The area of the spans between each two neighbouring bounds."""
    bounds_us = [bound_ms * MILLISECOND_US for bound_ms in bounds_ms]
    steps: dict[int, int] = {}
    first_us, last_us = bounds_us[0], bounds_us[-1]
    for span in spans:
        start_us, end_us = max(span.start_us, first_us), min(span.end_us, last_us)
        if start_us < end_us:
            steps[start_us] = steps.get(start_us, 0) + span.minor
            steps[end_us] = steps.get(end_us, 0) - span.minor
    found, level, at_us = [0] * (len(bounds_us) - 1), 0, first_us
    instants, number = sorted({*steps, *bounds_us}), 0
    for instant_us in instants:
        if instant_us > first_us:
            found[number] += level * (instant_us - at_us)
        level, at_us = level + steps.get(instant_us, 0), instant_us
        if number + 1 < len(found) and instant_us >= bounds_us[number + 1]:
            number += 1
    return found


def peaks(spans: Sequence[Span], bounds_ms: Sequence[int]) -> list[int]:
    """By how much the greatest sum of levels since the first bound grows between each two neighbouring bounds."""
    steps: dict[int, int] = {}
    for span in spans:
        if span.start_us < span.end_us:
            steps[span.start_us] = steps.get(span.start_us, 0) + span.minor
            steps[span.end_us] = steps.get(span.end_us, 0) - span.minor
    bounds_us = [bound_ms * MILLISECOND_US for bound_ms in bounds_ms]
    found, level, greatest = [0] * (len(bounds_us) - 1), 0, 0
    for instant_us in sorted({*steps, *bounds_us}):
        level += steps.get(instant_us, 0)
        if bounds_us[0] <= instant_us < bounds_us[-1] and level > greatest:
            found[bisect_right(bounds_us, instant_us) - 1] += level - greatest
            greatest = level
    return found


def quantities(meter: Meter, found: Sequence[int]) -> list[int]:
    """The quantities of pieces of one period, from the areas of all its pieces so far, in minor units of `per`."""
    total, rounded, made = 0, 0, []
    for area in found:
        total += area
        after = _rounded(total, meter.per.us)
        made.append(after - rounded)
        rounded = after
    return made


def _rounded(area: int, unit_us: int) -> int:
    """The area in units of time, rounded half up."""
    return (2 * area + unit_us) // (2 * unit_us)


def must_hold(
    meter: Meter, samples: Iterable[Read], state: AccountState, from_ms: int, until_ms: int
) -> tuple[dict[PieceKey, int], dict[int, int]]:
    """What every piece of an account must hold that is not 0, from the period of `from_ms` up to the last bound that is
    not after `until_ms`; and the ends of all pieces there, by start."""
    must: dict[PieceKey, int] = {}
    cut = pieces(state, from_ms, until_ms)
    for dimensions, spans in spans_of(meter, samples).items():
        for _, bounds in cut:
            is_peak = meter.aggregation.rule.greatest
            held = peaks(spans, bounds) if is_peak else quantities(meter, areas(spans, bounds))
            for start_ms, minor in zip(bounds, held, strict=False):
                if minor:
                    must[PieceKey(dimensions, start_ms)] = minor
    return must, {start_ms: end_ms for _, bounds in cut for start_ms, end_ms in pairwise(bounds)}


def told_by_piece(
    meter: Meter, rows: Iterable[ArchivedAdjustment], decoded: Mapping[str, dict[str, object]]
) -> dict[PieceKey, Told]:
    """What the archived adjustments of an account have told, by piece."""
    told: dict[PieceKey, Told] = {}
    for row in rows:
        data = decoded[row.data]
        minor, named = minor_of(data.get("quantity"), meter.scale, True), data.get("dimensions")
        start = row.id.split(":")[3]
        if isinstance(minor, Reason) or not isinstance(named, dict):
            continue
        key = PieceKey(dimensions_text(named), int(start))
        before = told.get(key, Told())
        told[key] = Told(before.minor + minor, before.adjustments + 1)
    return told


def differences(
    must: Mapping[PieceKey, int], told: Mapping[PieceKey, Told], ends_ms: Mapping[int, int], from_ms: int, until_ms: int
) -> list[Difference]:
    """What is to be told, by piece. A piece that a moved boundary has ended must hold nothing."""
    made = []
    for key in sorted(must.keys() | told.keys()):
        if not from_ms <= key.start_ms < until_ms:
            continue
        before = told.get(key, Told())
        minor = must.get(key, 0) - before.minor
        if minor:
            end_ms = ends_ms.get(key.start_ms, key.start_ms)
            made.append(Difference(key, end_ms, at_most(minor), before.adjustments))
    return made


def id_prefix(meter: Meter) -> str:
    """How the ids of a meter's adjustments by the measurer begin."""
    return f"{ID_PREFIX}{meter.slug}:"


def difference_id(meter: Meter, difference: Difference) -> str:
    """The id of the adjustment that tells a difference. Two measurers that have read the same make the same id."""
    digest = hashlib.sha256(difference.key.dimensions.encode()).hexdigest()[:16]
    return f"{id_prefix(meter)}{digest}:{difference.key.start_ms}:{difference.number}"
