"""Rebuilds of the live view from the log on fakes: equal bytes after any crash, while traffic continues."""

from __future__ import annotations

import copy

import pytest

from aggregators.partitioning import partition_of
from schemas.clock import DAY_MS
from schemas.control import FlushRecord
from schemas.errors import Fenced, OperatorNeeded
from schemas.log import EVENTS_TOPIC, REJECTED_TOPIC, Record
from schemas.reports import Intent
from tests.traffic.generate import account_name
from tests.worlds.crashing import Crash
from tests.worlds.deployment import hourly_relay
from tests.worlds.rebuild import LIMITS, PARTITIONS, REPORTED, RebuildWorld


async def test_rebuilt_view_equals_the_one_it_replaces() -> None:
    """I7: only the generation differs, and the shadow copy's keys are gone."""
    world = await RebuildWorld().loaded(0.6)
    await world.feed(0.3)

    assert await world.rebuild().run() == 2
    await world.assert_equal()
    assert await world.live.rebuilds.rebuilding() is None
    assert not any(world.live.server.built.values())


async def test_nothing_is_published_twice() -> None:
    """Intents and quarantine entries of counted events exist once."""
    world = await RebuildWorld().loaded(0.9)
    intents = await world.identifiers()
    rejected = [await world.of(REJECTED_TOPIC, partition) for partition in range(PARTITIONS)]
    assert intents
    assert any(rejected)

    await world.rebuild().run()
    await world.work()

    assert await world.identifiers() == intents
    assert [await world.of(REJECTED_TOPIC, partition) for partition in range(PARTITIONS)] == rejected


async def test_lost_view_is_rebuilt_with_the_same_intents_and_higher_versions_than_all_relayed_rows() -> None:
    """Redis is empty: the generation comes from usage_hourly, so the cells of open hours win over their older rows."""
    world = await RebuildWorld().loaded(0.5)
    await world.rebuild().run()
    await world.work()
    before = set(await world.identifiers())
    world.live.server.empty()
    await world.feed(0.4)

    assert await world.rebuild().run() == 3
    await world.assert_equal()
    assert before <= set(await world.identifiers())


async def test_copy_from_before_a_rebuild_is_refused_until_it_is_rebuilt() -> None:
    """Its rows would lose against those of the rebuilt view, and the open hours of usage_hourly would not change."""
    world = await RebuildWorld().loaded(0.5)
    older = copy.deepcopy(world.live)
    await world.rebuild().run()
    await world.feed(0.2)
    await world.work()

    world.live = older
    await world.feed(0.2)
    with pytest.raises(OperatorNeeded, match=r"generation 1, .* generation 2 .*tidemark rebuild redis"):
        await world.work()

    assert await world.rebuild().run() == 3
    await world.assert_equal()


async def test_copy_from_before_a_rebuild_is_refused_by_a_worker_that_relayed_before() -> None:
    """The worker may have got the partition back without a restart."""
    world = await RebuildWorld().loaded(0.5)
    older = copy.deepcopy(world.live)
    await world.rebuild().run()
    await world.work()
    relay = hourly_relay(world.live, world.clickhouse)
    await relay.relay(0)

    world.live.server.partitions, world.live.server.live = older.server.partitions, older.server.live
    with pytest.raises(OperatorNeeded, match="rebuild redis"):
        await relay.relay(0)


async def test_running_worker_is_fenced_by_the_swap() -> None:
    """Its next commit changes nothing. After a restart it continues at the new checkpoint."""
    world = await RebuildWorld().loaded(0.5)
    old = await world.fold_all()
    await world.rebuild().run()
    await world.feed(0.3)

    partition = 0
    came = await world.log.read(EVENTS_TOPIC, partition, old.checkpoints[partition].next_offset)
    with pytest.raises(Fenced):
        await old.step(partition, came)
    await world.assert_equal()


async def test_rebuild_overtakes_a_lagging_live_view_and_leaves_later_hours_to_the_worker() -> None:
    """The view is an old copy, or a worker was down for days. The worker folds and relays the rest."""
    world = await RebuildWorld().loaded(0.1)
    stood = {partition: await world.live.state.load_checkpoint(partition) for partition in range(PARTITIONS)}
    await world.feed(0.85)

    await world.rebuild().run()

    for partition in range(PARTITIONS):
        before, stored = stood[partition], world.live.server.partitions[partition]
        assert before is not None
        assert stored.checkpoint is not None
        assert 0 <= stored.checkpoint.next_offset - before.next_offset <= LIMITS.records_max
        assert len({each.bucket_ms for each in stored.dirty}) <= 2
        assert len({each.bucket_ms for each in stored.reports}) <= 2
    await world.assert_equal()


