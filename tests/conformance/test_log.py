"""One suite for every driver of the log: the fake, the embedded log and a real Kafka broker."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pipeline.logs.embedded import SqliteLog
from pipeline.logs.fake import FakeLog
from pipeline.logs.open import open_log
from schemas.errors import InvalidInput, OperatorNeeded
from schemas.log import Log, TopicSpec
from simulation.services import WatchedLog
from tests.worlds.clock import ManualClock

DRIVERS = ("memory", "simulated", "embedded", "kafka")
START_MS = 1_760_000_000_000
DAY_MS = 86_400_000


class WithoutGaps(random.Random):
    """Numbers the offsets without gaps, as the other drivers do."""

    def random(self) -> float:
        return 1.0


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(START_MS)


@pytest.fixture(params=DRIVERS)
async def log(request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock) -> AsyncIterator[Log]:
    driver: Log
    if request.param == "memory":
        driver = FakeLog(clock)
    elif request.param == "simulated":
        driver = WatchedLog(clock, WithoutGaps())
    elif request.param == "embedded":
        driver = SqliteLog(tmp_path / "log.db", clock)
    else:
        driver = open_log(request.getfixturevalue("kafka_url"), clock)
    await driver.start()
    yield driver
    await driver.close()


@pytest.fixture
async def topic(log: Log) -> str:
    name = f"conformance.{uuid.uuid4().hex}"
    await log.create_topics([TopicSpec(name, partitions=3, retention_ms=DAY_MS, record_bytes_max=1024 * 1024)])
    return name


async def test_appended_records_are_read_back_with_all_their_parts(log: Log, topic: str) -> None:
    """Key, value and headers are the producer's bytes; the log adds topic, partition, offset and time."""
    first = await log.append(topic, 1, b"\x00\xff", key=b"acme", headers=(("kind", b"\xfe"), ("kind", b"2")))
    second = await log.append(topic, 1, b"")

    records = await log.read(topic, 1, 0)

    assert [first, second] == [record.offset for record in records]
    assert records[0][4:] == (b"acme", b"\x00\xff", (("kind", b"\xfe"), ("kind", b"2")))
    assert records[1][4:] == (None, b"", ())
    assert [(topic, 1)] * 2 == [(record.topic, record.partition) for record in records]


async def test_partitions_are_independent(log: Log, topic: str) -> None:
    """Each partition numbers its own records."""
    await log.append(topic, 0, b"a")
    await log.append(topic, 2, b"b")

    assert [record.value for record in await log.read(topic, 0, 0)] == [b"a"]
    assert await log.read(topic, 1, 0) == []
    assert [record.value for record in await log.read(topic, 2, 0)] == [b"b"]


async def test_concurrent_appends_get_distinct_ascending_offsets(log: Log, topic: str) -> None:
    """Batching inside the driver must not swap the callers' offsets."""
    values = [str(number).encode() for number in range(500)]

    offsets = await asyncio.gather(*(log.append(topic, 0, value) for value in values))

    records = await log.read(topic, 0, 0, records_max=1000)
    while len(records) < len(values):
        records += await log.read(topic, 0, records[-1].next_offset)
    assert dict(zip(offsets, values, strict=True)) == {record.offset: record.value for record in records}
    assert sorted(offsets) == [record.offset for record in records]


async def test_reading_continues_from_any_offset_in_slices(log: Log, topic: str) -> None:
    """A reader follows `next_offset` from slice to slice until a slice is empty."""
    for number in range(25):
        await log.append(topic, 0, str(number).encode())
    offset, seen = 5, []

    while records := await log.read(topic, 0, offset, records_max=7):
        assert len(records) <= 7
        seen += [int(record.value or b"") for record in records]
        offset = records[-1].next_offset

    assert list(range(5, 25)) == seen


async def test_reading_back_and_forth_between_partitions_loses_nothing(log: Log, topic: str) -> None:
    """A driver with read-ahead per partition must drop it on a seek."""
    for number in range(10):
        await log.append(topic, number % 2, str(number).encode())

    for _ in range(3):
        assert [record.value for record in await log.read(topic, 0, 0, records_max=2)] == [b"0", b"2"]
        assert [record.value for record in await log.read(topic, 1, 1, records_max=2)] == [b"3", b"5"]
        assert [record.value for record in await log.read(topic, 0, 2, records_max=1)] == [b"4"]


