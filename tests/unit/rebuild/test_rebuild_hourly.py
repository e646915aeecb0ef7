"""`usage_hourly` and `usage_duplicates` rebuilt on fakes: equal to the old ones, wherever it is cut, under traffic."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from pipeline.rebuild.hourly import HourlyRebuild, abandon_hourly
from schemas.analytics import DuplicateRow
from schemas.errors import OperatorNeeded
from schemas.log import EVENTS_TOPIC, REJECTED_TOPIC, REPORTS_TOPIC
from schemas.rebuild import Progress, RebuildClaim
from sinks.clickhouse.claimed import ClaimedStore
from sinks.clickhouse.fake_staging import FakeStaging
from sinks.redis.fake import FakeLiveView
from sinks.redis.fake_state import HeldPartition
from tests.unit.rebuild.test_rebuild_live_view import LIMITS, PARTITIONS, REPORTED, Crash, Crashing, Rebuilt
from tests.worlds.deployment import SECRET


class HourlyWorld(Rebuilt):
    """A world whose ClickHouse can hold tables beside its own, and whose Redis shadow copy copies by name."""

    def __init__(self, events: int = 1_200) -> None:
        super().__init__(events)
        self.staging = FakeStaging(self.clickhouse)
        self.scratches: dict[str, FakeLiveView] = {}
        self.progress: list[Progress] = []
        self.calls = [0]
        self.at_once = False

    def shadow_copy(self, name: str) -> FakeLiveView:
        return self.scratches.setdefault(name, FakeLiveView())

    def staged(self, claim: RebuildClaim) -> FakeStaging:
        """The tables as the rebuild command that is started now has them. Those of earlier ones have it too, as long
        as they do not run at once."""
        if self.at_once:
            return self.staging.another(claim)
        self.staging.claim(claim)
        return self.staging

    def rebuild_hourly(self, countdown: int = 0, *, after: bool = False) -> HourlyRebuild:
        left = self.calls = [countdown]
        claimed, claim = self.command()

        def shadow_copy(name: str) -> Crashing:
            return Crashing(self.shadow_copy(name).another(claimed.server.claim), left, after=after)

        log, live, hourly, staging = (
            Crashing(each, left, after=after)
            for each in (self.log, claimed, ClaimedStore(self.clickhouse, claim), self.staged(claim))
        )
        return HourlyRebuild(
            log, live, shadow_copy, hourly, staging, self.clock, SECRET, LIMITS, self.progress.append
        )  # fmt: skip

    async def assert_gone(self) -> None:
        """Nothing of the rebuild is left anywhere."""
        assert await self.staging.another().building(("usage_duplicates", "usage_hourly")) is None
        left = [held for store in self.scratches.values() for held in store.server.partitions.values()]
        assert all(held == HeldPartition() for held in left)


async def loaded(share: float, events: int = 1_200) -> HourlyWorld:
    world = HourlyWorld(events)
    await world.start(REPORTED)
    await world.feed(share)
    await world.work()
    return world


def damage(world: HourlyWorld) -> None:
    """Rows that are missing, wrong, and of events that never were."""
    held = world.clickhouse.cells
    for number, key in enumerate(sorted(held)):
        if number % 3 == 0:
            del held[key]
        elif number % 3 == 1:
            held[key] = held[key]._replace(value_minor=-1)
        elif number % 7 == 2:
            held[key._replace(account="nobody")] = held[key]._replace(account="nobody", version=(1 << 56) | 1)
    world.clickhouse.duplicates.clear()
    world.clickhouse.duplicates[0, 1] = DuplicateRow("nobody", "x", "t", "s", 0, "{}", 0, 1, 0)


async def test_rebuilt_rows_equal_the_old_ones_to_their_versions() -> None:
    world = await loaded(0.9)
    cells, duplicates = dict(world.clickhouse.cells), dict(world.clickhouse.duplicates)
    assert duplicates

    await world.rebuild_hourly().run()

    assert world.clickhouse.cells == cells
    assert world.clickhouse.duplicates == duplicates
    await world.assert_gone()
    assert {each.partition for each in world.progress if each.swapped} == set(range(PARTITIONS))


async def test_missing_wrong_and_invented_rows_are_put_right() -> None:
    """What no event ever made is gone, however high its version."""
    world = await loaded(0.8)
    damage(world)

    await world.rebuild_hourly().run()
    await world.assert_equal()
    assert not any(key.account == "nobody" for key in world.clickhouse.cells)

    await world.feed(0.2)
    await world.assert_equal()


async def test_nothing_goes_outside_and_the_live_view_stays_as_it_is() -> None:
    world = await loaded(0.9)

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
    """Each call of each store and the log in turn is the last one of its process."""
    countdown, crashed = 1, True
    while crashed:
        world = await loaded(0.6, events=60)
        damage(world)
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
    """A relay that had begun before the exchange writes into the old table; the fold makes its rows again."""
    world = await loaded(0.4)
    swap = world.staging.swap

    async def traffic_before_and_after(table: str) -> None:
        await world.feed(0.1)
        await world.work()
        await swap(table)
        await world.feed(0.1)
        await world.work()

    world.staging.swap = traffic_before_and_after  # type: ignore[method-assign]  # a race, made certain

    await world.rebuild_hourly().run()
    await world.assert_equal()


async def test_rows_of_a_lost_live_view_come_from_the_log_alone() -> None:
    """Redis is empty: to the log's end, in the generation that the rows had; the live view is rebuilt above it."""
    world = await loaded(0.6)
    await world.rebuild().run()
    await world.work()
    world.live.server.empty()
    await world.feed(0.2)

    await world.rebuild_hourly().run()
    assert await world.clickhouse.latest_generation() == 2
    assert await world.rebuild().run() == 3
    await world.assert_equal()


