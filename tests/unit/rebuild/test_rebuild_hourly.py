"""Rebuilds of `usage_hourly` and `usage_duplicates` on fakes: equal to the old rows after any crash, under traffic."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from pipeline.rebuild.hourly import abandon_hourly
from schemas.errors import OperatorNeeded
from schemas.log import EVENTS_TOPIC, REJECTED_TOPIC, REPORTS_TOPIC
from tests.worlds.crashing import Crash
from tests.worlds.rebuild import PARTITIONS, RebuildWorld, damage_hourly


async def test_rebuilt_rows_equal_the_old_ones_including_their_versions() -> None:
    world = await RebuildWorld().loaded(0.9)
    cells, duplicates = dict(world.clickhouse.cells), dict(world.clickhouse.duplicates)
    assert duplicates

    await world.rebuild_hourly().run()

    assert world.clickhouse.cells == cells
    assert world.clickhouse.duplicates == duplicates
    await world.assert_gone()
    assert {each.partition for each in world.progress if each.swapped} == set(range(PARTITIONS))


async def test_missing_wrong_and_invented_rows_are_repaired() -> None:
    """Rows that no event explains are gone, however high their version is."""
    world = await RebuildWorld().loaded(0.8)
    damage_hourly(world)

    await world.rebuild_hourly().run()
    await world.assert_equal()
    assert not any(key.account == "nobody" for key in world.clickhouse.cells)

    await world.feed(0.2)
    await world.assert_equal()


async def test_nothing_is_published_and_the_live_view_is_unchanged() -> None:
    world = await RebuildWorld().loaded(0.9)

    async def sent() -> list[Sequence[object]]:
        topics = (REPORTS_TOPIC, REJECTED_TOPIC, EVENTS_TOPIC)
        return [await world.of(topic, partition) for topic in topics for partition in range(PARTITIONS)]

    before = await sent()
    checkpoints = [await world.live.state.load_checkpoint(partition) for partition in range(PARTITIONS)]

    await world.rebuild_hourly().run()

    assert await sent() == before
    assert [await world.live.state.load_checkpoint(partition) for partition in range(PARTITIONS)] == checkpoints


@pytest.mark.parametrize("after", [False, True], ids=["before the call", "after the call"])
async def test_crash_at_every_await_is_resumed_while_traffic_goes_on(after: bool) -> None:
    """Each call of each store and of the log in turn is the last call of its process."""
    countdown, crashed = 1, True
    while crashed:
        world = await RebuildWorld(60).loaded(0.6)
        damage_hourly(world)
        try:
            await world.rebuild_hourly(countdown, after=after).run()
            crashed = False
        except Crash:
            await world.feed(0.2)
            await world.work()
            await world.rebuild_hourly().run()
        await world.assert_gone()
        await world.feed(0.2)
        await world.assert_equal()
        countdown += 1
    assert countdown > 50


async def test_rows_that_the_live_relays_write_around_the_exchange_are_kept() -> None:
    """A relay that began before the exchange writes into the old table; the rebuild folds the same rows again."""
    world = await RebuildWorld().loaded(0.4)
    world.work_around_the_exchange()

    await world.rebuild_hourly().run()
    await world.assert_equal()


async def test_rows_of_a_lost_live_view_come_from_the_log_alone() -> None:
    """Redis is empty: rows up to the log's end keep their generation; the live view then gets a higher one."""
    world = await RebuildWorld().loaded(0.6)
    await world.rebuild().run()
    await world.work()
    world.live.server.empty()
    await world.feed(0.2)

    await world.rebuild_hourly().run()
    assert await world.clickhouse.latest_generation() == 2
    assert await world.rebuild().run() == 3
    await world.assert_equal()


async def test_log_without_its_start_is_refused_with_the_missing_range_and_the_other_source() -> None:
    world = await RebuildWorld().loaded(0.7)
    del world.log._partitions[EVENTS_TOPIC, 1].records[:5]

    with pytest.raises(OperatorNeeded, match=r"offsets 0 to 4 are missing.*--from clickhouse"):
        await world.rebuild_hourly().run()
    await world.assert_gone()


class Exchanged(BaseException):
    """The process ended once both tables were exchanged."""


async def exchanged(share: float) -> RebuildWorld:
    """A rebuild that was killed after the exchange and before it caught up."""
    world = await RebuildWorld().loaded(share)
    swap = world.staging.swap

    async def last(table: str) -> None:
        await world.feed(0.1)
        await world.work()
        await swap(table)
        if table == "usage_hourly":
            raise Exchanged

    world.staging.swap = last  # type: ignore[method-assign]  # the process ends here
    with pytest.raises(Exchanged):
        await world.rebuild_hourly().run()
    world.staging.swap = swap  # type: ignore[method-assign]  # the next one
    return world


async def test_exchanged_tables_catch_up_after_the_live_view_was_rebuilt() -> None:
    """The tables have rows of the new live view; the shadow copy of the unfinished rebuild has the older generation."""
    world = await exchanged(0.5)
    assert await world.rebuild().run() == 2
    await world.feed(0.1)
    await world.work()

    await world.rebuild_hourly().run()
    await world.assert_gone()
    await world.assert_equal()


async def test_cleaning_at_the_end_works_without_the_logs_start() -> None:
    """Killed while it cleans, at every step in turn; retention has meanwhile removed the log's start."""
    world = await RebuildWorld(60).loaded(0.7)
    await world.rebuild_hourly().run()
    calls, seen = -world.calls[0], 0

    for countdown in range(calls, 0, -1):
        world = await RebuildWorld(60).loaded(0.7)
        with pytest.raises(Crash):
            await world.rebuild_hourly(countdown, after=True).run()
        building = await world.staging.another().building(("usage_duplicates", "usage_hourly"))
        if building is not None and building.beside > {"usage_hourly"}:
            break
        cells = dict(world.clickhouse.cells)
        await world.rebuild().run()
        for partition in range(PARTITIONS):
            del world.log._partitions[EVENTS_TOPIC, partition].records[:5]

        if building is not None:
            await world.rebuild_hourly().run()
            seen += 1
        await world.assert_gone()
        assert set(world.clickhouse.cells) == set(cells)
    assert seen >= 2 * PARTITIONS


async def test_rebuild_with_a_dropped_table_starts_again() -> None:
    """The shadow copy cannot supply the rows that it has relayed already."""
    world = await RebuildWorld().loaded(0.7)
    with pytest.raises(Crash):
        await world.rebuild_hourly(60).run()
    await world.staging.drop(["usage_hourly"])

    await world.rebuild_hourly().run()
    await world.assert_gone()
    await world.assert_equal()


async def test_abandoned_rebuild_keeps_the_live_rows() -> None:
    world = await RebuildWorld().loaded(0.7)
    cells = dict(world.clickhouse.cells)
    with pytest.raises(Crash):
        await world.rebuild_hourly(60).run()

    assert await abandon_hourly(world.staging, world.shadow_copy, PARTITIONS)
    assert world.clickhouse.cells == cells
    await world.assert_gone()
    assert not await abandon_hourly(world.staging, world.shadow_copy, PARTITIONS)
    await world.rebuild_hourly().run()
    await world.assert_equal()
