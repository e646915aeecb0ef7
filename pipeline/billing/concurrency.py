"""The sender's concurrency: a rate limit, and a lock per meter and customer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from schemas.clock import SECOND_MS, Clock

BURST_MS = 250


class TokenBucket:
    """Limits the calls of one process to `rate_per_s`, with bursts of a quarter of a second."""

    def __init__(self, clock: Clock, rate_per_s: float) -> None:
        self._clock = clock
        self._cost_ms = SECOND_MS / rate_per_s
        self._full_at_ms = 0.0
        self._read_ms = 0

    async def take(self) -> None:
        """Wait until the next call may start."""
        now_ms = self._now_ms()
        self._full_at_ms = max(self._full_at_ms, now_ms) + self._cost_ms
        wait_ms = self._full_at_ms - BURST_MS - now_ms
        if wait_ms > 0:
            await self._clock.sleep(wait_ms / SECOND_MS)

    def pause(self, duration_ms: int) -> None:
        """Admit no call for `duration_ms`, because Stripe limits the whole account. 0 changes nothing."""
        if duration_ms:
            self._full_at_ms = max(self._full_at_ms, self._now_ms() + BURST_MS + duration_ms)

    def _now_ms(self) -> int:
        now_ms = self._clock.now_ms()
        # If the clock was put back, the bucket moves back with it. Otherwise it would admit no call for as long.
        self._full_at_ms -= max(self._read_ms - now_ms, 0)
        self._read_ms = now_ms
        return now_ms


class KeyedLocks:
    """One lock per Stripe queue (meter, customer) for all partitions of this process. Unused locks are dropped."""

    def __init__(self) -> None:
        self._locks: dict[tuple[str, str], tuple[asyncio.Lock, int]] = {}

    @asynccontextmanager
    async def hold(self, queue: tuple[str, str]) -> AsyncIterator[None]:
        """Take the queue's lock; other callers wait."""
        lock, holders = self._locks.get(queue, (asyncio.Lock(), 0))
        self._locks[queue] = (lock, holders + 1)
        try:
            async with lock:
                yield
        finally:
            lock, holders = self._locks.pop(queue)
            if holders > 1:
                self._locks[queue] = (lock, holders - 1)
