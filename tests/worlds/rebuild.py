"""A deployment on fakes whose live view, hourly tables and archive can be rebuilt under traffic."""

from __future__ import annotations

import enum
import uuid
from collections.abc import Callable
from typing import Any, Final, Self

from pipeline.ingest.archive import ArchiveProcessor
from pipeline.logs.control_records import find_genesis, tick
from pipeline.rebuild.archive import ArchiveRebuild
from pipeline.rebuild.hourly import HourlyRebuild
from pipeline.rebuild.limits import RebuildLimits
from pipeline.rebuild.live_view import LiveViewRebuild
from pipeline.rebuild.recount import HourlyRecount
from pipeline.rollup.processor import RollupProcessor
from pipeline.rollup.relays import ReportRelay
from schemas.analytics import DuplicateRow
from schemas.log import EVENTS_TOPIC, POSITION_MAX, REPORTS_TOPIC, Record
from schemas.meters import MeterSet
from schemas.rebuild import Progress, RebuildClaim
from schemas.rollup import Checkpoint
from sinks.clickhouse.claimed import claimed_store
from sinks.clickhouse.fake import FakeClickHouse
from sinks.clickhouse.fake_staging import FakeStaging
from sinks.redis.fake import FakeLiveView
from sinks.redis.fake_state import HeldPartition
from tests.traffic.generate import HOUR_US, METER_SET, TrafficRecord, records
from tests.worlds.clock import ManualClock
from tests.worlds.crashing import Crashing, CrashingStaging
from tests.worlds.deployment import SECRET, World, hourly_relay

MARCH_MS: Final = 1_772_323_200_000
PARTITIONS: Final = 2
REPORTED: Final = MeterSet.model_validate({
    **METER_SET, "meters": [{**meter, "stripe_event_name": meter["slug"]} for meter in METER_SET["meters"]]
})  # fmt: skip
# No generated event has this value.
DAMAGED_MINOR: Final = -(10**15)
LIMITS: Final = RebuildLimits(records_max=7, events_max=40, cells_max=30)


class Archive(enum.Enum):
    """Whether `RebuildWorld.work` archives, and whether one archive process remembers its own writes."""

    NONE = enum.auto()
    RESTARTED = enum.auto()
    RUNS_ON = enum.auto()


