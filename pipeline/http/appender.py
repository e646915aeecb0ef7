"""Appends the events of concurrent requests to the log together.

Each partition has one append at a time. All events that arrive during an append become the next record. So records grow
with the load, and a single event waits only `linger_s`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from aggregators.partitioning import partition_of
from pipeline.logs.batching import batch_value, has_room
from pipeline.metrics import Metrics
from schemas.errors import InvalidInput, TidemarkError, Transient
from schemas.log import EVENTS_TOPIC, Log

PENDING_EVENTS_MAX: Final = 100_000
PENDING_BYTES_MAX: Final = 64 * 1024 * 1024
LINGER_S: Final = 0.002
# Leaves time to write rejected events before the answer.
APPEND_TIMEOUT_S: Final = 6.0

_log: Final = logging.getLogger(__name__)


class Outgoing(NamedTuple):
    """The account and the JSON of one valid event."""

    account: str
    raw: bytes


class _Submission:
    """The events of one request. `done` is set after the last event is settled."""

    def __init__(self, count: int) -> None:
        self.durable: list[bool] = [False] * count
        self.left = count
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def settle(self, index: int, durable: bool) -> None:
        self.durable[index] = durable
        self.left -= 1
        if not self.left and not self.done.done():
            self.done.set_result(None)


class _Waiting(NamedTuple):
    raw: bytes
    submission: _Submission
    number: int
    deadline_s: float


@dataclass(slots=True)
class _AppendQueue:
    """The waiting events of one partition and the task that appends them."""

    waiting: deque[_Waiting] = field(default_factory=deque)
    task: asyncio.Task[None] | None = None


class Appender:
    """Appends events to `usage.events`. The limits of pending events and bytes bound the memory."""

    def __init__(
        self,
        log: Log,
        partitions: int,
        metrics: Metrics,
        *,
        pending_events_max: int = PENDING_EVENTS_MAX,
        pending_bytes_max: int = PENDING_BYTES_MAX,
        linger_s: float = LINGER_S,
        append_timeout_s: float = APPEND_TIMEOUT_S,
    ) -> None:
        self._log = log
        self._partitions = partitions
        self._metrics = metrics
        self._pending_events_max = pending_events_max
        self._pending_bytes_max = pending_bytes_max
        self._linger_s = linger_s
        self._append_timeout_s = append_timeout_s
        self._queues = [_AppendQueue() for _ in range(partitions)]
        self._pending_events = self._pending_bytes = 0

    async def append(self, events: Sequence[Outgoing]) -> list[bool]:
        """Append the events. Return in order whether the log confirmed the event.

        Takes up to `append_timeout_s`, the wait behind other appends included. False means that the event may be in
        the log; sending the event again under the same id is safe. Raises
        `Transient` if there is no room for the events; then no event is appended. The events are appended even if the
        caller is cancelled.
        """
        size = sum(len(event.raw) for event in events)
        if (
            self._pending_events + len(events) > self._pending_events_max
            or self._pending_bytes + size > self._pending_bytes_max
        ):
            raise Transient("too many events wait for the log")
        if not events:
            return []
        submission = _Submission(len(events))
        self._account_for(len(events), size)
        deadline_s = asyncio.get_running_loop().time() + self._append_timeout_s
        touched = set()
        for index, (account, raw) in enumerate(events):
            partition = partition_of(account, self._partitions)
            self._queues[partition].waiting.append(_Waiting(raw, submission, index, deadline_s))
            touched.add(partition)
        for partition in touched:
            queue = self._queues[partition]
            if queue.task is None:
                queue.task = asyncio.create_task(self._drain(partition, queue))
        await submission.done
        return submission.durable

    async def close(self) -> None:
        """Wait until all pending events are settled."""
        await asyncio.gather(*(queue.task for queue in self._queues if queue.task is not None))

    async def _drain(self, partition: int, queue: _AppendQueue) -> None:
        try:
            await asyncio.sleep(self._linger_s)
            while queue.waiting:
                await self._append_batch(partition, _next_batch(queue.waiting))
        finally:
            queue.task = None

    async def _append_batch(self, partition: int, batch: Sequence[_Waiting]) -> None:
        durable = False
        try:
            # The first event has waited longest. The driver may still append a record after the deadline.
            async with asyncio.timeout_at(batch[0].deadline_s):
                await self._log.append(EVENTS_TOPIC, partition, batch_value(waiting.raw for waiting in batch))
            durable = True
            self._metrics.observe("tidemark_gateway_append_events", len(batch))
        except (TidemarkError, TimeoutError) as error:
            if isinstance(error, InvalidInput) and len(batch) > 1:
                # The operator lowered the topic's limit of a record's size.
                half = len(batch) // 2
                await self._append_batch(partition, batch[:half])
                await self._append_batch(partition, batch[half:])
                return
            self._metrics.add("tidemark_gateway_append_failures_total")
            _log.warning(
                "an append of %d events was not confirmed: %s",
                len(batch),
                str(error) or "the log did not answer in time",
            )
        except Exception:  # noqa: BLE001  # an unexpected error must not let requests wait for ever
            self._metrics.add("tidemark_gateway_append_failures_total")
            _log.exception("an append of %d events failed", len(batch))
        for waiting in batch:
            waiting.submission.settle(waiting.number, durable)
        self._account_for(-len(batch), -sum(len(waiting.raw) for waiting in batch))

    def _account_for(self, events: int, size: int) -> None:
        self._pending_events += events
        self._pending_bytes += size
        self._metrics.set("tidemark_gateway_pending_events", self._pending_events)
        self._metrics.set("tidemark_gateway_pending_bytes", self._pending_bytes)


def _next_batch(waiting: deque[_Waiting]) -> list[_Waiting]:
    batch: list[_Waiting] = []
    size = 0
    while waiting and has_room(len(batch), size, waiting[0].raw):
        batch.append(waiting.popleft())
        size += len(batch[-1].raw) + 1
    return batch
