"""Dedup marks: the slice of stream time and the set of the slice in which a mark is stored (S5, I4).

A mark made at stream time T is in the half-window slice that contains T. The fold reads a slice until one window after
its end, so a mark is found for at least one window and at most one and a half.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Final

from schemas.meters import Policy
from schemas.rollup import Checkpoint, MarkKey, MarkSlice

BUCKETS_MIN: Final = 64
BUCKETS_MAX: Final = 1 << 24
BUCKET_MEMBERS_TARGET: Final = 16_384


class Members(Sequence[int]):
    """Members of one set, which are numbers; and `bulk`, the same numbers as Redis' protocol writes each of them."""

    __slots__ = ("_numbers", "bulk")

    def __init__(self, numbers: Sequence[int], bulk: bytes) -> None:
        self._numbers = numbers
        self.bulk = bulk

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: Any) -> Any:
        return self._numbers[index]

    def __iter__(self) -> Iterator[int]:
        return iter(self._numbers)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # as of a list


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
    return tuple(mark_slice for mark_slice in slices if mark_slice.end_ms > stream_time_ms - window_ms)


def unchanged_until_ms(slices: Sequence[MarkSlice], stream_time_ms: int, window_ms: int) -> int:
    """The first stream time after this one at which a slice begins, or at which the fold stops reading a slice.

    A flush ends before that time, so the slices it reads do not depend on where it began. Both times are multiples of
    half a window, except for a slice that began under another window.
    """
    expiries_ms = (mark_slice.end_ms + window_ms for mark_slice in slices)
    begins_ms = current_slice(slices, stream_time_ms, window_ms).end_ms
    return min([begins_ms, *(expiry_ms for expiry_ms in expiries_ms if expiry_ms > stream_time_ms)])


def by_bucket(mark_slice: MarkSlice, marks: Iterable[tuple[int, int]]) -> dict[MarkKey, list[int]]:
    """Group the members of (bucket hash, member) pairs by the set of the slice that stores them."""
    count = mark_slice.buckets
    buckets: defaultdict[int, list[int]] = defaultdict(list)
    for bucket_hash, member in marks:
        buckets[bucket_hash % count].append(member)
    return {MarkKey(mark_slice.start_ms, number): members for number, members in buckets.items()}


def repeats(marks: Iterable[tuple[int, int]], present: AbstractSet[int]) -> set[int]:
    """The positions of those (position, member) pairs whose member is among `present`, or came before."""
    seen, again = set(present), set[int]()
    for at, member in marks:
        if member in seen:
            again.add(at)
        else:
            seen.add(member)
    return again


def lookups(checkpoint: Checkpoint, marks: Sequence[tuple[int, int]]) -> dict[MarkKey, list[int]]:
    """The sets and their members that show whether the marks were made within the window before a checkpoint."""
    policy = checkpoint.meter_set.policy if checkpoint.meter_set else Policy()
    slices = live_slices(checkpoint.slices, checkpoint.stream_time_ms, policy.window_ms)
    return {
        key: members
        for mark_slice in slices
        if mark_slice.members
        for key, members in by_bucket(mark_slice, marks).items()
    }


def expired_keys(before: Sequence[MarkSlice], after: Sequence[MarkSlice]) -> list[MarkKey]:
    """All sets of the slices that are in `before` and not in `after`."""
    kept_ms = {mark_slice.start_ms for mark_slice in after}
    expired = (mark_slice for mark_slice in before if mark_slice.start_ms not in kept_ms)
    return [MarkKey(mark_slice.start_ms, bucket) for mark_slice in expired for bucket in range(mark_slice.buckets)]
