"""Units of time, and the clock that outer layers pass in. Only `pipeline.clock` reads the machine's clock."""

from __future__ import annotations

from typing import Protocol

MILLISECOND_US = 1_000
SECOND_US = 1_000_000
SECOND_MS = 1_000
MINUTE_MS = 60 * SECOND_MS
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS
HOUR_US = HOUR_MS * MILLISECOND_US


class Clock(Protocol):
    """The time of outer layers. The pure core must not use a clock."""

    def now_ms(self) -> int:
        """Milliseconds since 1970-01-01T00:00:00Z. Never blocks."""
        ...

    async def sleep(self, duration_s: float) -> None:
        """Wait `duration_s` seconds of this clock. May be cancelled."""
        ...
