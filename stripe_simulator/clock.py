"""The simulator's time: a protocol, and the clocks of the command line."""

from __future__ import annotations

import time
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Protocol


class Clock(Protocol):
    """A source of Unix milliseconds. The simulator reads no other clock."""

    def now_ms(self) -> int:
        """Milliseconds since 1970-01-01T00:00:00Z."""
        ...


@dataclass(frozen=True)
class ScaledClock:
    """A clock that showed `simulated_origin_ms` when the machine's clock showed `real_origin_ms`, and runs `factor`
    times as fast. Processes with the same three numbers show the same time; the defaults are the machine's clock."""

    real_origin_ms: int = 0
    simulated_origin_ms: int = 0
    factor: Fraction = Fraction(1)

    def now_ms(self) -> int:
        """The simulated time in milliseconds."""
        return self.simulated_origin_ms + int((time.time_ns() // 1_000_000 - self.real_origin_ms) * self.factor)


class FileClock:
    """A clock whose description is read from a file at every call, so that writing the file changes the speed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.now_ms()

    def now_ms(self) -> int:
        """The time of the clock that the file describes at present."""
        return parse_clock(self._path.read_text()).now_ms()


def parse_clock(text: str) -> Clock:
    """A clock from `system`, `scaled:REAL_ORIGIN_MS:SIMULATED_ORIGIN_MS:FACTOR`, or `file:PATH` of a file with such a
    text. Raises `ValueError`."""
    kind, *parts = text.split(":")
    if kind == "system" and not parts:
        return ScaledClock()
    if kind == "file":
        return FileClock(Path(text.removeprefix("file:")))
    if kind == "scaled" and len(parts) == 3 and Fraction(parts[2]) > 0:
        return ScaledClock(int(parts[0]), int(parts[1]), Fraction(parts[2]))
    known = "`system`, `scaled:REAL_ORIGIN_MS:SIMULATED_ORIGIN_MS:FACTOR` or `file:PATH`, with a factor above 0"
    raise ValueError(f"clock {text!r}: write {known}")
