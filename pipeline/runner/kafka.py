"""Faust's transport for Kafka: Faust's aiokafka driver with other code for positions, commits and isolation."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Final, cast

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.errors import IllegalStateError, KafkaError, NoOffsetForPartitionError, OffsetOutOfRangeError
from aiokafka.structs import OffsetAndMetadata
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from mode.threads import ServiceThread, WorkerThread

from pipeline.logs.header_names import read_any_header_name
from pipeline.logs.kafka import FETCH_WAIT_MAX_MS, to_record
from pipeline.runner.consumer import Fetched, Hooks, RunnerConsumer, SilentProducer
from schemas.errors import OperatorNeeded
from schemas.log import Bounds

THREAD_END_TIMEOUT_S: Final = 5.0
# After this time without a fetch the client leaves the group. A standby without partitions never fetches and would
# never join again. A partition worker limits the duration of a step instead.
POLL_INTERVAL_MAX_MS: Final = math.inf

logger = logging.getLogger(__name__)


class EndingThread(WorkerThread):
    """A daemon thread, so that a waiting client cannot keep the process alive."""

    def __init__(self, service: ServiceThread, **kwargs: Any) -> None:
        super().__init__(service, **kwargs)
        self.daemon = True

    def stop(self) -> None:
        """Wait up to `THREAD_END_TIMEOUT_S` for the thread's end. Blocks the runner's loop."""
        self.is_stopped.wait(THREAD_END_TIMEOUT_S)


class KafkaThread(driver.AIOKafkaConsumerThread):
    """The thread of the Kafka client. The runner's loop calls `fetch`, `bounds` and `committed`."""

    Worker = EndingThread

    async def stop(self) -> None:
        """Wait for the thread's start, then stop the thread. Faust ignores a stop before the start."""
        thread = self._thread
        # Polled, because the event belongs to the thread's loop.
        while thread is not None and thread.is_alive() and not self._started.is_set():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await super().stop()

    def _create_worker_consumer(self, transport: driver.Transport) -> AIOKafkaConsumer:
        read_any_header_name()
        conf = self.app.conf
        self._assignor = RoundRobinPartitionAssignor
        return AIOKafkaConsumer(
            bootstrap_servers=cast("KafkaTransport", transport).servers,
            client_id=conf.id,
            group_id=conf.id,
            partition_assignment_strategy=[RoundRobinPartitionAssignor],
            enable_auto_commit=False,
            # A position that is no longer in the log must stop the process. The client must not choose another one.
            auto_offset_reset="none",
            isolation_level="read_committed",
            max_poll_records=conf.broker_max_poll_records,
            max_poll_interval_ms=POLL_INTERVAL_MAX_MS,
            fetch_max_wait_ms=FETCH_WAIT_MAX_MS,
            max_partition_fetch_bytes=conf.consumer_max_fetch_size,
            request_timeout_ms=int(conf.broker_request_timeout * 1000),
            session_timeout_ms=int(conf.broker_session_timeout * 1000),
            rebalance_timeout_ms=int(conf.broker_rebalance_timeout * 1000),
            heartbeat_interval_ms=int(conf.broker_heartbeat_interval * 1000),
        )

    async def fetch(self, positions: Mapping[TP, int], timeout_s: float) -> Fetched:
        """Read from exactly `positions`. Returns nothing if the group was rebalanced meanwhile."""
        fetched: Fetched = await self.call_thread(self._fetch, self._ensure_consumer(), positions, timeout_s)
        return fetched

    async def _fetch(self, consumer: AIOKafkaConsumer, positions: Mapping[TP, int], timeout_s: float) -> Fetched:
        nothing: Fetched = ({}, {}, {})
        assignment = _assignment(consumer)
        if assignment is None or not self.consumer.flow_active:
            return nothing
        states = {}
        for pair, offset in positions.items():
            if pair not in assignment.tps:
                continue
            state = assignment.state_value(pair)
            if state.paused:
                consumer.resume(TopicPartition(*pair))
            if not state.has_valid_position or state.position != offset:
                consumer.seek(TopicPartition(*pair), offset)
            states[pair] = state
        if not states:
            return nothing
        try:
            with consumer._subscription.fetch_context():  # noqa: SLF001  as Faust's driver does; aiokafka is pinned
                messages_of = await consumer._fetcher.fetched_records(  # noqa: SLF001  as above
                    list(states), timeout=timeout_s, max_records=self.app.conf.broker_max_poll_records
                )
        except NoOffsetForPartitionError:
            return nothing  # the client fetched before the first seek; the next fetch uses the new position
        except OffsetOutOfRangeError as error:
            _refuse_lost_positions(error, positions)
            return nothing
        if _assignment(consumer) is not assignment:
            return nothing
        records = {TP(*pair): [to_record(message) for message in messages] for pair, messages in messages_of.items()}
        # Not the offset after the last record: the next entry may be a transaction marker, which is never returned.
        after = {pair: state.position for pair, state in states.items() if state.has_valid_position}
        ends = {pair: state.lso for pair, state in states.items() if state.lso is not None}
        return records, after, ends

    async def bounds(self, pair: TP) -> Bounds:
        bounds: Bounds = await self.call_thread(self._bounds, self._ensure_consumer(), TopicPartition(*pair))
        return bounds

    async def _bounds(self, consumer: AIOKafkaConsumer, pair: TopicPartition) -> Bounds:
        first = await consumer.beginning_offsets([pair])
        following = await consumer.end_offsets([pair])
        return Bounds(first[pair], following[pair])

    async def committed(self, pair: TP) -> int | None:
        offset: int | None = await self.call_thread(self._ensure_consumer().committed, TopicPartition(*pair))
        return offset

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        """Commit the offsets, which are for lag graphs only. A failure is logged, and the next commit repairs it."""
        consumer = self._ensure_consumer()
        assigned = self.assignment()
        try:
            await consumer.commit(
                {TopicPartition(*pair): OffsetAndMetadata(n, "") for pair, n in offsets.items() if pair in assigned}
            )
        except (KafkaError, IllegalStateError) as error:
            logger.warning("Kafka did not store the committed offsets, which only lag graphs use: %r", error)
            return False
        return True


