"""The clocks of a process. Only this module reads the machine's clock."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from schemas.errors import InvalidInput

SIMULATED_SLEEP_MIN_S = 0.02
FILE_CLOCK_REFRESH_NS = 20_000_000


class SystemClock:
    """The machine's clock, in UTC."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    async def sleep(self, duration_s: float) -> None:
        await asyncio.sleep(duration_s)


class ScaledClock:
    """A simulated clock for demos, `factor` times as fast as the machine's clock.

    All processes of a machine with the same three numbers have the same time.
    """

    def __init__(self, real_origin_ms: int, simulated_origin_ms: int, factor: int) -> None:
        self.real_origin_ms = real_origin_ms
        self.simulated_origin_ms = simulated_origin_ms
        self.factor = factor

    def now_ms(self) -> int:
        return self.simulated_origin_ms + (time.time_ns() // 1_000_000 - self.real_origin_ms) * self.factor

    async def sleep(self, duration_s: float) -> None:
        await asyncio.sleep(max(duration_s / self.factor, SIMULATED_SLEEP_MIN_S))

    def text(self) -> str:
        """The value of the setting `clock` for the same clock in another process."""
        return f"scaled:{self.real_origin_ms}:{self.simulated_origin_ms}:{self.factor}"


class FileClock:
    """The scaled clock that a file describes. `write_clock` changes the clock of all processes with this file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read_ns = 0
        self._clock = self._read()

    def _read(self) -> ScaledClock:
        self._read_ns = time.monotonic_ns()
        try:
            text = self._path.read_text()
        except OSError as error:
            raise InvalidInput("TIDEMARK_CLOCK", f"cannot read {self._path}: {error.strerror}") from error
        except UnicodeDecodeError:
            text = ""
        clock = clock_from_text(text) if text.startswith("scaled:") else None
        if not isinstance(clock, ScaledClock):
            raise InvalidInput("TIDEMARK_CLOCK", f"{self._path} must hold scaled:…")
        return clock

    def _current(self) -> ScaledClock:
        if time.monotonic_ns() - self._read_ns > FILE_CLOCK_REFRESH_NS:
            self._clock = self._read()
        return self._clock

    def now_ms(self) -> int:
        return self._current().now_ms()

    async def sleep(self, duration_s: float) -> None:
        await self._current().sleep(duration_s)


def write_clock(path: Path, clock: ScaledClock) -> None:
    """Replace the clock file. All readers use the new clock within `FILE_CLOCK_REFRESH_NS`."""
    fresh = path.with_suffix(".new")
    fresh.write_text(clock.text())
    fresh.replace(path)


AnyClock = SystemClock | ScaledClock | FileClock


def clock_from_text(text: str) -> AnyClock:
    """The clock for `system`, for `scaled:REAL_ORIGIN_MS:SIMULATED_ORIGIN_MS:FACTOR`, or for `file:PATH` with the path
    of a file that has the second form. Raises `InvalidInput` for another text."""
    if text == "system":
        return SystemClock()
    if text.startswith("file:"):
        return FileClock(Path(text.removeprefix("file:")))
    kind, *numbers = text.split(":")
    if kind == "scaled" and len(numbers) == 3 and all(number.isdecimal() and len(number) <= 18 for number in numbers):
        real, simulated, factor = map(int, numbers)
        if 1 <= factor <= 100_000:
            return ScaledClock(real, simulated, factor)
    raise InvalidInput("TIDEMARK_CLOCK", f"{text!r} is none of system, scaled:REAL_MS:SIMULATED_MS:FACTOR, file:PATH")
