"""The archive joins the rows of several partitions into one insert; a partition's position waits for its own."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from pipeline.ingest.archive import STEPS_BYTES_MAX, ArchiveProcessor
from pipeline.ingest.joint_inserts import JointInserts
from pipeline.ingest.step_room import StepRoom
from schemas.analytics import EventRow
from schemas.errors import Transient
from schemas.log import EVENTS_TOPIC
from sinks.clickhouse.fake import FakeClickHouse
from tests.conformance.clickhouse_rows import event
from tests.traffic.generate import records
from tests.worlds.deployment import SECRET, World
from tests.worlds.reconciler import METER_SET, START_MS
from tests.worlds.runner import until


class Inserts:
    """Inserts that wait at a gate, and can fail."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.begun: list[list[str]] = []
        self.partitions: list[set[int]] = []
        self.stored: list[str] = []
        self.failure: Exception | None = None

    async def __call__(self, rows: Sequence[EventRow]) -> None:
        self.begun.append([row.id for row in rows])
        self.partitions.append({row.partition for row in rows})
        await self.gate.wait()
        if self.failure:
            raise self.failure
        self.stored += [row.id for row in rows]


def rows_of(*numbers: int) -> list[EventRow]:
    return [event(number, {}) for number in numbers]


async def test_rows_that_arrive_during_an_insert_are_inserted_together() -> None:
    """The first insert waits for nobody; the next one takes all that came meanwhile."""
    inserts = Inserts()
    joint = JointInserts(inserts)

    calls = [asyncio.create_task(joint.insert(rows_of(number, number + 10), 2)) for number in range(4)]
    await until(lambda: bool(inserts.begun))
    assert not any(call.done() for call in calls)
    inserts.gate.set()
    await asyncio.gather(*calls)

    assert inserts.begun == [["e0", "e10"], ["e1", "e11", "e2", "e12", "e3", "e13"]]
    assert inserts.stored == [name for names in inserts.begun for name in names]


async def test_an_insert_has_at_most_the_limit_of_rows() -> None:
    """The limit bounds the memory; one call may exceed it, and the store splits its rows."""
    inserts = Inserts()
    joint = JointInserts(inserts, rows_max=3)
    rows = ([0], [1, 2], [3], [4], [5, 6, 7, 8])

    calls = [asyncio.create_task(joint.insert(rows_of(*numbers), len(numbers))) for numbers in rows]
    await until(lambda: bool(inserts.begun))
    inserts.gate.set()
    await asyncio.gather(*calls)

    assert inserts.begun == [["e0"], ["e1", "e2", "e3"], ["e4"], ["e5", "e6", "e7", "e8"]]


async def test_a_failed_insert_fails_for_all_who_joined_it_and_for_nobody_else() -> None:
    """Nobody may save a position for rows that are perhaps not stored."""
    inserts = Inserts()
    inserts.failure = Transient("gone")
    joint = JointInserts(inserts)
    calls = [asyncio.create_task(joint.insert(rows_of(number), 1)) for number in range(3)]
    await until(lambda: bool(inserts.begun))
    inserts.gate.set()

    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(result) for result in results] == [Transient] * 3
    assert inserts.begun == [["e0"], ["e1", "e2"]]

    inserts.failure = None
    await joint.insert(rows_of(9), 1)
    assert inserts.stored == ["e9"]


async def test_the_rows_of_others_are_stored_if_the_step_that_inserts_is_cancelled() -> None:
    """A stop cancels one step after another."""
    inserts = Inserts()
    joint = JointInserts(inserts)
    first, second, third = (asyncio.create_task(joint.insert(rows_of(number), 1)) for number in range(3))
    await until(lambda: inserts.begun == [["e0"]])
    first.cancel()
    await until(lambda: inserts.begun == [["e0"], ["e1", "e2"]])
    second.cancel()
    inserts.gate.set()

    await third

    assert inserts.begun == [["e0"], ["e1", "e2"], ["e1", "e2"]]
    assert inserts.stored == ["e1", "e2"]


