"""The runner among several processes: what a kill, a rebalance and a broker that dies leave behind."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy

from pipeline.clock import SystemClock
from pipeline.local.kafka import LocalKafka
from pipeline.logs.open import kafka_servers, open_log
from schemas.log import Log, TopicSpec
from tests.integration.runner_worker import FencedStore
from tests.integration.runner_world import (
    PARTITIONS,
    Recorder,
    Worker,
    committed,
    fill,
    running,
    until,
    until_committed,
)
from tests.traffic.header_names import raw_name


async def test_a_killed_worker_resumes_at_the_position_in_its_store(
    log_url: str, log: Log, topic: str, tmp_path: Path
) -> None:
    """Kill -9 in mid-work: nothing is lost, nothing is committed twice."""
    await fill(log, topic, 400)
    store_path = tmp_path / "state.db"
    store = FencedStore(str(store_path))
    worker = Worker(log_url, topic, store_path)

    await worker.start()
    await until(lambda: store.count() >= 50, "the first worker's progress")
    await worker.kill()
    positions = {partition: store.next_offset(partition) for partition in range(PARTITIONS)}
    assert store.count() < 400

    following = Worker(log_url, topic, store_path)
    second_id = await following.start()
    await until(lambda: store.count() == 400, "the second worker")
    await following.terminate()

    assert positions == store.starts(second_id)
    assert {partition: list(range(100)) for partition in range(PARTITIONS)} == store.processed()
    assert await committed(log, topic, topic) == [100] * PARTITIONS
    store.close()


async def test_two_workers_share_a_topic_and_one_survives_the_others_kill(kafka_url: str, tmp_path: Path) -> None:
    """A rebalance in mid-flight, then kill -9 of one: the store's checkpoint decides, no record is lost or acked
    early."""
    log = open_log(kafka_url, SystemClock())
    await log.start()
    topic = f"runner.{uuid.uuid4().hex}"
    await log.create_topics([TopicSpec(topic, PARTITIONS, retention_ms=-1)])
    await fill(log, topic, 2000)
    store_path = tmp_path / "state.db"
    store = FencedStore(str(store_path))
    first, second = Worker(kafka_url, topic, store_path, 0.03), Worker(kafka_url, topic, store_path, 0.03)

    await first.start()
    await until(lambda: store.count() >= 50, "the first worker's progress")
    second_id = await second.start()
    await until(lambda: second_id in store.workers(), "the second worker's share")
    await second.kill()
    await until(lambda: store.count() == 2000, "everything")
    for partition, offset in enumerate(await committed(log, topic, topic)):
        assert offset is None or offset <= store.next_offset(partition)
    await first.terminate()

    assert {partition: list(range(500)) for partition in range(PARTITIONS)} == store.processed()
    assert await committed(log, topic, topic) == [500] * PARTITIONS
    store.close()
    await log.close()


async def test_a_rebalance_waits_for_the_running_step_and_drops_what_is_queued(kafka_url: str) -> None:
    """The partition's new owner must not start while the old one still commits; what was queued is the new one's."""
    log = open_log(kafka_url, SystemClock())
    await log.start()
    topic = f"runner.{uuid.uuid4().hex}"
    await log.create_topics([TopicSpec(topic, PARTITIONS, retention_ms=-1)])
    await fill(log, topic, 80)
    first, second = Recorder(topic), Recorder(topic)
    second.positions = first.positions
    first.gates = {partition: asyncio.Event() for partition in range(PARTITIONS)}

    async with running(first, kafka_url, topic) as (first_runner, _):
        await until(lambda: len(first.in_step) == PARTITIONS, "a step on every partition")
        async with running(second, kafka_url, topic) as (second_runner, _):
            await asyncio.sleep(1.0)  # time in which a wrong runner would hand the partitions over
            assert 0 == second.count == first.count
            for gate in first.gates.values():
                gate.set()
            await until(lambda: first.count + second.count >= 80, "everything")
            await until(lambda: len(second_runner.assigned()) == len(first_runner.assigned()) == 2, "an even share")

    for partition in range(PARTITIONS):
        assert list(range(20)) == first.seen[partition] + second.seen[partition]
    assert await committed(log, topic, topic) == [20] * PARTITIONS
    await log.close()


async def test_gaps_in_the_offsets_hold_nothing_up(kafka_url: str) -> None:
    """Transaction markers and aborted records leave gaps; read_committed must not show what was aborted."""
    log = open_log(kafka_url, SystemClock())
    await log.start()
    topic = f"runner.{uuid.uuid4().hex}"
    await log.create_topics([TopicSpec(topic, PARTITIONS, retention_ms=-1)])
    producer = AIOKafkaProducer(bootstrap_servers=kafka_servers(kafka_url), transactional_id=topic)
    await producer.start()
    for number in range(6):
        await producer.begin_transaction()
        await producer.send_and_wait(topic, b"%d" % number, partition=0)
        await (producer.abort_transaction() if number % 2 else producer.commit_transaction())
    await producer.stop()
    recorder = Recorder(topic)

    async with running(recorder, kafka_url, topic):
        await until(lambda: recorder.count == 3, "the committed records")
        last = await log.append(topic, 0, b"plain")
        await until(lambda: recorder.count == 4, "the record after the gap")

    assert [0, 4, 8, last] == recorder.seen[0]
    assert [0, 4, 8, last] == [record.offset for record in await log.read(topic, 0, 0)]
    assert last + 1 == await log.committed(topic, topic, 0)
    await log.close()


async def test_header_names_that_are_not_text_stop_neither_readers_nor_workers(
    kafka_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client in C may write any bytes, and the broker takes them; the record before and the one after come too."""
    log, topic = open_log(kafka_url, SystemClock()), f"runner.{uuid.uuid4().hex}"
    await log.start()
    await log.create_topics([TopicSpec(topic, PARTITIONS, retention_ms=-1)])
    # The compiled builder writes text only.
    for module in ("message_accumulator", "producer"):
        monkeypatch.setattr(f"aiokafka.producer.{module}.DefaultRecordBatchBuilder", _DefaultRecordBatchBuilderPy)
    producer = AIOKafkaProducer(bootstrap_servers=kafka_servers(kafka_url), linger_ms=200, compression_type="lz4")
    await producer.start()
    for headers in ([], [(raw_name(b"\xff\xfe"), b"1")], [("trace", b"2")]):
        await producer.send(topic, b"{}", partition=0, headers=headers)
    await producer.stop()
    recorder = Recorder(topic)

    async with running(recorder, kafka_url, topic):
        await until(lambda: recorder.count == 3, "all three records")
    records = await log.read(topic, 0, 0)

    assert [0, 1, 2] == recorder.seen[0]
    assert [(), (("\ufffd\ufffd", b"1"),), (("trace", b"2"),)] == [record.headers for record in records]
    await log.close()


