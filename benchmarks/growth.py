"""Section (h) of `make bench`: the cost of an event against the number of earlier events and accounts.

The processors of worker and archive run in this process, on the embedded log, a real Valkey and the ClickHouse engine.
Deployments of different size take turns, and their costs are compared round by round.
"""

from __future__ import annotations

import asyncio
import gc
import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple, Self

from redis import Redis

from benchmarks.broker import Bench, Feed
from benchmarks.figures import Figure, Report
from benchmarks.machine import resident_bytes, spread
from benchmarks.services import SECRET, Services
from benchmarks.traffic import RECORD_EVENTS, Traffic
from pipeline.clock import SystemClock
from pipeline.ingest.archive import ArchiveProcessor
from pipeline.logs.control_records import ensure_deployment, ensure_meter_set
from pipeline.logs.embedded import SqliteLog
from pipeline.native.load import load, maker_of
from pipeline.open import Base, read_meter_set
from pipeline.rollup.processor import RollupProcessor, RollupSettings
from pipeline.rollup.relays import HourlyRelay, ReportRelay
from pipeline.runner.runner import COLLECTOR_THRESHOLDS
from pipeline.settings import Settings, load_settings
from schemas.clock import HOUR_MS, MINUTE_MS
from schemas.log import EVENTS_TOPIC
from schemas.processing import Processor
from sinks.clickhouse.client import open_clickhouse
from sinks.clickhouse.writer import ClickHouseStore
from sinks.redis.view import RedisLiveView

GROWTH_MAX_PERCENT: Final = 10.0
SLICES_MAX_PERCENT: Final = 20.0
# Three slices are full after three hours, each is half a dedup window of two hours. Then the oldest ones leave.
FILL_HOURS: Final = 6.0
PARTITIONS: Final = 4
WINDOW_MS: Final = 2 * HOUR_MS
RETENTION_MS: Final = 3 * HOUR_MS
# 1 March 2026. The traffic begins 40 hours later, after the slice of the default dedup window.
ORIGIN_MS: Final = 1_772_323_200_000
BEGIN_MS: Final = ORIGIN_MS + 40 * HOUR_MS
# The number of records that a worker takes at once.
FLUSH_RECORDS: Final = 40
# One flush of every partition.
WARM_UP_EVENTS: Final = 160_000
ROUND_EVENTS: Final = 160_000
# So many that all events lie in one hour.
ONE_HOUR: Final = 1_000_000_000
MEGABYTE: Final = 1024 * 1024


class GrowthPlan(NamedTuple):
    """The two numbers of events and the two numbers of accounts that are compared, and how long to measure.

    Each comparison has `rounds` rounds of `ROUND_EVENTS` events. `minutes_max` limits the time to get to the larger
    number of events; then what was reached is compared.
    """

    events: tuple[int, int]
    of_accounts: int
    accounts: tuple[int, int]
    rounds: int
    minutes_max: float


FULL: Final = GrowthPlan((1_000_000, 20_000_000), 2_000, (1_000, 100_000), 5, 10)
QUICK: Final = GrowthPlan((320_000, 960_000), 2_000, (1_000, 100_000), 2, 2)


class Cost(NamedTuple):
    """Processor time of worker and archive, and cells that the worker wrote to ClickHouse, all per event."""

    worker_us: float
    archive_us: float
    cells: float


class Sizes(NamedTuple):
    """The events counted so far, and the sizes of the stores."""

    events: int
    redis_bytes: int
    clickhouse_parts: int
    log_bytes: int


class _SteppedClock:
    """The log's clock, which moves only when set."""

    def __init__(self) -> None:
        self.ms = ORIGIN_MS

    def now_ms(self) -> int:
        return self.ms

    async def sleep(self, duration_s: float) -> None:
        await asyncio.sleep(duration_s)


