"""Marks of a flush by the C core: the same as by `aggregators.marks`."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from ctypes import c_char, c_int64
from typing import Final

from aggregators.columns import Segment
from aggregators.marks import Members, by_bucket
from aggregators.parallel_lists import places_of, without_places
from schemas.rollup import MarkKey, MarkSlice

# With many more sets than members, the sets would cost more than the members.
_SETS_MAX: Final = 4_096
_BULK_BYTES: Final = 27


def repeats(library: ctypes.CDLL, segments: Sequence[Segment], present: AbstractSet[int]) -> set[int]:
    """See `ColumnMaker`."""
    members, there = _joined("q", [segment.members for segment in segments]), array("q", present)
    places = (c_int64 * len(members))()
    found = library.tm_repeats(_at(members), len(members), _at(there), len(there), places)
    if found < 0:
        raise MemoryError("the C core has no memory")
    if not found:
        return set()
    positions = _joined("q", [segment.positions for segment in segments])
    return {positions[place] for place in places[:found]}


def marks(
    library: ctypes.CDLL, segments: Sequence[Segment], mark_slice: MarkSlice, unmarked: AbstractSet[int]
) -> dict[MarkKey, Sequence[int]]:
    """See `ColumnMaker`."""
    buckets, members = array("I"), array("q")
    for segment in segments:
        places = places_of(unmarked, segment.positions) if unmarked else ()
        buckets.extend(without_places(segment.buckets, places))
        members.extend(without_places(segment.members, places))
    count, sets = len(members), mark_slice.buckets
    if sets > max(count, _SETS_MAX):
        return dict(by_bucket(mark_slice, zip(buckets, members, strict=True)))
    ends, ordered, text_ends = (c_int64 * sets)(), (c_int64 * count)(), (c_int64 * sets)()
    text = (c_char * (_BULK_BYTES * count))()
    library.tm_by_set(_at(buckets), _at(members), count, sets, ends, ordered, text_ends, text)
    found = dict[MarkKey, Sequence[int]]()
    numbers, bulk = memoryview(ordered).cast("B").cast("q"), memoryview(text).cast("B")
    first = text_first = 0
    for number, (end, text_end) in enumerate(zip(ends, text_ends, strict=True)):
        if end > first:
            key = MarkKey(mark_slice.start_ms, number)
            found[key] = Members(numbers[first:end], bytes(bulk[text_first:text_end]))
            first, text_first = end, text_end
    return found


def _joined(form: str, parts: Sequence[Sequence[int]]) -> array[int]:
    joined = array(form)
    for part in parts:
        joined.extend(part)
    return joined


def _at(numbers: array[int]) -> int:
    return numbers.buffer_info()[0]
