"""What the fold needs from every aggregation: order and grouping of merges change nothing."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.aggregations import Aggregation, Value

EVERY = pytest.mark.parametrize("aggregation", Aggregation, ids=str)
# Few quantities and times, positive and negative, so ties are frequent. Positions never repeat.
_EVENTS = st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 2)), min_size=1, max_size=8)


def _values(aggregation: Aggregation, events: Sequence[tuple[int, int]]) -> list[Value]:
    ordered = aggregation.rule.ordered
    return [Value(minor, time_us, at) if ordered else Value(minor) for at, (minor, time_us) in enumerate(events)]


@EVERY
@given(events=_EVENTS, data=st.data())
def test_order_and_grouping_of_merges_change_nothing(
    aggregation: Aggregation, events: list[tuple[int, int]], data: st.DataObject
) -> None:
    """Flush boundaries, arrival buckets and deferred events change both."""
    values = _values(aggregation, events)
    merged = aggregation.rule.merged(values)
    shuffled = data.draw(st.permutations(values))
    cut = data.draw(st.integers(0, len(values) - 1))

    assert aggregation.rule.merged(shuffled) == merged
    if cut:
        halves = [aggregation.rule.merged(shuffled[:cut]), aggregation.rule.merged(shuffled[cut:])]
        assert aggregation.rule.merged(halves) == merged


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [("count", 4), ("sum", -15), ("max", -1), ("min", -7), ("unique", 4), ("latest", -7), ("duration", -15)],
)
def test_four_events_by_hand(aggregation: str, expected: int) -> None:
    """Negative quantities would expose a rule that starts from 0. Of equal times the later position is the latest."""
    rule = Aggregation(aggregation).rule
    adds_ones = rule.distinct or not rule.takes_value
    events = [(1 if adds_ones else minor, time_us) for minor, time_us in ((-1, 1), (-3, 5), (-4, 2), (-7, 5))]

    assert rule.merged(_values(Aggregation(aggregation), events)).minor == expected


def test_letters_of_cells_never_change() -> None:
    """The letters are stored: another letter would read old cells as another aggregation."""
    assert {aggregation.value: aggregation.rule.code for aggregation in Aggregation} == {
        "count": "c", "sum": "s", "max": "m", "min": "n", "unique": "u", "latest": "l", "time_weighted": "w",
        "duration": "d",
        "peak": "p",
    }  # fmt: skip


@EVERY
def test_an_empty_period_shows_0_only_if_quantities_add_up(aggregation: Aggregation) -> None:
    """An empty period has no greatest, least or latest quantity, and 0 would be wrong."""
    adds_up = set(Aggregation) - {Aggregation.MAX, Aggregation.MIN, Aggregation.LATEST}

    assert (aggregation.rule.empty_minor == 0) is (aggregation in adds_up)
