"""Which partitions of a topic the log answers for, for readiness checks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final

from schemas.errors import TidemarkError
from schemas.log import Log

# Below the limit of two seconds that load balancers commonly give a check.
ANSWER_TIMEOUT_S: Final = 1.5
AT_ONCE_MAX: Final = 64


async def silent_partitions(log: Log, topic: str, partitions: Iterable[int]) -> list[int]:
    """The partitions whose bounds the log does not answer within `ANSWER_TIMEOUT_S`, in order. Asks them in parallel.

    A driver may remember the number of partitions, so that number does not show that the log answers.
    """
    slots = asyncio.Semaphore(AT_ONCE_MAX)
    answered: set[int] = set()
    wanted = set(partitions)

    async def ask(partition: int) -> None:
        async with slots:
            try:
                await log.bounds(topic, partition)
            except (TidemarkError, OSError):
                return
        answered.add(partition)

    if wanted:
        tasks = [asyncio.create_task(ask(partition)) for partition in wanted]
        _, late = await asyncio.wait(tasks, timeout=ANSWER_TIMEOUT_S)
        for task in late:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return sorted(wanted - answered)
