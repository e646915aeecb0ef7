"""More and more events through rollup, relays and archive on the embedded log: does one more cost what the first did?

The processors and stores of worker and archive, one after the other in this process, on a real Valkey and ClickHouse
engine: what is measured is processor time for the same work, whatever else the machine does and however long it waits.

Stream time moves on with the events, a million an hour at most, under a meter set with a window of two hours and a log
that keeps three: after a few hours all slices of marks are full, the oldest leave as new ones come, and the log trims
as much as it takes. What grows from there on would grow for ever.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

import msgspec
from redis import Redis

from benchmarks.broker import Bench, Feed
from benchmarks.figures import Report
from benchmarks.live import bytes_by_kind
from benchmarks.machine import resident_bytes
from benchmarks.services import SECRET, Services, Stores
from benchmarks.traffic import RECORD_EVENTS, Traffic
from pipeline.clock import SystemClock
from pipeline.ingest.archive import ArchiveProcessor
from pipeline.logs.control_records import ensure_deployment, ensure_meter_set
from pipeline.logs.embedded import SqliteLog
from pipeline.open import Base, read_meter_set
from pipeline.rollup.processor import RollupProcessor
from pipeline.rollup.relays import HourlyRelay, ReportRelay
from pipeline.settings import Settings, load_settings
from schemas.clock import HOUR_MS, MINUTE_MS
from schemas.events import EventStruct
from schemas.log import EVENTS_TOPIC
from schemas.processing import Processor
from sinks.clickhouse.client import ClickHouse, open_clickhouse
from sinks.clickhouse.writer import ClickHouseStore
from sinks.redis.view import RedisLiveView

PARTITIONS: Final = 4
WINDOW_MS: Final = 2 * HOUR_MS
RETENTION_MS: Final = 3 * HOUR_MS
# 1 March 2026; the traffic begins 40 hours later, past the slice that the window before any meter set cuts.
ORIGIN_MS: Final = 1_772_323_200_000
BEGIN_MS: Final = ORIGIN_MS + 40 * HOUR_MS
HOUR_EVENTS_MAX: Final = 1_000_000
# As many records as a worker takes at a time.
FLUSH_RECORDS: Final = 20
WARM_UP_EVENTS: Final = 100_000
DECODE_RECORDS: Final = 20
MEGABYTE: Final = 1024 * 1024

PARTS: Final = """
SELECT table, count(), sum(rows), sum(bytes_on_disk) FROM system.parts WHERE active AND table IN
    ('usage_events', 'usage_hourly', 'usage_duplicates', 'dedup_decisions', 'control_log', 'archive_positions')
GROUP BY table ORDER BY table
"""

_bare_decode: Final = msgspec.json.Decoder(list[EventStruct]).decode


class Step(NamedTuple):
    """One step: per event the processor time of the worker's and of the archive's part, wall time of both, and what
    decoding alone cost meanwhile; at its end the memory of this process and the sizes of everything."""

    events: int
    hours: float
    worker_us: float
    archive_us: float
    wall_us: float
    bare_us: float
    process_bytes: int
    redis_bytes: int
    marks: int
    clickhouse_parts: int
    clickhouse_bytes: int
    log_bytes: int

    @property
    def ratio(self) -> float:
        """The worker's processor time in decodings: what is left of it where the machine itself has become slower."""
        return self.worker_us / self.bare_us


class EventsGrowth(NamedTuple):
    """All steps; at their end the bytes and number of each kind of key, and of the rows of each table."""

    steps: list[Step]
    kinds: dict[str, tuple[float, int]]
    tables: dict[str, tuple[float, int]]


class _SteppedClock:
    """The log's clock: it stands still until it is set."""

    def __init__(self) -> None:
        self.ms = ORIGIN_MS

    def now_ms(self) -> int:
        return self.ms

    async def sleep(self, duration_s: float) -> None:
        await asyncio.sleep(duration_s)


class _EmbeddedFeed(Feed):
    """Appends to the embedded log, and lets stream time go on with the events."""

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
        """Append records of events of the minute before the present one, and return when the log has them."""
        self._clock.ms = BEGIN_MS + self.traffic.sent * HOUR_MS // self._hour_events
        self.traffic.move_to(self._clock.ms - MINUTE_MS)
        batches = list(self.traffic.records(records))
        await asyncio.gather(*(self._log.append(EVENTS_TOPIC, batch.partition, batch.value) for batch in batches))


class _Stopwatch:
    """Processor time of this process, and wall time, of what ran under it."""

    def __init__(self) -> None:
        self.cpu_s = self.wall_s = 0.0

    async def run(self, work: Awaitable[None]) -> None:
        began = time.process_time(), time.perf_counter()
        await work
        self.cpu_s += time.process_time() - began[0]
        self.wall_s += time.perf_counter() - began[1]


class _Readers:
    """What worker and archive do, by hand."""

    def __init__(self, log: SqliteLog, store: RedisLiveView, hourly: ClickHouseStore) -> None:
        self.store = store
        self.rollup = RollupProcessor(log, store.state, SystemClock(), SECRET.encode())
        self.archive = ArchiveProcessor(log, hourly, SECRET.encode())
        self._log = log
        self._hourly = HourlyRelay(store.outbox, store.drops, store.deferred, hourly)
        self._reports = ReportRelay(store.reports, store.accounts, log)
        self._next: dict[tuple[Processor, int], int] = {}
        self.worker_time, self.archive_time = _Stopwatch(), _Stopwatch()

    async def start(self) -> None:
        """Find out where to begin."""
        for partition in range(PARTITIONS):
            for processor in (self.rollup, self.archive):
                self._next[processor, partition] = await processor.start_offset(partition) or 0

    async def read(self) -> None:
        """Read what is new, and relay."""
        await self.worker_time.run(self._work())
        await self.archive_time.run(self._through(self.archive))

    async def _work(self) -> None:
        await self._through(self.rollup)
        for partition in range(PARTITIONS):
            while not (await self._hourly.relay(partition)).complete:
                pass
            await self._reports.relay(partition)

    async def _through(self, processor: Processor) -> None:
        for partition in range(PARTITIONS):
            offset = self._next[processor, partition]
            while records := await self._log.read(EVENTS_TOPIC, partition, offset, FLUSH_RECORDS):
                await processor.step(partition, records)
                offset = records[-1].next_offset
            self._next[processor, partition] = offset


