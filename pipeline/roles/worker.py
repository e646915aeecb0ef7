"""The worker: rollup, its relays, the resolver of deferred events and the ticker.

The resolver runs here because what waits for a decision stands beside the checkpoint, in Redis, which the archive role
does without; the worker that owns a partition resolves it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from functools import partial

from pipeline.logs.control_records import tick
from pipeline.metrics import Metrics
from pipeline.open import Base, open_base, open_live_view
from pipeline.roles.base import relaying, run_processor, runner_settings
from pipeline.rollup.outbox_cap import OutboxCap
from pipeline.rollup.processor import ROLLUP_GROUP, RollupProcessor, RollupSettings
from pipeline.rollup.relays import HourlyRelay, ReportRelay
from pipeline.rollup.resolver import Resolver
from pipeline.rollup.restater import Restater
from pipeline.rollup.snapshots import SnapshotOutcome, Snapshots
from pipeline.settings import Settings
from schemas.clock import HOUR_MS
from schemas.errors import OperatorNeeded, Transient
from schemas.live_view import CheckpointedState, LiveView
from schemas.processing import Processor
from schemas.rebuild import AnalyticalStore
from schemas.snapshots import CopyableState, Snapshot
from sinks.clickhouse.client import ClickHouse, open_clickhouse
from sinks.clickhouse.reader import ClickHouseReader
from sinks.clickhouse.snapshots import ClickHouseSnapshots
from sinks.clickhouse.writer import ClickHouseStore

# Live totals may be this much behind; a flush of many records costs little more than one of few.
LINGER_S = 0.05
# Where records already wait in the log, a full flush is worth more than an early one.
CATCH_UP_LINGER_S = 0.5


async def ticking(base: Base) -> None:
    """Tick every partition for ever. A log that does not answer is waited for: ticks are not owed."""
    secret = base.settings.secret_bytes()
    while True:
        with contextlib.suppress(Transient):
            await tick(base.log, secret, base.genesis)
        await asyncio.sleep(base.settings.tick_interval_s)


async def run_worker(
    settings: Settings,
    *,
    replay_from_start: bool = False,
    around: Callable[[RollupProcessor], Processor] = lambda rollup: rollup,
) -> None:
    """Fold, relay and tick until stopped. ClickHouse that is down delays its own view only.

    `around` may put a processor around the rollup, as the demo does to count replays.
    """
    base = await open_base(settings)
    view = open_live_view(settings)
    clickhouse = open_clickhouse(settings.clickhouse_url)
    hourly = ClickHouseStore(clickhouse)
    try:
        await _check_eviction(view)
        if replay_from_start:
            await check_replay(base.genesis.partitions, view.state, hourly)
        limits = RollupSettings(settings.flush_events_max, settings.cache_entries_max, replay_from_start)
        metrics = Metrics()
        snapshots = _snapshots(settings, view.copies, clickhouse, metrics)
        rollup = RollupProcessor(base.log, view.state, base.clock, settings.secret_bytes(), limits, snapshots)
        outbox = OutboxCap(view.drops, settings.outbox_max, metrics)
        await run_processor(
            base,
            around(rollup),
            runner_settings(settings, ROLLUP_GROUP, linger_s=LINGER_S, catch_up_linger_s=CATCH_UP_LINGER_S),
            ticking(base),
            *_relays(base, view, clickhouse, hourly, rollup, outbox, snapshots, metrics),
            metrics=metrics,
            refresh=lambda: _gauges(rollup, metrics),
            details=lambda: outbox.details(rollup.owned()),
        )
    finally:
        await hourly.close()
        await view.close()
        await base.log.close()


async def _check_eviction(view: LiveView) -> None:
    """Raise `OperatorNeeded` if Redis may evict counters."""
    fatal = [problem for problem in await view.check() if problem.startswith("maxmemory-policy")]
    if fatal:
        raise OperatorNeeded("; ".join(fatal))


def _relays(
    base: Base,
    live: LiveView,
    clickhouse: ClickHouse,
    hourly: ClickHouseStore,
    rollup: RollupProcessor,
    outbox: OutboxCap,
    snapshots: Snapshots,
    metrics: Metrics,
) -> Iterator[Awaitable[None]]:
    """The loops that bring what was folded to the other views. A failure of one is counted and delays no other."""
    secret = base.settings.secret_bytes()
    hourly_relay = HourlyRelay(live.outbox, live.drops, live.deferred, hourly, base.settings.relay_cells_max)
    report_relay = ReportRelay(live.reports, live.accounts, base.log)
    resolver = Resolver(base.log, live.deferred, live.accounts, hourly, secret)
    restater = Restater(
        base.log, live.accounts, live.deferred, live.totals, hourly, ClickHouseReader(clickhouse), secret
    )

    migrating, tables = asyncio.Lock(), asyncio.Event()

    async def migrated() -> None:
        # Several loops need the tables; one of them makes them.
        async with migrating:
            if not tables.is_set():
                await hourly.migrate()
                tables.set()

    async def relay_hourly(partition: int) -> None:
        relayed = await hourly_relay.relay(partition)
        metrics.add("tidemark_relayed_cells_total", relayed.cells)
        metrics.add("tidemark_relayed_duplicates_total", relayed.duplicates)

    async def relay_reports(partition: int) -> None:
        metrics.add("tidemark_intents_total", await report_relay.relay(partition))

    async def resolve(partition: int) -> None:
        resolved = await resolver.resolve(partition)
        metrics.add("tidemark_dedup_decisions_total", resolved.new, decision="new")
        metrics.add("tidemark_dedup_decisions_total", resolved.duplicates, decision="duplicate")

    async def restatement(partition: int) -> None:
        metrics.add("tidemark_restatements_total", await restater.restatement(partition))

    relays = (
        ("usage_hourly", relay_hourly, migrated),
        ("outbox", outbox.keep, None),
        ("reports", relay_reports, None),
        ("dedup_decisions", resolve, migrated),
        ("restatements", restatement, migrated),
        # Snapshots count their own failures.
        (None, snapshots.write, migrated),
    )
    for view, relay, prepare in relays:
        failed = partial(metrics.add, "tidemark_relay_failures_total", view=view) if view else lambda: None
        yield relaying(rollup.owned, relay, base.settings.relay_interval_s, prepare, failed)


def _snapshots(settings: Settings, copies: CopyableState, clickhouse: ClickHouse, metrics: Metrics) -> Snapshots:
    def note(outcome: SnapshotOutcome, written: Snapshot | None) -> None:
        metrics.add("tidemark_snapshots_total", outcome=outcome)
        if written is not None:
            at_s, partition = written.stream_time_ms / 1000, str(written.partition)
            metrics.set("tidemark_snapshot_stream_time_seconds", at_s, partition=partition)

    settings.data_dir.mkdir(parents=True, exist_ok=True)
    interval_ms = int(settings.snapshot_interval_h * HOUR_MS)
    return Snapshots(copies, ClickHouseSnapshots(clickhouse), interval_ms, str(settings.data_dir), note)


async def check_replay(partitions: int, state: CheckpointedState, hourly: AnalyticalStore) -> None:
    """Raise `OperatorNeeded` where a partition would be made again in the first generation, below rows that a rebuilt
    view has written: they would win over what is counted now."""
    checkpoints = [await state.load_checkpoint(partition) for partition in range(partitions)]
    if None not in checkpoints:
        return
    await hourly.migrate()
    generation = await hourly.latest_generation()
    if generation > 1:
        raise OperatorNeeded(
            f"usage_hourly holds rows of generation {generation}: the live view was rebuilt before, and "
            "--replay-from-start would make generation 1 again, whose cells lose to those rows. Run `tidemark rebuild "
            "redis` instead, and start the worker without the flag."
        )


def _gauges(rollup: RollupProcessor, metrics: Metrics) -> None:
    for gauge in ("tidemark_partition_events", "tidemark_partition_stream_time_seconds"):
        metrics.clear(gauge)
    for partition, checkpoint in rollup.checkpoints.items():
        name = str(partition)
        for outcome, events in checkpoint.counters._asdict().items():
            metrics.set("tidemark_partition_events", events, partition=name, outcome=outcome)
        metrics.set("tidemark_partition_stream_time_seconds", checkpoint.stream_time_ms / 1000, partition=name)
