"""What keeps the sender within Stripe's limits: one call at a time per meter and customer, and so many a second."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import asynccontextmanager

from schemas.clock import SECOND_MS, Clock

BURST_MS = 250


class TokenBucket:
    """Admits `rate_per_s` calls of one process, a quarter of a second's at once; `pause` stops all of them."""

    def __init__(self, clock: Clock, rate_per_s: float) -> None:
        self._clock = clock
        self._cost_ms = SECOND_MS / rate_per_s
        self._full_at_ms = 0.0

    async def take(self) -> None:
        """Wait for a place."""
        now_ms = self._clock.now_ms()
        self._full_at_ms = max(self._full_at_ms, now_ms) + self._cost_ms
        wait_ms = self._full_at_ms - BURST_MS - now_ms
        if wait_ms > 0:
            await self._clock.sleep(wait_ms / SECOND_MS)

    def pause(self, duration_ms: int) -> None:
        """Stripe said that the whole account is too fast: admit nothing for a while. 0 changes nothing."""
        if not duration_ms:
            return
        self._full_at_ms = max(self._full_at_ms, self._clock.now_ms() + BURST_MS + duration_ms)


class KeyedLocks:
    """One lock per Stripe queue (meter, customer), over all partitions of this process; kept only while held."""

    def __init__(self) -> None:
        self._locks: dict[tuple[str, str], tuple[asyncio.Lock, int]] = {}

    @asynccontextmanager
    async def hold(self, queue: tuple[str, str]) -> AsyncIterator[None]:
        """Hold a queue; others wait."""
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
    """Run side by side; on the first error, or when cancelled, stop the others before it goes on."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
