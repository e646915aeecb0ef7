"""The loop that drains what a worker owns."""

from __future__ import annotations

import asyncio
import contextlib

from pipeline.roles.running import draining
from schemas.errors import Transient


async def test_a_partition_that_is_not_answered_holds_up_no_other() -> None:
    """All are drained at each round, and the round counts as failed."""
    rounds, seen = asyncio.Semaphore(0), list[int]()
    failures = list[None]()

    async def drain(partition: int) -> None:
        seen.append(partition)
        if partition == 2:
            rounds.release()
        if partition == 0:
            raise Transient("too slow for this one")

    loop = asyncio.ensure_future(draining(lambda: {2, 0, 1}, drain, 0.001, on_failure=lambda: failures.append(None)))
    for _ in range(2):
        await rounds.acquire()
    loop.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await loop

    assert seen[:6] == [0, 1, 2, 0, 1, 2]
    assert failures
