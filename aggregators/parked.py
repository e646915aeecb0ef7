"""Parked events: later than the dedup window, so that marks cannot say whether they are the first of their identity.

The fold marks and parks them. What a parked event gives to its meters is settled where it arrived; whether, when and
in which period it counts is settled where its verdict stands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from aggregators.decode import decode, normalised
from aggregators.meters import Contribution, quarantines_late
from schemas.clock import MILLISECOND_US
from schemas.control import Verdict
from schemas.meters import Catalog, Policy
from schemas.rollup import Duplicate, Fence, Parked, Waiting

if TYPE_CHECKING:
    from aggregators.scan import Arrival


class VerdictStep(NamedTuple):
    """One verdict in its place in the log, with the catalog in force there."""

    position: int
    log_time_ms: int
    verdict: Verdict
    catalog: Catalog | None


def marked_for_ms(policy: Policy) -> int:
    """How old an event may be, by its own time, so that the mark of any earlier arrival is still there: a window less
    the span by which it may have come ahead of its time."""
    return max(0, policy.window_ms - policy.future_ms)


def far_late_us(policy: Policy, log_time_ms: int) -> int:
    """The event time before which what arrives at this log time is far late: it waits for a verdict."""
    return (log_time_ms - marked_for_ms(policy)) * MILLISECOND_US


def parked_entry(arrival: Arrival, raw: bytes) -> Parked:
    """The entry of an arrival that waits for a verdict, with its text as it came."""
    made = tuple((each.meter.slug, each.minor, each.text, each.dimensions) for each in arrival.contributions)
    return Parked(
        arrival.position, arrival.log_time_ms, arrival.account, arrival.id, arrival.type, arrival.source,
        arrival.time_us, raw.decode(), quarantines_late(arrival.contributions), made,
    )  # fmt: skip


def contributions_at(held: Parked, catalog: Catalog | None) -> tuple[Contribution, ...]:
    """What a parked event gives under the catalog at its verdict: a meter that was taken away meanwhile gets nothing,
    one that is new has not seen it arrive."""
    if catalog is None:
        return ()
    return tuple(
        Contribution(meter, minor, text, dimensions)
        for slug, minor, text, dimensions in held.contributions
        if (meter := catalog.meter(slug)) is not None
    )


def duplicate_of(held: Parked) -> Duplicate:
    """The row of a parked event that turned out to be a later arrival."""
    raw = held.raw.encode()
    data = decode(raw, len(raw)).events[0][1].data
    return Duplicate(
        held.position, held.account, held.id, held.type, held.source, held.time_us, normalised(data), held.log_time_ms
    )


def complete_up_to_ms(before: Fence, waiting: Waiting, fence: Fence) -> int:
    """Everything that arrived before this log time is counted in what was read at `fence`; `waiting` was read
    earlier, at `before`, so that nothing can slip between the two."""
    if not fence.counters.parked:
        return fence.log_time_ms
    if waiting.oldest_log_time_ms is not None:
        return waiting.oldest_log_time_ms
    return before.log_time_ms
