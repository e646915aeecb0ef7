"""Snapshots on fakes: a live view rebuilt from a snapshot equals the old one, and a failed snapshot stops nothing."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from pipeline.logs.control_records import find_genesis, tick
from pipeline.roles.worker import check_replay
from pipeline.rollup import snapshots as snapshots_module
from pipeline.rollup.snapshots import KEPT_MAX, Snapshots, checkpoint_of
from schemas.clock import HOUR_MS, MINUTE_MS
from schemas.errors import OperatorNeeded, Transient
from schemas.log import EVENTS_TOPIC, REJECTED_TOPIC
from schemas.rollup import Checkpoint
from schemas.snapshots import Snapshot
from sinks.clickhouse.fake_snapshots import FakeSnapshots
from tests.worlds.crashing import Crash
from tests.worlds.deployment import SECRET
from tests.worlds.rebuild import PARTITIONS
from tests.worlds.snapshots import SnapshotWorld


async def loaded(folder: Path, share: float, events: int = 1_200) -> SnapshotWorld:
    return await SnapshotWorld(folder, events).loaded(share)


async def test_lost_view_whose_logs_start_is_gone_is_rebuilt_from_the_snapshot(tmp_path: Path) -> None:
    """To the same bytes: a duplicate is still a duplicate, and nothing is rejected twice."""
    world = await loaded(tmp_path, 0.9)
    await world.remember()
    await world.trim()
    world.live.server.empty()

    assert await world.restoring().run() >= 2
    await world.assert_same()


async def test_existing_view_is_replaced_and_nothing_is_published_again(tmp_path: Path) -> None:
    world = await loaded(tmp_path, 0.9)
    await world.remember()
    await world.trim()
    intents = await world.identifiers()
    rejected = [await world.of(REJECTED_TOPIC, partition) for partition in range(PARTITIONS)]

    await world.restoring().run()

    await world.assert_same()
    assert await world.identifiers() == intents
    assert [await world.of(REJECTED_TOPIC, partition) for partition in range(PARTITIONS)] == rejected


async def test_snapshot_can_be_requested_even_if_the_log_is_whole(tmp_path: Path) -> None:
    """A snapshot is faster, and the use proves that snapshots work before they are needed."""
    world = await loaded(tmp_path, 0.9)
    read: list[int] = []
    log_read = world.log.read

    async def noted(topic: str, partition: int, offset: int, records_max: int = 500) -> object:
        read.append(offset)
        return await log_read(topic, partition, offset, records_max)

    first = {each: (await world.kept.snapshots(each))[0].next_offset for each in range(PARTITIONS)}
    world.log.read = noted  # type: ignore[method-assign,assignment]  # looks at what is read
    await world.restoring(explicit=True).run()
    world.log.read = log_read  # type: ignore[method-assign]  # as it was

    assert min(each for each in read if each) >= min(first.values())
    await world.assert_equal()


@pytest.mark.parametrize("explicit", [True, False], ids=["from snapshot", "from log"])
@pytest.mark.parametrize("after", [False, True], ids=["before the call", "after the call"])
async def test_crash_at_every_await_of_a_restore_is_resumed(tmp_path: Path, after: bool, explicit: bool) -> None:
    """A newer snapshot may exist at the resumption, or a fold from the start may follow: no partial data stays."""
    countdown, crashed = 1, True
    while crashed:
        world = await loaded(tmp_path, 0.6, events=60)
        try:
            await world.restoring(countdown, after=after, explicit=True).run()
            crashed = False
        except Crash:
            await world.feed(0.2)
            await world.work()
            await world.restoring(explicit=explicit).run()
        await world.feed(0.2)
        await world.assert_equal()
        countdown += 1
    assert countdown > 40


async def test_range_that_neither_log_nor_snapshot_contains_is_reported(tmp_path: Path) -> None:
    world = await loaded(tmp_path, 0.9)
    await world.remember()
    newest = (await world.kept.snapshots(1))[0].next_offset
    # A tick after the deleted range identifies the log.
    genesis = await find_genesis(world.log, SECRET, 0)
    assert genesis is not None
    for _ in range(2):
        await tick(world.log, SECRET, genesis)
    del world.log._partitions[EVENTS_TOPIC, 1].records[: newest + 2]

    expected = rf"newest snapshot stands at offset {newest}.*offsets {newest} to {newest + 1} back"
    with pytest.raises(OperatorNeeded, match=expected):
        await world.restoring().run()
    assert await world.live.rebuilds.rebuilding() is None


async def test_snapshots_of_another_log_are_not_used(tmp_path: Path) -> None:
    world = await loaded(tmp_path, 0.9)
    world.kept.heads = {key: head._replace(log_id="other") for key, head in world.kept.heads.items()}

    with pytest.raises(OperatorNeeded, match="has no snapshot of this log and secret"):
        await world.restoring(explicit=True).run()


async def test_only_the_newest_are_kept_one_for_each_interval(tmp_path: Path) -> None:
    world = await loaded(tmp_path, 0.9)

    for partition in range(PARTITIONS):
        snapshots = await world.kept.snapshots(partition)
        assert len(snapshots) == KEPT_MAX
        times = [each.stream_time_ms for each in snapshots]
        assert all(later - earlier >= HOUR_MS for later, earlier in itertools.pairwise(times))
        assert all(checkpoint_of(each).counters.conserved for each in snapshots)
    assert set(world.notes) == {"written"}


async def test_failure_stops_nothing_and_is_retried_later(tmp_path: Path) -> None:
    """ClickHouse is down, or the disk is full: counting continues."""
    world = SnapshotWorld(tmp_path)
    insert = world.kept.insert_chunks

    async def away(at: Snapshot, first_number: int, chunks: Sequence[str]) -> None:
        raise Transient("away")

    world.kept.insert_chunks = away  # type: ignore[method-assign]  # a fault
    await world.start()
    await world.feed(0.5)
    await world.work()
    assert set(world.notes) == {"failed"}
    assert not await world.kept.snapshots(0)
    world.snapshots._folder = str(tmp_path / "missing")
    await world.feed(0.1)
    await world.work()

    world.kept.insert_chunks = insert  # type: ignore[method-assign]  # it is back
    world.snapshots._folder = str(tmp_path)
    world.clock.ms += 20 * MINUTE_MS
    await world.feed(0.3)
    await world.work()
    assert world.notes[-1] == "written"
    await world.assert_equal()


async def test_large_chunks_are_written_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker's memory for one insert is bounded in bytes too."""
    monkeypatch.setattr(snapshots_module, "BYTES_AT_ONCE", 10)
    world = SnapshotWorld(tmp_path)
    insert, written = world.kept.insert_chunks, list[int]()

    async def counting(at: Snapshot, first_number: int, chunks: Sequence[str]) -> None:
        written.append(len(chunks))
        await insert(at, first_number, chunks)

    world.kept.insert_chunks = counting  # type: ignore[method-assign]  # a witness
    copied = world.live.copies.snapshot

    async def in_three(partition: int, believed: Checkpoint) -> AsyncIterator[str]:
        async for chunk in copied(partition, believed):
            for part in (chunk, "more", "x" * 20):
                yield part

    world.live.copies.snapshot = in_three  # type: ignore[method-assign]  # three chunks of one
    await world.start()
    await world.feed(0.5)
    await world.work()

    assert written[:3] == [1, 2, 1]
    assert "written" in world.notes