async def test_a_log_that_returns_short_reads_is_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log limits the bytes of a read, so a read of few records is no attempt to swap that failed."""
    world = await RebuildWorld().loaded(0.9)
    read = world.log.read

    async def one_at_a_time(topic: str, partition: int, offset: int, records_max: int = 500) -> list[Record]:
        return await read(topic, partition, offset, min(1, records_max))

    monkeypatch.setattr(world.log, "read", one_at_a_time)
    monkeypatch.setattr("pipeline.rebuild.live_view.SWAP_REFUSALS_MAX", 3)

    assert await world.rebuild().run() == 2
    await world.assert_equal()


async def test_lost_or_wrong_rows_of_usage_hourly_are_written_again() -> None:
    """Every cell since the log began is relayed again, with versions above all older ones."""
    world = await RebuildWorld().loaded(0.9)
    cells = world.clickhouse.cells
    for number, key in enumerate(sorted(cells)):
        if number % 3 == 0:
            del cells[key]
        elif number % 3 == 1:
            cells[key] = cells[key]._replace(value_minor=-1)

    await world.rebuild().run()
    await world.assert_equal()


@pytest.mark.parametrize("after", [False, True], ids=["before the call", "after the call"])
async def test_crash_at_every_await_is_resumed_while_traffic_goes_on(after: bool) -> None:
    """Each call of each store and of the log in turn is the last call of its process."""
    countdown, crashed = 1, True
    while crashed:
        world = await RebuildWorld(100).loaded(0.6)
        try:
            await world.rebuild(countdown, after=after).run()
            crashed = False
        except Crash:
            await world.feed(0.2)
            await world.work()
            await world.rebuild().run()
        await world.feed(0.2)
        await world.assert_equal()
        countdown += 1
    assert countdown > 50


async def test_log_without_its_start_is_refused_with_the_missing_range() -> None:
    """The message states the missing range; the rebuild never guesses."""
    world = await RebuildWorld().loaded(0.7)
    await world.tick()
    del world.log._partitions[EVENTS_TOPIC, 1].records[:5]

    with pytest.raises(
        OperatorNeeded, match=r"usage\.events-1 begins at offset 5 and there is no snapshot.*offsets 0 to 4 back"
    ):
        await world.rebuild().run()
    assert await world.live.rebuilds.rebuilding() is None


async def test_abandoned_rebuild_keeps_the_live_view() -> None:
    """The shadow copy is removed; a later rebuild starts again."""
    world = await RebuildWorld().loaded(0.7)
    with pytest.raises(Crash):
        await world.rebuild(40).run()

    assert await world.rebuild().abandon() == 2
    assert not any(world.live.server.built.values())
    await world.assert_equal()
    assert await world.rebuild().run() >= 2
    await world.assert_equal()


async def _flush_all(world: RebuildWorld, revision: int) -> None:
    """Flush every account of the traffic."""
    for name in map(account_name, range(12)):
        await world.world.control(partition_of(name, PARTITIONS), FlushRecord(account=name, revision=revision))


@pytest.mark.parametrize("is_lost", [False, True], ids=["beside a live view", "of a lost view"])
async def test_rebuild_over_flushes_makes_the_same_intents(is_lost: bool) -> None:
    """Also those of flushes in the open report bucket, a day, which the new view publishes once more."""
    world = RebuildWorld()
    policy = REPORTED.policy.model_copy(update={"report_interval_ms": DAY_MS})
    await world.world.start(REPORTED.model_copy(update={"policy": policy}))
    for revision in range(1, 6):
        await world.feed(0.15)
        await _flush_all(world, revision)
        await world.feed(0.03)
        await world.work()
    before = set(await world.identifiers())
    ends = {Intent.model_validate_json(value or b"").bucket_end_ms for value in before}
    assert len(ends) == 5

    if is_lost:
        world.live.server.empty()
    await world.rebuild().run()
    await world.work()

    assert set(await world.identifiers()) == before
    await world.assert_equal()
    left = [key.bucket_ms for stored in world.live.server.partitions.values() for key in stored.reports]
    assert min(left) >= 0, "each flush was seen"
    await world.feed(0.1)
    world.clock.ms += DAY_MS
    await world.tick()
    await world.work()
    intents = [Intent.model_validate_json(value or b"") for value in set(await world.identifiers())]
    assert len({intent.identifier for intent in intents}) == len(intents) > len(before)