class _EmbeddedFeed(Feed):
    """Appends to the embedded log and moves stream time with the events, by an hour with `hour_events`."""

    def __init__(self, log: SqliteLog, clock: _SteppedClock, traffic: Traffic) -> None:
        self.traffic = traffic
        self.hour_events = ONE_HOUR
        self._log = log
        self._clock = clock
        clock.ms = BEGIN_MS

    async def append(self, records: int) -> None:
        """Append records with events of the previous minute; return when the log has stored the records."""
        self._clock.ms += records * RECORD_EVENTS * HOUR_MS // self.hour_events
        self.traffic.move_to(self._clock.ms - MINUTE_MS)
        batches = list(self.traffic.records(records))
        await asyncio.gather(*(self._log.append(EVENTS_TOPIC, batch.partition, batch.value) for batch in batches))


class _Readers:
    """Runs the processors of worker and archive as a deployment with default settings does, and measures the processor
    time of both parts."""

    def __init__(self, log: SqliteLog, view: RedisLiveView, hourly: ClickHouseStore) -> None:
        self.worker_s = self.archive_s = 0.0
        self.cells = 0
        native = load(enabled=True).library
        limits = RollupSettings(Settings().flush_events_max)
        self._rollup = RollupProcessor(
            log, view.state, SystemClock(), SECRET.encode(), limits, maker_of=maker_of(native)
        )
        self._archive = ArchiveProcessor(log, hourly, SECRET.encode(), native=native)
        self._log = log
        self._hourly = HourlyRelay(view.outbox, view.drops, view.deferred, hourly)
        self._reports = ReportRelay(view.reports, view.accounts, log)
        self._next: dict[tuple[Processor, int], int] = {}

    async def start(self) -> None:
        """Load the offsets at which to begin."""
        for partition in range(PARTITIONS):
            for processor in (self._rollup, self._archive):
                self._next[processor, partition] = await processor.start_offset(partition) or 0

    async def read(self) -> None:
        """Process new records, and relay."""
        began_s = time.process_time()
        await self._through(self._rollup)
        for partition in range(PARTITIONS):
            complete = False
            while not complete:
                relayed = await self._hourly.relay(partition)
                self.cells += relayed.cells
                complete = relayed.complete
            await self._reports.relay(partition)
        relayed_s = time.process_time()
        await self._through(self._archive)
        self.worker_s += relayed_s - began_s
        self.archive_s += time.process_time() - relayed_s

    async def _through(self, processor: Processor) -> None:
        for partition in range(PARTITIONS):
            offset = self._next[processor, partition]
            while records := await self._log.read(EVENTS_TOPIC, partition, offset, FLUSH_RECORDS):
                await processor.step(partition, records)
                offset = records[-1].next_offset
            self._next[processor, partition] = offset


class _World:
    """A deployment with its own log and stores, which counts what is fed to it."""

    def __init__(self, services: Services, report: Report, name: str, accounts: int) -> None:
        self.name = name
        self._services, self._report = services, report
        self._folder, self._accounts = services.folder("growth"), accounts
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        clock = _SteppedClock()
        self._log = SqliteLog(self._folder / "log.db", clock)
        await self._log.start()
        self._stack.push_async_callback(self._log.close)
        self._stores = self._services.stores(self._stack.enter_context(ExitStack()))
        view = RedisLiveView(self._stores.valkey.url)
        self._stack.push_async_callback(view.close)
        self._clickhouse = open_clickhouse(self._stores.clickhouse_url)
        hourly = ClickHouseStore(self._clickhouse)
        self._stack.push_async_callback(hourly.close)
        await hourly.migrate()
        self._base = await _deployment(self._log, self._folder)
        traffic = Traffic(self._accounts, PARTITIONS, BEGIN_MS + MINUTE_MS - 1, span_ms=MINUTE_MS)
        # The first event moves stream time by forty hours, so the log drops its first records.
        self._readers = _Readers(self._log, view, hourly)
        await self._readers.start()
        await self._readers.read()
        self.feed = _EmbeddedFeed(self._log, clock, traffic)
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._stack.aclose()

    async def count(self, events: int, *, hours: float = 0.0, deadline_s: float = math.inf) -> None:
        """Feed and count `events` events over `hours` hours of stream time; give up at the deadline."""
        self.feed.hour_events = int(events / hours) if hours else ONE_HOUR
        end = self.feed.traffic.sent + events
        while self.feed.traffic.sent < end and time.monotonic() < deadline_s:
            for _ in range(PARTITIONS):
                await self.feed.append(FLUSH_RECORDS)
            await self._readers.read()
        self.feed.hour_events = ONE_HOUR

    async def cost(self) -> Cost:
        """Count `ROUND_EVENTS` events, and return their cost."""
        readers = self._readers
        readers.worker_s, readers.archive_s, readers.cells = 0.0, 0.0, 0
        await self.count(ROUND_EVENTS)
        return Cost(
            *(total / ROUND_EVENTS for total in (readers.worker_s * 1e6, readers.archive_s * 1e6, readers.cells))
        )

    async def sizes(self) -> Sizes:
        """The sizes of the stores now."""
        with Redis.from_url(self._stores.valkey.url) as redis:
            redis_bytes = int(redis.info("memory")["used_memory"])
        query = "SELECT count() FROM system.parts WHERE active AND table LIKE 'usage_%'"
        ((parts,),) = await self._clickhouse.rows(query)
        path = self._folder / "log.db"
        files = [path, path.with_name(path.name + "-wal")]
        log_bytes = sum(each.stat().st_size for each in files if each.exists())
        return Sizes(self.feed.traffic.sent, redis_bytes, int(parts), log_bytes)

    async def verify(self) -> None:
        """Compare every copy with the traffic's own sums."""
        bench = Bench(self._services, self._base, self.feed, self._report, lambda _message: None)
        await bench.verify(self._stores, f"growth, {self.name}", archive=True)


