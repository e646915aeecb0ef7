"""A single partition worker: its limits, and its behaviour when a record is lost (S12)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace

import pytest

from pipeline.clock import SystemClock
from pipeline.logs.client_messages import REPEAT_AFTER_S, OncePerWhile
from pipeline.runner.partition_worker import RECORD_OVERHEAD_BYTES, PartitionWorker, PartitionWorkerLimits
from schemas.errors import Transient
from schemas.log import Record
from tests.worlds.runner import Steps, until

# In these tests a record of one byte counts as 1 000 bytes.
UNIT = 1_000
LIMITS = PartitionWorkerLimits(
    flush_events_max=3, flush_bytes_max=100 * UNIT, enough_events=3, enough_bytes=100 * UNIT,
    queue_events_max=5, queue_bytes_max=150 * UNIT, idle_interval_s=60.0,
)  # fmt: skip
EVENT = b'{"specversion":"1.0"}'


def record_of(offset: int, size: int = 1) -> Record:
    return Record("t", 0, offset, 0, None, bytes(size * UNIT - RECORD_OVERHEAD_BYTES))


def batch_of(offset: int, events: int) -> Record:
    return Record("t", 0, offset, 0, None, b"[" + b",".join([EVENT] * events) + b"]")


def worker_for(
    steps: Steps,
    failures: list[BaseException],
    limits: PartitionWorkerLimits = LIMITS,
    acknowledge: Callable[[int], None] = lambda _next_offset: None,
    log_end: Callable[[], int] = lambda: 0,
) -> PartitionWorker:
    return PartitionWorker(steps, 0, 0, limits, SystemClock(), failures.append, lambda: None, acknowledge, log_end)


async def steps_of(records: list[Record]) -> list[list[int]]:
    """The offsets of each step over records that arrived in one fetch."""
    steps, acknowledged = Steps(), list[int]()
    steps.gate.set()
    worker = worker_for(steps, [], acknowledge=acknowledged.append)
    worker.put(records)

    worker.start()
    await until(lambda: worker.next_offset == len(records))
    await worker.close()

    assert acknowledged == [taken[-1] + 1 for taken in steps.taken]
    return steps.taken


async def test_gaps_between_offsets_are_no_loss() -> None:
    """Transaction markers take offsets, within a fetch and between two of them."""
    steps = Steps()
    steps.gate.set()
    worker = worker_for(steps, [])
    worker.put([record_of(0), record_of(2)])
    worker.put([record_of(7)])

    worker.start()
    await until(lambda: worker.next_offset == 8)
    await worker.close()

    assert steps.taken == [[0, 2, 7]]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [([1] * 5, [[0, 1, 2], [3, 4]]), ([60, 60, 30], [[0], [1, 2]]), ([140, 1], [[0], [1]])],
    ids=["by-events", "by-bytes", "one-over-the-limit"],
)
async def test_a_step_takes_the_arrived_records_up_to_its_limits(sizes: list[int], expected: list[list[int]]) -> None:
    """Larger flushes cost less per event, and a single large record must still pass."""
    assert await steps_of([record_of(offset, size) for offset, size in enumerate(sizes)]) == expected


async def test_a_step_counts_the_events_of_a_batch_and_not_the_records() -> None:
    """A limit of records would let a thousand times more events pass in batches than one by one."""
    batches = [batch_of(offset, events) for offset, events in enumerate([2, 1, 2, 2, 7, 1])]

    assert await steps_of(batches) == [[0, 1], [2], [3], [4], [5]]


async def test_a_worker_is_behind_while_a_whole_step_waits() -> None:
    """Relays run less often meanwhile. Records that arrive during a step are no lag yet."""
    steps = Steps()
    worker = worker_for(steps, [])
    worker.start()
    worker.put([record_of(offset) for offset in range(3)])
    await until(lambda: len(steps.taken) == 1)
    worker.put([record_of(3), record_of(4)])
    assert not worker.behind
    worker.put([record_of(5)])
    assert worker.behind

    steps.gate.set()
    await until(lambda: worker.next_offset == 6)
    await worker.close()

    assert steps.taken == [[0, 1, 2], [3, 4, 5]]
    assert not worker.behind


async def test_a_step_of_a_worker_that_is_behind_takes_more_than_enough() -> None:
    """What is written once per flush costs less per event. A worker that keeps up does not wait for so much."""
    steps, greedy = Steps(), replace(LIMITS, enough_events=2, linger_s=600.0)
    steps.gate.set()
    worker = worker_for(steps, [], greedy)
    worker.put([record_of(0), record_of(1)])

    worker.start()
    await until(lambda: worker.next_offset == 2)
    worker.put([record_of(offset) for offset in range(2, 7)])
    assert worker.behind
    await until(lambda: worker.next_offset == 7)
    await worker.close()

    assert steps.taken == [[0, 1], [2, 3, 4], [5, 6]]


async def test_a_lagging_worker_waits_for_a_full_flush() -> None:
    """Records that a busy process had no time to fetch join the same flush; at the log's end nothing waits."""
    steps, patient = Steps(), replace(LIMITS, catch_up_linger_s=600.0)
    steps.gate.set()
    worker = worker_for(steps, [], patient, log_end=lambda: 5)
    worker.put([record_of(0)])

    worker.start()
    for offset in range(1, 5):
        await asyncio.sleep(0)
        worker.put([record_of(offset)])
    await until(lambda: worker.next_offset == 5)
    await worker.close()

    assert steps.taken == [[0, 1, 2], [3, 4]]


