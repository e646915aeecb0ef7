"""The worker: rollup, its drains, the resolver of parked events and the ticker.

The resolver runs here because what waits for a verdict stands beside the fence, in Redis, which the archive role does
without; the worker that owns a partition resolves it.
"""

from __future__ import annotations

import asyncio
import contextlib

from pipeline.deployment import tick
from pipeline.metrics import Metrics
from pipeline.processors.drains import HourlyDrain, ReportDrain
from pipeline.processors.resolver import Resolver
from pipeline.processors.rollup import ROLLUP_GROUP, RollupProcessor, RollupSettings
from pipeline.processors.witness import FileWitness
from pipeline.roles.outbox import OutboxCap
from pipeline.roles.running import draining, run_processor, runner_settings
from pipeline.settings import Settings
from pipeline.stores import Base, open_base, open_rollup_store
from schemas.errors import OperatorNeeded, Transient
from sinks.clickhouse.client import open_clickhouse
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


async def run_worker(settings: Settings, *, replay_from_start: bool = False) -> None:
    """Fold, drain and tick until stopped. ClickHouse that is down delays its own view only."""
    base = await open_base(settings)
    store = open_rollup_store(settings)
    hourly = ClickHouseStore(open_clickhouse(settings.clickhouse_url))
    try:
        fatal = [problem for problem in await store.check() if problem.startswith("maxmemory-policy")]
        if fatal:
            raise OperatorNeeded("; ".join(fatal))
        limits = RollupSettings(settings.flush_events_max, settings.cache_entries_max, replay_from_start)
        witness = FileWitness(settings.data_dir / "witness")
        rollup = RollupProcessor(base.log, store, base.clock, settings.secret_bytes(), limits, witness)
        hourly_drain = HourlyDrain(store, hourly, settings.drain_cells_max)
        report_drain = ReportDrain(store, base.log)
        resolver = Resolver(base.log, store, hourly, settings.secret_bytes())
        metrics = Metrics()
        outbox = OutboxCap(store, settings.outbox_max, metrics)

        migrating, tables = asyncio.Lock(), asyncio.Event()

        async def migrated() -> None:
            # Two loops need the tables; one of them makes them.
            async with migrating:
                if not tables.is_set():
                    await hourly.migrate()
                    tables.set()

        async def drain_hourly(partition: int) -> None:
            drained = await hourly_drain.drain(partition)
            metrics.add("tidemark_drained_cells_total", drained.cells)
            metrics.add("tidemark_drained_duplicates_total", drained.duplicates)

        async def drain_reports(partition: int) -> None:
            metrics.add("tidemark_intents_total", await report_drain.drain(partition))

        async def resolve(partition: int) -> None:
            resolved = await resolver.resolve(partition)
            metrics.add("tidemark_verdicts_total", resolved.new, verdict="new")
            metrics.add("tidemark_verdicts_total", resolved.duplicates, verdict="duplicate")

        def failed(view: str) -> None:
            metrics.add("tidemark_drain_failures_total", view=view)

        await run_processor(
            base,
            rollup,
            runner_settings(settings, ROLLUP_GROUP, linger_s=LINGER_S, catch_up_linger_s=CATCH_UP_LINGER_S),
            ticking(base),
            draining(rollup.owned, drain_hourly, settings.drain_interval_s, migrated, lambda: failed("usage_hourly")),
            draining(rollup.owned, outbox.keep, settings.drain_interval_s, on_failure=lambda: failed("outbox")),
            draining(rollup.owned, drain_reports, settings.drain_interval_s, on_failure=lambda: failed("reports")),
            draining(rollup.owned, resolve, settings.drain_interval_s, migrated, lambda: failed("verdicts")),
            metrics=metrics,
            refresh=lambda: _gauges(rollup, witness, metrics),
            details=lambda: outbox.details(rollup.owned()),
        )
    finally:
        await hourly.close()
        await store.close()
        await base.log.close()


def _gauges(rollup: RollupProcessor, witness: FileWitness, metrics: Metrics) -> None:
    for gauge in ("tidemark_partition_events", "tidemark_partition_log_time_seconds", "tidemark_replayed_events"):
        metrics.clear(gauge)
    for partition, fence in rollup.fences.items():
        name = str(partition)
        for outcome, events in fence.counters._asdict().items():
            metrics.set("tidemark_partition_events", events, partition=name, outcome=outcome)
        metrics.set("tidemark_partition_log_time_seconds", fence.log_time_ms / 1000, partition=name)
        metrics.set("tidemark_replayed_events", witness.replayed(partition), partition=name)
