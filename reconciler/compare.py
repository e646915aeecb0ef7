"""Exact comparison of two mappings, the range that limits it, and quantities as decimal text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Generic, NamedTuple, TypeVar

from schemas.periods import Period

K = TypeVar("K")


@dataclass(frozen=True, slots=True)
class Difference(Generic[K]):
    """A key of which two views say different things; None where a view has no entry."""

    key: K
    expected: int | None
    found: int | None


class Range(NamedTuple):
    """Compare periods that overlap `[from_ms, to_ms)`; None is open."""

    from_ms: int | None = None
    to_ms: int | None = None

    def overlaps(self, period: Period) -> bool:
        """Whether a period is compared."""
        after_start = self.from_ms is None or period.end_ms > self.from_ms
        return after_start and (self.to_ms is None or period.start_ms < self.to_ms)


def differences(expected: Mapping[K, int], found: Mapping[K, int]) -> tuple[int, list[Difference[K]]]:
    """(how many are equal, what differs), in the order of expected, then what only found has."""
    keys: Iterable[K] = [*expected, *(key for key in found if key not in expected)]
    differing = [
        Difference(key, expected.get(key), found.get(key)) for key in keys if expected.get(key) != found.get(key)
    ]
    return len(expected.keys() | found.keys()) - len(differing), differing


def exact_text(minor: int | None, scale: int) -> str:
    """`minor / 10^scale` without rounding, exponent or trailing zeros: (1250, 3) → `1.25`; empty for None."""
    if minor is None:
        return ""
    digits = tuple(map(int, str(abs(minor))))
    text = format(Decimal((int(minor < 0), digits, -scale)), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text
