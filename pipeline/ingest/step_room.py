"""Room for the steps of many partitions in one process: limits the memory of steps that run at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class StepRoom:
    """Lets steps begin while the records of all running steps have up to `bytes_max` bytes. First come, first served.

    A step that is larger than the whole room runs alone.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._taken = 0
        self._turn = asyncio.Lock()
        self._freed = asyncio.Event()

    @asynccontextmanager
    async def taken(self, size: int) -> AsyncIterator[None]:
        """Wait for room for `size` bytes, and keep it during the block."""
        async with self._turn:
            while self._taken and self._taken + size > self._bytes_max:
                self._freed.clear()
                await self._freed.wait()
            self._taken += size
        try:
            yield
        finally:
            self._taken -= size
            self._freed.set()
