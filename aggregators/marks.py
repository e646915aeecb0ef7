"""Dedup marks: which slice of stream time they stand in and which set of it (S5, I4).

A mark made at stream time T stands in the half-window slice that contains T and is looked for until that slice has
ended more than a window ago: at least one window, at most one and a half.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from schemas.rollup import MarkKey, MarkSlice

BUCKETS_MIN: Final = 64
BUCKETS_MAX: Final = 1 << 24
BUCKET_MEMBERS_TARGET: Final = 16_384


def current_slice(slices: Sequence[MarkSlice], stream_time_ms: int, window_ms: int) -> MarkSlice:
    """The slice that takes new marks at this stream time: the last one, or a new one sized by the last one's count."""
    if slices and stream_time_ms < slices[-1].end_ms:
        return slices[-1]
    half_ms = window_ms // 2
    start_ms = stream_time_ms // half_ms * half_ms
    if slices:
        start_ms = max(start_ms, slices[-1].end_ms)
    members = slices[-1].members if slices else 0
    buckets = BUCKETS_MIN
    while buckets * BUCKET_MEMBERS_TARGET < members and buckets < BUCKETS_MAX:
        buckets *= 2
    return MarkSlice(start_ms, (stream_time_ms // half_ms + 1) * half_ms, buckets)


def live_slices(slices: Sequence[MarkSlice], stream_time_ms: int, window_ms: int) -> tuple[MarkSlice, ...]:
    """The slices that may hold marks made within the window before this stream time."""
    return tuple(each for each in slices if each.end_ms > stream_time_ms - window_ms)


def unchanged_until_ms(slices: Sequence[MarkSlice], stream_time_ms: int, window_ms: int) -> int:
    """The first stream time after this one at which a slice begins, or one is looked into no longer.

    A flush ends before it, so that what it looks into does not depend on where it began. Most slices end at halves of
    the window, and so do both; one that was begun under another window does not.
    """
    dropped = (each.end_ms + window_ms for each in slices)
    begins_ms = current_slice(slices, stream_time_ms, window_ms).end_ms
    return min([begins_ms, *(at_ms for at_ms in dropped if at_ms > stream_time_ms)])


def by_bucket(held: MarkSlice, marks: Iterable[tuple[int, int]]) -> dict[MarkKey, list[int]]:
    """The members of (bucket hash, member) pairs by the set of the slice they stand in."""
    buckets: dict[int, list[int]] = {}
    for bucket_hash, member in marks:
        number = bucket_hash % held.buckets
        if number in buckets:
            buckets[number].append(member)
        else:
            buckets[number] = [member]
    return {MarkKey(held.start_ms, number): members for number, members in buckets.items()}


def expired_keys(before: Sequence[MarkSlice], after: Sequence[MarkSlice]) -> list[MarkKey]:
    """All sets of the slices that are no longer kept."""
    kept = {each.start_ms for each in after}
    return [
        MarkKey(each.start_ms, bucket) for each in before if each.start_ms not in kept for bucket in range(each.buckets)
    ]