async def test_a_killed_broker_that_comes_back_costs_no_record(tmp_path: Path) -> None:
    """The client reconnects by itself; every partition starts again at the processor's position."""
    broker = LocalKafka(tmp_path)
    await asyncio.to_thread(broker.start)
    log = open_log(broker.url, SystemClock())
    await log.start()
    await log.create_topics([TopicSpec("t", PARTITIONS, retention_ms=-1)])
    await fill(log, "t", 40)
    recorder = Recorder("t")

    async with running(recorder, broker.url, "t"):
        await until(lambda: recorder.count == 40, "the records before")
        broker.kill()
        await asyncio.to_thread(broker.start)
        await fill(log, "t", 40)
        await until(lambda: recorder.count == 80, "the records after")
        await until_committed(log, "t", [20] * PARTITIONS)

    assert {partition: list(range(20)) for partition in range(PARTITIONS)} == recorder.seen
    await log.close()
    await asyncio.to_thread(broker.stop)


async def test_the_runner_leaves_no_topics_of_its_own_on_the_broker(kafka_url: str) -> None:
    """Faust would create a leader topic; an operator should find only what `create_topics` made."""
    from aiokafka.admin import AIOKafkaAdminClient

    log = open_log(kafka_url, SystemClock())
    await log.start()
    topic = f"runner.{uuid.uuid4().hex}"
    await log.create_topics([TopicSpec(topic, 1, retention_ms=-1)])
    await log.append(topic, 0, b"a")
    recorder = Recorder(topic)
    async with running(recorder, kafka_url, topic):
        await until(lambda: recorder.count == 1, "the record")

    admin = AIOKafkaAdminClient(bootstrap_servers=kafka_servers(kafka_url))
    await admin.start()
    names = [name for name in await admin.list_topics() if topic in name]
    await admin.close()

    assert [topic] == names
    await log.close()
