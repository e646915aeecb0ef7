"""More and more events through a worker and an archive on the embedded log: does one more cost what the first did?

Log time moves on with the events, a million an hour at most, under a catalog with a window of two hours and a log that
keeps three: after a few hours all slices of marks are full, the oldest leave as new ones come, and the log trims as
much as it takes. What grows from there on would grow for ever.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
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
from benchmarks.machine import cpu_s, resident_bytes
from benchmarks.services import SECRET, Process, Services, Stores
from benchmarks.traffic import RECORD_EVENTS, Traffic
from pipeline.clock import ScaledClock, SystemClock, write_clock
from pipeline.deployment import ensure_catalog, ensure_deployment
from pipeline.logs.embedded import SqliteLog
from pipeline.settings import Settings, load_settings
from pipeline.stores import Base, read_catalog
from schemas.clock import HOUR_MS, MINUTE_MS
from schemas.events import EventStruct
from schemas.log import EVENTS_TOPIC
from schemas.rollup import Fence
from sinks.clickhouse.client import ClickHouse, open_clickhouse
from sinks.redis.writer import RedisRollupStore

PARTITIONS: Final = 4
WINDOW_MS: Final = 2 * HOUR_MS
RETENTION_MS: Final = 3 * HOUR_MS
# 1 March 2026; the traffic begins 40 hours later, past the slice that the window before any catalog cuts.
ORIGIN_MS: Final = 1_772_323_200_000
BEGIN_MS: Final = ORIGIN_MS + 40 * HOUR_MS
HOUR_EVENTS_MAX: Final = 1_000_000
SEND_EVENTS: Final = 20_000
AHEAD_EVENTS_MAX: Final = 200_000
WARM_UP_EVENTS: Final = 100_000
POLL_INTERVAL_S: Final = 0.1
START_TIMEOUT_S: Final = 60.0
DECODE_RECORDS: Final = 40
DECODE_ROUNDS: Final = 15
MEGABYTE: Final = 1024 * 1024

PARTS: Final = """
SELECT count(), sum(bytes_on_disk) FROM system.parts WHERE active AND table IN
    ('usage_events', 'usage_hourly', 'usage_duplicates', 'verdicts', 'control_log', 'archive_positions')
"""

_bare_decode: Final = msgspec.json.Decoder(list[EventStruct]).decode


class Step(NamedTuple):
    """One step: per event the worker's and the archive's processor time, wall time, and what decoding alone cost by
    then; at its end sizes of everything."""

    events: int
    hours: float
    worker_us: float
    archive_us: float
    wall_us: float
    bare_us: float
    worker_bytes: int
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
    """All steps, and the bytes and number of each kind of key at their end."""

    steps: list[Step]
    kinds: dict[str, tuple[float, int]]


class _SteppedClock:
    """The log time of what is appended; every other process reads it from a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ms = ORIGIN_MS

    def now_ms(self) -> int:
        return self.ms

    async def sleep(self, duration_s: float) -> None:
        await asyncio.sleep(duration_s)

    def set(self, now_ms: int) -> None:
        self.ms = now_ms
        write_clock(self.path, ScaledClock(SystemClock().now_ms(), now_ms, 1))