async def events_growth(
    folder: Path, targets: Sequence[int], accounts: int, minutes_max: float, report: Report, say: Callable[[str], None]
) -> EventsGrowth:
    """Run to each of the targets, or as far as the time allows; what differs from the traffic's own sums is a failure
    of the report."""
    services, clock = Services(folder, say), _SteppedClock()
    log = SqliteLog(folder / "log.db", clock)
    await log.start()
    with ExitStack() as stack:
        stores = services.stores(stack)
        store, clickhouse = RedisLiveView(stores.valkey.url), open_clickhouse(stores.clickhouse_url)
        hourly = ClickHouseStore(clickhouse)
        await hourly.migrate()
        base = await _deployment(log, folder)
        traffic = Traffic(accounts, PARTITIONS, BEGIN_MS + MINUTE_MS - 1, span_ms=MINUTE_MS)
        feed = _EmbeddedFeed(log, clock, traffic, min(HOUR_EVENTS_MAX, targets[-1] // 16))
        run = _Run(_Readers(log, store, hourly), feed, stores, clickhouse, folder / "log.db", say)
        try:
            steps = await run.steps(targets, time.monotonic() + minutes_max * 60)
            say("Comparing every total with the traffic's own sums")
            await Bench(services, base, feed, report, say).verify(stores, "growth", archive=True)
            parts = await clickhouse.rows(PARTS)
        finally:
            await hourly.close()
            await store.close()
            await log.close()
        tables = {str(table): (int(disk) / max(1, int(rows)), int(rows)) for table, _, rows, disk in parts}
        return EventsGrowth(steps, bytes_by_kind(stores), tables)


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


class _Run:
    """The steps of one run."""

    def __init__(
        self,
        readers: _Readers,
        feed: _EmbeddedFeed,
        stores: Stores,
        clickhouse: ClickHouse,
        log_path: Path,
        say: Callable[[str], None],
    ) -> None:
        self._readers = readers
        self._feed = feed
        self._stores = stores
        self._clickhouse = clickhouse
        self._log_path = log_path
        self._say = say

    async def steps(self, targets: Sequence[int], deadline_s: float) -> list[Step]:
        """One step per target; the last one is cut short where the time is up."""
        # The log will not keep its first records: stream time goes on by forty hours with the first event.
        await self._readers.start()
        await self._readers.read()
        await self._until(WARM_UP_EVENTS, deadline_s)
        steps: list[Step] = []
        for target in targets:
            if steps and time.monotonic() >= deadline_s:
                break
            step = await self._step(target, deadline_s)
            steps.append(step)
            self._say(str(step))
            if step.events < target:
                self._say(f"The time is up; {target:,} was not reached")
                break
        return steps

    async def _until(self, target: int, deadline_s: float) -> list[float]:
        """Go on to so many events; what decoding alone cost meanwhile."""
        bare_us = []
        traffic = self._feed.traffic
        while traffic.sent < target and time.monotonic() < deadline_s:
            for _ in range(PARTITIONS):
                await self._feed.append(FLUSH_RECORDS)
            await self._readers.read()
            bare_us.append(_bare(traffic))
        return bare_us

    async def _step(self, target: int, deadline_s: float) -> Step:
        readers, traffic = self._readers, self._feed.traffic
        readers.worker_time, readers.archive_time = _Stopwatch(), _Stopwatch()
        before = traffic.sent
        bare_us = await self._until(target, deadline_s)
        events = max(1, traffic.sent - before)
        with Redis.from_url(self._stores.valkey.url) as redis:
            redis_bytes = int(redis.info("memory")["used_memory"])
        tables = await self._clickhouse.rows(PARTS)
        files = [self._log_path, self._log_path.with_name(self._log_path.name + "-wal")]
        return Step(
            events=traffic.sent,
            hours=self._feed.hours,
            worker_us=readers.worker_time.cpu_s / events * 1e6,
            archive_us=readers.archive_time.cpu_s / events * 1e6,
            wall_us=(readers.worker_time.wall_s + readers.archive_time.wall_s) / events * 1e6,
            bare_us=median(bare_us) if bare_us else 1.0,
            process_bytes=resident_bytes(os.getpid()),
            redis_bytes=redis_bytes,
            marks=sum(each.members for checkpoint in readers.rollup.checkpoints.values() for each in checkpoint.slices),
            clickhouse_parts=sum(int(parts) for _, parts, _, _ in tables),
            clickhouse_bytes=sum(int(disk) for *_, disk in tables),
            log_bytes=sum(path.stat().st_size for path in files if path.exists()),
        )


def _bare(traffic: Traffic) -> float:
    """µs of this process per event for decoding alone."""
    values = traffic.samples(DECODE_RECORDS)
    began_s = time.thread_time()
    for value in values:
        _bare_decode(value)
    return (time.thread_time() - began_s) / (len(values) * RECORD_EVENTS) * 1e6
