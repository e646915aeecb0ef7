"""The worker role: the rollup with its relays, resolver, restater, measurer, corrector and snapshots, and the ticker.

The resolver runs here and not in the archive role, because deferred events are in Redis, which that role does not use.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from functools import partial

from pipeline.logs.control_records import tick
from pipeline.metrics import MetricName, Metrics
from pipeline.native.load import load, maker_of
from pipeline.open import Base, open_base, open_live_view
from pipeline.roles.base import relaying, run_processor, runner_settings
from pipeline.rollup.corrector import Corrector
from pipeline.rollup.measurer import Measurer
from pipeline.rollup.outbox_cap import OutboxCap
from pipeline.rollup.processor import ROLLUP_GROUP, RollupProcessor, RollupSettings
from pipeline.rollup.relay_pace import RelayPace
from pipeline.rollup.relays import HourlyRelay, ReportRelay
from pipeline.rollup.resolver import Resolver
from pipeline.rollup.restater import Restater
from pipeline.rollup.snapshots import SnapshotOutcome, Snapshots
from pipeline.settings import Settings
from schemas.clock import HOUR_MS, SECOND_MS
from schemas.errors import OperatorNeeded, Transient
from schemas.live_view import CheckpointedState, LiveView
from schemas.processing import Processor
from schemas.reasons import Reason
from schemas.rebuild import AnalyticalStore
from schemas.snapshots import CopyableState, Snapshot
from sinks.clickhouse.client import ClickHouse, open_clickhouse
from sinks.clickhouse.corrections import ClickHouseCorrections
from sinks.clickhouse.measures import ClickHouseMeasures
from sinks.clickhouse.reader import ClickHouseReader
from sinks.clickhouse.snapshots import ClickHouseSnapshots
from sinks.clickhouse.writer import ClickHouseStore

# A flush of so much is full enough. A partition that is behind has larger ones: a cell is written once per flush.
ENOUGH_EVENTS = 40_000
ENOUGH_BYTES = 8 * 1024 * 1024
FLUSH_BYTES_MAX = 32 * 1024 * 1024
# Delays live totals a little to make flushes larger: a flush of many records costs little more than one of few.
LINGER_S = 0.05
# When records already wait in the log, full flushes matter more than early ones.
CATCH_UP_LINGER_S = 0.5


async def ticking(base: Base) -> None:
    """Append ticks to every partition for ever. Skips ticks while the log does not answer."""
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
    """Fold, relay and tick until stopped. An outage of ClickHouse delays only ClickHouse's tables.

    `around` may wrap the rollup in another processor.
    """
    base = await open_base(settings)
    view = open_live_view(settings)
    clickhouse = open_clickhouse(settings.clickhouse_url)
    hourly = ClickHouseStore(clickhouse)
    try:
        if fatal := [problem for problem in await view.check() if problem.startswith("maxmemory-policy")]:
            raise OperatorNeeded("; ".join(fatal))
        if replay_from_start:
            await check_replay(base.genesis.partitions, view.state, hourly)
        limits = RollupSettings(
            settings.flush_events_max, settings.cache_entries_max, replay_from_start, settings.quarantine_percent_max
        )
        metrics = Metrics()
        snapshots = _snapshots(settings, view.copies, clickhouse, metrics)

        def note_skipped(slug: str, reason: Reason, events: int) -> None:
            metrics.add("tidemark_skipped_events_total", events, meter=slug, reason=reason)

        native = load(enabled=settings.native).library
        metrics.set("tidemark_native_core", native is not None)
        rollup = RollupProcessor(
            base.log, view.state, base.clock, settings.secret_bytes(), limits, snapshots, note_skipped,
            maker_of(native),
        )  # fmt: skip
        outbox = OutboxCap(view.drops, settings.outbox_max, metrics)
        await run_processor(
            base,
            around(rollup),
            replace(
                runner_settings(settings, ROLLUP_GROUP, linger_s=LINGER_S, catch_up_linger_s=CATCH_UP_LINGER_S),
                flush_bytes_max=FLUSH_BYTES_MAX,
                enough_events=ENOUGH_EVENTS,
                enough_bytes=ENOUGH_BYTES,
            ),
            lambda runner: (
                ticking(base),
                *_relays(
                    base,
                    view,
                    clickhouse,
                    hourly,
                    rollup,
                    outbox,
                    snapshots,
                    metrics,
                    RelayPace(partial(runner.behind, rollup.topic)),
                ),
            ),
            metrics=metrics,
            refresh=lambda: _gauges(rollup, metrics),
            details=lambda: outbox.details(rollup.owned()),
        )
    finally:
        await hourly.close()
        await view.close()
        await base.log.close()


def _relays(
    base: Base,
    live: LiveView,
    clickhouse: ClickHouse,
    hourly: ClickHouseStore,
    rollup: RollupProcessor,
    outbox: OutboxCap,
    snapshots: Snapshots,
    metrics: Metrics,
    pace: RelayPace,
) -> Iterator[Awaitable[None]]:
    """The background tasks of the rollup's state. A failure of one is counted and does not delay the others."""
    secret = base.settings.secret_bytes()
    hourly_relay = HourlyRelay(live.outbox, live.drops, live.deferred, hourly, base.settings.relay_cells_max)
    report_relay = ReportRelay(live.reports, live.accounts, base.log)
    resolver = Resolver(base.log, live.deferred, live.accounts, hourly, secret)
    samples, delay_ms = ClickHouseMeasures(clickhouse), round(base.settings.measure_delay_s * SECOND_MS)
    measurer = Measurer(base.log, live.accounts, hourly, samples, live.measured, delay_ms)
    corrector = Corrector(base.log, hourly, ClickHouseCorrections(clickhouse))
    restater = Restater(
        base.log, live.accounts, live.deferred, live.totals, hourly, ClickHouseReader(clickhouse), secret
    )

    migrating, tables = asyncio.Lock(), asyncio.Event()

    async def migrated() -> None:
        # Several tasks need the tables; only the first one creates them.
        async with migrating:
            if not tables.is_set():
                await hourly.migrate()
                tables.set()

    counted = partial(_counted, metrics)

    async def relay_hourly(partition: int) -> None:
        if not pace.due(partition):
            return
        relayed = await hourly_relay.relay(partition)
        pace.relayed(partition, complete=relayed.complete)
        metrics.add("tidemark_relayed_cells_total", relayed.cells)
        metrics.add("tidemark_relayed_duplicates_total", relayed.duplicates)

    async def resolve(partition: int) -> None:
        resolved = await resolver.resolve(partition)
        metrics.add("tidemark_dedup_decisions_total", resolved.new, decision="new")
        metrics.add("tidemark_dedup_decisions_total", resolved.duplicates, decision="duplicate")

    async def measure(partition: int) -> None:
        measured = await measurer.measure(partition)
        metrics.add("tidemark_measured_adjustments_total", measured.told)
        metrics.set("tidemark_measured_left_out_accounts", measured.left_out, partition=str(partition))
        if measured.until_ms and measured.meters:
            metrics.set("tidemark_measured_until_seconds", measured.until_ms / 1000, partition=str(partition))

    relays = (
        ("usage_hourly", relay_hourly, migrated),
        ("outbox", outbox.keep, None),
        ("reports", counted("tidemark_intents_total", report_relay.relay), None),
        ("dedup_decisions", resolve, migrated),
        ("restatements", counted("tidemark_restatements_total", restater.restatement), migrated),
        ("measured", measure, migrated),
        ("corrections", counted("tidemark_correction_adjustments_total", corrector.correct), migrated),
        # Snapshots count their own failures.
        (None, snapshots.write, migrated),
    )
    for view, relay, prepare in relays:
        failed = partial(metrics.add, "tidemark_relay_failures_total", view=view) if view else lambda: None
        yield relaying(rollup.owned, relay, base.settings.relay_interval_s, prepare, failed)


def _counted(
    metrics: Metrics, metric: MetricName, relay: Callable[[int], Awaitable[int]]
) -> Callable[[int], Awaitable[None]]:
    """A relay whose number is added to a metric."""

    async def run(partition: int) -> None:
        metrics.add(metric, await relay(partition))

    return run


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
    """Raise `OperatorNeeded` if a partition has no live view and `usage_hourly` has rows of a later generation than 1.

    A replay would make generation 1 again, and its rows would lose against those.
    """
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