class Growth:
    """Compares worlds of different size. A difference from the traffic's own sums is an error of the report."""

    def __init__(self, folder: Path, report: Report, say: Callable[[str], None]) -> None:
        self._services = Services(folder, say)
        self._report = report
        self._say = say

    async def figures(self, plan: GrowthPlan) -> list[Figure]:
        """Run both comparisons in sequence. The garbage collector is configured as in the worker."""
        gc.set_threshold(*COLLECTOR_THRESHOLDS)
        return [*await self._by_events(plan), *await self._by_accounts(plan)]

    def _world(self, name: str, accounts: int) -> _World:
        return _World(self._services, self._report, name, accounts)

    async def _by_events(self, plan: GrowthPlan) -> list[Figure]:
        few, many = plan.events
        async with (
            self._world("one slice", plan.of_accounts) as one,
            self._world("three slices", plan.of_accounts) as young,
            self._world("many events", plan.of_accounts) as old,
        ):
            deadline_s = time.monotonic() + plan.minutes_max * 60
            await one.count(WARM_UP_EVENTS)
            await young.count(few, hours=FILL_HOURS)
            before_bytes, young_sizes = resident_bytes(os.getpid()), await young.sizes()
            await old.count(many, hours=FILL_HOURS, deadline_s=deadline_s)
            self._say(f"{old.feed.traffic.sent:,} events counted")
            grown_bytes, old_sizes = resident_bytes(os.getpid()) - before_bytes, await old.sizes()
            costs = await self._costs(plan.rounds, one, young, old)
        return [
            *_slices_figures(costs["one slice"], costs["three slices"]),
            *_events_figures(costs["three slices"], costs["many events"], young_sizes, old_sizes, grown_bytes),
        ]

    async def _by_accounts(self, plan: GrowthPlan) -> list[Figure]:
        names = [f"{accounts:,} accounts" for accounts in plan.accounts]
        async with self._world(names[0], plan.accounts[0]) as few, self._world(names[1], plan.accounts[1]) as many:
            for world in (few, many):
                await world.count(WARM_UP_EVENTS + plan.accounts[1])
            costs = await self._costs(plan.rounds, few, many)
            sizes = await many.sizes()
        return _accounts_figures(names, [costs[name] for name in names], sizes)

    async def _costs(self, rounds: int, *worlds: _World) -> dict[str, list[Cost]]:
        """The costs of the worlds, which take turns: the machine's speed changes within minutes."""
        costs: dict[str, list[Cost]] = {world.name: [] for world in worlds}
        for number in range(rounds):
            for world in worlds[:: 1 if number % 2 else -1]:
                costs[world.name].append(await world.cost())
            self._say(", ".join(f"{name} {each[-1].worker_us:.1f} µs" for name, each in costs.items()))
        for world in worlds:
            await world.verify()
        return costs