class SlowStore(FakeClickHouse):
    """A ClickHouse whose inserts of events go through `Inserts`."""

    def __init__(self) -> None:
        super().__init__()
        self.inserts = Inserts()

    async def insert_events(self, rows: Sequence[EventRow]) -> None:
        await self.inserts(rows)
        await super().insert_events(rows)


async def archive_of(
    partitions: int, store: SlowStore, steps_bytes_max: int = STEPS_BYTES_MAX
) -> tuple[World, list[asyncio.Task[None]]]:
    """Steps of all partitions that run at once, over a log with events in each."""
    world = World(START_MS, partitions)
    await world.start(METER_SET)
    for record in records(1, 40, 400, START_MS * 1000, partitions=partitions, span_us=1_000_000):
        await world.log.append(EVENTS_TOPIC, record.partition, record.value, key=record.key)
    archive = ArchiveProcessor(world.log, store, SECRET, steps_bytes_max=steps_bytes_max, replay_from_start=True)
    steps = []
    for partition in range(partitions):
        offset = await archive.start_offset(partition)
        log_records = await world.log.read(EVENTS_TOPIC, partition, offset)
        steps.append(asyncio.create_task(archive.step(partition, log_records)))
    return world, steps


async def test_no_partition_saves_its_position_before_the_joint_insert_is_stored() -> None:
    """I2: after a crash the rows must come again."""
    store = SlowStore()
    _world, steps = await archive_of(3, store)
    await until(lambda: bool(store.inserts.begun))
    assert [await store.load_position(partition) for partition in range(3)] == [None] * 3

    store.inserts.failure = Transient("gone")
    store.inserts.gate.set()
    results = await asyncio.gather(*steps, return_exceptions=True)

    assert [type(result) for result in results] == [Transient] * 3
    assert [await store.load_position(partition) for partition in range(3)] == [None] * 3


async def test_joined_partitions_archive_the_same_rows_as_partitions_one_by_one() -> None:
    """The table does not show which insert a row came with."""
    store = SlowStore()
    store.inserts.gate.set()
    world, steps = await archive_of(4, store)
    await asyncio.gather(*steps)
    alone = FakeClickHouse()
    for partition in range(4):
        archive = ArchiveProcessor(world.log, alone, SECRET, replay_from_start=True)
        await archive.step(
            partition, await world.log.read(EVENTS_TOPIC, partition, await archive.start_offset(partition))
        )

    assert store.events == alone.events
    assert [await store.load_position(number) for number in range(4)] == [
        await alone.load_position(number) for number in range(4)
    ]


@pytest.mark.parametrize(
    ("steps_bytes_max", "joined"), [(1, 0), (STEPS_BYTES_MAX, 11)], ids=["no room", "room for all"]
)
async def test_a_process_with_many_partitions_keeps_the_rows_of_few_in_memory(
    steps_bytes_max: int, joined: int
) -> None:
    """Memory must not grow with the number of partitions. A step that is too large for the room runs alone."""
    store = SlowStore()
    _world, steps = await archive_of(12, store, steps_bytes_max)
    await until(lambda: bool(store.inserts.begun))
    for _ in range(100):
        await asyncio.sleep(0)
    store.inserts.gate.set()
    await asyncio.gather(*steps)

    assert [len(partitions) for partitions in store.inserts.partitions[:2]] == [1, joined or 1]
    assert {row.partition for row in store.events.values()} == set(range(12))


async def test_room_goes_to_who_came_first() -> None:
    """A large step must not wait for ever behind small ones."""
    room, begun, gate = StepRoom(10), list[int](), asyncio.Event()

    async def step(size: int) -> None:
        async with room.taken(size):
            begun.append(size)
            await gate.wait()

    steps = [asyncio.create_task(step(size)) for size in (4, 9, 3, 25, 2)]
    for _ in range(20):
        await asyncio.sleep(0)
    assert begun == [4]
    gate.set()
    await asyncio.gather(*steps)

    assert begun == [4, 9, 3, 25, 2]
