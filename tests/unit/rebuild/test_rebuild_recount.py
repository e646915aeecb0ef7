"""Recounts of `usage_hourly` from `usage_events` on fakes: equal to the relayed rows after any crash."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

import pytest

from pipeline.rebuild.hourly import abandon_hourly
from schemas.analytics import HourlyRow, RecountRequest
from schemas.control import ControlKind
from schemas.errors import OperatorNeeded, Transient
from schemas.log import EVENTS_TOPIC
from schemas.rebuild import AnalyticalStore
from sinks.clickhouse.table_marks import Mark
from tests.worlds.crashing import Crash
from tests.worlds.rebuild import DAMAGED_MINOR, PARTITIONS, Archive, RebuildWorld, damage_hourly


async def loaded(share: float, events: int = 1_200) -> RebuildWorld:
    return await RebuildWorld(events, Archive.RESTARTED).loaded(share)


async def test_recounted_rows_equal_the_relayed_ones_including_their_versions() -> None:
    world = await loaded(0.9)
    cells = dict(world.clickhouse.cells)

    await world.recount().run()

    assert world.clickhouse.cells == cells
    await world.assert_gone()


async def test_log_without_its_start_is_no_obstacle_and_damage_is_repaired() -> None:
    world = await loaded(0.8)
    damage_hourly(world)
    for partition in range(PARTITIONS):
        del world.log._partitions[EVENTS_TOPIC, partition].records[:5]
    expected = {key.account for key in world.clickhouse.cells} - {"nobody"}

    await world.recount().run()

    assert {key.account for key in world.clickhouse.cells} == expected
    assert all(row.value_minor != DAMAGED_MINOR for row in world.clickhouse.cells.values())


async def test_chunk_that_was_stored_in_part_is_recounted() -> None:
    """An INSERT is atomic within one month only: after a kill, the last account may lack its earlier rows."""
    world = await loaded(0.9)
    cells = dict(world.clickhouse.cells)
    staging_store, inserts = world.staging.beside, [0]

    def cut(tables: Collection[str]) -> AnalyticalStore:
        store = staging_store(tables)
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
    world.staging.beside = staging_store  # type: ignore[method-assign]  # started again

    await world.recount().run()
    assert world.clickhouse.cells == cells


@pytest.mark.parametrize("after", [False, True], ids=["before the call", "after the call"])
async def test_crash_at_every_await_is_resumed_while_traffic_goes_on(after: bool) -> None:
    """Each call of each store and of the log in turn is the last call of its process."""
    countdown, crashed = 1, True
    while crashed:
        world = await loaded(0.6, events=60)
        damage_hourly(world)
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
        # The recount has no later arrivals: they come from the log.
        await world.rebuild_hourly().run()
        await world.assert_equal()
        countdown += 1
    assert countdown > 30


async def test_rows_that_the_live_relays_write_around_the_exchange_are_kept() -> None:
    """Rows that were relayed into the old table are carried over and recounted."""
    world = await loaded(0.4)
    world.work_around_the_exchange()

    await world.recount().run()
    await world.assert_equal()


async def test_archive_that_lost_events_is_refused_with_the_missing_range() -> None:
    """A recount needs every event; the command never guesses."""
    world = await loaded(0.9)
    lost = [key for key, row in world.clickhouse.events.items() if row.partition == 1][:3]
    for key in lost:
        del world.clickhouse.events[key]

    with pytest.raises(OperatorNeeded, match=r"partition 1: the live view counted \d+ events at offsets 0 to \d+"):
        await world.recount().run()
    await world.assert_gone()


async def test_archive_without_its_meter_set_is_refused() -> None:
    world = await loaded(0.9)
    for key, row in list(world.clickhouse.control_log.items()):
        if row.kind == ControlKind.METER_SET:
            del world.clickhouse.control_log[key]

    with pytest.raises(OperatorNeeded, match="control_log holds no meter set with the meter"):
        await world.recount().run()


async def stopped_after_its_exchange(world: RebuildWorld) -> None:
    """A rebuild of the archive that was killed before usage_events caught up with the writes around its exchange."""
    swap = world.staging.swap

    async def last(table: str) -> None:
        await world.feed(0.1)
        await world.work()
        await swap(table)
        raise Crash

    world.staging.swap = last  # type: ignore[method-assign]  # the process ends here
    with pytest.raises(Crash):
        await world.rebuild_archive().run()
    world.staging.swap = swap  # type: ignore[method-assign]  # the next one


async def test_exchanged_archive_that_has_not_caught_up_is_not_recounted() -> None:
    """Neither at the start of a recount nor when a recount resumes."""
    world = await loaded(0.6)
    with pytest.raises(Crash):
        await world.recount(20).run()
    await stopped_after_its_exchange(world)

    with pytest.raises(Transient, match="finish `tidemark rebuild archive`"):
        await world.recount().run()
    await world.rebuild_archive().run()
    await world.recount().run()
    await world.assert_gone()
    await world.assert_equal()


async def test_archive_that_is_rebuilt_during_a_recount_is_recounted_from_the_start() -> None:
    """Counts of the old archive may be wrong; none of them is swapped in."""
    world = await loaded(0.7)
    for key, row in world.clickhouse.events.items():
        world.clickhouse.events[key] = row._replace(data=re.sub(r'"tokens":\d', '"tokens":99', row.data))
    with pytest.raises(Crash):
        await world.recount(20).run()

    await world.rebuild_archive().run()
    await world.recount().run()
    await world.assert_gone()
    await world.assert_equal()


@pytest.mark.parametrize("beginning", [True, False])
async def test_recount_that_reads_an_archive_during_its_exchange_is_not_swapped_in(beginning: bool) -> None:
    """The rebuild of the archive has no claim, as in an older version."""
    world = await loaded(0.7)
    rows = world.clickhouse.recount_rows
    command = world.recount()

    async def exchanged(request: RecountRequest, generation: int) -> Sequence[HourlyRow]:
        if beginning or world.staging._marks["usage_hourly"].number:
            world.staging._marks["usage_events"] = Mark(7, "")
            world.clickhouse.rebuilt = 7
        return await rows(request, generation)

    world.clickhouse.recount_rows = exchanged  # type: ignore[method-assign]  # a race, made certain
    with pytest.raises(Transient, match="it counts anew"):
        await command.run()
    world.clickhouse.recount_rows = rows  # type: ignore[method-assign]  # as it was
    await world.recount().run()
    await world.assert_gone()
    await world.assert_equal()


async def test_recount_needs_a_live_view_and_an_archive_that_has_caught_up() -> None:
    world = await loaded(0.5)
    await world.feed(0.1)
    await world.fold_and_relay()
    with pytest.raises(Transient, match="behind the rollup"):
        await world.recount().run()

    world.live.server.empty()
    with pytest.raises(OperatorNeeded, match="has no live view"):
        await world.recount().run()
    await world.assert_gone()


async def test_rebuild_is_not_finished_from_another_source() -> None:
    world = await loaded(0.9)
    with pytest.raises(Crash):
        await world.recount(15).run()

    with pytest.raises(OperatorNeeded, match="from clickhouse was begun and is not finished"):
        await world.rebuild_hourly().run()
    assert await abandon_hourly(world.staging, world.shadow_copy, PARTITIONS)
    await world.rebuild_hourly().run()
    await world.assert_equal()
