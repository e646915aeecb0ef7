"""Where a processor starts (S3), and what must not prevent its start. The simulation discovered each of these cases."""

from __future__ import annotations

import json

import pytest

from aggregators.partitioning import partition_of
from pipeline.ingest.archive import ARCHIVE_GROUP, ArchiveProcessor
from pipeline.logs.control_records import append_control, append_everywhere, ensure_deployment, find_genesis
from pipeline.rollup.processor import ROLLUP_GROUP, RollupProcessor, RollupSettings
from schemas.clock import DAY_MS, HOUR_MS
from schemas.control import BindingRecord, Genesis, Tick
from schemas.errors import OperatorNeeded
from schemas.log import EVENTS_TOPIC
from schemas.periods import Billing, Binding, Interval
from sinks.clickhouse.fake import FakeClickHouse
from tests.traffic.generate import rfc3339
from tests.worlds.deployment import SECRET, World
from tests.worlds.reconciler import METER_SET, START_MS

RETENTION_DAYS = 4000


async def forgotten_start(world: World, secret: bytes, log_id: str) -> None:
    """Retention has removed the log's first records; a foreign record is now the first."""
    world.clock.ms += RETENTION_DAYS * DAY_MS
    await append_everywhere(world.log, secret, Tick(log_id=log_id, partitions=world.partitions))
    await append_everywhere(world.log, SECRET, Tick(log_id=world.log_id, partitions=world.partitions))
    for partition in range(world.partitions):
        assert (await world.log.bounds(EVENTS_TOPIC, partition)).first > 0


@pytest.mark.parametrize(
    ("secret", "log_id"),
    [
        pytest.param(b"not the secret of this deployment", "theirs", id="a forged record"),
        pytest.param(SECRET, "theirs", id="a tick of another log"),
    ],
)
async def test_a_foreign_record_at_the_logs_start_does_not_prevent_the_start(secret: bytes, log_id: str) -> None:
    """The fold rejects such records; once older records are gone, they must not stop the deployment."""
    world = World(START_MS)
    await world.start(METER_SET)
    clickhouse = FakeClickHouse()
    await world.fold_all()
    archive = ArchiveProcessor(world.log, clickhouse, SECRET)
    for partition in range(world.partitions):
        offset = await archive.start_offset(partition)
        await archive.step(partition, await world.log.read(EVENTS_TOPIC, partition, offset))
    ends = {partition: (await world.log.bounds(EVENTS_TOPIC, partition)).next for partition in range(world.partitions)}

    await forgotten_start(world, secret, log_id)

    for partition, end in ends.items():
        assert await world.rollup().start_offset(partition) == end
        assert await ArchiveProcessor(world.log, clickhouse, SECRET).start_offset(partition) == end


@pytest.mark.parametrize("start_is_there", [True, False], ids=["from its start on", "its start is gone"])
async def test_a_store_of_another_deployment_is_refused_whatever_the_log_has_left(*, start_is_there: bool) -> None:
    """An equal secret and a plausible offset are not enough: the worker would add to the counts of another log."""
    theirs, ours = World(START_MS), World(START_MS)
    for world in (theirs, ours):
        await world.start(METER_SET)
        await world.fold_all()
    if not start_is_there:
        await forgotten_start(ours, SECRET, ours.log_id)
    ours.store = theirs.store

    for partition in range(ours.partitions):
        message = f"the store belongs to log {theirs.log_id}, this log is {ours.log_id}"
        with pytest.raises(OperatorNeeded, match=message):
            await ours.rollup().start_offset(partition)


async def test_a_log_that_is_signed_by_another_secret_is_refused() -> None:
    """Otherwise a wrong secret would quarantine everything."""
    world = World(START_MS)
    await world.start(METER_SET)

    with pytest.raises(OperatorNeeded, match="set the secret this log was made with"):
        await find_genesis(world.log, b"another secret altogether, 32 long", 0)


