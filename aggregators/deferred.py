"""Deferred events: later than the dedup window, so that marks cannot say whether they are the first of their identity.

The fold marks and defers them. What a deferred event gives to its meters is settled where it arrived; whether, when and
in which period it counts is settled where its decision stands.
"""

from __future__ import annotations

from aggregators.decode import decode_again, normalised
from aggregators.meters import Contribution, quarantines_late
from aggregators.steps import Arrival
from schemas.clock import MILLISECOND_US
from schemas.meters import MeterSet, Policy
from schemas.rollup import Checkpoint, Deferred, Duplicate, Waiting


def marked_for_ms(policy: Policy) -> int:
    """How old an event may be, by its own time, so that the mark of any earlier arrival is still there: a window less
    the span by which it may have come ahead of its time."""
    return max(0, policy.window_ms - policy.future_ms)


def far_late_us(policy: Policy, stream_time_ms: int) -> int:
    """The event time before which what arrives at this stream time is far late: it waits for a decision."""
    return (stream_time_ms - marked_for_ms(policy)) * MILLISECOND_US


def deferred_entry(arrival: Arrival, raw: bytes) -> Deferred:
    """The entry of an arrival that waits for a decision, with its text as it came."""
    made = tuple((each.meter.slug, each.minor, each.text, each.dimensions) for each in arrival.contributions)
    return Deferred(
        arrival.position, arrival.stream_time_ms, arrival.account, arrival.id, arrival.type, arrival.source,
        arrival.time_us, raw.decode(), quarantines_late(arrival.contributions), made,
    )  # fmt: skip


def contributions_at(held: Deferred, meter_set: MeterSet | None) -> tuple[Contribution, ...]:
    """What a deferred event gives under the meter set at its decision: a meter that was taken away meanwhile gets
    nothing, one that is new has not seen it arrive."""
    if meter_set is None:
        return ()
    return tuple(
        Contribution(meter, minor, text, dimensions)
        for slug, minor, text, dimensions in held.contributions
        if (meter := meter_set.meter(slug)) is not None
    )


def duplicate_of(held: Deferred) -> Duplicate:
    """The row of a deferred event that turned out to be a later arrival."""
    return Duplicate(
        held.position,
        held.account,
        held.id,
        held.type,
        held.source,
        held.time_us,
        normalised(decode_again(held.raw.encode()).data),
        held.stream_time_ms,
    )


def complete_up_to_ms(before: Checkpoint, waiting: Waiting, checkpoint: Checkpoint) -> int:
    """Everything that arrived before this stream time is counted in what was read at `checkpoint`; `waiting` was read
    earlier, at `before`, so that nothing can slip between the two."""
    if not checkpoint.counters.deferred:
        return checkpoint.stream_time_ms
    if waiting.oldest_stream_time_ms is not None:
        return waiting.oldest_stream_time_ms
    return before.stream_time_ms