class RebuildWorld:
    """A deployment with ClickHouse, a worker that restarts when fenced, and traffic in portions.

    ClickHouse has staging tables; the shadow copies of the live view are Redis stores by name.
    """

    def __init__(self, events: int = 1_200, archive: Archive = Archive.NONE) -> None:
        self.world = World(MARCH_MS, PARTITIONS)
        self.clock, self.log = self.world.clock, self.world.log
        self.live = FakeLiveView()
        self.clickhouse = FakeClickHouse()
        self.staging = FakeStaging(self.clickhouse)
        self.shadow_copies: dict[str, FakeLiveView] = {}
        self.progress: list[Progress] = []
        self.calls = [0]
        self.archives = archive
        self.running: ArchiveProcessor | None = None
        self.left: list[TrafficRecord] = list(
            records(7, 12, events, MARCH_MS * 1000, partitions=PARTITIONS, span_us=5 * HOUR_US)
        )
        self.count = len(self.left)

    async def start(self) -> None:
        await self.world.start(REPORTED)

    async def loaded(self, share: float) -> Self:
        """Starts the deployment and counts a share of all traffic."""
        await self.start()
        await self.feed(share)
        await self.work()
        return self

    async def feed(self, share: float) -> None:
        """Appends a share of all traffic; fails if less than that is left."""
        count = int(share * self.count)
        assert 0 < count <= len(self.left)
        portion, self.left = self.left[:count], self.left[count:]
        for record in portion:
            self.clock.ms = max(self.clock.ms, record.sent_ms)
            await self.log.append(
                EVENTS_TOPIC, record.partition, record.value, key=record.key, headers=tuple(record.headers)
            )

    async def tick(self) -> None:
        """Appends a tick to every partition, as a worker does every minute."""
        genesis = await find_genesis(self.log, SECRET, 0)
        assert genesis is not None
        await tick(self.log, SECRET, genesis)

    async def fold_all(self) -> RollupProcessor:
        """A new worker folds every partition to the log's end."""
        return await self.world.fold_all(RollupProcessor(self.log, self.live.state, self.clock, SECRET))

    async def fold_and_relay(self) -> None:
        """A worker folds to the log's end and relays."""
        await self.fold_all()
        for partition in range(PARTITIONS):
            await hourly_relay(self.live, self.clickhouse).relay(partition)
            await ReportRelay(self.live.reports, self.live.accounts, self.log).relay(partition)

    async def work(self) -> None:
        """A worker and, if there is one, the archive process the log to its end."""
        await self.fold_and_relay()
        if self.archives is not Archive.NONE:
            await self.archive()

    async def archive(self) -> None:
        """The archive reads to the log's end."""
        if self.running is None or self.archives is not Archive.RUNS_ON:
            self.running = ArchiveProcessor(self.log, self.clickhouse, SECRET)
            for partition in range(PARTITIONS):
                await self.running.start_offset(partition)
        for partition, batch in [(partition, await self.world.records(partition)) for partition in range(PARTITIONS)]:
            await self.running.step(partition, batch)

    def command(self) -> tuple[FakeLiveView, RebuildClaim]:
        """The live view and the claim of a rebuild command that starts now."""
        token = uuid.uuid4().hex[:16]
        live = self.live.claiming(token)
        return live, RebuildClaim(token, live.rebuilds.check_claim)

    def shadow_copy(self, name: str) -> FakeLiveView:
        return self.shadow_copies.setdefault(name, FakeLiveView())

    def staged(self, claim: RebuildClaim) -> FakeStaging:
        """The staging tables of a rebuild command that starts now; earlier commands see the new claim."""
        self.staging.claim(claim)
        return self.staging

    def work_around_the_exchange(self) -> None:
        """From now on, counts traffic just before and just after each exchange of a table."""
        swap = self.staging.swap

        async def traffic_before_and_after(table: str) -> None:
            await self.feed(0.1)
            await self.work()
            await swap(table)
            await self.feed(0.1)
            await self.work()

        self.staging.swap = traffic_before_and_after  # type: ignore[method-assign]  # a race, made certain

    def rebuild(self, countdown: int = 0, *, after: bool = False, **settings: Any) -> LiveViewRebuild:
        """`tidemark rebuild redis`, from its start. The process dies before its n-th call acts, or `after` the call."""
        crashing = _countdown([countdown], after)
        live, claim = self.command()
        log, store, hourly = crashing(self.log), crashing(live), crashing(claimed_store(self.clickhouse, claim))
        if "snapshots" in settings:
            settings["snapshots"] = crashing(settings["snapshots"])
        return LiveViewRebuild(log, store, hourly, self.clock, SECRET, LIMITS, **settings)

    def rebuild_hourly(self, countdown: int = 0, *, after: bool = False) -> HourlyRebuild:
        """`tidemark rebuild usage_hourly` from the log."""
        self.calls = [countdown]
        crashing = _countdown(self.calls, after)
        claimed, claim = self.command()
        return HourlyRebuild(
            crashing(self.log),
            crashing(claimed),
            lambda name: crashing(self.shadow_copy(name).another(claimed.server.claim)),
            crashing(claimed_store(self.clickhouse, claim)),
            crashing(self.staged(claim)),
            self.clock,
            SECRET,
            LIMITS,
            self.progress.append,
        )

    def recount(self, countdown: int = 0, *, after: bool = False) -> HourlyRecount:
        """`tidemark rebuild usage_hourly` from the archive."""
        crashing = _countdown([countdown], after)
        claimed, claim = self.command()
        log, live, store, reader, staging = map(
            crashing,
            (self.log, claimed, claimed_store(self.clickhouse, claim), self.clickhouse, self.staged(claim)),
        )
        return HourlyRecount(log, live, store, reader, staging, self.clock, SECRET, 3, self.progress.append)

    def rebuild_archive(self, countdown: int = 0, *, after: bool = False) -> ArchiveRebuild:
        """`tidemark rebuild archive`."""
        left = [countdown]
        staged = self.staged(self.command()[1])
        log, staging = Crashing(self.log, left, after=after), CrashingStaging(staged, left, after=after)
        return ArchiveRebuild(log, staging, SECRET, LIMITS, self.progress.append)

    async def straight(self) -> FakeLiveView:
        """The same log, folded at once by a worker that never stopped."""
        store = FakeLiveView()
        await self.world.fold_all(RollupProcessor(self.log, store.state, ManualClock(0), SECRET))
        return store

    async def assert_equal(self) -> None:
        """The live view and usage_hourly equal those of `straight`; each intent's content exists once."""
        await self.work()
        expected = await self.straight()
        for partition in range(PARTITIONS):
            checkpoint = self.live.server.partitions[partition].checkpoint
            assert checkpoint is not None
            assert checkpoint.counters.conserved
        assert_same_view(self.live, expected)
        relayed = FakeClickHouse()
        for partition in range(PARTITIONS):
            await hourly_relay(expected, relayed).relay(partition)
        assert contents(self.clickhouse) == contents(relayed)
        assert self.clickhouse.duplicates == relayed.duplicates

    async def assert_gone(self) -> None:
        """No staging table or shadow copy of the hourly tables is left."""
        assert await self.staging.another().building(("usage_duplicates", "usage_hourly")) is None
        left = [partition for store in self.shadow_copies.values() for partition in store.server.partitions.values()]
        assert all(partition == HeldPartition() for partition in left)

    async def assert_archived(self) -> None:
        """The archive's tables equal those of an archive that never stopped."""
        await self.archive()
        expected = FakeClickHouse()
        straight = ArchiveProcessor(self.log, expected, SECRET, replay_from_start=True)
        for partition in range(PARTITIONS):
            await straight.start_offset(partition)
            await straight.step(partition, await self.world.records(partition))
        for view in ("events", "decisions", "control_log", "archived"):
            assert getattr(self.clickhouse, view) == getattr(expected, view), view

    async def identifiers(self) -> list[bytes | None]:
        return [record.value for partition in range(PARTITIONS) for record in await self.of(REPORTS_TOPIC, partition)]

    async def of(self, topic: str, partition: int) -> list[Record]:
        return await self.world.records(partition, topic)