async def test_partitions_that_flush_concurrently_all_get_one(tmp_path: Path) -> None:
    """Memory has room for one copy: a partition that must wait is due at its next flush, not an interval later."""
    world = SnapshotWorld(tmp_path)
    await world.start()
    await world.feed(0.5)
    await world.work()
    kept, checkpoints = (
        FakeSnapshots(),
        [await world.live.state.load_checkpoint(partition) for partition in range(PARTITIONS)],
    )
    snapshots = Snapshots(world.live.copies, kept, HOUR_MS, str(tmp_path))
    for partition in range(PARTITIONS):
        await snapshots.write(partition)

    for _ in checkpoints:
        await asyncio.gather(
            *(snapshots.after_flush(at, checkpoint) for at, checkpoint in enumerate(checkpoints) if checkpoint)
        )
        await snapshots.write(0)

    assert [len(await kept.snapshots(partition)) for partition in range(PARTITIONS)] == [1] * PARTITIONS


async def test_interval_of_zero_takes_none(tmp_path: Path) -> None:
    world = SnapshotWorld(tmp_path)
    world.snapshots = Snapshots(world.live.copies, world.kept, 0)
    await world.start()
    await world.feed(0.5)
    await world.work()

    assert not world.kept.kept


async def test_worker_that_restarts_does_not_take_one_early(tmp_path: Path) -> None:
    """The snapshots record the time of the last one."""
    world = await loaded(tmp_path, 0.5)
    before = dict(world.kept.heads)
    world.snapshots = Snapshots(world.live.copies, world.kept, 1_000 * HOUR_MS, str(tmp_path))
    await world.feed(0.4)
    await world.work()

    assert world.kept.heads == before


async def test_replay_from_the_start_below_a_rebuilt_views_rows_is_refused(tmp_path: Path) -> None:
    """Generation 1 would lose to those rows. If every partition has its checkpoint, nothing is replayed."""
    world = await loaded(tmp_path, 0.5)
    await world.rebuild().run()
    await world.work()
    await check_replay(PARTITIONS, world.live.state, world.clickhouse)

    world.live.server.empty()
    with pytest.raises(OperatorNeeded, match=r"generation 2.*Run `tidemark rebuild redis` instead"):
        await check_replay(PARTITIONS, world.live.state, world.clickhouse)