async def _deployment(log: SqliteLog, folder: Path) -> Base:
    settings = load_settings(log_url=f"embedded://{folder / 'log.db'}", secret=SECRET)
    topics = [
        replace(topic, retention_ms=RETENTION_MS) if topic.name == EVENTS_TOPIC else topic
        for topic in Settings(partitions=PARTITIONS).topics()
    ]
    genesis = await ensure_deployment(log, SECRET.encode(), topics)
    shipped = read_meter_set(None)
    policy = shipped.policy.model_copy(update={"window_ms": WINDOW_MS})
    await ensure_meter_set(log, SECRET.encode(), shipped.model_copy(update={"policy": policy}))
    return Base(settings, SystemClock(), log, genesis)


def _slices_figures(one: Sequence[Cost], three: Sequence[Cost]) -> list[Figure]:
    section = "(h) All slices of marks, embedded log"
    return [
        _us(section, "worker's processor time, marks in one slice", one),
        _us(section, "worker's processor time, marks in three slices", three),
        _more(section, one, three, SLICES_MAX_PERCENT),
    ]


def _events_figures(
    few: Sequence[Cost], many: Sequence[Cost], few_sizes: Sizes, many_sizes: Sizes, grown_bytes: int
) -> list[Figure]:
    section = f"(h) Growth from {few_sizes.events:,} to {many_sizes.events:,} events, embedded log"
    return [
        _us(section, "worker's processor time at the first", few),
        _us(section, "worker's processor time at the last", many),
        _more(section, few, many, GROWTH_MAX_PERCENT),
        _us(section, "archive's processor time at the last", many, lambda cost: cost.archive_us),
        Figure(section, "memory of the process", grown_bytes / MEGABYTE, "MB more"),
        Figure(section, "Redis", (many_sizes.redis_bytes - few_sizes.redis_bytes) / MEGABYTE, "MB more"),
        Figure(section, "active parts in ClickHouse at the last", many_sizes.clickhouse_parts, "parts"),
        Figure(section, "the log's file at the last", many_sizes.log_bytes / MEGABYTE, "MB"),
    ]


def _accounts_figures(names: Sequence[str], costs: Sequence[Sequence[Cost]], sizes: Sizes) -> list[Figure]:
    section = f"(h) Growth from {names[0]} to {names[1]}"
    (few, many), cells = costs, [median(cost.cells for cost in each) for each in costs]
    per_cell = [median(cost.worker_us for cost in each) / count for each, count in zip(costs, cells, strict=True)]
    note = f"from {cells[0]:.2f} to {cells[1]:.2f} cells per event"
    return [
        _us(section, "worker's processor time at the first", few),
        _us(section, "worker's processor time at the last", many),
        _more(section, few, many, GROWTH_MAX_PERCENT),
        Figure(section, "processor time per cell written", (per_cell[1] / per_cell[0] - 1) * 100, "% more", None, note),
        Figure(section, "memory of the process at the last", resident_bytes(os.getpid()) / MEGABYTE, "MB"),
        Figure(section, "Redis at the last", sizes.redis_bytes / MEGABYTE, "MB"),
    ]


def _us(
    section: str, name: str, costs: Sequence[Cost], part: Callable[[Cost], float] = lambda cost: cost.worker_us
) -> Figure:
    cost_us = median(map(part, costs))
    return Figure(section, name, cost_us, "µs", cost_us, spread([part(cost) for cost in costs]))


def _more(section: str, before: Sequence[Cost], after: Sequence[Cost], at_most: float) -> Figure:
    """By how much the worker's processor time is higher: the median of the rounds."""
    percents = [(late.worker_us / early.worker_us - 1) * 100 for early, late in zip(before, after, strict=True)]
    percent = median(percents)
    note = f"at most {at_most:g}; {spread(percents)}"
    return Figure(section, "  more", percent, "%", None, note, "met" if percent <= at_most else "missed")
