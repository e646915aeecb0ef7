"""The partition worker: a bounded queue and the task that hands the queued records to the processor."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, NamedTuple

from schemas.clock import Clock
from schemas.errors import Transient
from schemas.log import Record
from schemas.processing import Processor

# What the objects of a queued record take beside its bytes. Without it, a queue of tiny records would exceed its limit.
RECORD_OVERHEAD_BYTES: Final = 300
# Every CloudEvent in JSON has this attribute.
_EVENT_ATTRIBUTE: Final = b'"specversion"'


@dataclass(frozen=True, slots=True)
class PartitionWorkerLimits:
    """The limits of a partition worker. `RunnerSettings` explains the fields."""

    flush_events_max: int
    flush_bytes_max: int
    enough_events: int
    enough_bytes: int
    queue_events_max: int
    queue_bytes_max: int
    idle_interval_s: float
    linger_s: float = 0.0
    catch_up_linger_s: float = 0.0
    quiet_s: float = math.inf
    step_timeout_s: float = 900.0


@dataclass(frozen=True, slots=True)
class PartitionProgress:
    """The progress of a partition, for readiness and metrics.

    `end_offset` is the log's end at the last fetch. `last_step_ms` is the clock's time at the end of the last step,
    None before the first step.
    """

    topic: str
    partition: int
    next_offset: int
    end_offset: int
    last_step_ms: int | None
    queued_records: int

    @property
    def lag(self) -> int:
        """The number of offsets in the log that the processor has not committed."""
        return max(0, self.end_offset - self.next_offset)


class _Queued(NamedTuple):
    """A record that waits for a step, with its number of events and bytes."""

    record: Record
    events: int
    size: int


class PartitionWorker:
    """Hands the records of a partition to the processor, in order and one step at a time.

    The runner does not fetch for a worker whose queue has reached a limit, so the records of one fetch may exceed it.
    """

    def __init__(
        self,
        processor: Processor,
        partition: int,
        start_offset: int,
        limits: PartitionWorkerLimits,
        clock: Clock,
        on_failure: Callable[[BaseException], None],
        on_room: Callable[[], None],
        acknowledge: Callable[[int], None],
        log_end: Callable[[], int] = lambda: 0,
    ) -> None:
        """The worker calls `on_failure` with the error of a step or of `idle`, or if one of them takes too long. The
        worker calls `on_room` if the queue is no longer full, and `acknowledge` with the next offset after each step.
        `log_end` returns the last known end of the partition.
        """
        self.processor = processor
        self.partition = partition
        self.next_offset = start_offset
        self.last_step_ms: int | None = None
        self._limits = limits
        self._clock = clock
        self._on_failure = on_failure
        self._on_room = on_room
        self._acknowledge = acknowledge
        self._log_end = log_end
        self._queue: deque[_Queued] = deque()
        self._queued_events = 0
        self._queued_bytes = 0
        self._arrived = asyncio.Event()
        self._closing = False
        self._task: asyncio.Task[None] | None = None

    @property
    def full(self) -> bool:
        """Whether the queue has reached a limit."""
        limits = self._limits
        return self._queued_events >= limits.queue_events_max or self._queued_bytes >= limits.queue_bytes_max

    @property
    def behind(self) -> bool:
        """Whether enough records wait for a step."""
        limits = self._limits
        return self._queued_events >= limits.enough_events or self._queued_bytes >= limits.enough_bytes

    @property
    def queued_records(self) -> int:
        """The number of records that wait for a step."""
        return len(self._queue)

    def start(self) -> None:
        """Start the task."""
        self._task = asyncio.create_task(self._work(), name=f"worker {self.processor.topic}/{self.partition}")

    def put(self, records: Sequence[Record]) -> None:
        """Queue the records of one fetch, in the log's order."""
        if self._closing:
            return
        for record in records:
            queued = _Queued(record, _events(record), _size(record))
            self._queue.append(queued)
            self._queued_events += queued.events
            self._queued_bytes += queued.size
        self._arrived.set()

    async def close(self, timeout_s: float | None = None) -> None:
        """Drop the queue, wait for the running step and stop. After `timeout_s` the step is cancelled."""
        self._closing = True
        self._queue.clear()
        self._queued_events = self._queued_bytes = 0
        self._arrived.set()
        if self._task is not None and self._task is not asyncio.current_task():
            _, pending = await asyncio.wait({self._task}, timeout=timeout_s)
            if pending:
                self._task.cancel()
                await asyncio.wait({self._task})

    async def _work(self) -> None:
        try:
            await self._steps()
        except Exception as error:  # noqa: BLE001  any error ends the process with its message, through the runner
            self._closing = True
            self._on_failure(error)

    async def _steps(self) -> None:
        loop = asyncio.get_running_loop()
        idle_at = loop.time() + self._limits.idle_interval_s
        while not self._closing:
            if self._queue:
                await self._linger()
            if records := self._take():
                with self._bounded():
                    await self.processor.step(self.partition, records)
                self.next_offset = records[-1].next_offset
                self._acknowledge(self.next_offset)
                self.last_step_ms = self._clock.now_ms()
            if not self._closing and loop.time() >= idle_at:
                with self._bounded():
                    await self.processor.idle(self.partition)
                idle_at = loop.time() + self._limits.idle_interval_s
            if not self._queue and not self._closing:
                self._arrived.clear()
                try:
                    await asyncio.wait_for(self._arrived.wait(), max(0.0, idle_at - loop.time()))
                except TimeoutError:
                    continue

    @contextmanager
    def _bounded(self) -> Iterator[None]:
        """Report a step that exceeds `step_timeout_s`. Otherwise an endless step would keep the partition for ever."""
        overdue = asyncio.get_running_loop().call_later(self._limits.step_timeout_s, self._on_overdue)
        try:
            yield
        finally:
            overdue.cancel()

    def _on_overdue(self) -> None:
        self._on_failure(
            Transient(
                f"{self.processor.topic}/{self.partition}: the step from offset {self.next_offset} did not end in "
                f"{self._limits.step_timeout_s:g} s. Check that its stores answer, then start the process again"
            )
        )

    async def _linger(self) -> None:
        """Wait for a fuller flush, because a large step costs little more than a small one. Waits up to `linger_s`, or
        up to `catch_up_linger_s` if the log has more records, and only until nothing came for `quiet_s`."""
        loop, limits = asyncio.get_running_loop(), self._limits
        began_s = loop.time()
        while not (self.behind or self._closing or self.full):
            self._arrived.clear()
            at_end = self._queue[-1].record.next_offset >= self._log_end()
            linger_s = limits.linger_s if at_end else limits.catch_up_linger_s
            left_s = began_s + linger_s - loop.time()
            if left_s <= 0:
                return
            try:
                await asyncio.wait_for(self._arrived.wait(), min(left_s, limits.quiet_s))
            except TimeoutError:
                if limits.quiet_s < left_s:
                    return

    def _take(self) -> list[Record]:
        """The records of the next step: as many whole records as the limits allow, and at least one."""
        limits, was_full = self._limits, self.full
        records: list[Record] = []
        events = size = 0
        while self._queue:
            record, record_events, record_size = self._queue[0]
            events += record_events
            size += record_size
            if records and (events > limits.flush_events_max or size > limits.flush_bytes_max):
                break
            records.append(record)
            self._queue.popleft()
            self._queued_events -= record_events
            self._queued_bytes -= record_size
        if was_full and not self.full:
            self._on_room()
        return records


def _events(record: Record) -> int:
    """The number of events in a record, at least 1. The number only limits queues and steps, and counts text that
    looks like an event's attribute: decoding the record would cost more than the step saves."""
    return max(1, (record.value or b"").count(_EVENT_ATTRIBUTE))


def _size(record: Record) -> int:
    headers = sum(len(name) + len(value) for name, value in record.headers) if record.headers else 0
    return len(record.value or b"") + len(record.key or b"") + headers + RECORD_OVERHEAD_BYTES
