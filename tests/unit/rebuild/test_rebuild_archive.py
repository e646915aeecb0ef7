"""The archive's tables rebuilt on fakes: equal to the old ones, wherever it is cut, while the archive runs."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pytest

from pipeline.ingest.archive import ArchiveProcessor
from pipeline.rebuild.archive import TABLES, ArchiveRebuild, abandon_archive
from schemas.analytics import ControlRow
from schemas.errors import OperatorNeeded
from schemas.log import EVENTS_TOPIC, Record
from sinks.clickhouse.fake import FakeClickHouse
from tests.unit.rebuild.test_rebuild_live_view import LIMITS, PARTITIONS, REPORTED, Crash, Crashing
from tests.unit.rebuild.test_rebuild_recount import RecountWorld
from tests.worlds.deployment import SECRET


class CrashingStaging(Crashing):
    """As `Crashing`, and so are the stores of the tables beside."""

    def beside(self, tables: Collection[str]) -> Crashing:
        return Crashing(self._inner.beside(tables), self._countdown, after=self._after)


class ArchiveWorld(RecountWorld):
    """A world whose archive runs on, with what it holds in memory."""

    def __init__(self, events: int = 1_200) -> None:
        super().__init__(events)
        self.running: ArchiveProcessor | None = None

    async def archive(self) -> None:
        """The running archive reads to the log's end."""
        for partition, records in (await self.unarchived()).items():
            assert self.running is not None
            await self.running.step(partition, records)

    async def unarchived(self) -> dict[int, Sequence[Record]]:
        if self.running is None:
            self.running = ArchiveProcessor(self.log, self.clickhouse, SECRET)
            for partition in range(PARTITIONS):
                await self.running.start_offset(partition)
        return {partition: await self.records(partition) for partition in range(PARTITIONS)}

    def rebuild_archive(self, countdown: int = 0, *, after: bool = False) -> ArchiveRebuild:
        left = [countdown]
        staged = self.staged(self.command()[1])
        log, staging = Crashing(self.log, left, after=after), CrashingStaging(staged, left, after=after)
        return ArchiveRebuild(log, staging, SECRET, LIMITS, self.progress.append)

    async def assert_archived(self) -> None:
        """The tables are those of an archive that never stopped."""
        await self.archive()
        expected = FakeClickHouse()
        straight = ArchiveProcessor(self.log, expected, SECRET, replay_from_start=True)
        for partition in range(PARTITIONS):
            await straight.start_offset(partition)
            await straight.step(partition, await self.records(partition))
        for view in ("events", "decisions", "control_log", "archived"):
            assert getattr(self.clickhouse, view) == getattr(expected, view), view


def damage(world: ArchiveWorld) -> None:
    """Rows that are missing, wrong, and of events that never were."""
    held = world.clickhouse.events
    for number, key in enumerate(sorted(held)):
        if number % 3 == 0:
            del held[key]
        elif number % 3 == 1:
            held[key] = held[key]._replace(data='{"tokens":1000000}', position=1)
        elif number % 7 == 2:
            held["nobody", key[1]] = held[key]._replace(account="nobody")
    world.clickhouse.control_log[0, 1 << 40] = ControlRow(0, 1 << 40, "close", "acme", 0, "{}")


async def loaded(share: float, events: int = 1_200) -> ArchiveWorld:
    world = ArchiveWorld(events)
    await world.start(REPORTED)
    await world.feed(share)
    await world.work()
    return world


async def test_damaged_archive_is_put_right_while_the_archive_runs_on() -> None:
    """What no record of the log ever said is gone."""
    world = await loaded(0.6)
    damage(world)
    await world.feed(0.2)

    await world.rebuild_archive().run()
    await world.feed(0.2)
    await world.assert_archived()
    assert await world.staging.building(TABLES) is None
    assert {each.partition for each in world.progress if each.swapped} == set(range(PARTITIONS))


async def test_lost_archive_that_refuses_to_start_starts_after_its_rebuild() -> None:
    world = await loaded(0.8)
    world.clickhouse.archived.clear()
    world.clickhouse.events.clear()
    world.running = None

    await world.rebuild_archive().run()
    await world.feed(0.2)
    await world.assert_archived()


async def test_batch_that_the_archive_writes_around_the_exchange_is_kept() -> None:
    """It wrote events into the old table, and decisions and its position after the exchange."""
    world = await loaded(0.2)
    swap = world.staging.swap

    async def traffic_before_and_after(table: str) -> None:
        await world.feed(0.08)
        old = world.clickhouse.events
        await world.archive()
        await swap(table)
        await world.feed(0.08)
        new, world.clickhouse.events = world.clickhouse.events, old
        await world.archive()
        world.clickhouse.events = new if table == "usage_events" else old

    world.staging.swap = traffic_before_and_after  # type: ignore[method-assign]  # a race, made certain

    await world.rebuild_archive().run()
    await world.assert_archived()


@pytest.mark.parametrize("after", [False, True], ids=["before the call", "after the call"])
async def test_crash_at_every_await_is_resumed_while_the_archive_runs_on(after: bool) -> None:
    """Each call of each store and the log in turn is the last one of its process."""
    countdown, crashed = 1, True
    while crashed:
        world = await loaded(0.6, events=100)
        damage(world)
        try:
            await world.rebuild_archive(countdown, after=after).run()
            crashed = False
        except Crash:
            await world.feed(0.2)
            await world.archive()
            await world.rebuild_archive().run()
        assert await world.staging.building(TABLES) is None
        await world.feed(0.2)
        await world.assert_archived()
        countdown += 1
    assert countdown > 50


async def test_log_without_its_start_is_refused_with_the_range() -> None:
    world = await loaded(0.7)
    del world.log._partitions[EVENTS_TOPIC, 1].records[:5]

    with pytest.raises(OperatorNeeded, match=r"offsets 0 to 4 are missing.*from a backup"):
        await world.rebuild_archive().run()
    assert await world.staging.building(TABLES) is None


async def test_given_up_rebuild_leaves_the_live_tables() -> None:
    world = await loaded(0.7)
    with pytest.raises(Crash):
        await world.rebuild_archive(30).run()

    assert await abandon_archive(world.staging)
    assert not await abandon_archive(world.staging)
    await world.assert_archived()


async def test_deferred_events_are_not_judged_by_a_table_that_lacks_what_was_written_around_its_exchange() -> None:
    """The first arrival may be what is missing: the later one would be taken for new, and counted twice."""
    world = await loaded(0.3)
    held = world.clickhouse.events
    swap, seen = world.staging.swap, []

    async def watched(table: str) -> None:
        seen.append(await world.clickhouse.events_rebuilt())
        await swap(table)
        seen.append(await world.clickhouse.events_rebuilt())

    world.staging.swap = watched  # type: ignore[method-assign]  # looks in between
    await world.rebuild_archive().run()

    assert held
    assert seen == [0, *[None] * 7]
    assert await world.clickhouse.events_rebuilt() == 1
