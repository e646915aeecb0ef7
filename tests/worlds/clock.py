"""A clock for tests."""

from __future__ import annotations

import asyncio


class ManualClock:
    """A clock that moves if a test sets it, or by the length of each sleep."""

    def __init__(self, now_ms: int) -> None:
        self.ms = now_ms

    def now_ms(self) -> int:
        """The time that the test set."""
        return self.ms

    async def sleep(self, duration_s: float) -> None:
        """Advances the clock instead of waiting."""
        self.ms += round(duration_s * 1_000)
        await asyncio.sleep(0)

    def advance(self, duration_ms: int) -> None:
        """Moves the clock forward."""
        self.ms += duration_ms
