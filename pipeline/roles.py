"""The roles of a deployment, each one process: worker, archive, router, sink, gateway.

A role runs until it is told to stop (SIGTERM, SIGINT) or something fails; then it ends with the failure's message,
and whoever started it starts it again. Nothing is retried by a half-working process.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
from collections.abc import Awaitable, Callable

from prometheus_client import CollectorRegistry

from aggregators.partitioning import partition_of
from aggregators.periods import customer_at
from pipeline.api_keys import KeyFile
from pipeline.deployment import tick
from pipeline.faust_runner import Runner, RunnerSettings
from pipeline.gateway import create_gateway
from pipeline.gateway_dependencies import GatewayDependencies
from pipeline.ops import Readiness, ops_app, serving
from pipeline.processors.archive import ARCHIVE_GROUP, ArchiveProcessor
from pipeline.processors.drains import HourlyDrain, ReportDrain
from pipeline.processors.rollup import ROLLUP_GROUP, RollupProcessor, RollupSettings
from pipeline.processors.router import ROUTER_GROUP, RouterProcessor
from pipeline.processors.stripe_sender import SenderPolicy, StripeSender
from pipeline.processors.witness import FileWitness
from pipeline.settings import Settings
from pipeline.stores import Base, open_base, open_clickhouse_store, open_rollup_store, open_stripe
from schemas.errors import InvalidInput, OperatorNeeded, Transient
from schemas.meters import Catalog
from schemas.periods import Billing
from schemas.processing import Processor
from schemas.rollup import RollupStore
from sinks.clickhouse.client import open_clickhouse
from sinks.clickhouse.reader import ClickHouseReader
from sinks.clickhouse.writer import ClickHouseStore

SINK_GROUP = "tidemark-sink"
DRAIN_BACKOFF_S_MAX = 30.0


def stop_event() -> asyncio.Event:
    """Set by SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


def runner_settings(settings: Settings, group: str, flush_records_max: int | None = None) -> RunnerSettings:
    """How a group runs under these settings."""
    return RunnerSettings(
        group,
        flush_records_max=flush_records_max or settings.flush_records_max,
        session_timeout_s=settings.session_timeout_s,
        heartbeat_interval_s=min(3.0, settings.session_timeout_s / 3),
        idle_interval_s=0.2,
    )


async def run_processor(base: Base, processor: Processor, settings: RunnerSettings, *beside: Awaitable[None]) -> None:
    """Run a processor, its operators' pages and background loops until stopped; the first failure ends all."""
    stop = stop_event()
    runner = Runner([processor], base.settings.log_url, base.clock, settings)
    registry = CollectorRegistry()
    app = ops_app(registry, lambda: _progress(runner))
    async with serving(app, base.settings.metrics_host, base.settings.metrics_port):
        loops = [asyncio.ensure_future(each) for each in beside]
        running = asyncio.create_task(runner.run(stop))
        await asyncio.wait({running, *loops}, return_when=asyncio.FIRST_COMPLETED)
        stop.set()
        for each in loops:
            each.cancel()
        results = await asyncio.gather(running, *loops, return_exceptions=True)
        failures = [each for each in results if isinstance(each, Exception)]
        if failures:
            raise failures[0]


def _progress(runner: Runner) -> Readiness:
    partitions = [
        {"partition": each.partition, "next_offset": each.next_offset, "lag": each.lag, "queued": each.queued_records}
        for each in runner.progress()
    ]
    return Readiness(bool(partitions), {"partitions": partitions})


async def ticking(base: Base) -> None:
    """Tick every partition for ever. A log that does not answer is waited for: ticks are not owed."""
    secret = base.settings.secret_bytes()
    while True:
        with contextlib.suppress(Transient):
            await tick(base.log, secret, base.genesis.log_id)
        await asyncio.sleep(base.settings.tick_interval_s)