def _countdown(left: list[int], after: bool) -> Callable[[Any], Crashing]:
    """Wraps stores and the log with one shared countdown."""
    return lambda inner: Crashing(inner, left, after=after)


def assert_same_view(left: FakeLiveView, right: FakeLiveView, *more: str) -> None:
    """Both live views are equal except for the generation; `more` adds other views."""
    for partition in range(PARTITIONS):
        here, there = left.server.partitions[partition], right.server.partitions[partition]
        assert same_but_generation(here.checkpoint) == same_but_generation(there.checkpoint)
        for view in ("marks", "totals", "rankings", "uniques", "accounts", *more):
            assert getattr(here, view) == getattr(there, view), view


def same_but_generation(checkpoint: Checkpoint | None) -> tuple[object, ...]:
    assert checkpoint is not None
    return (
        checkpoint.next_offset,
        checkpoint.stream_time_ms,
        checkpoint.counters,
        checkpoint.slices,
        checkpoint.meter_set,
        checkpoint.log_id,
    )


def contents(clickhouse: FakeClickHouse) -> dict[object, object]:
    """Cells, without the generation in their versions."""
    return {key: row._replace(version=row.version & POSITION_MAX) for key, row in clickhouse.cells.items()}


def damage_hourly(world: RebuildWorld) -> None:
    """Removes rows, alters rows, and adds rows of events that never existed."""
    cells = world.clickhouse.cells
    for number, key in enumerate(sorted(cells)):
        if number % 3 == 0:
            del cells[key]
        elif number % 3 == 1:
            cells[key] = cells[key]._replace(value_minor=DAMAGED_MINOR)
        elif number % 7 == 2:
            cells[key._replace(account="nobody")] = cells[key]._replace(account="nobody", version=(1 << 56) | 1)
    world.clickhouse.duplicates.clear()
    world.clickhouse.duplicates[0, 1] = DuplicateRow("nobody", "x", "t", "s", 0, "{}", 0, 1, 0)
