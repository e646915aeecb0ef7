"""Appends after a record that the broker refused: real producers, and a broker that checks sequence numbers."""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.producer import sender

from pipeline.logs.kafka import KafkaLog
from schemas.errors import InvalidInput, Transient
from schemas.log import EVENTS_TOPIC

OUT_OF_ORDER, MESSAGE_TOO_LARGE, NOT_AUTHORIZED, UNKNOWN, NOT_LEADER = 45, 10, 29, -1, 6
LIMIT = 8 * 1024 * 1024
# Offsets in a batch of its producer's id, first sequence number and number of records.
PRODUCER_AT, SEQUENCE_AT = 43, 53


class Broker:
    """Accepts a producer's batches if their sequence numbers follow each other, as Kafka does."""

    def __init__(self) -> None:
        self.refusals: dict[int, int] = {}
        self.requests = 0
        self.following: dict[tuple[int, int], int] = {}
        self.next_offset = 0
        self.producers: list[AIOKafkaProducer] = []
        self.away = False
        self.reached = asyncio.Event()
        self.gates: dict[int, asyncio.Event] = {}
        self.cluster = SimpleNamespace(leader_for_partition=lambda _pair: 0, partitions_for_topic=lambda _topic: {0, 1})

    async def send(self, _node: int, request: Any) -> Any:
        self.requests += 1
        code = self.refusals.get(self.requests, 0)
        self.reached.set()
        if gate := self.gates.get(self.requests):
            await gate.wait()
        ((topic, parts),) = request.topics
        answers = []
        for number, data in parts:
            offset = self.next_offset
            answers.append((number, code or self._taken(number, bytes(data)), offset, -1, 0))
        return SimpleNamespace(API_VERSION=7, topics=[(topic, answers)])

    def _taken(self, partition: int, data: bytes) -> int:
        (producer,) = struct.unpack_from(">q", data, PRODUCER_AT)
        sequence, count = struct.unpack_from(">ii", data, SEQUENCE_AT)
        if sequence != self.following.get((producer, partition), 0):
            return OUT_OF_ORDER
        self.following[producer, partition] = sequence + count
        self.next_offset += count
        return 0

    def connect(self, producer: AIOKafkaProducer) -> AIOKafkaProducer:
        """Connects the producer to this broker."""
        self.producers.append(producer)
        number = len(self.producers)

        async def nothing(*_arguments: object) -> None:
            return

        async def start() -> None:
            if self.away:
                raise Transient("away")
            producer._txn_manager.set_pid_and_epoch(number, 0)
            await producer._sender.start()

        producer.start = start
        client = SimpleNamespace(
            send=self.send, cluster=self.cluster, close=nothing, force_metadata_update=lambda: None,
            _wait_on_metadata=nothing, _maybe_wait_metadata=nothing,
        )  # fmt: skip
        producer.client = producer._sender.client = client
        producer._metadata = producer._message_accumulator._cluster = self.cluster
        return producer


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Broker:
    created, new_producer = Broker(), KafkaLog._new_producer
    monkeypatch.setattr(KafkaLog, "_new_producer", lambda log: created.connect(new_producer(log)))
    monkeypatch.setattr(sender, "ProduceRequest", SimpleNamespace)
    return created


@pytest.fixture
async def log(broker: Broker) -> AsyncIterator[KafkaLog]:
    created = KafkaLog(["nowhere:1"])
    created._partitions, created._size_limits = {EVENTS_TOPIC: 2}, {EVENTS_TOPIC: LIMIT}
    created._producer = created._new_producer()
    await created._producer.start()

    async def settings(_topic: str) -> dict[str, str]:
        return {"max.message.bytes": str(LIMIT)}

    created.topic_settings = settings  # type: ignore[assignment]  # there is no admin client here
    yield created
    for gate in broker.gates.values():
        gate.set()
    await created.close()


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (MESSAGE_TOO_LARGE, InvalidInput),
        (NOT_AUTHORIZED, Transient),
        (UNKNOWN, Transient),
        (OUT_OF_ORDER, Transient),
    ],
    ids=["too large", "not authorized", "unknown", "out of order"],
)
async def test_one_refused_record_does_not_block_its_partition(
    broker: Broker, log: KafkaLog, code: int, error: type[Exception]
) -> None:
    """The refused sequence numbers are lost, and the broker accepts nothing after a gap until the process restarts."""
    broker.refusals = {2: code}
    assert await log.append(EVENTS_TOPIC, 0, b"a") == 0

    with pytest.raises(error):
        await log.append(EVENTS_TOPIC, 0, b"b")

    assert EVENTS_TOPIC not in log._size_limits
    assert [await log.append(EVENTS_TOPIC, 0, b"b"), await log.append(EVENTS_TOPIC, 1, b"c")] == [1, 2]
    assert len(broker.producers) == 2


async def test_a_refusal_that_the_client_retries_itself_changes_nothing(broker: Broker, log: KafkaLog) -> None:
    """The retry uses the same sequence numbers."""
    broker.refusals = {1: NOT_LEADER}

    assert await log.append(EVENTS_TOPIC, 0, b"a") == 0
    assert len(broker.producers) == 1


async def test_many_refused_records_replace_the_producer_once(broker: Broker, log: KafkaLog) -> None:
    """A batch contains many records, and more records wait behind it."""
    broker.refusals = {1: UNKNOWN}
    values = [b"x" * 100_000 for _ in range(8)]

    outcomes = await asyncio.gather(*(log.append(EVENTS_TOPIC, 0, value) for value in values), return_exceptions=True)

    assert all(isinstance(outcome, Transient) for outcome in outcomes)
    assert len(broker.producers) == 2
    assert await log.append(EVENTS_TOPIC, 0, b"after") == 0


async def test_an_append_under_way_with_the_old_producer_gets_its_answer(broker: Broker, log: KafkaLog) -> None:
    """The record may be in the log: a failure would cause a second append."""
    broker.refusals = {2: UNKNOWN}
    broker.gates = {1: asyncio.Event()}
    # Another node leads the other partition, so the two requests do not wait for each other.
    broker.cluster.leader_for_partition = lambda pair: pair.partition
    slow = asyncio.create_task(log.append(EVENTS_TOPIC, 1, b"slow"))
    async with asyncio.timeout(60):
        await broker.reached.wait()

    with pytest.raises(Transient):
        await log.append(EVENTS_TOPIC, 0, b"refused")
    assert await log.append(EVENTS_TOPIC, 0, b"after") == 0
    broker.gates[1].set()

    assert await slow == 1
    await log.close()
    assert all(producer._closed and producer._sender.sender_task.done() for producer in broker.producers)


async def test_if_no_new_producer_can_start_the_next_refusal_tries_again(
    broker: Broker, log: KafkaLog, caplog: pytest.LogCaptureFixture
) -> None:
    """The broker may be unreachable at that moment; other appends must not wait for it."""
    broker.refusals = {1: UNKNOWN}
    broker.away = True
    with caplog.at_level(logging.WARNING), pytest.raises(Transient, match="did not store"):
        await log.append(EVENTS_TOPIC, 0, b"a")
    assert "until another producer can be started" in caplog.text

    assert await log.append(EVENTS_TOPIC, 1, b"b") == 0
    broker.away = False
    with pytest.raises(Transient, match="OutOfOrder"):
        await log.append(EVENTS_TOPIC, 0, b"a")
    assert await log.append(EVENTS_TOPIC, 0, b"a") == 1
