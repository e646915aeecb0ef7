"""A clock for tests."""

from __future__ import annotations

import asyncio


class ManualClock:
    """A clock that moves when it is told to, or by as much as somebody sleeps."""

    def __init__(self, now_ms: int) -> None:
        self.ms = now_ms

    def now_ms(self) -> int:
        """The time that was set."""
        return self.ms

    async def sleep(self, duration_s: float) -> None:
        """Advance instead of waiting."""
        self.ms += round(duration_s * 1_000)
        await asyncio.sleep(0)

    def advance(self, duration_ms: int) -> None:
        """Move on."""
        self.ms += duration_ms
