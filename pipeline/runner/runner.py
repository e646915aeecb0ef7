"""The adapter between processors and Faust: delivers records, waits for the commits and acknowledges the records.

The processors have all state and the authoritative positions. Faust manages the consumer group: members, assignment and
the committed offsets, which are a hint only.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import time
from collections.abc import Coroutine, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import uvloop
from faust.types import TP

from pipeline.logs.client_messages import quieten
from pipeline.logs.embedded import SqliteLog
from pipeline.logs.open import EMBEDDED_SCHEME, embedded_path, kafka_servers
from pipeline.logs.start_position import check_position
from pipeline.runner.consumer import PromptTables, RunnerApp
from pipeline.runner.embedded import EmbeddedTransport
from pipeline.runner.kafka import KafkaTransport
from pipeline.runner.partition_worker import PartitionProgress, PartitionWorker, PartitionWorkerLimits
from pipeline.runner.watchdog import BLOCKED_AFTER_S, watching
from schemas.clock import Clock
from schemas.errors import InvalidInput, TidemarkError, Transient
from schemas.log import Record
from schemas.processing import Processor

LOG_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"
# A flush makes hundreds of thousands of objects and almost no cycles. With Python's threshold of 700 garbage collection
# would take a third of the time.
COLLECTOR_THRESHOLDS: Final = (50_000, 20, 100)
REMEDY: Final = (
    "Point the settings at the log that the position belongs to, or rebuild the state from the log's start or from the "
    "archive, and keep the log longer than the longest outage."
)
# A client that does not answer must not delay the end of the process for longer.
LEAVE_TIMEOUT_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class RunnerSettings:
    """The settings of a consumer group. Sizes are per partition, except `fetch_records_max`.

    A step gets whole records with up to `flush_events_max` events and `flush_bytes_max` bytes, and at least one record.
    A partition is behind while `enough_events` events or `enough_bytes` bytes wait, by default as many as a step gets.
    A partition with `queue_events_max` events or `queue_bytes_max` bytes in the queue is not fetched. A record that is
    no batch is one event. One fetch returns up to `fetch_records_max` records of all partitions, and up to
    `fetch_bytes_max` bytes of each partition. A dead worker's partitions stand
    still for `session_timeout_s`. A call of `step` or `idle` that exceeds `step_timeout_s` ends the process, so the
    group moves the partitions. A step of a partition that is not behind waits up to `linger_s` for more records, or
    `catch_up_linger_s` if the log has more records, but not longer than `quiet_s` for the next one. A stop waits up to
    `stop_timeout_s` for the running steps.
    """

    group: str
    flush_events_max: int = 20_000
    flush_bytes_max: int = 8 * 1024 * 1024
    enough_events: int | None = None
    enough_bytes: int | None = None
    queue_events_max: int = 200_000
    queue_bytes_max: int = 32 * 1024 * 1024
    fetch_records_max: int = 5_000
    fetch_bytes_max: int = 4 * 1024 * 1024
    commit_interval_s: float = 1.0
    session_timeout_s: float = 30.0
    heartbeat_interval_s: float = 3.0
    rebalance_timeout_s: float = 60.0
    # Longer than a wait of the sink for Stripe (five minutes) or of a step for the copy of a partition.
    step_timeout_s: float = 900.0
    idle_interval_s: float = 1.0
    linger_s: float = 0.0
    catch_up_linger_s: float = 0.0
    quiet_s: float = math.inf
    stop_timeout_s: float = 30.0

    def __post_init__(self) -> None:
        """Raise `InvalidInput` for invalid or contradictory values."""
        if not self.group:
            raise InvalidInput("group", "a consumer group needs a name")
        if min(self.flush_events_max, self.queue_events_max, self.fetch_records_max) < 1:
            raise InvalidInput("flush_events_max", "flush, queue and fetch must hold at least one event")
        if self.heartbeat_interval_s * 2 > self.session_timeout_s:
            raise InvalidInput("heartbeat_interval_s", "at least two heartbeats must fit session_timeout_s")


class Runner:
    """Runs processors in one consumer group until a stop or a failure."""

    def __init__(self, processors: Sequence[Processor], log_url: str, clock: Clock, settings: RunnerSettings) -> None:
        """Each topic has one processor. The topics must exist before `run`."""
        self._processors = {processor.topic: processor for processor in processors}
        if len(self._processors) != len(processors) or not processors:
            raise InvalidInput("processors", "give one processor per topic, and at least one")
        self._log_url = log_url
        self._clock = clock
        self._settings = settings
        self._limits = PartitionWorkerLimits(
            settings.flush_events_max,
            settings.flush_bytes_max,
            min(settings.enough_events or settings.flush_events_max, settings.flush_events_max),
            min(settings.enough_bytes or settings.flush_bytes_max, settings.flush_bytes_max),
            settings.queue_events_max,
            settings.queue_bytes_max,
            settings.idle_interval_s,
            settings.linger_s,
            settings.catch_up_linger_s,
            settings.quiet_s,
            settings.step_timeout_s,
        )
        self._workers: dict[TP, PartitionWorker] = {}
        self._app: Any = None
        self._room = asyncio.Event()
        self._stopping = False

    def assigned(self, topic: str | None = None) -> set[int]:
        """The assigned partitions of `topic`. None stands for all topics."""
        return {pair.partition for pair in self._workers if topic in (None, pair.topic)}

    def behind(self, topic: str, partition: int) -> bool:
        """Whether enough records wait for a step. False for a partition that is not assigned."""
        worker = self._workers.get(TP(topic, partition))
        return worker is not None and worker.behind

    def progress(self) -> tuple[PartitionProgress, ...]:
        """The progress of each assigned partition."""
        ends = {} if self._app is None else self._app.consumer.ends
        return tuple(
            PartitionProgress(
                pair.topic,
                pair.partition,
                worker.next_offset,
                max(ends.get(pair, 0), worker.next_offset),
                worker.last_step_ms,
                worker.queued_records,
            )
            for pair, worker in sorted(self._workers.items())
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Run until `stop` is set. Then finish the running steps, commit, leave the group and return.

        Raises a processor's error unchanged, `OperatorNeeded` if a start offset is not in the log, and `Transient` if
        the log's client failed or a step exceeded `step_timeout_s`. There are no retries: the caller ends the process
        and a supervisor starts the process again.
        """
        quieten()
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        log = await self._open_embedded()
        try:
            self._app = self._new_app(log)
            await self._run_app(stop)
        finally:
            if log is not None:
                await log.close()
        if self._failure.done():
            self._failure.result()

    # Called by the consumer

    async def on_assigned(self, pair: TP) -> int:
        """Get the processor's start offset, check that the log has the offset, and start the partition worker."""
        processor = self._processors[pair.topic]
        consumer = self._app.consumer
        offset = await processor.start_offset(pair.partition)
        whose = "the stored position"
        if offset is None:
            offset, whose = await consumer.committed(pair), f"the committed offset of {self._settings.group}"
        bounds = await consumer.bounds(pair)
        if offset is None:
            offset = bounds.first
        check_position(pair.topic, pair.partition, offset, bounds, REMEDY, whose)
        worker = PartitionWorker(
            processor, pair.partition, offset, self._limits, self._clock, self.fail, self._room.set,
            lambda next_offset: consumer.acknowledge(pair, next_offset), lambda: consumer.highwater(pair),
        )  # fmt: skip
        self._workers[pair] = worker
        worker.start()
        self._room.set()
        return offset

    async def on_revoked(self, pairs: Iterable[TP]) -> None:
        await self._close_workers([pair for pair in pairs if pair in self._workers], timeout_s=None)

    async def fetchable(self, pairs: set[TP], timeout_s: float) -> set[TP]:
        ready = self._with_room(pairs)
        if not ready:
            self._room.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._room.wait(), timeout_s)
            ready = self._with_room(pairs)
        return ready

    def deliver(self, pair: TP, records: Sequence[Record]) -> None:
        if worker := self._workers.get(pair):  # none if the run ends
            worker.put(records)

    def fail(self, error: BaseException) -> None:
        """End `run` with this error, unless an earlier error ends `run` already."""
        if not self._failure.done():
            self._failure.set_exception(error)

    def _with_room(self, pairs: set[TP]) -> set[TP]:
        if self._failure.done() or self._stopping:
            return set()
        return {pair for pair in pairs if pair in self._workers and not self._workers[pair].full}

    # The app

    async def _open_embedded(self) -> SqliteLog | None:
        if not self._log_url.startswith(EMBEDDED_SCHEME):
            kafka_servers(self._log_url)
            return None
        log = SqliteLog(embedded_path(self._log_url), self._clock)
        await log.start()
        try:
            log.own(self._settings.group)
        except BaseException:
            await log.close()
            raise
        return log

    def _new_app(self, log: SqliteLog | None) -> Any:
        settings = self._settings
        app = RunnerApp(
            settings.group,
            broker="kafka://127.0.0.1",  # never used: the transport has the servers
            autodiscover=False,
            web_enabled=False,
            topic_disable_leader=True,
            topic_allow_declare=False,
            key_serializer="raw",
            value_serializer="raw",
            TableManager=PromptTables,
            stream_wait_empty=False,
            broker_max_poll_records=settings.fetch_records_max,
            consumer_max_fetch_size=settings.fetch_bytes_max,
            broker_commit_interval=settings.commit_interval_s,
            broker_session_timeout=settings.session_timeout_s,
            broker_heartbeat_interval=settings.heartbeat_interval_s,
            broker_rebalance_timeout=settings.rebalance_timeout_s,
            broker_request_timeout=max(90.0, settings.session_timeout_s * 2),
        )
        if log is not None:
            app.transport_class = EmbeddedTransport
            app.transport_options = {"hooks": self, "log": log, "fetch_bytes_max": settings.fetch_bytes_max}
        else:
            app.transport_class = KafkaTransport
            app.transport_options = {"hooks": self, "servers": kafka_servers(self._log_url)}
        for topic in self._processors:
            app.topics.add(app.topic(topic, key_serializer="raw", value_serializer="raw"))
        return app

    async def _run_app(self, stop: asyncio.Event) -> None:
        app = self._app
        starting = asyncio.create_task(app.start())
        stopped = asyncio.create_task(stop.wait())
        crashed = asyncio.create_task(app.wait_until_stopped())
        try:
            watched: set[asyncio.Future[Any]] = {self._failure, stopped, crashed}
            await asyncio.wait({starting, *watched}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done() and not starting.exception():
                await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
            if starting.done() and (error := starting.exception()):
                self.fail(_as_ours(error))
            elif crashed.done():
                self.fail(_as_ours(app.crash_reason))
            self._stopping = True
            await self._close_workers(list(self._workers), self._settings.stop_timeout_s)
        finally:
            await self._leave(starting)
            for task in (stopped, crashed, starting):
                task.cancel()
            await asyncio.gather(stopped, crashed, starting, return_exceptions=True)

    async def _leave(self, starting: asyncio.Task[None]) -> None:
        try:
            async with asyncio.timeout(LEAVE_TIMEOUT_S):
                await self._app.stop()
                await asyncio.wait({starting})
        except Exception as error:  # noqa: BLE001  `run` raises the earlier failure
            logging.getLogger(__name__).warning("could not leave the group properly: %r", error)

    async def _close_workers(self, pairs: Sequence[TP], timeout_s: float | None) -> None:
        workers = [self._workers[pair] for pair in pairs]
        await asyncio.gather(*(worker.close(timeout_s) for worker in workers))
        for pair, worker in zip(pairs, workers, strict=True):
            try:
                await worker.processor.revoked(pair.partition)
            except Exception as error:  # noqa: BLE001  any error ends the process with its message
                self.fail(error)
            self._workers.pop(pair, None)


async def run(
    processors: Sequence[Processor], log_url: str, clock: Clock, settings: RunnerSettings, stop: asyncio.Event
) -> None:
    """Run `processors` until `stop` is set. See `Runner.run` for the errors."""
    await Runner(processors, log_url, clock, settings).run(stop)


def run_in_loop(main: Coroutine[Any, Any, None], blocked_after_s: float = BLOCKED_AFTER_S) -> None:
    """Run a coroutine to its end in uvloop's event loop, which halves Faust's cost per record. Each line of the
    process's log has its time in UTC.

    A step that blocks the loop for `blocked_after_s` ends the process, see `watching`.
    """
    logging.basicConfig(format=LOG_FORMAT, datefmt="%Y-%m-%dT%H:%M:%SZ")
    logging.Formatter.converter = time.gmtime
    gc.set_threshold(*COLLECTOR_THRESHOLDS)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner, watching(runner.get_loop(), blocked_after_s):
        runner.run(main)


def _as_ours(error: BaseException | None) -> BaseException:
    if isinstance(error, TidemarkError):
        return error
    failure = Transient(f"the log's client failed: {error!r}. Check that the log answers, then start the process again")
    failure.__cause__ = error
    return failure
