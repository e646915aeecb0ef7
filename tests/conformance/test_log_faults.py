"""The faults of the log in the simulation, each shown on a real Kafka broker."""

from __future__ import annotations

import asyncio
import os
import signal
import time
import uuid
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from pipeline.clock import SystemClock
from pipeline.local.kafka import LocalKafka
from pipeline.logs.kafka import KafkaLog
from pipeline.logs.open import kafka_servers, open_log
from schemas.errors import InvalidInput, Transient
from schemas.log import Record, TopicSpec


def stop(pid: int) -> None:
    """Stop a process group. A thread on another processor may go on for a moment, so wait until none does."""
    os.killpg(pid, signal.SIGSTOP)
    status = Path(f"/proc/{pid}/stat")
    while status.read_text().rpartition(")")[2].split()[0] != "T":
        time.sleep(0.01)


async def test_a_record_with_a_lost_confirmation_is_in_the_log_and_a_retry_adds_another(tmp_path: Path) -> None:
    """`Transient` from an append says nothing about the record, so events are counted by identity, not by offset."""
    with LocalKafka(tmp_path / "kafka") as broker:
        patient = open_log(broker.url, SystemClock())
        await patient.start()
        await patient.create_topics([TopicSpec("t", partitions=1, retention_ms=-1)])
        log = KafkaLog(kafka_servers(broker.url), timeout_s=3.0)
        await log.start()
        await log.append("t", 0, b"first")

        assert broker.pid is not None
        stop(broker.pid)
        with pytest.raises(Transient, match="did not confirm"):
            await log.append("t", 0, b"unsure")
        os.killpg(broker.pid, signal.SIGCONT)

        records: list[Record] = []
        while len(records) < 2:
            records = await patient.read("t", 0, 0)
        assert [record.value for record in records] == [b"first", b"unsure"]
        await patient.append("t", 0, b"unsure")
        assert [record.value for record in await patient.read("t", 0, 0)] == [b"first", b"unsure", b"unsure"]
        await log.close()
        await patient.close()


async def test_records_that_retention_removed_move_the_first_offset_and_nothing_else(kafka_url: str) -> None:
    """The processors refuse to start before the log's first offset."""
    log, topic = open_log(kafka_url, SystemClock()), f"forgetful.{uuid.uuid4().hex}"
    await log.start()
    await log.create_topics([TopicSpec(topic, partitions=1, retention_ms=-1)])
    for number in range(5):
        await log.append(topic, 0, b"%d" % number)

    admin = AdminClient({"bootstrap.servers": kafka_url.removeprefix("kafka://")})
    (deleted,) = admin.delete_records([TopicPartition(topic, 0, 3)]).values()
    await asyncio.to_thread(deleted.result)

    bounds = await log.bounds(topic, 0)
    assert (bounds.first, bounds.next) == (3, 5)
    assert [record.value for record in await log.read(topic, 0, 3)] == [b"3", b"4"]
    await log.close()


async def test_a_record_that_the_broker_refuses_does_not_block_its_partition(kafka_url: str) -> None:
    """An operator lowers a topic's limit while a gateway runs: the refused sequence numbers are lost."""
    log, topic = open_log(kafka_url, SystemClock()), f"lowered.{uuid.uuid4().hex}"
    await log.start()
    await log.create_topics([TopicSpec(topic, partitions=1, retention_ms=-1)])
    await log.append(topic, 0, b"before")
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka_servers(kafka_url))
    await admin.start()
    await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, {"max.message.bytes": "4000"})])
    await admin.close()

    with pytest.raises(InvalidInput, match="Kafka refused a record of 8000 bytes"):
        await log.append(topic, 0, os.urandom(8000))
    with pytest.raises(InvalidInput, match="over the 4000"):
        await log.append(topic, 0, os.urandom(8000))
    await log.append(topic, 0, b"after")

    assert [record.value for record in await log.read(topic, 0, 0)] == [b"before", b"after"]
    await log.close()
