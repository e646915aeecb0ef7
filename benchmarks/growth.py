"""Section (h) of `make bench`: the cost of an event against the number of earlier events and accounts.

The processors of worker and archive run in this process, on the embedded log, a real Valkey and the ClickHouse engine.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

from redis import Redis

from benchmarks.broker import Bench, Feed
from benchmarks.figures import Figure, Report
from benchmarks.machine import resident_bytes
from benchmarks.services import SECRET, Services, Stores
from benchmarks.traffic import Traffic
from pipeline.clock import SystemClock
from pipeline.ingest.archive import ArchiveProcessor
from pipeline.logs.control_records import ensure_deployment, ensure_meter_set
from pipeline.logs.embedded import SqliteLog
from pipeline.open import Base, read_meter_set
from pipeline.rollup.processor import RollupProcessor
from pipeline.rollup.relays import HourlyRelay, ReportRelay
from pipeline.settings import Settings, load_settings
from schemas.clock import HOUR_MS, MINUTE_MS
from schemas.log import EVENTS_TOPIC
from schemas.processing import Processor
from sinks.clickhouse.client import ClickHouse, open_clickhouse
from sinks.clickhouse.writer import ClickHouseStore
from sinks.redis.view import RedisLiveView

GROWTH_MAX_PERCENT: Final = 10.0
# Three slices: each is half a dedup window of two hours.
FULL_HOURS: Final = 3.0
PARTITIONS: Final = 4
WINDOW_MS: Final = 2 * HOUR_MS
RETENTION_MS: Final = 3 * HOUR_MS
# 1 March 2026. The traffic begins 40 hours later, after the slice of the default dedup window.
ORIGIN_MS: Final = 1_772_323_200_000
BEGIN_MS: Final = ORIGIN_MS + 40 * HOUR_MS
# The number of records that a worker takes at once.
FLUSH_RECORDS: Final = 20
# One round over all partitions.
WARM_UP_EVENTS: Final = 80_000
# So many that all events lie in one hour and update existing cells.
ONE_HOUR: Final = 1_000_000_000
MEGABYTE: Final = 1024 * 1024


class GrowthPlan(NamedTuple):
    """Events at the ends of steps with `of_accounts` accounts; then numbers of accounts, and events for each."""

    events: tuple[int, ...]
    of_accounts: int
    accounts: tuple[int, ...]
    events_each: int
    minutes_max: float


FULL: Final = GrowthPlan((1_000_000, 2_000_000, 4_000_000), 2_000, (1_000, 10_000, 100_000), 300_000, 5)
QUICK: Final = GrowthPlan((200_000, 400_000, 800_000), 2_000, (1_000, 10_000), 100_000, 2)


class Step(NamedTuple):
    """A step: processor time of the worker and cells per event, then all sizes at the end of the step."""

    events: int
    hours: float
    worker_us: float
    cells_per_event: float
    process_bytes: int
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
    """Appends to the embedded log and moves stream time with the events."""

    def __init__(self, log: SqliteLog, clock: _SteppedClock, traffic: Traffic, hour_events: int) -> None:
        self.traffic = traffic
        self._log = log
        self._clock = clock
        self._hour_events = hour_events

    @property
    def hours(self) -> float:
        """Hours of stream time since the traffic began."""
        return (self._clock.ms - BEGIN_MS) / HOUR_MS

    async def append(self, records: int) -> None:
        """Append records with events of the previous minute; return when the log has stored the records."""
        self._clock.ms = BEGIN_MS + self.traffic.sent * HOUR_MS // self._hour_events
        self.traffic.move_to(self._clock.ms - MINUTE_MS)
        batches = list(self.traffic.records(records))
        await asyncio.gather(*(self._log.append(EVENTS_TOPIC, batch.partition, batch.value) for batch in batches))


class _Readers:
    """Runs the processors of worker and archive, and measures the processor time of the worker's part."""

    def __init__(self, log: SqliteLog, view: RedisLiveView, hourly: ClickHouseStore) -> None:
        self.worker_s = 0.0
        self.cells = 0
        self._rollup = RollupProcessor(log, view.state, SystemClock(), SECRET.encode())
        self._archive = ArchiveProcessor(log, hourly, SECRET.encode())
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
        self.worker_s += time.process_time() - began_s
        await self._through(self._archive)

    async def _through(self, processor: Processor) -> None:
        for partition in range(PARTITIONS):
            offset = self._next[processor, partition]
            while records := await self._log.read(EVENTS_TOPIC, partition, offset, FLUSH_RECORDS):
                await processor.step(partition, records)
                offset = records[-1].next_offset
            self._next[processor, partition] = offset