class PausingListener(driver.ConsumerRebalanceListener):
    """Prevents a fetch from the committed offset before the runner has set the position."""

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Pause the partitions before the client's first fetch. `fetch` seeks and resumes them."""
        self._thread._ensure_consumer().pause(*assigned)  # noqa: SLF001  as Faust's driver does in this very place
        await super().on_partitions_assigned(assigned)


class KafkaConsumer(RunnerConsumer, driver.Consumer):
    """A member of a Kafka consumer group."""

    RebalanceListener = PausingListener
    _thread: KafkaThread

    def _new_consumer_thread(self) -> KafkaThread:
        return KafkaThread(self, loop=self.loop, beacon=self.beacon)

    async def fetch(self, positions: Mapping[TP, int], timeout_s: float) -> Fetched:
        return await self._thread.fetch(positions, timeout_s)

    async def bounds(self, pair: TP) -> Bounds:
        return await self._thread.bounds(pair)

    async def committed(self, pair: TP) -> int | None:
        return await self._thread.committed(pair)


class KafkaTransport(driver.Transport):
    """Gives the brokers' addresses and the runner's hooks to the consumer."""

    Consumer: ClassVar[Any] = KafkaConsumer
    Producer: ClassVar[Any] = SilentProducer

    def __init__(self, url: Any, app: Any, *, hooks: Hooks, servers: list[str]) -> None:
        super().__init__(url, app)
        self.hooks = hooks
        self.servers = servers


def _assignment(consumer: AIOKafkaConsumer) -> Any:
    # Every rebalance makes a new object, so another identity means a rebalance. aiokafka has no public access to it.
    subscription = consumer._subscription.subscription  # noqa: SLF001  aiokafka is pinned
    return None if subscription is None else subscription.assignment


def _refuse_lost_positions(error: OffsetOutOfRangeError, positions: Mapping[TP, int]) -> None:
    """Raise `OperatorNeeded` if one of `positions` is out of range. Other offsets are the client's committed ones."""
    for pair, offset in error.args[0].items():
        if positions.get(TP(*pair)) == offset:
            raise OperatorNeeded(
                f"{pair.topic}/{pair.partition}: offset {offset} is no longer in the log. Retention is shorter than "
                "the reader's lag, or the log was replaced: rebuild this state from the log's start."
            ) from error