async def test_log_without_its_start_is_refused_with_the_range_and_the_other_source() -> None:
    world = await loaded(0.7)
    del world.log._partitions[EVENTS_TOPIC, 1].records[:5]

    with pytest.raises(OperatorNeeded, match=r"offsets 0 to 4 are missing.*--from clickhouse"):
        await world.rebuild_hourly().run()
    await world.assert_gone()


class Exchanged(BaseException):
    """The process ended once both tables were exchanged."""


async def exchanged(share: float) -> HourlyWorld:
    """A rebuild that was killed after the exchange, before it caught up."""
    world = await loaded(share)
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


async def test_exchanged_tables_are_caught_up_with_after_the_live_view_was_rebuilt() -> None:
    """Rows of its generation are there; the shadow copy is of the old one, but no old copy of the live view."""
    world = await exchanged(0.5)
    assert await world.rebuild().run() == 2
    await world.feed(0.1)
    await world.work()

    await world.rebuild_hourly().run()
    await world.assert_gone()
    await world.assert_equal()


async def test_cleaning_at_the_end_needs_the_logs_start_no_more() -> None:
    """Killed while it cleans, at every step in turn; and by then retention has cut the log."""
    world = await loaded(0.7, events=60)
    await world.rebuild_hourly().run()
    calls, seen = -world.calls[0], 0

    for countdown in range(calls, 0, -1):
        world = await loaded(0.7, events=60)
        with pytest.raises(Crash):
            await world.rebuild_hourly(countdown, after=True).run()
        found = await world.staging.another().building(("usage_duplicates", "usage_hourly"))
        if found is not None and found.beside > {"usage_hourly"}:
            break
        cells = dict(world.clickhouse.cells)
        await world.rebuild().run()
        for partition in range(PARTITIONS):
            del world.log._partitions[EVENTS_TOPIC, partition].records[:5]

        if found is not None:
            await world.rebuild_hourly().run()
            seen += 1
        await world.assert_gone()
        assert set(world.clickhouse.cells) == set(cells)
    assert seen >= 2 * PARTITIONS


async def test_rebuild_of_which_a_table_was_dropped_is_begun_anew() -> None:
    """Its shadow copy has no more to say of the rows that it was relayed of."""
    world = await loaded(0.7)
    with pytest.raises(Crash):
        await world.rebuild_hourly(60).run()
    await world.staging.drop(["usage_hourly"])

    await world.rebuild_hourly().run()
    await world.assert_gone()
    await world.assert_equal()


async def test_given_up_rebuild_leaves_the_live_rows() -> None:
    world = await loaded(0.7)
    cells = dict(world.clickhouse.cells)
    with pytest.raises(Crash):
        await world.rebuild_hourly(60).run()

    assert await abandon_hourly(world.staging, world.shadow_copy, PARTITIONS)
    assert world.clickhouse.cells == cells
    await world.assert_gone()
    assert not await abandon_hourly(world.staging, world.shadow_copy, PARTITIONS)
    await world.rebuild_hourly().run()
    await world.assert_equal()