class Growth:
    """Runs the steps. A difference from the traffic's own sums is an error of the report."""

    def __init__(self, folder: Path, report: Report, say: Callable[[str], None]) -> None:
        self._services = Services(folder, say)
        self._report = report
        self._say = say

    async def figures(self, plan: GrowthPlan) -> list[Figure]:
        """Run both parts in sequence."""
        deadline_s = time.monotonic() + plan.minutes_max * 60
        events = await self._run(plan.events, plan.of_accounts, plan.events[-1] // 16, deadline_s)
        end = WARM_UP_EVENTS + plan.events_each
        accounts = {count: (await self._run([end], count, ONE_HOUR))[-1] for count in plan.accounts}
        return [*_events_figures(events), *_accounts_figures(accounts)]

    async def _run(
        self, targets: Sequence[int], accounts: int, hour_events: int, deadline_s: float = float("inf")
    ) -> list[Step]:
        """Run to each target, starting with empty stores. No step begins after the deadline."""
        folder, clock = self._services.folder("growth"), _SteppedClock()
        log = SqliteLog(folder / "log.db", clock)
        await log.start()
        with ExitStack() as stack:
            stores = self._services.stores(stack)
            view, clickhouse = RedisLiveView(stores.valkey.url), open_clickhouse(stores.clickhouse_url)
            hourly = ClickHouseStore(clickhouse)
            await hourly.migrate()
            base = await _deployment(log, folder)
            traffic = Traffic(accounts, PARTITIONS, BEGIN_MS + MINUTE_MS - 1, span_ms=MINUTE_MS)
            feed = _EmbeddedFeed(log, clock, traffic, hour_events)
            readers = _Readers(log, view, hourly)
            steps: list[Step] = []
            try:
                # The first event moves stream time by forty hours, so the log drops its first records.
                await readers.start()
                await readers.read()
                await _feed_to(WARM_UP_EVENTS, feed, readers)
                for target in targets:
                    if not steps or time.monotonic() < deadline_s:
                        steps.append(await _step(target, feed, readers, stores, clickhouse, folder / "log.db"))
                        self._say(f"{accounts:,} accounts: {target:,} events, {steps[-1].worker_us:.1f} µs each")
                bench = Bench(self._services, base, feed, self._report, self._say)
                await bench.verify(stores, "growth", archive=True)
            finally:
                await hourly.close()
                await view.close()
                await log.close()
        return steps


async def _feed_to(target: int, feed: _EmbeddedFeed, readers: _Readers) -> None:
    while feed.traffic.sent < target:
        for _ in range(PARTITIONS):
            await feed.append(FLUSH_RECORDS)
        await readers.read()


async def _step(
    target: int, feed: _EmbeddedFeed, readers: _Readers, stores: Stores, clickhouse: ClickHouse, log_path: Path
) -> Step:
    before, readers.worker_s, readers.cells = feed.traffic.sent, 0.0, 0
    await _feed_to(target, feed, readers)
    events = feed.traffic.sent - before
    with Redis.from_url(stores.valkey.url) as redis:
        redis_bytes = int(redis.info("memory")["used_memory"])
    ((parts,),) = await clickhouse.rows("SELECT count() FROM system.parts WHERE active AND table LIKE 'usage_%'")
    files = [log_path, log_path.with_name(log_path.name + "-wal")]
    return Step(
        events=feed.traffic.sent,
        hours=feed.hours,
        worker_us=readers.worker_s / events * 1e6,
        cells_per_event=readers.cells / events,
        process_bytes=resident_bytes(os.getpid()),
        redis_bytes=redis_bytes,
        clickhouse_parts=int(parts),
        log_bytes=sum(path.stat().st_size for path in files if path.exists()),
    )


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


def _events_figures(steps: Sequence[Step]) -> list[Figure]:
    first, full, last = steps[0], _first_full(steps), steps[-1]
    section = f"(h) Growth from {first.events:,} to {last.events:,} events, embedded log"
    by_first, verdict = _growth(first, last)
    by_full, full_verdict = _growth(full, last)
    return [
        Figure(section, "worker's processor time per event", by_first, "%", None, "at most 10", verdict),
        Figure(section, f"  from {full.events:,} on, all marks full", by_full, "%", None, "at most 10", full_verdict),
        Figure(section, "worker's processor time in the last step", last.worker_us, "µs", last.worker_us),
        Figure(section, "memory of the process", (last.process_bytes - first.process_bytes) / MEGABYTE, "MB more"),
        Figure(section, "Redis", (last.redis_bytes - first.redis_bytes) / MEGABYTE, "MB more"),
        Figure(section, "active parts in ClickHouse at the end", last.clickhouse_parts, "parts"),
        Figure(section, "the log's file at the end", last.log_bytes / MEGABYTE, "MB"),
    ]


def _accounts_figures(steps: dict[int, Step]) -> list[Figure]:
    (few, first), (many, last) = min(steps.items()), max(steps.items())
    section = f"(h) Growth from {few:,} to {many:,} accounts"
    per_cell = _percent(first.worker_us / first.cells_per_event, last.worker_us / last.cells_per_event)
    note = "negative: more cells at once are cheaper"
    return [
        Figure(section, "processor time per event at the first", first.worker_us, "µs", first.worker_us),
        Figure(section, "processor time per event at the last", last.worker_us, "µs", last.worker_us),
        Figure(section, "processor time per cell written", per_cell, "%", None, note),
    ]


def _first_full(steps: Sequence[Step]) -> Step:
    """The first step that began with all slices of marks full, or the last step."""
    return next((step for before, step in itertools.pairwise(steps) if before.hours >= FULL_HOURS), steps[-1])


def _growth(first: Step, last: Step) -> tuple[float, str]:
    percent = _percent(first.worker_us, last.worker_us)
    return percent, "met" if percent <= GROWTH_MAX_PERCENT else "missed"


def _percent(first: float, last: float) -> float:
    return (last / first - 1) * 100
