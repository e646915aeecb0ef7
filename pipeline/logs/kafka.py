"""The log on Kafka, through aiokafka."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import (
    KafkaError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    TopicAlreadyExistsError,
    UnknownTopicOrPartitionError,
    for_code,
)

from pipeline.logs.client_messages import quieten
from pipeline.logs.header_names import read_any_header_name
from pipeline.logs.limits import check_partitions, check_size, check_spec, settings_of, unknown_partition
from schemas.errors import InvalidInput, OperatorNeeded, TidemarkError, Transient
from schemas.log import Bounds, Headers, Record, TopicSpec

PRODUCE_BATCH_BYTES: Final = 256 * 1024
# Above the limit of every topic; `append` checks the topic's limit first.
REQUEST_BYTES_MAX: Final = 128 * 1024 * 1024
REQUEST_TIMEOUT_S: Final = 30.0
CLOSE_TIMEOUT_S: Final = 10.0
RETRIES_MAX: Final = 5
RETRY_PAUSE_S: Final = 0.2
TOPIC_READY_TIMEOUT_S: Final = 30.0
FETCH_WAIT_S: Final = 0.5
# The client has one open fetch per broker. A partition that becomes ready during the fetch waits for its end.
FETCH_WAIT_MAX_MS: Final = 100
# `read` keeps this many partitions assigned, so that a reader that follows the end does not assign again.
ASSIGNED_MAX: Final = 512

C = TypeVar("C")
T = TypeVar("T")
logger = logging.getLogger(__name__)


class KafkaLog:
    """A `schemas.log.Log` on Kafka: acks from all in-sync replicas, idempotent producer, read_committed reads."""

    def __init__(self, servers: Sequence[str], timeout_s: float = REQUEST_TIMEOUT_S) -> None:
        """`servers` are `HOST:PORT` bootstrap addresses. `timeout_s` bounds each request with its repetitions."""
        self.servers = list(servers)
        self._timeout_s = timeout_s
        self._producer: AIOKafkaProducer | None = None
        self._admin: AIOKafkaAdminClient | None = None
        self._consumer: AIOKafkaConsumer | None = None
        # For offset requests only: on the reader's connection they would wait behind an open fetch.
        self._asker: AIOKafkaConsumer | None = None
        self._partitions: dict[str, int] = {}
        self._size_limits: dict[str, int] = {}
        self._read_positions: dict[TopicPartition, int] = {}
        self._read_locks: dict[TopicPartition, asyncio.Lock] = {}
        self._assign_lock = asyncio.Lock()
        self._renewal: asyncio.Task[None] | None = None
        self._retiring: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Connect. Raises `Transient` if no broker answers."""
        quieten()
        read_any_header_name()
        timeout_ms = int(self._timeout_s * 1000)
        self._admin = AIOKafkaAdminClient(bootstrap_servers=self.servers, request_timeout_ms=timeout_ms)
        self._producer = self._new_producer()
        self._consumer = AIOKafkaConsumer(
            bootstrap_servers=self.servers,
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            fetch_max_wait_ms=FETCH_WAIT_MAX_MS,
            request_timeout_ms=timeout_ms,
        )
        self._asker = AIOKafkaConsumer(
            bootstrap_servers=self.servers,
            enable_auto_commit=False,
            isolation_level="read_committed",
            request_timeout_ms=timeout_ms,
        )
        try:
            for client in (self._admin, self._producer, self._consumer, self._asker):
                await self._retried(client.start, f"connect to {', '.join(self.servers)}")
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Send all pending records for up to `CLOSE_TIMEOUT_S`, then disconnect. Safe to call twice."""
        producer, self._producer = self._producer, None
        consumers = (self._consumer, self._asker)
        self._consumer = self._asker = None
        admin, self._admin = self._admin, None
        if self._renewal is not None:
            self._renewal.cancel()
            await asyncio.wait({self._renewal})
        if producer is not None:
            self._retire(producer)
        if self._retiring:
            await asyncio.wait(self._retiring)
        for consumer in consumers:
            if consumer is not None:
                await consumer.stop()
        if admin is not None:
            await admin.close()

    async def create_topics(self, specs: Sequence[TopicSpec]) -> None:
        """Create the missing topics and wait for a leader of every partition, up to `TOPIC_READY_TIMEOUT_S`.

        Raises `OperatorNeeded` if a topic has another number of partitions or if the cluster has too few brokers.
        """
        for spec in specs:
            check_spec(spec)
            existing = await self.partition_count(spec.name)
            if existing:
                check_partitions(spec, existing)
                continue
            await self._create_topic(spec)
            await self._wait_for_leaders(spec)

    async def partition_count(self, topic: str) -> int:
        if topic not in self._partitions:
            described = await self._describe(topic)
            if described["error_code"] == UnknownTopicOrPartitionError.errno or not described["partitions"]:
                return 0
            self._partitions[topic] = len(described["partitions"])
        return self._partitions[topic]

    async def topic_settings(self, topic: str) -> Mapping[str, str]:
        """The broker's settings of a topic. Empty if the topic does not exist."""
        if not await self.partition_count(topic):
            return {}
        resource = ConfigResource(ConfigResourceType.TOPIC, topic)
        responses = await self._retried(
            lambda: _running(self._admin).describe_configs([resource]), f"read the settings of {topic}"
        )
        (_, _, _, _, entries) = responses[0].resources[0]
        return {entry[0]: entry[1] for entry in entries}

    async def append(
        self, topic: str, partition: int, value: bytes, *, key: bytes | None = None, headers: Headers = ()
    ) -> int:
        """Append one record. Return its offset after all in-sync replicas have the record.

        Raises `InvalidInput` if the record is over the topic's size limit or the partition is unknown. Raises
        `Transient` if the broker refuses or does not confirm within `timeout_s`. After `Transient` the record
        may be in the log, and a retry may append it again.
        """
        await self._check_partition(topic, partition)
        check_size(topic, await self._size_limit(topic), value, key, headers)
        producer = _running(self._producer)
        try:
            async with asyncio.timeout(self._timeout_s):
                sent = await producer.send_and_wait(
                    topic, value=value, key=key, partition=partition, headers=list(headers)
                )
        except TimeoutError:
            raise Transient(f"Kafka did not confirm a record of {topic}/{partition} in {self._timeout_s} s") from None
        except KafkaError as error:
            # KafkaTimeoutError is the client's timeout before the record was sent.
            if not error.retriable and not isinstance(error, KafkaTimeoutError):
                self._size_limits.pop(topic, None)
                await self._renew(producer)
            if isinstance(error, MessageSizeTooLargeError):
                raise InvalidInput("value", f"Kafka refused a record of {len(value)} bytes for {topic}") from None
            raise Transient(f"Kafka did not store a record of {topic}/{partition}: {error!r}") from error
        return int(sent.offset)

    async def bounds(self, topic: str, partition: int) -> Bounds:
        await self._check_partition(topic, partition)
        pair = TopicPartition(topic, partition)
        asker = _running(self._asker)
        what = f"read the bounds of {topic}/{partition}"
        first = await self._retried(lambda: asker.beginning_offsets([pair]), what)
        following = await self._retried(lambda: asker.end_offsets([pair]), what)
        return Bounds(first[pair], following[pair])

    async def read(self, topic: str, partition: int, offset: int, records_max: int = 500) -> list[Record]:
        """Up to `records_max` records from `offset` on. Empty at the end of the partition.

        Raises `Transient` if records exist and the broker returns none within `timeout_s`.
        """
        await self._check_partition(topic, partition)
        pair = TopicPartition(topic, partition)
        async with self._read_locks.setdefault(pair, asyncio.Lock()):
            await self._assign(pair, offset)
            messages = await self._fetch(pair, 0, records_max)
            if not messages:
                end = (await self.bounds(topic, partition)).next
                deadline = asyncio.get_running_loop().time() + self._timeout_s
                while not messages and self._read_positions[pair] < end:
                    if asyncio.get_running_loop().time() > deadline:
                        raise Transient(f"Kafka gave no records of {topic}/{partition} from {offset} in time")
                    await self._assign(pair, self._read_positions[pair])
                    messages = await self._fetch(pair, FETCH_WAIT_S, records_max)
            return [to_record(message) for message in messages]

    async def committed(self, group: str, topic: str, partition: int) -> int | None:
        pair = TopicPartition(topic, partition)
        offsets = await self._retried(
            lambda: _running(self._admin).list_consumer_group_offsets(group, partitions=[pair]),
            f"read the offsets of {group}",
        )
        stored = offsets.get(pair)
        return None if stored is None or stored.offset < 0 else int(stored.offset)

    def _new_producer(self) -> AIOKafkaProducer:
        producer = AIOKafkaProducer(
            bootstrap_servers=self.servers,
            acks="all",
            enable_idempotence=True,
            compression_type="lz4",
            max_batch_size=PRODUCE_BATCH_BYTES,
            max_request_size=REQUEST_BYTES_MAX,
            request_timeout_ms=int(self._timeout_s * 1000),
        )
        # An expired batch leaves a gap in the sequence numbers, and the broker then refuses all later batches of the
        # partition. So batches never expire; `append` limits the wait.
        producer._message_accumulator._batch_ttl = math.inf  # noqa: SLF001  there is no setting for it
        return producer

    async def _renew(self, refused: AIOKafkaProducer) -> None:
        """Replace the producer: a refused batch leaves a gap in the sequence numbers, and the broker then refuses all
        later batches of that producer. Concurrent callers share one replacement.
        """
        if self._renewal is None and self._producer is refused:
            self._renewal = asyncio.create_task(self._replace(refused))
        if self._renewal is not None:
            await asyncio.wait({self._renewal}, timeout=self._timeout_s)

    async def _replace(self, refused: AIOKafkaProducer) -> None:
        """Start a new producer. If the start fails, the next refused append tries again."""
        fresh = self._new_producer()
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._retried(fresh.start, "start another producer")
        except BaseException as error:
            await fresh.stop()
            if not isinstance(error, (Transient, TimeoutError)):
                raise
            logger.warning("Kafka may refuse appends until another producer can be started: %r", error)
        else:
            self._producer = fresh
            self._retire(refused)
        finally:
            self._renewal = None

    def _retire(self, producer: AIOKafkaProducer) -> None:
        """Stop a producer in the background, after its pending batches. Later appends on it raise `Transient`."""
        task = asyncio.create_task(_stop(producer))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _assign(self, pair: TopicPartition, offset: int) -> None:
        """Set the consumer's position of `pair` to `offset`. The other positions stay."""
        consumer = _running(self._consumer)
        async with self._assign_lock:
            if pair not in consumer.assignment():
                self._read_positions.pop(pair, None)
                kept = list(self._read_positions)[-(ASSIGNED_MAX - 1) :]
                self._read_positions = {other: self._read_positions[other] for other in kept} | {pair: offset}
                consumer.assign(list(self._read_positions))
                for other, position in self._read_positions.items():
                    consumer.seek(other, position)
            elif self._read_positions[pair] != offset:
                self._read_positions[pair] = offset
                consumer.seek(pair, offset)

    async def _fetch(self, pair: TopicPartition, timeout_s: float, records_max: int) -> list[Any]:
        consumer = _running(self._consumer)
        try:
            messages = await consumer.getmany(pair, timeout_ms=int(timeout_s * 1000), max_records=records_max)
        except KafkaError as error:
            if not error.retriable:
                raise Transient(f"Kafka could not read {pair.topic}/{pair.partition}: {error!r}") from error
            return []
        # Not the offset after the last record: the next entry may be a transaction marker, which is never returned.
        if pair in consumer.assignment():
            self._read_positions[pair] = await consumer.position(pair)
        return list(messages.get(pair, ()))

    async def _check_partition(self, topic: str, partition: int) -> None:
        if not 0 <= partition < await self.partition_count(topic):
            raise unknown_partition(topic, partition)

    async def _size_limit(self, topic: str) -> int:
        if topic not in self._size_limits:
            self._size_limits[topic] = int((await self.topic_settings(topic))["max.message.bytes"])
        return self._size_limits[topic]

    async def _describe(self, topic: str) -> dict[str, Any]:
        described = await self._retried(lambda: _running(self._admin).describe_topics([topic]), f"describe {topic}")
        return dict(described[0])

    async def _create_topic(self, spec: TopicSpec) -> None:
        topic = NewTopic(spec.name, spec.partitions, spec.replication, topic_configs=dict(settings_of(spec)))
        response = await self._retried(lambda: _running(self._admin).create_topics([topic]), f"create {spec.name}")
        _, code, *reason = response.topic_errors[0]
        if code not in (0, TopicAlreadyExistsError.errno):
            raise OperatorNeeded(f"Kafka refused to create {spec.name}: {for_code(code).__name__} {reason}")

    async def _wait_for_leaders(self, spec: TopicSpec) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + TOPIC_READY_TIMEOUT_S
        while loop.time() < deadline:
            described = await self._describe(spec.name)
            partitions = described["partitions"]
            if len(partitions) == spec.partitions and all(partition["leader"] >= 0 for partition in partitions):
                return
            await asyncio.sleep(RETRY_PAUSE_S / 4)
        raise Transient(f"topic {spec.name} was created, but has no leader for every partition yet")

    async def _retried(self, request: Callable[[], Awaitable[T]], what: str) -> T:
        """Run a repeatable request up to `RETRIES_MAX` times. Raises `Transient` after the last failure, or after
        `timeout_s` in all: a broker that hangs would otherwise take the client's timeout once per attempt.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._attempts(request, what)
        except TimeoutError as error:
            raise Transient(
                f"Kafka did not answer in {self._timeout_s:g} s: could not {what}; check that it runs"
            ) from error

    async def _attempts(self, request: Callable[[], Awaitable[T]], what: str) -> T:
        for attempt in range(1, RETRIES_MAX + 1):
            try:
                return await request()
            except TidemarkError:
                raise
            except (KafkaError, TimeoutError, OSError, AttributeError) as error:
                # AttributeError: aiokafka's admin client reads the controller's id before a controller is known.
                if attempt == RETRIES_MAX:
                    raise Transient(f"Kafka did not answer: could not {what}: {error!r}") from error
                logger.debug("attempt %s to %s failed: %r", attempt, what, error)
                await asyncio.sleep(RETRY_PAUSE_S * attempt)
        raise AssertionError("unreachable")


def _running(client: C | None) -> C:
    if client is None:
        raise Transient("the Kafka log is closed")
    return client


async def _stop(producer: AIOKafkaProducer) -> None:
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            await producer.stop()
    except TimeoutError:
        logger.warning("Kafka does not answer: records without a confirmation may or may not be in the log")
        await producer._sender.close()  # noqa: SLF001  aiokafka's own stop has no bound
        await producer.client.close()


def to_record(message: Any) -> Record:
    """A `Record` from aiokafka's ConsumerRecord."""
    return Record(
        message.topic,
        message.partition,
        message.offset,
        message.timestamp,
        message.key,
        message.value,
        # Kafka allows a header without a value.
        tuple((name, bytes(content or b"")) for name, content in message.headers) if message.headers else (),
    )
