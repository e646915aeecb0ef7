"""Marks: a duplicate is recognised at any distance up to the window, across any slice boundary (I4, S5)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregators.marks import (
    BUCKET_MEMBERS_TARGET,
    BUCKETS_MAX,
    BUCKETS_MIN,
    by_bucket,
    current_slice,
    expired_keys,
    live_slices,
    unchanged_until_ms,
)
from schemas.rollup import MarkKey, MarkSlice

WINDOW = 1_000


class Marks:
    """The mark slices of one partition: adds marks at a stream time and looks in the live slices."""

    def __init__(self, window_ms: int = WINDOW) -> None:
        self.window_ms = window_ms
        self.slices: tuple[MarkSlice, ...] = ()
        self.sets: dict[MarkKey, set[int]] = {}

    def move(self, stream_time_ms: int) -> MarkSlice:
        """Advances to a stream time, as one flush does."""
        before = self.slices
        current = current_slice(before, stream_time_ms, self.window_ms)
        live = live_slices(before, stream_time_ms, self.window_ms)
        self.slices = live if live and live[-1].start_ms == current.start_ms else (*live, current)
        for key in expired_keys(before, self.slices):
            self.sets.pop(key, None)
        return current

    def add(self, stream_time_ms: int, hashed: tuple[int, int]) -> None:
        """Adds a mark."""
        for key, members in by_bucket(self.move(stream_time_ms), [hashed]).items():
            self.sets.setdefault(key, set()).update(members)

    def found(self, stream_time_ms: int, hashed: tuple[int, int]) -> bool:
        """Whether a live slice contains the mark."""
        self.move(stream_time_ms)
        wanted = [by_bucket(each, [hashed]) for each in self.slices]
        return any(hashed[1] in self.sets.get(key, ()) for keys in wanted for key in keys)


@settings(max_examples=300)
@given(
    first_ms=st.integers(0, 10_000),
    distances=st.lists(st.integers(0, WINDOW), min_size=1, max_size=6),
    hashed=st.tuples(st.integers(0, 2**32 - 1), st.integers(-(2**63), 2**63 - 1)),
    window_ms=st.sampled_from([2, 10, WINDOW]),
)
def test_a_duplicate_is_recognised_at_any_distance_up_to_the_window(
    first_ms: int, distances: list[int], hashed: tuple[int, int], window_ms: int
) -> None:
    """Stream time moves in steps of any size between the two arrivals; other flushes begin slices in between."""
    marks = Marks(window_ms)
    marks.add(first_ms, hashed)

    for distance in sorted(each % (window_ms + 1) for each in distances):
        assert marks.found(first_ms + distance, hashed)


@settings(max_examples=200)
@given(first_ms=st.integers(0, 10_000), steps=st.lists(st.integers(0, WINDOW), max_size=12))
def test_a_mark_is_forgotten_after_one_and_a_half_windows(first_ms: int, steps: list[int]) -> None:
    """The event rate bounds the memory, not the age of the deployment. Few slices are live at once."""
    marks = Marks()
    marks.add(first_ms, (7, 7))
    now_ms = first_ms
    for number, step in enumerate(steps):
        now_ms += step
        marks.add(now_ms, (step, number + 1_000_000))
        assert len(marks.slices) <= 4
    end_ms = max(now_ms, first_ms + WINDOW + WINDOW // 2)

    assert not marks.found(end_ms, (7, 7))
    assert {key.slice_start_ms for key in marks.sets} <= {each.start_ms for each in marks.slices}


@pytest.mark.parametrize(
    ("stream_time_ms", "start_ms", "end_ms"),
    [
        pytest.param(0, 0, 500, id="at a boundary"),
        pytest.param(499, 0, 500, id="the last instant of a half"),
        pytest.param(500, 500, 1000, id="the next half"),
        pytest.param(123_456, 123_000, 123_500, id="any time"),
    ],
)
def test_slices_are_halves_of_the_window(stream_time_ms: int, start_ms: int, end_ms: int) -> None:
    """Slices are aligned, so every rebuild begins them at the same instants (I7)."""
    assert current_slice((), stream_time_ms, WINDOW) == MarkSlice(start_ms, end_ms, BUCKETS_MIN)


def test_the_current_slice_takes_marks_until_its_end() -> None:
    """The number of marks in the slice does not matter."""
    current = MarkSlice(0, 500, 64, 10**9)

    assert current_slice([current], 499, WINDOW) is current
    assert current_slice([current], 500, WINDOW).start_ms == 500


@pytest.mark.parametrize(
    ("members", "buckets"),
    [
        pytest.param(0, BUCKETS_MIN, id="none"),
        pytest.param(BUCKETS_MIN * BUCKET_MEMBERS_TARGET, BUCKETS_MIN, id="just enough"),
        pytest.param(BUCKETS_MIN * BUCKET_MEMBERS_TARGET + 1, 2 * BUCKETS_MIN, id="one more"),
        pytest.param(100_000_000, 8192, id="a hundred million"),
        pytest.param(10**15, BUCKETS_MAX, id="more than there can be"),
    ],
)
def test_a_new_slice_is_sized_by_the_count_of_the_last_one(members: int, buckets: int) -> None:
    """A set must stay an integer set. The number of sets is bounded."""
    assert current_slice([MarkSlice(0, 500, 64, members)], 500, WINDOW).buckets == buckets


def test_expired_keys_are_all_sets_of_expired_slices() -> None:
    """Nothing else expires the sets: checkpointed state has no TTL."""
    before = (MarkSlice(0, 500, 2), MarkSlice(500, 1000, 3))

    assert expired_keys(before, before[1:]) == [MarkKey(0, 0), MarkKey(0, 1)]
    assert expired_keys(before, before) == []


@given(
    buckets=st.sampled_from([1, 64, 128]),
    marks=st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(-(2**63), 2**63 - 1)), max_size=50),
)
def test_every_mark_is_in_the_set_that_its_hash_selects(buckets: int, marks: list[tuple[int, int]]) -> None:
    """No mark is lost or stored twice."""
    sets = by_bucket(MarkSlice(500, 1000, buckets), marks)

    assert sorted((key.bucket, member) for key, members in sets.items() for member in members) == sorted(
        (bucket_hash % buckets, member) for bucket_hash, member in marks
    )
    assert {key.slice_start_ms for key in sets} <= {500}


@settings(max_examples=300)
@given(
    ends_ms=st.lists(st.integers(1, 3 * WINDOW), min_size=1, max_size=4, unique=True).map(sorted),
    at_ms=st.integers(0, 5 * WINDOW),
    window_ms=st.sampled_from([2, 10, WINDOW]),
)
def test_a_flush_looks_into_the_same_slices_at_its_first_and_its_last_stream_time(
    ends_ms: list[int], at_ms: int, window_ms: int
) -> None:
    """Also if slices began under another window and end at any instant."""
    starts_ms = [0, *ends_ms[:-1]]
    slices = tuple(MarkSlice(start, end, BUCKETS_MIN) for start, end in zip(starts_ms, ends_ms, strict=True))

    until_ms = unchanged_until_ms(slices, at_ms, window_ms)

    assert until_ms > at_ms
    assert live_slices(slices, at_ms, window_ms) == live_slices(slices, until_ms - 1, window_ms)
    assert current_slice(slices, at_ms, window_ms).end_ms == current_slice(slices, until_ms - 1, window_ms).end_ms