async def test_a_process_that_begins_at_the_same_time_is_no_emptied_store() -> None:
    """Two processes start at once; the slower one must not ask for an operator."""
    world = World(START_MS)
    await world.start(METER_SET)
    clickhouse, load = FakeClickHouse(), FakeClickHouse.load_position

    class Slow(FakeClickHouse):
        async def load_position(self, partition: int) -> None:
            assert await load(clickhouse, partition) is None
            other = ArchiveProcessor(world.log, clickhouse, SECRET)
            offset = await other.start_offset(partition)
            await other.step(partition, await world.log.read(EVENTS_TOPIC, partition, offset))
            await world.log.commit(ARCHIVE_GROUP, {(EVENTS_TOPIC, partition): 2})

    assert await ArchiveProcessor(world.log, Slow(), SECRET).start_offset(0) == 0

    first_checkpoint = world.store.state.load_checkpoint

    async def load_checkpoint(partition: int) -> None:
        assert await first_checkpoint(partition) is None
        await world.log.commit(ROLLUP_GROUP, {(EVENTS_TOPIC, partition): 2})

    world.store.state.load_checkpoint = load_checkpoint  # type: ignore[method-assign]  # another worker commits between
    assert await world.rollup().start_offset(0) == 0


async def test_a_full_cache_keeps_what_the_flush_needs() -> None:
    """With one account more than the cache takes, bindings of other accounts were lost and calendar months applied."""
    world = World(START_MS, partitions=1)
    await world.start(METER_SET)
    anchor_ms = START_MS // DAY_MS * DAY_MS
    for account in ("ada", "bob"):
        # A free account is never restated by a later binding.
        free = Binding(effective_from_ms=0, billing=Billing.FREE)
        daily = Binding(effective_from_ms=START_MS // HOUR_MS * HOUR_MS, anchor_ms=anchor_ms, interval=Interval.DAY)
        for revision, binding in enumerate((free, daily), 1):
            record = BindingRecord(account=account, revision=revision, binding=binding)
            await append_control(world.log, SECRET, 0, record)
    await world.fold_all()
    world.clock.ms += 2 * HOUR_MS
    worker: RollupProcessor = world.rollup(RollupSettings(cache_entries_max=1))
    for accounts in (["ada"], ["ada", "bob"]):
        events = [
            {
                "specversion": "1.0", "id": f"{account} {len(accounts)}", "source": "/test", "type": "request",
                "subject": account, "time": rfc3339(world.clock.ms * 1000),
                "data": {"gb": "1", "user": "u", "region": "eu"},
            }
            for account in accounts
        ]  # fmt: skip
        await world.log.append(EVENTS_TOPIC, partition_of("ada", 1), json.dumps(events).encode())
        offset = worker.checkpoints[0].next_offset if worker.checkpoints else await worker.start_offset(0)
        await worker.step(0, await world.log.read(EVENTS_TOPIC, 0, offset))

    _, keys = await world.store.totals.total_keys(0, 0, 100)

    (start_ms,) = {key.period_start_ms for key in keys}
    assert {key.account for key in keys} == {"ada", "bob"}
    assert start_ms > START_MS, "cut by their binding, not by the calendar month"


async def test_a_genesis_of_another_log_counts_only_if_there_is_none_of_this_log() -> None:
    """A store and a log that do not belong together are still refused."""
    world = World(START_MS)
    await world.start(METER_SET)
    await append_control(world.log, SECRET, 0, Genesis(log_id="theirs", partitions=2))

    assert (await find_genesis(world.log, SECRET, 0, "theirs") or Genesis(log_id="none", partitions=1)).log_id == (
        "theirs"
    )
    genesis = await find_genesis(world.log, SECRET, 0, "a log that is not here")
    assert genesis is not None
    assert genesis.log_id == world.log_id
    assert (await ensure_deployment(world.log, SECRET, (), create=False)).log_id == world.log_id
