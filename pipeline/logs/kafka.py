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
# Far above any topic's own limit, which `append` checks first.
REQUEST_BYTES_MAX: Final = 128 * 1024 * 1024
REQUEST_TIMEOUT_S: Final = 30.0
CLOSE_TIMEOUT_S: Final = 10.0
RETRIES_MAX: Final = 5
RETRY_PAUSE_S: Final = 0.2
TOPIC_READY_TIMEOUT_S: Final = 30.0
FETCH_WAIT_S: Final = 0.5
# One fetch is open per broker; a partition that is asked for meanwhile waits for it to return.
FETCH_WAIT_MAX_MS: Final = 100
# `read` keeps the partitions it was asked for assigned, so that a reader which follows the end pays no set-up.
ASSIGNED_MAX: Final = 512

T = TypeVar("T")
logger = logging.getLogger(__name__)


class KafkaLog:
    """A `schemas.log.Log` on Kafka: acks from all in-sync replicas, idempotent producer, read_committed reads."""

    def __init__(self, servers: Sequence[str]) -> None:
        """`servers` are `HOST:PORT` bootstrap addresses."""
        self.servers = list(servers)
        self._producer: AIOKafkaProducer | None = None
        self._admin: AIOKafkaAdminClient | None = None
        self._consumer: AIOKafkaConsumer | None = None
        # Asks for offsets only: on the reader's connection they would queue behind an open fetch.
        self._asker: AIOKafkaConsumer | None = None
        self._partitions: dict[str, int] = {}
        self._size_limits: dict[str, int] = {}
        self._read_positions: dict[TopicPartition, int] = {}
        self._read_locks: dict[TopicPartition, asyncio.Lock] = {}
        self._assign_lock = asyncio.Lock()
        self._renewal: asyncio.Task[None] | None = None
        self._retiring: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Connect; `Transient` where no broker answers within `REQUEST_TIMEOUT_S`."""
        quieten()
        read_any_header_name()
        timeout_ms = int(REQUEST_TIMEOUT_S * 1000)
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
        """Send what was appended, for at most `CLOSE_TIMEOUT_S`, and disconnect. Safe to call twice."""
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
        """Create the topics that are missing and wait until every partition has a leader.

        Raises `OperatorNeeded` on another number of partitions, or where the cluster has too few brokers.
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
        """How many partitions `topic` has; 0 where it does not exist."""
        if topic not in self._partitions:
            described = await self._describe(topic)
            if described["error_code"] == UnknownTopicOrPartitionError.errno or not described["partitions"]:
                return 0
            self._partitions[topic] = len(described["partitions"])
        return self._partitions[topic]

    async def topic_settings(self, topic: str) -> Mapping[str, str]:
        """The broker's settings of a topic; empty where it does not exist."""
        if not await self.partition_count(topic):
            return {}
        resource = ConfigResource(ConfigResourceType.TOPIC, topic)
        responses = await self._retried(
            lambda: self._running_admin().describe_configs([resource]), f"read the settings of {topic}"
        )
        (_, _, _, _, entries) = responses[0].resources[0]
        return {entry[0]: entry[1] for entry in entries}

    async def append(
        self, topic: str, partition: int, value: bytes, *, key: bytes | None = None, headers: Headers = ()
    ) -> int:
        """Append one record and return its offset once all in-sync replicas have it.

        `InvalidInput` over the topic's size limit or for an unknown partition. `Transient` where the producer's own
        retries took `REQUEST_TIMEOUT_S` or the broker refused: the record may or may not be in the log, and a retry may
        add it again.
        """
        await self._check_partition(topic, partition)
        check_size(topic, await self._size_limit(topic), value, key, headers)
        producer = self._running_producer()
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                sent = await producer.send_and_wait(
                    topic, value=value, key=key, partition=partition, headers=list(headers)
                )
        except TimeoutError:
            raise Transient(f"Kafka did not confirm a record of {topic}/{partition} in {REQUEST_TIMEOUT_S} s") from None
        except KafkaError as error:
            # A timeout of the client's own: nothing was sent.
            if not error.retriable and not isinstance(error, KafkaTimeoutError):
                self._size_limits.pop(topic, None)
                await self._renew(producer)
            if isinstance(error, MessageSizeTooLargeError):
                raise InvalidInput("value", f"Kafka refused a record of {len(value)} bytes for {topic}") from None
            raise Transient(f"Kafka did not store a record of {topic}/{partition}: {error!r}") from error
        return int(sent.offset)

    async def bounds(self, topic: str, partition: int) -> Bounds:
        """First and next offset of a partition."""
        await self._check_partition(topic, partition)
        pair = TopicPartition(topic, partition)
        asker = self._asker
        if asker is None:
            raise Transient("the Kafka log is closed")
        what = f"read the bounds of {topic}/{partition}"
        first = await self._retried(lambda: asker.beginning_offsets([pair]), what)
        following = await self._retried(lambda: asker.end_offsets([pair]), what)
        return Bounds(first[pair], following[pair])

    async def read(self, topic: str, partition: int, offset: int, records_max: int = 500) -> list[Record]:
        """Up to `records_max` records from `offset` on; empty at the end.

        Waits for the broker while there are records to come, up to `REQUEST_TIMEOUT_S`, then raises `Transient`.
        """
        await self._check_partition(topic, partition)
        pair = TopicPartition(topic, partition)
        async with self._read_locks.setdefault(pair, asyncio.Lock()):
            await self._assign(pair, offset)
            found = await self._fetch(pair, 0, records_max)
            if not found:
                end = (await self.bounds(topic, partition)).next
                deadline = asyncio.get_running_loop().time() + REQUEST_TIMEOUT_S
                while not found and self._read_positions[pair] < end:
                    if asyncio.get_running_loop().time() > deadline:
                        raise Transient(f"Kafka gave no records of {topic}/{partition} from {offset} in time")
                    await self._assign(pair, self._read_positions[pair])
                    found = await self._fetch(pair, FETCH_WAIT_S, records_max)
            return [to_record(message) for message in found]

    async def committed(self, group: str, topic: str, partition: int) -> int | None:
        """The group's committed offset."""
        pair = TopicPartition(topic, partition)
        offsets = await self._retried(
            lambda: self._running_admin().list_consumer_group_offsets(group, partitions=[pair]),
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
            request_timeout_ms=int(REQUEST_TIMEOUT_S * 1000),
        )
        # A batch that expires takes its sequence numbers along, and the broker refuses all that come after the gap:
        # nothing could be appended to that partition any more. `append` bounds the wait instead.
        producer._message_accumulator._batch_ttl = math.inf  # noqa: SLF001  there is no setting for it
        return producer

    async def _renew(self, refused: AIOKafkaProducer) -> None:
        """Go on with another producer: a batch that the broker refused has taken its sequence numbers along, and the
        broker refuses all that come after the gap. Whoever else was refused by the same one waits for the same other.
        """
        if self._renewal is None and self._producer is refused:
            self._renewal = asyncio.create_task(self._replace(refused))
        if self._renewal is not None:
            await asyncio.wait({self._renewal}, timeout=REQUEST_TIMEOUT_S)

    async def _replace(self, refused: AIOKafkaProducer) -> None:
        """Have a new producer take over. Where none can be started, the next append that is refused tries again."""
        fresh = self._new_producer()
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                await self._retried(fresh.start, "start another producer")
        except BaseException as error:
            await fresh.stop()
            if not isinstance(error, (Transient, TimeoutError)):
                raise
            logger.warning("what Kafka refused may be refused again until another producer can be started: %r", error)
        else:
            self._producer = fresh
            self._retire(refused)
        finally:
            self._renewal = None

    def _retire(self, producer: AIOKafkaProducer) -> None:
        """Let it get its answers and end, beside what goes on. What it takes no more, `append` calls `Transient`."""
        task = asyncio.create_task(_stop(producer))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _assign(self, pair: TopicPartition, offset: int) -> None:
        """Have the consumer stand at `offset` of `pair`, keeping the others where they are."""
        consumer = self._running_consumer()
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
        consumer = self._running_consumer()
        try:
            found = await consumer.getmany(pair, timeout_ms=int(timeout_s * 1000), max_records=records_max)
        except KafkaError as error:
            if not error.retriable:
                raise Transient(f"Kafka could not read {pair.topic}/{pair.partition}: {error!r}") from error
            return []
        # Not the last record's offset: what follows may be a transaction's marker, which is never returned.
        if pair in consumer.assignment():
            self._read_positions[pair] = await consumer.position(pair)
        return list(found.get(pair, ()))

    async def _check_partition(self, topic: str, partition: int) -> None:
        if not 0 <= partition < await self.partition_count(topic):
            raise unknown_partition(topic, partition)

    async def _size_limit(self, topic: str) -> int:
        if topic not in self._size_limits:
            self._size_limits[topic] = int((await self.topic_settings(topic))["max.message.bytes"])
        return self._size_limits[topic]

    async def _describe(self, topic: str) -> dict[str, Any]:
        described = await self._retried(lambda: self._running_admin().describe_topics([topic]), f"describe {topic}")
        return dict(described[0])

    async def _create_topic(self, spec: TopicSpec) -> None:
        topic = NewTopic(spec.name, spec.partitions, spec.replication, topic_configs=dict(settings_of(spec)))
        response = await self._retried(lambda: self._running_admin().create_topics([topic]), f"create {spec.name}")
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
        """Run a repeatable request up to `RETRIES_MAX` times, then raise `Transient`."""
        for attempt in range(1, RETRIES_MAX + 1):
            try:
                return await request()
            except TidemarkError:
                raise
            except (KafkaError, TimeoutError, OSError, AttributeError) as error:
                # AttributeError: aiokafka's admin client reads the controller's id before it knows a controller.
                if attempt == RETRIES_MAX:
                    raise Transient(f"Kafka did not answer: could not {what}: {error!r}") from error
                logger.debug("attempt %s to %s failed: %r", attempt, what, error)
                await asyncio.sleep(RETRY_PAUSE_S * attempt)
        raise AssertionError("unreachable")

    def _running_admin(self) -> AIOKafkaAdminClient:
        if self._admin is None:
            raise Transient("the Kafka log is closed")
        return self._admin

    def _running_producer(self) -> AIOKafkaProducer:
        if self._producer is None:
            raise Transient("the Kafka log is closed")
        return self._producer

    def _running_consumer(self) -> AIOKafkaConsumer:
        if self._consumer is None:
            raise Transient("the Kafka log is closed")
        return self._consumer


async def _stop(producer: AIOKafkaProducer) -> None:
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            await producer.stop()
    except TimeoutError:
        logger.warning("Kafka is gone: what it had not confirmed may or may not be in the log")
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
        tuple((name, bytes(content or b"")) for name, content in message.headers),
    )
