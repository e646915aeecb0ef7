"""Exact comparison of two mappings, and the range of periods that are compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from aggregators.quantities import decimal_text
from schemas.periods import Period

K = TypeVar("K")


@dataclass(frozen=True, slots=True)
class Difference(Generic[K]):
    """A key whose values differ between two views, in minor units; None if a view has no entry."""

    key: K
    expected: int | None
    found: int | None

    def texts(self, scale: int) -> tuple[str, str]:
        """`expected` and `found` as decimal texts; "" for None."""
        expected, found = ("" if minor is None else decimal_text(minor, scale) for minor in (self.expected, self.found))
        return expected, found


class Range(NamedTuple):
    """The range `[from_ms, to_ms)` of periods to compare; None is unlimited."""

    from_ms: int | None = None
    to_ms: int | None = None

    def overlaps(self, period: Period) -> bool:
        """Whether a period has instants in the range, so that it is compared."""
        after_start = self.from_ms is None or period.end_ms > self.from_ms
        return after_start and (self.to_ms is None or period.start_ms < self.to_ms)


def differences(expected: Mapping[K, int], found: Mapping[K, int]) -> tuple[int, list[Difference[K]]]:
    """(number of equal values, differences). Differences are in the order of `expected`, then of `found`."""
    keys: Iterable[K] = [*expected, *(key for key in found if key not in expected)]
    differing = [
        Difference(key, expected.get(key), found.get(key)) for key in keys if expected.get(key) != found.get(key)
    ]
    return len(expected.keys() | found.keys()) - len(differing), differing
