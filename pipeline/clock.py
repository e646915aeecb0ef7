"""The one module that reads the machine's clock."""

from __future__ import annotations

import asyncio
import time

from schemas.errors import InvalidInput

SIMULATED_SLEEP_MIN_S = 0.02


class SystemClock:
    """The machine's clock, in UTC."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    async def sleep(self, duration_s: float) -> None:
        await asyncio.sleep(duration_s)


class ScaledClock:
    """A simulated clock that runs `factor` times as fast as the machine's, for demos.

    All processes that are given the same three numbers agree on the time, because they share the machine's clock.
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
        """The setting that gives another process the same clock."""
        return f"scaled:{self.real_origin_ms}:{self.simulated_origin_ms}:{self.factor}"


def clock_from_text(text: str) -> SystemClock | ScaledClock:
    """`system`, or `scaled:REAL_ORIGIN_MS:SIMULATED_ORIGIN_MS:FACTOR`. Raises `InvalidInput` otherwise."""
    if text == "system":
        return SystemClock()
    kind, *numbers = text.split(":")
    if kind == "scaled" and len(numbers) == 3 and all(number.isdigit() for number in numbers):
        real, simulated, factor = map(int, numbers)
        if 1 <= factor <= 100_000:
            return ScaledClock(real, simulated, factor)
    raise InvalidInput("TIDEMARK_CLOCK", f"{text!r} is neither system nor scaled:REAL_MS:SIMULATED_MS:FACTOR")
