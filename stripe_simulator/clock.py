"""The simulator's time: a protocol, and the three clocks of the command line."""

from __future__ import annotations

import time
from fractions import Fraction
from pathlib import Path
from typing import Protocol


class Clock(Protocol):
    """A source of Unix milliseconds. The simulator reads no other clock."""

    def now_ms(self) -> int:
        """Milliseconds since 1970-01-01T00:00:00Z."""
        ...


class SystemClock:
    """The machine's clock."""

    def now_ms(self) -> int:
        """The machine's time in milliseconds."""
        return time.time_ns() // 1_000_000


class ScaledClock:
    """A clock that showed `simulated_origin_ms` when the machine's clock showed `real_origin_ms`, and runs `factor`
    times as fast. Processes with the same three numbers show the same time."""

    def __init__(self, real_origin_ms: int, simulated_origin_ms: int, factor: Fraction) -> None:
        self._real_origin_ms = real_origin_ms
        self._simulated_origin_ms = simulated_origin_ms
        self._factor = factor
        self._system = SystemClock()

    def now_ms(self) -> int:
        """The simulated time in milliseconds."""
        return self._simulated_origin_ms + int((self._system.now_ms() - self._real_origin_ms) * self._factor)


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
    if text == "system":
        return SystemClock()
    if text.startswith("file:"):
        return FileClock(Path(text.removeprefix("file:")))
    parts = text.split(":")
    if len(parts) == 4 and parts[0] == "scaled":
        factor = Fraction(parts[3])
        if factor <= 0:
            raise ValueError(f"clock {text!r}: the factor must be above 0")
        return ScaledClock(int(parts[1]), int(parts[2]), factor)
    known = "`system`, `scaled:REAL_ORIGIN_MS:SIMULATED_ORIGIN_MS:FACTOR` or `file:PATH`"
    raise ValueError(f"clock {text!r}: write {known}")
