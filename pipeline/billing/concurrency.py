"""The sender's concurrency: a rate of calls, one call at a time per meter and customer, and tasks that end together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import asynccontextmanager

from schemas.clock import SECOND_MS, Clock

BURST_MS = 250


class TokenBucket:
    """Admits `rate_per_s` calls of one process, with bursts of a quarter of a second; `pause` stops all of them."""

    def __init__(self, clock: Clock, rate_per_s: float) -> None:
        self._clock = clock
        self._cost_ms = SECOND_MS / rate_per_s
        self._full_at_ms = 0.0

    async def take(self) -> None:
        """Wait until the next call may start."""
        now_ms = self._clock.now_ms()
        self._full_at_ms = max(self._full_at_ms, now_ms) + self._cost_ms
        wait_ms = self._full_at_ms - BURST_MS - now_ms
        if wait_ms > 0:
            await self._clock.sleep(wait_ms / SECOND_MS)

    def pause(self, duration_ms: int) -> None:
        """Admit nothing for `duration_ms`, because Stripe limits the whole account. 0 changes nothing."""
        if not duration_ms:
            return
        self._full_at_ms = max(self._full_at_ms, self._clock.now_ms() + BURST_MS + duration_ms)


class KeyedLocks:
    """One lock per Stripe queue (meter, customer), over all partitions of this process; kept only while in use."""

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


async def all_or_first_error(works: Iterable[Coroutine[None, None, None]]) -> None:
    """Run the coroutines concurrently. On the first error, or when cancelled, cancel the others and wait for them."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