class _EmbeddedFeed(Feed):
    """Appends to the embedded log, and lets log time go on with the events."""

    def __init__(self, log: SqliteLog, clock: _SteppedClock, traffic: Traffic, hour_events: int) -> None:
        self.traffic = traffic
        self._log = log
        self._clock = clock
        self._hour_events = hour_events

    @property
    def hours(self) -> float:
        """Hours of log time since the traffic began."""
        return (self._clock.ms - BEGIN_MS) / HOUR_MS

    async def append(self, events: int) -> None:
        """Append events of the minute before the present one, and return when the log has them."""
        now_ms = BEGIN_MS + self.traffic.sent * HOUR_MS // self._hour_events
        self._clock.set(now_ms)
        self.traffic.move_to(now_ms - MINUTE_MS)
        batches = list(self.traffic.records(events // RECORD_EVENTS))
        await asyncio.gather(*(self._log.append(EVENTS_TOPIC, batch.partition, batch.value) for batch in batches))


class _Readers(NamedTuple):
    """What the run looks at."""

    bench: Bench
    stores: Stores
    store: RedisRollupStore
    clickhouse: ClickHouse
    worker: Process
    archive: Process
    log_path: Path


async def events_growth(
    folder: Path, targets: Sequence[int], accounts: int, minutes_max: float, report: Report, say: Callable[[str], None]
) -> EventsGrowth:
    """Run to each of the targets, or as far as the time allows; what differs from the traffic's own sums is a failure
    of the report."""
    services = Services(folder, say)
    clock = _SteppedClock(folder / "clock")
    clock.set(ORIGIN_MS)
    log = SqliteLog(folder / "log.db", clock)
    with ExitStack() as stack:
        await log.start()
        base = await _deployment(log, folder)
        traffic = Traffic(accounts, PARTITIONS, BEGIN_MS + MINUTE_MS - 1, span_ms=MINUTE_MS)
        feed = _EmbeddedFeed(log, clock, traffic, min(HOUR_EVENTS_MAX, targets[-1] // 8))
        stores = services.stores(stack)
        environment = {**stores.environment(f"embedded://{folder / 'log.db'}"), "TIDEMARK_CLOCK": f"file:{clock.path}"}
        worker, archive = (
            stack.enter_context(Process(["pipeline.cli", role], stores.folder / f"{role}.log", environment))
            for role in ("worker", "archive")
        )
        bench = Bench(services, base, feed, report, say)
        readers = _Readers(
            bench, stores, RedisRollupStore(stores.valkey.url), open_clickhouse(stores.clickhouse_url), worker, archive,
            folder / "log.db",
        )  # fmt: skip
        try:
            steps = await _steps(readers, feed, targets, time.monotonic() + minutes_max * 60)
            say("Comparing every total with the traffic's own sums")
            await bench.worker(stores, worker)
            await bench.archive(stores, archive)
            await bench.verify(stores, "growth", archive=True)
        finally:
            await readers.clickhouse.close()
            await readers.store.close()
            await log.close()
        worker.stop()
        return EventsGrowth(steps, bytes_by_kind(stores))


async def _deployment(log: SqliteLog, folder: Path) -> Base:
    settings = load_settings(log_url=f"embedded://{folder / 'log.db'}", secret=SECRET)
    topics = [
        replace(topic, retention_ms=RETENTION_MS) if topic.name == EVENTS_TOPIC else topic
        for topic in Settings(partitions=PARTITIONS).topics()
    ]
    genesis = await ensure_deployment(log, SECRET.encode(), topics)
    shipped = read_catalog(None)
    policy = shipped.policy.model_copy(update={"window_ms": WINDOW_MS})
    await ensure_catalog(log, SECRET.encode(), shipped.model_copy(update={"policy": policy}))
    return Base(settings, SystemClock(), log, genesis)


async def _steps(readers: _Readers, feed: _EmbeddedFeed, targets: Sequence[int], deadline_s: float) -> list[Step]:
    bench, steps = readers.bench, []
    await _started(readers)
    await _until(readers, feed, WARM_UP_EVENTS, deadline_s)
    bare_us = _bare(feed.traffic)
    for target in targets:
        began = (time.monotonic(), cpu_s(readers.worker.pid), cpu_s(readers.archive.pid))
        before = await bench.counted(readers.store)
        seen = await _until(readers, feed, target, deadline_s)
        ended = (time.monotonic(), cpu_s(readers.worker.pid), cpu_s(readers.archive.pid))
        wall_us, worker_us, archive_us = (
            (end - start) / max(1, seen - before) * 1e6 for start, end in zip(began, ended, strict=True)
        )
        bare_after_us = _bare(feed.traffic)
        steps.append(
            await _measured(readers, seen, feed, (worker_us, archive_us, wall_us, (bare_us + bare_after_us) / 2))
        )
        bare_us = bare_after_us
        bench.say(f"{seen:,} events: {worker_us:.1f} µs of the worker's processor time and {wall_us:.1f} µs an event")
        if seen < target:
            bench.say(f"The time is up; {target:,} was not reached")
            break
    return steps


async def _started(readers: _Readers) -> None:
    """Wait until both have the log's first records behind them, which it will not keep."""
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while (
        len(await readers.bench.fences(readers.store)) < PARTITIONS
        or await readers.bench.archived(readers.clickhouse, await readers.bench.ends(), 100) < 100
    ):
        readers.worker.check()
        readers.archive.check()
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"worker and archive did not start within {START_TIMEOUT_S:.0f} s")
        await asyncio.sleep(POLL_INTERVAL_S)


async def _until(readers: _Readers, feed: _EmbeddedFeed, target: int, deadline_s: float) -> int:
    """Feed until the worker has counted so many; neither reader may fall further behind than the log keeps."""
    bench, traffic = readers.bench, feed.traffic
    while True:
        readers.worker.check()
        readers.archive.check()
        counted = await bench.counted(readers.store)
        if counted >= target or time.monotonic() > deadline_s:
            return counted
        archived = await bench.archived(readers.clickhouse, await bench.ends(), traffic.sent)
        room = min(counted, archived) + AHEAD_EVENTS_MAX - traffic.sent
        wanted = min(target - traffic.sent, SEND_EVENTS)
        if wanted > 0 and room > 0:
            await feed.append(wanted)
        else:
            await asyncio.sleep(POLL_INTERVAL_S)


async def _measured(
    readers: _Readers, seen: int, feed: _EmbeddedFeed, costs_us: tuple[float, float, float, float]
) -> Step:
    fences: list[Fence] = await readers.bench.fences(readers.store)
    with Redis.from_url(readers.stores.valkey.url) as redis:
        redis_bytes = int(redis.info("memory")["used_memory"])
    ((parts, disk),) = await readers.clickhouse.rows(PARTS)
    files = [readers.log_path, readers.log_path.with_name(readers.log_path.name + "-wal")]
    return Step(
        events=seen,
        hours=feed.hours,
        worker_us=costs_us[0],
        archive_us=costs_us[1],
        wall_us=costs_us[2],
        bare_us=costs_us[3],
        worker_bytes=resident_bytes(readers.worker.pid),
        redis_bytes=redis_bytes,
        marks=sum(each.members for fence in fences for each in fence.slices),
        clickhouse_parts=int(parts),
        clickhouse_bytes=int(disk or 0),
        log_bytes=sum(path.stat().st_size for path in files if path.exists()),
    )


def _bare(traffic: Traffic) -> float:
    """µs of this process per event for decoding alone, the median of some rounds."""
    values = traffic.samples(DECODE_RECORDS)
    costs = []
    for _ in range(DECODE_ROUNDS):
        began_s = time.thread_time()
        for value in values:
            _bare_decode(value)
        costs.append((time.thread_time() - began_s) / (len(values) * RECORD_EVENTS) * 1e6)
    return median(costs)
