"""A single partition worker: its limits, and its behaviour when a record is lost (S12)."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, replace

import pytest

from pipeline.clock import SystemClock
from pipeline.logs.client_messages import REPEAT_AFTER_S, OncePerWhile
from pipeline.runner.partition_worker import PartitionWorker, PartitionWorkerLimits
from schemas.errors import Transient
from schemas.log import Record
from tests.worlds.runner import Steps, until

LIMITS = PartitionWorkerLimits(
    flush_records_max=3, flush_bytes_max=100, queue_records_max=5, queue_bytes_max=150, idle_interval_s=60.0
)


@dataclass
class Parcel:
    """A delivery that records its acknowledgement."""

    record: Record
    acknowledged: bool = False

    def acknowledge(self) -> None:
        self.acknowledged = True


def parcel(offset: int, size: int = 1) -> Parcel:
    return Parcel(Record("t", 0, offset, 0, None, bytes(size)))


def worker_for(steps: Steps, failures: list[BaseException]) -> PartitionWorker:
    return PartitionWorker(steps, 0, 0, LIMITS, SystemClock(), failures.append, lambda: None)


async def test_a_lost_record_stops_the_worker_before_the_next_one_is_queued() -> None:
    """After any loss of a fetched record the count must not continue."""
    worker = worker_for(Steps(), [])
    worker.put(parcel(0), previous=None)

    with pytest.raises(Transient, match="after offset 0 was lost"):
        worker.put(parcel(2), previous=1)

    assert worker.queued_records == 1


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [([1] * 5, [[0, 1, 2], [3, 4]]), ([60, 60, 30], [[0], [1, 2]]), ([140, 1], [[0], [1]])],
    ids=["by-records", "by-bytes", "one-over-the-limit"],
)
async def test_a_step_takes_the_arrived_records_up_to_its_limits(sizes: list[int], expected: list[list[int]]) -> None:
    """Larger flushes cost less per event, and a single large record must still pass."""
    steps = Steps()
    steps.gate.set()
    worker = worker_for(steps, [])
    for offset, size in enumerate(sizes):
        worker.put(parcel(offset, size), previous=offset - 1 if offset else None)

    worker.start()
    await until(lambda: worker.next_offset == len(sizes))
    await worker.close()

    assert steps.taken == expected


async def test_a_lagging_worker_waits_for_a_full_flush() -> None:
    """Records that a busy process had no time to fetch join the same flush; at the log's end nothing waits."""
    steps, patient = Steps(), replace(LIMITS, catch_up_linger_s=600.0)
    steps.gate.set()
    failures: list[BaseException] = []
    worker = PartitionWorker(steps, 0, 0, patient, SystemClock(), failures.append, lambda: None, lambda: 5)
    worker.put(parcel(0), previous=None)

    worker.start()
    for offset in range(1, 5):
        await asyncio.sleep(0)
        worker.put(parcel(offset), previous=offset - 1)
    await until(lambda: worker.next_offset == 5)
    await worker.close()

    assert steps.taken == [[0, 1, 2], [3, 4]]


@pytest.mark.parametrize("sizes", [[1] * 5, [150]], ids=["by-records", "by-bytes"])
async def test_a_worker_is_full_at_its_limits(sizes: list[int]) -> None:
    """I11: the consumer does not fetch for a full worker."""
    worker = worker_for(Steps(), [])
    assert not worker.full

    for offset, size in enumerate(sizes):
        worker.put(parcel(offset, size), previous=offset - 1 if offset else None)

    assert worker.full


async def test_closing_drops_the_queue_and_waits_for_the_step() -> None:
    """A revoked partition's running step is committed and acknowledged; the queued records are neither."""
    steps = Steps()
    worker = worker_for(steps, [])
    running, *queued = parcels = [parcel(offset) for offset in range(4)]
    worker.start()
    worker.put(running, previous=None)
    await until(lambda: bool(steps.taken))
    for offset, waiting in enumerate(queued):
        worker.put(waiting, previous=offset)

    closing = asyncio.create_task(worker.close())
    await asyncio.sleep(0)
    assert not closing.done()
    steps.gate.set()
    await closing

    assert steps.taken == [[0]]
    assert [each.acknowledged for each in parcels] == [True, False, False, False]


async def test_a_step_that_outlasts_an_orderly_stop_is_cancelled_and_not_acknowledged() -> None:
    """Its records are read again; the checkpoint in the store decides which of them still count."""
    steps, hanging = Steps(), parcel(0)
    failures: list[BaseException] = []
    worker = worker_for(steps, failures)
    worker.start()
    worker.put(hanging, previous=None)
    await until(lambda: bool(steps.taken))

    await worker.close(timeout_s=0.01)

    assert not hanging.acknowledged
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
    worker = PartitionWorker(WorkingBetween(), 0, 0, limits, SystemClock(), failure.set_result, lambda: None)
    if not between:
        worker.put(parcel(0), previous=None)

    worker.start()
    error = await asyncio.wait_for(failure, 10)
    await worker.close(timeout_s=0.01)

    assert isinstance(error, Transient)
    assert "t/0: the step from offset 0 did not end in 0.01 s" in str(error)


async def test_steps_in_time_are_not_reported() -> None:
    """Each step has the whole time limit for itself."""
    steps, failures = Steps(), list[BaseException]()
    steps.gate.set()
    worker = PartitionWorker(
        steps, 0, 0, replace(LIMITS, step_timeout_s=0.01), SystemClock(), failures.append, lambda: None
    )
    worker.put(parcel(0), previous=None)

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
