"""Rebuilds of the archive's tables on fakes: equal to the old tables after any crash, while the archive runs."""

from __future__ import annotations

import pytest

from pipeline.rebuild.archive import TABLES, abandon_archive
from schemas.analytics import ControlRow
from schemas.errors import OperatorNeeded
from schemas.log import EVENTS_TOPIC
from tests.worlds.crashing import Crash
from tests.worlds.rebuild import PARTITIONS, Archive, RebuildWorld


def damage(world: RebuildWorld) -> None:
    """Removes rows, alters rows, and adds rows of events that never existed."""
    events = world.clickhouse.events
    for number, key in enumerate(sorted(events)):
        if number % 3 == 0:
            del events[key]
        elif number % 3 == 1:
            events[key] = events[key]._replace(data='{"tokens":1000000}', position=1)
        elif number % 7 == 2:
            events["nobody", key[1]] = events[key]._replace(account="nobody")
    world.clickhouse.control_log[0, 1 << 40] = ControlRow(0, 1 << 40, "close", "acme", 0, "{}")


async def loaded(share: float, events: int = 1_200) -> RebuildWorld:
    return await RebuildWorld(events, Archive.RUNS_ON).loaded(share)


async def test_damaged_archive_is_repaired_while_the_archive_runs() -> None:
    """Rows that no record of the log explains are gone."""
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
    """The archive wrote events before the exchange, and decisions and its position after the exchange."""
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
    # The archive's position is behind until its next write. A partition may have had no traffic after the exchange.
    await world.tick()
    await world.assert_archived()


@pytest.mark.parametrize("after", [False, True], ids=["before the call", "after the call"])
async def test_crash_at_every_await_is_resumed_while_the_archive_runs(after: bool) -> None:
    """Each call of each store and of the log in turn is the last call of its process."""
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


async def test_log_without_its_start_is_refused_with_the_missing_range() -> None:
    world = await loaded(0.7)
    del world.log._partitions[EVENTS_TOPIC, 1].records[:5]

    with pytest.raises(OperatorNeeded, match=r"offsets 0 to 4 are missing.*from a backup"):
        await world.rebuild_archive().run()
    assert await world.staging.building(TABLES) is None


async def test_abandoned_rebuild_keeps_the_live_tables() -> None:
    world = await loaded(0.7)
    with pytest.raises(Crash):
        await world.rebuild_archive(30).run()

    assert await abandon_archive(world.staging)
    assert not await abandon_archive(world.staging)
    await world.assert_archived()


async def test_deferred_events_are_not_judged_by_a_table_that_lacks_writes_around_its_exchange() -> None:
    """The table may lack the first arrival: the later one would seem new and count twice."""
    world = await loaded(0.3)
    events = world.clickhouse.events
    swap, seen = world.staging.swap, []

    async def watched(table: str) -> None:
        seen.append(await world.clickhouse.events_rebuilt())
        await swap(table)
        seen.append(await world.clickhouse.events_rebuilt())

    world.staging.swap = watched  # type: ignore[method-assign]  # looks in between
    await world.rebuild_archive().run()

    assert events
    assert seen == [0, *[None] * 7]
    assert await world.clickhouse.events_rebuilt() == 1
