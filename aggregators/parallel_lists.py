"""Lists that are parallel to a list of positions in order: to leave some values out, and to add some where they belong.

A few changes of a long list cost little. The lists may be arrays of numbers, too.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Any, TypeVar

Numbers = TypeVar("Numbers", "list[int]", "array[int]", Any)


def places_of(some: AbstractSet[int], positions: Sequence[int]) -> list[int]:
    """Where some positions are in a list of positions that is in order, if they are there; in order."""
    places = ((at, bisect_left(positions, at)) for at in sorted(some))
    return [place for at, place in places if place < len(positions) and positions[place] == at]


def without_places(values: Numbers, places: Sequence[int]) -> Numbers:
    """The values without those at some places, which are in order. Costs little for a few places."""
    rest, first = values[:0], 0
    for place in places:
        rest += values[first:place]
        first = place + 1
    rest += values[first:]
    return rest


def cuts_of(positions: Sequence[int], others: Sequence[int]) -> list[int]:
    """Where the others belong between sorted positions."""
    return [bisect_left(positions, other) for other in others]


def merged(values: Numbers, others: Sequence[int], cuts: Sequence[int]) -> Numbers:
    """The values with each of the others at its cut. Both are in order, and so are the cuts."""
    if not others:
        return values
    together, last = values[:0], 0
    for cut, other in zip(cuts, others, strict=True):
        together += values[last:cut]
        together.append(other)
        last = cut
    together += values[last:]
    return together
