"""Deferred events: older than the dedup window, so marks cannot tell whether their identity arrived before.

The fold marks and defers them. The meter set at the arrival decides what a deferred event contributes. The state at
the dedup decision decides whether the event counts, when, and in which period.
"""

from __future__ import annotations

from aggregators.decode import decode_again, normalised
from aggregators.meters import Contribution, quarantines_late
from aggregators.steps import Arrival
from schemas.clock import MILLISECOND_US
from schemas.meters import MeterSet, Policy
from schemas.rollup import Checkpoint, Deferred, Duplicate, Waiting


def marked_for_ms(policy: Policy) -> int:
    """The greatest age of an event at which the mark of an earlier arrival still exists: the dedup window less the span
    by which an event may arrive ahead of its own time."""
    return max(0, policy.window_ms - policy.future_ms)


def far_late_us(policy: Policy, stream_time_ms: int) -> int:
    """The event time in microseconds before which an event that arrives at this stream time is far-late."""
    return (stream_time_ms - marked_for_ms(policy)) * MILLISECOND_US


def deferred_entry(arrival: Arrival, raw: bytes) -> Deferred:
    """The stored entry of a deferred arrival, with its original text."""
    contributions = tuple((item.meter.slug, item.minor, item.text, item.dimensions) for item in arrival.contributions)
    return Deferred(
        arrival.position, arrival.stream_time_ms, arrival.account, arrival.id, arrival.type, arrival.source,
        arrival.time_us, raw.decode(), quarantines_late(arrival.contributions), contributions,
    )  # fmt: skip


def contributions_at(event: Deferred, meter_set: MeterSet | None) -> tuple[Contribution, ...]:
    """A deferred event's contributions to meters that were in force both at its arrival and at its dedup decision."""
    if meter_set is None:
        return ()
    return tuple(
        Contribution(meter, minor, text, dimensions)
        for slug, minor, text, dimensions in event.contributions
        if (meter := meter_set.meter(slug)) is not None
    )


def duplicate_of(event: Deferred) -> Duplicate:
    """The row of a deferred event whose dedup decision is that it is a duplicate."""
    return Duplicate(
        event.position,
        event.account,
        event.id,
        event.type,
        event.source,
        event.time_us,
        normalised(decode_again(event.raw.encode()).data or {}),
        event.stream_time_ms,
    )


def complete_up_to_ms(before: Checkpoint, waiting: Waiting, checkpoint: Checkpoint) -> int:
    """The stream time up to which every arrival is settled in what was read at `checkpoint`. `waiting` must have been
    read earlier, at `before`: then no event can be deferred unseen between the two reads."""
    if not checkpoint.counters.deferred:
        return checkpoint.stream_time_ms
    if waiting.oldest_stream_time_ms is not None:
        return waiting.oldest_stream_time_ms
    return before.stream_time_ms