async def test_a_reader_at_the_end_sees_what_is_appended_later(log: Log, topic: str) -> None:
    """The sinks follow the end of the log."""
    await log.append(topic, 0, b"early")
    assert await log.read(topic, 0, 1) == []

    await log.append(topic, 0, b"late")

    assert [record.value for record in await log.read(topic, 0, 1)] == [b"late"]


async def test_bounds_are_first_and_next_offset(log: Log, topic: str) -> None:
    """Half open, as all intervals in the project."""
    assert await log.bounds(topic, 0) == (0, 0)

    await log.append(topic, 0, b"a")
    await log.append(topic, 0, b"b")

    assert await log.bounds(topic, 0) == (0, 2)


async def test_stream_time_never_goes_back(log: Log, topic: str, clock: ManualClock) -> None:
    """I7: stream time decides closing and expiry; a clock that steps back must not reopen anything."""
    await log.append(topic, 0, b"a")
    clock.ms -= 60_000
    await log.append(topic, 0, b"b")
    clock.ms += 120_000
    await log.append(topic, 0, b"c")

    times = [record.timestamp_ms for record in await log.read(topic, 0, 0)]

    assert sorted(times) == times


async def test_creating_topics_twice_changes_nothing(log: Log, topic: str) -> None:
    """Every process creates missing topics at its start."""
    await log.append(topic, 0, b"a")

    await log.create_topics([TopicSpec(topic, partitions=3, retention_ms=1_000)])

    assert await log.partition_count(topic) == 3
    assert str(DAY_MS) == (await log.topic_settings(topic))["retention.ms"]
    assert len(await log.read(topic, 0, 0)) == 1


async def test_another_number_of_partitions_needs_an_operator(log: Log, topic: str) -> None:
    """Otherwise accounts would move to other partitions, away from their state."""
    with pytest.raises(OperatorNeeded, match="3 partitions"):
        await log.create_topics([TopicSpec(topic, partitions=4, retention_ms=DAY_MS)])


async def test_a_topic_has_the_settings_that_the_design_needs(log: Log, topic: str) -> None:
    """`doctor` compares these settings; LogAppendTime is the most important."""
    settings = await log.topic_settings(topic)

    assert settings["message.timestamp.type"] == "LogAppendTime"
    assert str(1024 * 1024) == settings["max.message.bytes"]
    assert settings["min.insync.replicas"] == "1"


async def test_an_unknown_topic_has_no_partitions_and_takes_no_records(log: Log) -> None:
    """A typing mistake must not create a topic."""
    assert await log.partition_count("no.such.topic") == 0
    with pytest.raises(InvalidInput, match="does not exist"):
        await log.append("no.such.topic", 0, b"a")


async def test_an_unknown_partition_is_refused(log: Log, topic: str) -> None:
    """Negative numbers, and numbers past the last partition."""
    for partition in (-1, 3):
        with pytest.raises(InvalidInput, match="does not exist"):
            await log.read(topic, partition, 0)


async def test_a_record_over_the_limit_is_refused_and_its_neighbours_are_not(log: Log, topic: str) -> None:
    """The limit applies before compression, so every driver refuses the same records."""
    large, small = b"0" * (1024 * 1024), b"small"

    results = await asyncio.gather(
        log.append(topic, 0, small), log.append(topic, 0, large), log.append(topic, 0, small), return_exceptions=True
    )

    assert [int, InvalidInput, int] == [type(result) for result in results]
    assert [small, small] == [record.value for record in await log.read(topic, 0, 0)]


async def test_a_record_just_within_the_limit_is_accepted(log: Log, topic: str) -> None:
    """The bytes do not compress, so the record also meets the broker's own limit."""
    value = bytes((number * 2_654_435_761 >> 13) & 0xFF for number in range(1024 * 1024 - 1024))

    offset = await log.append(topic, 0, value)

    assert [value] == [record.value for record in await log.read(topic, 0, offset)]


async def test_a_group_without_commits_has_no_offset(log: Log, topic: str) -> None:
    """None, not 0: a missing hint is no position."""
    assert await log.committed("nobody", topic, 0) is None


async def test_closing_twice_is_safe(log: Log) -> None:
    """A `finally` block may run after an orderly stop."""
    await log.close()
    await log.close()