async def test_a_worker_that_lingers_goes_on_when_nothing_comes_any_more() -> None:
    """A single record does not wait as long as a burst may."""
    steps, patient = Steps(), replace(LIMITS, linger_s=600.0, quiet_s=0.05)
    steps.gate.set()
    worker = worker_for(steps, [], patient)
    worker.put([record_of(0)])

    worker.start()
    await asyncio.sleep(0)
    worker.put([record_of(1)])
    await until(lambda: worker.next_offset == 2)
    await worker.close()

    assert steps.taken == [[0, 1]]


@pytest.mark.parametrize(
    "records",
    [
        [record_of(offset) for offset in range(5)],
        [batch_of(0, 5)],
        [record_of(0, 150)],
        [Record("t", 0, 0, 0, None, None, (("trace", bytes(150 * UNIT)),))],
    ],
    ids=["by-records", "by-events-of-a-batch", "by-bytes", "by-bytes-of-headers"],
)
async def test_a_worker_is_full_at_its_limits(records: list[Record]) -> None:
    """I11: the consumer does not fetch for a full worker."""
    steps = Steps()
    steps.gate.set()
    worker = worker_for(steps, [])
    assert not worker.full

    worker.put(records)
    assert worker.full

    worker.start()
    await until(lambda: worker.next_offset == len(records))
    assert not worker.full
    await worker.close()


async def test_empty_records_fill_a_queue_too() -> None:
    """Each record takes memory beside its bytes."""
    worker = worker_for(Steps(), [], replace(LIMITS, queue_events_max=1_000_000))

    worker.put([Record("t", 0, offset, 0, None, None) for offset in range(500)])

    assert worker.full


async def test_closing_drops_the_queue_and_waits_for_the_step() -> None:
    """A revoked partition's running step is committed and acknowledged; the queued records are neither."""
    steps, acknowledged = Steps(), list[int]()
    worker = worker_for(steps, [], acknowledge=acknowledged.append)
    worker.start()
    worker.put([record_of(offset) for offset in range(5)])
    await until(lambda: bool(steps.taken))
    worker.put([record_of(5)])

    closing = asyncio.create_task(worker.close())
    await asyncio.sleep(0)
    assert not closing.done()
    steps.gate.set()
    await closing

    assert steps.taken == [[0, 1, 2]]
    assert acknowledged == [3]


async def test_a_step_that_outlasts_an_orderly_stop_is_cancelled_and_not_acknowledged() -> None:
    """Its records are read again; the checkpoint in the store decides which of them still count."""
    steps, acknowledged = Steps(), list[int]()
    failures: list[BaseException] = []
    worker = worker_for(steps, failures, acknowledge=acknowledged.append)
    worker.start()
    worker.put([record_of(0)])
    await until(lambda: bool(steps.taken))

    await worker.close(timeout_s=0.01)

    assert acknowledged == []
    assert failures == []


class WorkingBetween(Steps):
    """Also waits at the gate between two steps."""

    async def idle(self, partition: int) -> None:
        await self.step(partition, [])


@pytest.mark.parametrize("between", [False, True], ids=["step", "between two steps"])
async def test_a_step_that_never_ends_is_reported_while_it_runs(between: bool) -> None:
    """The process ends and others get its partitions; the Kafka group alone would not notice."""
    limits = replace(LIMITS, step_timeout_s=0.01, idle_interval_s=0.0 if between else 60.0)
    failure: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
    worker = PartitionWorker(
        WorkingBetween(), 0, 0, limits, SystemClock(), failure.set_result, lambda: None, lambda _next_offset: None
    )
    if not between:
        worker.put([record_of(0)])

    worker.start()
    error = await asyncio.wait_for(failure, 60)
    await worker.close(timeout_s=0.01)

    assert isinstance(error, Transient)
    assert "t/0: the step from offset 0 did not end in 0.01 s" in str(error)


async def test_steps_in_time_are_not_reported() -> None:
    """Each step has the whole time limit for itself."""
    steps, failures = Steps(), list[BaseException]()
    steps.gate.set()
    worker = worker_for(steps, failures, replace(LIMITS, step_timeout_s=0.01))
    worker.put([record_of(0)])

    worker.start()
    await until(lambda: worker.next_offset == 1)
    await asyncio.sleep(0.05)
    await worker.close()

    assert failures == []


def test_a_client_message_is_logged_once_per_interval() -> None:
    """An unreachable broker would fill the operator's screen."""
    messages = OncePerWhile()

    def message(text: str, at_s: float) -> bool:
        record = logging.LogRecord("aiokafka.client", logging.WARNING, "", 0, text, (), None)
        record.created = at_s
        return bool(messages.filter(record))

    assert [message("away %s", 0), message("away %s", 1), message("other", 1)] == [True, False, True]
    assert message("away %s", REPEAT_AFTER_S)
