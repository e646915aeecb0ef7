"""`usage_hourly` counted again out of `usage_events` on twins: the rows that the fold drained, wherever it is cut."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pytest

from pipeline.processors.archive import ArchiveProcessor
from pipeline.rebuild.hourly import HourlyRebuild, abandon_hourly
from pipeline.rebuild.recount import HourlyRecount
from schemas.analytics import HourlyRow
from schemas.control import ControlKind
from schemas.errors import OperatorNeeded, Transient
from schemas.log import EVENTS_TOPIC
from schemas.rebuild import Building
from sinks.clickhouse.memory import MemoryClickHouse
from tests.unit.test_rebuild_hourly import HourlyWorld, damage
from tests.unit.test_rebuild_live_view import PARTITIONS, REPORTED, Crash, Crashing
from tests.worlds import SECRET


class RecountWorld(HourlyWorld):
    """A world with an archive as well."""

    async def work(self) -> None:
        await super().work()
        await self.archive()

    async def archive(self) -> None:
        archive = ArchiveProcessor(self.log, self.clickhouse, SECRET)
        for partition in range(PARTITIONS):
            offset = await archive.start_offset(partition)
            while batch := await self.log.read(EVENTS_TOPIC, partition, offset):
                await archive.step(partition, batch)
                offset = batch[-1].next_offset

    def recount(self, countdown: int = 0, *, after: bool = False) -> HourlyRecount:
        left = [countdown]
        log, live, clickhouse, staging = (
            Crashing(each, left, after=after) for each in (self.log, self.live, self.clickhouse, self.staging)
        )
        return HourlyRecount(
            log, live, clickhouse, clickhouse, staging, self.clock, SECRET, 3, self.progress.append
        )  # fmt: skip


async def loaded(share: float, events: int = 1_200) -> RecountWorld:
    world = RecountWorld(events)
    await world.start(REPORTED)
    await world.feed(share)
    await world.work()
    return world


async def test_counted_rows_equal_the_drained_ones_to_their_versions() -> None:
    world = await loaded(0.9)
    cells = dict(world.clickhouse.cells)

    await world.recount().run()

    assert world.clickhouse.cells == cells
    await world.assert_gone()


async def test_log_without_its_start_is_no_hindrance_and_damage_is_put_right() -> None:
    world = await loaded(0.8)
    damage(world)
    for partition in range(PARTITIONS):
        del world.log._partitions[EVENTS_TOPIC, partition].records[:5]
    expected = {key.account for key in world.clickhouse.cells} - {"nobody"}

    await world.recount().run()

    assert {key.account for key in world.clickhouse.cells} == expected
    assert all(row.value_minor >= 0 for row in world.clickhouse.cells.values())


async def test_chunk_of_which_one_month_was_stored_is_counted_again() -> None:
    """An INSERT is whole within one month only: killed in it, the last account may stand without its earlier rows."""
    world = await loaded(0.9)
    cells = dict(world.clickhouse.cells)
    beside, inserts = world.staging.beside, [0]

    def cut(tables: Collection[str]) -> MemoryClickHouse:
        store = beside(tables)
        insert = store.insert_hourly

        async def one_month(rows: Sequence[HourlyRow]) -> None:
            inserts[0] += 1
            if inserts[0] == 2:
                latest = max(row.arrival_bucket_ms for row in rows)
                await insert([row for row in rows if row.arrival_bucket_ms == latest])
                raise Crash
            await insert(rows)

        store.insert_hourly = one_month  # type: ignore[method-assign]  # a server that ends
        return store

    world.staging.beside = cut  # type: ignore[method-assign]  # as above
    with pytest.raises(Crash):
        await world.recount().run()
    world.staging.beside = beside  # type: ignore[method-assign]  # started again

    await world.recount().run()
    assert world.clickhouse.cells == cells


@pytest.mark.parametrize(("source", "calls"), [("log", 60), ("clickhouse", 20)])
async def test_second_of_two_that_find_nothing_begun_goes_on_by_the_firsts_note(source: str, calls: int) -> None:
    """What the first has counted belongs to the fences it noted, and so does what is still to be counted."""
    world = await loaded(0.5)
    made = world.recount if source == "clickhouse" else world.rebuild_hourly
    building = world.staging.building

    async def second(tables: Sequence[str]) -> Building | None:
        world.staging.building = building  # type: ignore[method-assign]  # once
        found = await building(tables)
        with pytest.raises(Crash):
            await made(calls).run()
        await world.feed(0.2)
        await world.work()
        return found

    world.staging.building = second  # type: ignore[method-assign]  # a race, made certain
    await made().run()
    await world.assert_gone()
    assert len(world.scratches) <= 1
    await world.assert_equal()


@pytest.mark.parametrize("after", [False, True], ids=["before the call", "after the call"])
async def test_crash_at_every_await_is_resumed_while_traffic_goes_on(after: bool) -> None:
    """Each call of each store and the log in turn is the last one of its process."""
    countdown, crashed = 1, True
    while crashed:
        world = await loaded(0.6, events=60)
        damage(world)
        duplicates = world.clickhouse.duplicates
        duplicates.clear()
        try:
            await world.recount(countdown, after=after).run()
            crashed = False
        except Crash:
            await world.feed(0.2)
            await world.work()
            await world.recount().run()
        await world.assert_gone()
        await world.feed(0.2)
        await world.work()
        # Later arrivals are no part of it: they come from the log.
        await HourlyRebuild(
            world.log, world.live, world.scratch, world.clickhouse, world.staging, world.clock, SECRET
        ).run()  # fmt: skip
        await world.assert_equal()
        countdown += 1
    assert countdown > 30


async def test_rows_that_the_live_drains_write_around_the_exchange_are_kept() -> None:
    """What was drained into the old table is brought over, and counted once more."""
    world = await loaded(0.4)
    swap = world.staging.swap

    async def traffic_before_and_after(table: str) -> None:
        await world.feed(0.1)
        await world.work()
        await swap(table)
        await world.feed(0.1)
        await world.work()

    world.staging.swap = traffic_before_and_after  # type: ignore[method-assign]  # a race, made certain

    await world.recount().run()
    await world.assert_equal()


async def test_archive_that_lost_events_is_refused_with_the_range() -> None:
    """Never guess: what the archive does not hold cannot be counted out of it."""
    world = await loaded(0.9)
    lost = [key for key, row in world.clickhouse.events.items() if row.partition == 1][:3]
    for key in lost:
        del world.clickhouse.events[key]

    with pytest.raises(OperatorNeeded, match=r"partition 1: the live view counted \d+ events at offsets 0 to \d+"):
        await world.recount().run()
    await world.assert_gone()


async def test_archive_without_its_catalog_is_refused() -> None:
    world = await loaded(0.9)
    for key, row in list(world.clickhouse.control_log.items()):
        if row.kind == ControlKind.CATALOG:
            del world.clickhouse.control_log[key]

    with pytest.raises(OperatorNeeded, match="control_log holds no catalog with the meter"):
        await world.recount().run()


async def test_without_a_live_view_or_with_the_archive_behind_nothing_is_begun() -> None:
    world = await loaded(0.5)
    await world.feed(0.1)
    await super(RecountWorld, world).work()
    with pytest.raises(Transient, match="behind the rollup"):
        await world.recount().run()

    world.live.empty()
    with pytest.raises(OperatorNeeded, match="has no live view"):
        await world.recount().run()
    await world.assert_gone()


async def test_rebuild_of_one_source_is_not_finished_from_the_other() -> None:
    world = await loaded(0.9)
    with pytest.raises(Crash):
        await world.recount(15).run()

    with pytest.raises(OperatorNeeded, match="from clickhouse was begun and is not finished"):
        await world.rebuild_hourly().run()
    assert await abandon_hourly(world.staging, world.scratch, PARTITIONS)
    await world.rebuild_hourly().run()
    await world.assert_equal()
