"""The emitter that writes to Kafka directly, on a real broker."""

from __future__ import annotations

import asyncio
import sys
import uuid
from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest

from aggregators.decode import decode
from emitter import Emitter
from emitter.kafka import KafkaTransport
from oracle.rules import partition_of
from pipeline.clock import SystemClock
from pipeline.logs.open import kafka_servers, open_log
from schemas.log import Log, Record, TopicSpec
from tests.integration.runner_world import until

PARTITIONS = 5
# The smallest that a topic of a deployment may have.
RECORD_BYTES_MAX = 524_288


class Topic(NamedTuple):
    """A topic of a test, and how to reach it."""

    log: Log
    name: str
    servers: str

    async def records(self) -> list[Record]:
        """All records."""
        found: list[Record] = []
        for partition in range(PARTITIONS):
            offset = 0
            while read := await self.log.read(self.name, partition, offset):
                found += read
                offset = read[-1].next_offset
        return found


@pytest.fixture
async def topic(kafka_url: str) -> AsyncIterator[Topic]:
    """A topic with the settings of `usage.events`, and small records."""
    log, name = open_log(kafka_url, SystemClock()), f"emitter.{uuid.uuid4().hex}"
    await log.start()
    try:
        await log.create_topics([TopicSpec(name, PARTITIONS, retention_ms=-1, record_bytes_max=RECORD_BYTES_MAX)])
        yield Topic(log, name, ",".join(kafka_servers(kafka_url)))
    finally:
        await log.close()


@pytest.mark.parametrize("by_account", [True, False], ids=["usage.events", "usage.inbox"])
async def test_accepted_events_are_on_the_partition_of_their_account_or_in_the_inbox(
    topic: Topic, by_account: bool
) -> None:
    """Partitioned as the workers expect, whatever the characters of the account. The router splits the inbox."""
    transport = KafkaTransport(topic.servers, topic=topic.name, by_account=by_account)
    emitter = Emitter(source="test", transport=transport, batch_events_max=50, flush_interval_s=0.01)
    ids = [emitter.emit("t", f"account-{number % 40}-ü", {"n": number}) for number in range(300)]
    assert await asyncio.to_thread(emitter.close)
    assert emitter.stats().accepted == 300

    found = []
    for record in await topic.records():
        assert record.headers == ()
        decoded = decode(record.value, 1_000_000)
        assert decoded.rejected == []
        for _, event in decoded.events:
            found.append(event.id)
            if by_account:
                assert record.key == event.subject.encode()
                assert record.partition == partition_of(event.subject, PARTITIONS)
    assert sorted(found) == sorted(ids)


async def test_records_that_are_too_large_are_split_and_an_event_that_is_too_large_is_rejected(topic: Topic) -> None:
    """The limit is the topic's, which the emitter does not know."""
    told: list[tuple[str, str]] = []
    transport = KafkaTransport(topic.servers, topic=topic.name)
    emitter = Emitter(
        source="test", transport=transport, flush_interval_s=5,
        on_rejected=lambda event, reason, _: told.append((event.id, reason)),
    )  # fmt: skip
    for number in range(8):
        emitter.emit("t", "acme", {"note": "x" * (100_000 if number != 3 else RECORD_BYTES_MAX)}, id=str(number))
    assert await asyncio.to_thread(emitter.close)

    assert told == [("3", "record_too_large")]
    stored = {event.id for record in await topic.records() for _, event in decode(record.value, 1_000_000).events}
    assert stored == set("0124567")


async def test_nothing_is_accepted_before_a_broker_answers() -> None:
    """Events without an acknowledgement are pending, and go to the spool or to `on_dropped`."""
    dropped: list[str] = []
    transport = KafkaTransport("127.0.0.1:9", timeout_s=0.3)
    emitter = Emitter(source="test", transport=transport, on_dropped=lambda event, _: dropped.append(event.id))
    emitter.emit("t", "acme", id="a")

    await until(lambda: "Kafka: " in emitter.stats().last_error, "the first attempt")
    assert not await asyncio.to_thread(emitter.close, 0.1)
    assert (emitter.stats().accepted, dropped) == (0, ["a"])


@pytest.mark.parametrize("name", ["acks", "enable.idempotence", "partitioner", "request.required.acks"])
def test_settings_that_weaken_the_promise_are_refused(name: str) -> None:
    """An event that only one broker has is not accepted."""
    with pytest.raises(ValueError, match=name):
        KafkaTransport("127.0.0.1:9", config={name: 1})


def test_a_missing_package_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The emitter alone does not install it."""
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)

    with pytest.raises(ImportError, match=r"pip install 'tidemark-emitter\[kafka\]'"):
        KafkaTransport("127.0.0.1:9")


def test_an_emitter_without_an_address_or_a_key_is_refused() -> None:
    """Both have a default for the sake of transports."""
    with pytest.raises(ValueError, match="must look like http"):
        Emitter(api_key="tm_key", source="test")
    with pytest.raises(ValueError, match="api_key is missing"):
        Emitter("http://127.0.0.1:8080", source="test")
