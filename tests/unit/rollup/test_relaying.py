"""The loop that relays the outboxes of a worker's partitions."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from pipeline.roles.base import relaying
from schemas.errors import HeldUp, OperatorNeeded, Refused, Transient


async def test_a_partition_that_does_not_answer_blocks_no_other() -> None:
    """Each round relays all partitions and counts as failed."""
    rounds, seen = asyncio.Semaphore(0), list[int]()
    failures = list[None]()

    async def relay(partition: int) -> None:
        seen.append(partition)
        if partition == 2:
            rounds.release()
        if partition == 0:
            raise Transient("too slow for this one")

    loop = asyncio.ensure_future(relaying(lambda: {2, 0, 1}, relay, 0.001, on_failure=lambda: failures.append(None)))
    for _ in range(2):
        await rounds.acquire()
    loop.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await loop

    assert seen[:6] == [0, 1, 2, 0, 1, 2]
    assert failures


@pytest.mark.parametrize("error", [HeldUp("mend the table"), Refused("correct the password")], ids=["held", "refused"])
async def test_store_that_refuses_permanently_is_counted_and_reported_once_and_ends_nothing(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """Live counts do not need ClickHouse. The remedy is logged even if the store did not answer at first."""
    rounds, failures = asyncio.Semaphore(0), list[None]()
    answers: list[Exception] = [Transient("starts again"), error]

    async def relay(_partition: int) -> None:
        rounds.release()
        raise answers.pop(0) if len(answers) > 1 else answers[0]

    loop = asyncio.ensure_future(relaying(lambda: {0}, relay, 0.001, on_failure=lambda: failures.append(None)))
    for _ in range(4):
        await rounds.acquire()
    loop.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await loop

    assert len(failures) >= 3
    assert [(record.levelname, str(error) in record.message) for record in caplog.records] == [
        ("WARNING", False),
        ("ERROR", True),
    ]


async def test_tables_that_cannot_be_created_block_only_the_relays() -> None:
    """A worker first asks ClickHouse for its tables."""
    asked = asyncio.Semaphore(0)
    answers = [HeldUp("of an unknown version")]

    async def prepare() -> None:
        asked.release()
        if answers:
            raise answers.pop()

    async def relay(_partition: int) -> None:
        asked.release()

    loop = asyncio.ensure_future(relaying(lambda: {0}, relay, 0.001, prepare))
    for _ in range(3):
        await asked.acquire()
    loop.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await loop


async def test_view_from_before_a_rebuild_ends_the_worker() -> None:
    """Otherwise the worker would write rows that lose: a risk for the counts is always fatal."""

    async def relay(_partition: int) -> None:
        raise OperatorNeeded("the live view is of generation 1, usage_hourly holds rows of generation 2")

    with pytest.raises(OperatorNeeded, match="generation"):
        await asyncio.wait_for(relaying(lambda: {0}, relay, 0.001), 60)
