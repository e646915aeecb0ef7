"""What a correction changes: the difference between what an event counted and what should have counted (S16)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from aggregators.meters import Failure, compiled, dimensions_text
from aggregators.quantities import at_most, minor_of
from schemas.measures import ArchivedAdjustment
from schemas.meters import Meter, MeterSet
from schemas.reasons import Reason

ID_PREFIX: Final = "c:"


class UsageKey(NamedTuple):
    """A meter and a set of dimensions."""

    slug: str
    dimensions: str


class Contributed(NamedTuple):
    """What an event adds to meters: `usage` in minor units to those that take adjustments; `others` are what it adds to
    meters that take none, and `samples` the measured meters of which it is a sample."""

    usage: Mapping[UsageKey, int]
    others: Mapping[str, tuple[object, ...]]
    samples: frozenset[str]


NOTHING: Final = Contributed({}, {}, frozenset())


class Change(NamedTuple):
    """The adjustment of one meter and set of dimensions. `number`: how many adjustments of the event came before."""

    meter: Meter
    dimensions: str
    minor: int
    number: int


def contributed(
    then: MeterSet, now: MeterSet, event_type: str, data: dict[str, Any], time_us: int
) -> Contributed | Failure:
    """What an event with these data adds, to meters that were in force at its arrival and are in force now."""
    made = compiled(then).contributions(event_type, data, time_us)
    if isinstance(made, Failure):
        return made
    usage: dict[UsageKey, int] = {}
    others: dict[str, tuple[object, ...]] = {}
    samples: set[str] = set()
    for item in made:
        if now.meter(item.meter.slug) is None:
            continue
        if item.is_sample:
            samples.add(item.meter.slug)
        elif item.meter.aggregation.rule.additive:
            key = UsageKey(item.meter.slug, item.dimensions)
            usage[key] = usage.get(key, 0) + item.minor
        else:
            others[item.meter.slug] = (item.minor, item.text, item.dimensions)
    return Contributed(usage, others, frozenset(samples))


class Corrected(NamedTuple):
    """A correction of an event: whether totals follow it, and what it makes of the event."""

    counts: bool
    wanted: Contributed


def must_count(counted: Contributed, corrections: Iterable[Corrected]) -> Mapping[UsageKey, int]:
    """What the totals must have of an event, after its corrections in order. What does not count was settled by credit
    notes, and the next correction begins where that ended."""
    must, before = dict(counted.usage), counted.usage
    for counts, wanted in corrections:
        for key in before.keys() | wanted.usage.keys() if counts else ():
            must[key] = must.get(key, 0) + wanted.usage.get(key, 0) - before.get(key, 0)
        before = wanted.usage
    return must


def told_by_meter(
    now: MeterSet, event: str, rows: Iterable[ArchivedAdjustment], decoded: Mapping[str, dict[str, Any]]
) -> dict[UsageKey, tuple[int, int]]:
    """What the adjustments of an event have told: the sum and the number of adjustments, by meter and dimensions."""
    told: dict[UsageKey, tuple[int, int]] = {}
    for row in rows:
        data = decoded[row.data]
        slug = row.id.split(":")[2]
        meter, named = now.meter(slug), data.get("dimensions")
        if meter is None or data.get("corrects") != event or not isinstance(named, dict):
            continue
        minor = minor_of(data.get("quantity"), meter.scale, True)
        if not isinstance(minor, Reason):
            key = UsageKey(slug, dimensions_text(named))
            total, number = told.get(key, (0, 0))
            told[key] = total + minor, number + 1
    return told


def changes(
    now: MeterSet, had: Mapping[UsageKey, int], must: Mapping[UsageKey, int], told: Mapping[UsageKey, tuple[int, int]]
) -> list[Change]:
    """What is to be told, so that there is what must be, after what there was and what was told."""
    made = []
    for key in sorted(had.keys() | must.keys() | told.keys()):
        total, number = told.get(key, (0, 0))
        minor = must.get(key, 0) - had.get(key, 0) - total
        meter = now.meter(key.slug)
        if minor and meter is not None:
            made.append(Change(meter, key.dimensions, at_most(minor), number))
    return made


def id_prefix(event: str) -> str:
    """How the ids of the adjustments of an event begin."""
    return f"{ID_PREFIX}{_digest(event)}:"


def change_id(event: str, change: Change) -> str:
    """The id of an adjustment. Whoever has read the same makes the same id."""
    return f"{id_prefix(event)}{change.meter.slug}:{_digest(change.dimensions)}:{change.number}"


def refusal(kind: str, counted: Contributed, wanted: Contributed) -> str:
    """Why a correction cannot be made, with the remedy; "" if it can."""
    moved = sorted(
        slug for slug in counted.others.keys() | wanted.others.keys()
        if counted.others.get(slug) != wanted.others.get(slug)
    )  # fmt: skip
    if moved:
        return (
            f"the event counts in {', '.join(moved)}, and totals of max, min, unique and latest cannot give one event "
            "back: send an event with the right value, which replaces a latest one, or settle the amount outside"
        )
    # Also data that no measured meter takes: a sample is voided or stands as it came.
    if counted.samples and kind != "void":
        return (
            f"the event is a sample of {', '.join(sorted(counted.samples))}: void it, and send a new event with the "
            "right data under another id"
        )
    if wanted.samples - counted.samples:
        return f"the new data would be a sample of {', '.join(sorted(wanted.samples))}: send them as a new event"
    return ""


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]