async def draining(
    owned: Callable[[], set[int]],
    drain: Callable[[int], Awaitable[object]],
    interval_s: float,
    prepare: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Drain the owned partitions for ever. A store that does not answer is tried again, ever more slowly; what
    waits meanwhile stays in Redis. `prepare` must have succeeded once before the first drain."""
    failures = 0
    while True:
        try:
            if prepare is not None:
                await prepare()
                prepare = None
            for partition in sorted(owned()):
                await drain(partition)
            failures = 0
        except Transient:
            failures += 1
        await asyncio.sleep(min(interval_s * 2**failures, DRAIN_BACKOFF_S_MAX))


async def run_worker(settings: Settings, *, replay_from_start: bool = False) -> None:
    """Rollup, its drains and the ticker."""
    base = await open_base(settings)
    store = open_rollup_store(settings)
    hourly = ClickHouseStore(open_clickhouse(settings.clickhouse_url))
    try:
        problems = await store.check()
        fatal = [problem for problem in problems if problem.startswith("maxmemory-policy")]
        if fatal:
            raise OperatorNeeded("; ".join(fatal))
        limits = RollupSettings(settings.flush_events_max, settings.cache_entries_max, replay_from_start)
        witness = FileWitness(settings.data_dir / "witness")
        rollup = RollupProcessor(base.log, store, base.clock, settings.secret_bytes(), limits, witness)
        hourly_drain = HourlyDrain(store, hourly, settings.drain_cells_max)
        report_drain = ReportDrain(store, base.log)

        def owned() -> set[int]:
            return set(rollup.fences)

        await run_processor(
            base,
            rollup,
            runner_settings(settings, ROLLUP_GROUP),
            ticking(base),
            # ClickHouse that is down delays its own view only.
            draining(owned, hourly_drain.drain, settings.drain_interval_s, hourly.migrate),
            draining(owned, report_drain.drain, settings.drain_interval_s),
        )
    finally:
        await hourly.close()
        await store.close()
        await base.log.close()


async def run_archive(settings: Settings, *, replay_from_start: bool = False) -> None:
    """Every accepted event into ClickHouse."""
    base = await open_base(settings)
    store = await open_clickhouse_store(settings)
    try:
        archive = ArchiveProcessor(
            base.log,
            store,
            settings.secret_bytes(),
            events_max=settings.flush_events_max,
            replay_from_start=replay_from_start,
        )
        await run_processor(base, archive, runner_settings(settings, ARCHIVE_GROUP, flush_records_max=100))
    finally:
        await store.close()
        await base.log.close()


async def run_router(settings: Settings) -> None:
    """`usage.inbox` into `usage.events`."""
    base = await open_base(settings)
    try:
        await run_processor(
            base, RouterProcessor(base.log), runner_settings(settings, ROUTER_GROUP, flush_records_max=1000)
        )
    finally:
        await base.log.close()


class BindingResolver:
    """Who pays for an account, by its bindings in the live view. See `schemas.sink.CustomerResolver`."""

    def __init__(self, store: RollupStore, partitions: int) -> None:
        self._store = store
        self._partitions = partitions

    async def __call__(self, account: str, instant_ms: int) -> tuple[Billing, str]:
        state = await self._store.account(partition_of(account, self._partitions), account)
        customer = customer_at(state, instant_ms)
        return (customer.billing, customer.stripe_customer) if customer else (Billing.UNMAPPED, "")


async def run_sink(settings: Settings) -> None:
    """Intents to Stripe."""
    base = await open_base(settings)
    store = open_rollup_store(settings)
    meters = open_stripe(settings)
    if meters is None:
        raise InvalidInput("TIDEMARK_STRIPE_API_KEY", "is not set; the sink has nowhere to report to")
    try:
        livemode, account = await meters.identity()
        if (livemode, account) != (base.genesis.livemode, base.genesis.stripe_account):
            raise OperatorNeeded(
                f"the key is for {'live' if livemode else 'test'} mode of {account}, this log was made for "
                f"{'live' if base.genesis.livemode else 'test'} mode of {base.genesis.stripe_account or 'no account'}: "
                "use the matching key, or set TIDEMARK_STRIPE_ACCOUNT before the log is first made"
            )
        sender = StripeSender(
            base.log,
            meters,
            BindingResolver(store, base.genesis.partitions),
            base.clock,
            random.Random(),
            SenderPolicy(rate_per_s=settings.stripe_rate_per_s),
        )
        await run_processor(base, sender, runner_settings(settings, SINK_GROUP, flush_records_max=500))
    finally:
        await meters.close()
        await store.close()
        await base.log.close()


class CatalogInForce:
    """The catalog of partition 0's fence, looked up every few seconds."""

    def __init__(self, store: RollupStore, refresh_interval_s: float = 2.0) -> None:
        self._store = store
        self._refresh_interval_s = refresh_interval_s
        self._catalog: Catalog | None = None
        self._known_until_s = 0.0

    async def __call__(self) -> Catalog | None:
        """The catalog, or None before the first; the last known one where Redis does not answer."""
        now_s = asyncio.get_running_loop().time()
        if now_s >= self._known_until_s:
            self._known_until_s = now_s + self._refresh_interval_s
            with contextlib.suppress(Transient):
                fence = await self._store.load_fence(0)
                self._catalog = fence.catalog if fence else self._catalog
        return self._catalog


async def run_gateway(settings: Settings) -> None:
    """The HTTP API."""
    if settings.api_keys is None:
        raise InvalidInput("TIDEMARK_API_KEYS", "is not set; name the file that `tidemark key create` writes to")
    base = await open_base(settings)
    store = open_rollup_store(settings)
    clickhouse = open_clickhouse(settings.clickhouse_url)
    stop = stop_event()
    try:
        app = create_gateway(
            GatewayDependencies(
                log=base.log,
                genesis=base.genesis,
                settings=settings,
                clock=base.clock,
                keys=KeyFile(settings.api_keys),
                catalog=CatalogInForce(store),
                rollup=store,
                usage=ClickHouseReader(clickhouse),
                hourly=ClickHouseStore(clickhouse),
            )
        )
        async with serving(app, settings.gateway_host, settings.gateway_port):
            await stop.wait()
    finally:
        await clickhouse.close()
        await store.close()
        await base.log.close()
