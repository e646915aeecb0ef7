"""Worker and archive as in production, on a real broker. Checks the counts against the traffic's own sums."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

import msgspec
from confluent_kafka import Producer

from aggregators.codec import parse_value
from benchmarks.figures import Figure, Report
from benchmarks.machine import cpu_s, resident_bytes, spread
from benchmarks.services import ROOT, Process, Services, Stores
from benchmarks.traffic import RECORD_EVENTS, Traffic
from pipeline.open import Base
from schemas.aggregations import Aggregation
from schemas.log import EVENTS_TOPIC
from schemas.rollup import Checkpoint
from sinks.clickhouse.client import ClickHouse, open_clickhouse
from sinks.clickhouse.writer import ClickHouseStore
from sinks.redis.view import RedisLiveView

TARGET_EVENTS_PER_S: Final = 50_000
RUN_TIMEOUT_S: Final = 900.0
DRAIN_TIMEOUT_S: Final = 120.0
# On a slow machine the timeout ends the measurement of memory; the whole run stays below 15 minutes.
MEMORY_TIMEOUT_S: Final = 400.0
# The rate excludes the start of the process and the first rebalance.
WARM_UP_SHARE: Final = 0.1
AHEAD_EVENTS_MAX: Final = 400_000
FLAT_GROWTH_BYTES: Final = 24 * 1024 * 1024
SEND_EVENTS: Final = 20_000
POLL_INTERVAL_S: Final = 0.1
MEGABYTE: Final = 1024 * 1024
SECTION: Final = "(b) Events per second of one process, real broker"

_split: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode
_MERGED: Final = ", ".join(f"any(aggregation) = '{each}', {each.rule.merged_sql}" for each in Aggregation)
HOURLY_TOTALS: Final = f"""
SELECT account, meter, toInt64(multiIf({_MERGED}, 0)) FROM usage_hourly FINAL GROUP BY account, meter
"""


class Rate(NamedTuple):
    """The rate of a process: events per second of wall time, and processor time per event."""

    events_per_s: float
    cpu_us: float


class Feed:
    """Produces records of the traffic as fast as librdkafka accepts."""

    def __init__(self, servers: str, traffic: Traffic) -> None:
        self.traffic = traffic
        self._producer: Producer | None = Producer({
            "bootstrap.servers": servers, "acks": "all", "enable.idempotence": True, "linger.ms": 5,
            "message.max.bytes": 8 * 1024 * 1024, "queue.buffering.max.kbytes": 256 * 1024,
        })  # fmt: skip

    def send(self, events: int, topic: str = EVENTS_TOPIC, *, single: bool = False) -> None:
        """Produce `events` events and block until the broker has stored them. Raises RuntimeError after 60 s.

        `single`: one event per record instead of a batch.
        """
        producer = self._producer
        assert producer is not None, "the feed is closed"
        for batch in self.traffic.records(events // RECORD_EVENTS):
            for value in _split(batch.value) if single else [batch.value]:
                while True:
                    try:
                        producer.produce(topic, bytes(value), partition=batch.partition)
                        break
                    except BufferError:
                        producer.poll(0.05)
            producer.poll(0)
        if producer.flush(60):
            raise RuntimeError("the broker did not take the events within 60 s")

    def close(self) -> None:
        """Drop the producer. Call before the broker stops."""
        self._producer = None


class Bench:
    """A broker with a topic of events, and measurements of its readers."""

    def __init__(self, services: Services, base: Base, feed: Feed, report: Report, say: Callable[[str], None]) -> None:
        self.services = services
        self.base = base
        self.feed = feed
        self.report = report
        self.say = say
        self.bare_cpu_us = 0.0

    def bare(self, rounds: int) -> list[float]:
        """Measure the bare consume-and-decode; returns µs per event for each round."""
        events = self.feed.traffic.sent
        wall, cpu = [], []
        for _ in range(rounds):
            servers = self.services.kafka.url.removeprefix("kafka://")
            arguments = ["benchmarks.bare", servers, str(self.base.genesis.partitions), str(events)]
            log = self.services.folder("bare") / "output"
            with Process(arguments, log) as process:
                result = process.result(RUN_TIMEOUT_S)
            wall.append(result["seconds"] / result["events"] * 1e6)
            cpu.append(result["cpu_seconds"] / result["events"] * 1e6)
        self.bare_cpu_us = median(cpu)
        return wall

    def role(self, name: str, stores: Stores, checkout: Path = ROOT) -> Process:
        """A process of a role that reads the whole log into empty stores. `checkout` is the folder of its code."""
        environment = {**stores.environment(self.services.kafka.url), "PYTHONPATH": str(checkout)}
        arguments = ["pipeline.cli", name]
        if name != "router":
            arguments.append("--replay-from-start")
        return Process(arguments, stores.folder / f"{name}.log", environment, checkout)

    async def counted(self, store: RedisLiveView) -> int:
        """The number of events that Redis has received."""
        return sum(checkpoint.counters.received for checkpoint in await self.checkpoints(store))

    async def checkpoints(self, store: RedisLiveView) -> list[Checkpoint]:
        """The checkpoints of all partitions that have one."""
        partitions = range(self.base.genesis.partitions)
        checkpoints = await asyncio.gather(*(store.state.load_checkpoint(partition) for partition in partitions))
        return [checkpoint for checkpoint in checkpoints if checkpoint]

    async def ends(self) -> dict[int, int]:
        """The offset after the last record of each partition."""
        partitions = range(self.base.genesis.partitions)
        return {number: (await self.base.log.bounds(EVENTS_TOPIC, number)).next for number in partitions}

    async def archived(self, clickhouse: ClickHouse, ends: Mapping[int, int], events: int) -> int:
        """The approximate number of archived events, from the share of the offsets."""
        if not await clickhouse.rows("SELECT 1 FROM system.tables WHERE name = 'archive_positions'"):
            return 0
        rows = await clickhouse.rows("SELECT partition, max(next_offset) FROM archive_positions GROUP BY partition")
        passed = sum(min(int(row[1]), ends[int(row[0])]) for row in rows)
        return events * passed // sum(ends.values())

    async def rate(self, process: Process, progress: Callable[[], Awaitable[int]], events: int) -> Rate:
        """Measure a reader until it has processed `events` events."""
        began: tuple[float, float, int] | None = None
        deadline_s = time.monotonic() + RUN_TIMEOUT_S
        while True:
            process.check()
            seen = await progress()
            now = (time.monotonic(), cpu_s(process.pid or 0), seen)
            if began is None and seen >= events * WARM_UP_SHARE:
                began = now
            if began is not None and seen >= events:
                between = max(1, seen - began[2])
                return Rate(between / max(1e-3, now[0] - began[0]), (now[1] - began[1]) / between * 1e6)
            if now[0] > deadline_s:
                raise RuntimeError(f"{seen} of {events} events after {RUN_TIMEOUT_S:.0f} s")
            await asyncio.sleep(POLL_INTERVAL_S)

    async def worker(self, stores: Stores, process: Process) -> Rate:
        """The rate of a worker until all events are counted; then waits until ClickHouse has all totals."""
        store = RedisLiveView(stores.valkey.url)
        clickhouse = open_clickhouse(stores.clickhouse_url)
        try:
            rate = await self.rate(process, lambda: self.counted(store), self.feed.traffic.sent)
            targets = await self.checkpoints(store)
            hourly = ClickHouseStore(clickhouse)
            deadline_s = time.monotonic() + DRAIN_TIMEOUT_S
            while time.monotonic() < deadline_s:
                relayed = [mark.next_offset for _, mark in sorted((await hourly.load_relayed()).items())]
                if len(relayed) == len(targets) and all(map(_not_before, relayed, targets)):
                    return rate
                await asyncio.sleep(POLL_INTERVAL_S)
            raise RuntimeError(f"usage_hourly is not complete {DRAIN_TIMEOUT_S:.0f} s after Redis")
        finally:
            await clickhouse.close()
            await store.close()

    async def archive(self, stores: Stores, process: Process) -> Rate:
        """The rate of an archive until all events are archived."""
        clickhouse = open_clickhouse(stores.clickhouse_url)
        ends, events = await self.ends(), self.feed.traffic.sent
        try:
            return await self.rate(process, lambda: self.archived(clickhouse, ends, events), events)
        finally:
            await clickhouse.close()

    async def verify(self, stores: Stores, what: str, *, archive: bool) -> None:
        """Compare every total in Redis and ClickHouse, and the number of rows, with the traffic's own sums."""
        traffic = self.feed.traffic
        expected = traffic.sums.totals()
        views = {"Redis": await self._redis_totals(stores)}
        clickhouse = open_clickhouse(stores.clickhouse_url)
        try:
            rows = await clickhouse.rows(HOURLY_TOTALS)
            views["usage_hourly"] = {(row[0], row[1]): int(row[2]) for row in rows}
            counts = {"usage_duplicates": ("usage_duplicates", traffic.duplicates)}
            if archive:
                counts["usage_events"] = ("usage_events", traffic.counted)
            for table, wanted in counts.values():
                (row,) = await clickhouse.rows(f"SELECT count() FROM {table} FINAL")
                if int(row[0]) != wanted:
                    self.report.fail(f"{what}: {table} has {int(row[0])} rows, the oracle says {wanted}")
        finally:
            await clickhouse.close()
        for where, totals in views.items():
            different = [key for key in expected.keys() | totals.keys() if expected.get(key) != totals.get(key)]
            if different:
                example = min(different)
                self.report.fail(
                    f"{what}: {len(different)} totals differ in {where}, such as {example}: "
                    f"{totals.get(example)}, the oracle says {expected.get(example)}"
                )

    async def _redis_totals(self, stores: Stores) -> dict[tuple[str, str], int]:
        store = RedisLiveView(stores.valkey.url)
        minors = {}
        try:
            for partition in range(self.base.genesis.partitions):
                cursor, keys = await store.totals.total_keys(partition, 0, 10_000)
                while cursor:
                    cursor, more = await store.totals.total_keys(partition, cursor, 10_000)
                    keys += more
                _, totals = await store.totals.account_totals(partition, sorted(set(keys)))
                for key, fields in totals.items():
                    minors.update({(key.account, meter): parse_value(text).minor for meter, text in fields.items()})
        finally:
            await store.close()
        return minors


def _not_before(offset: int, checkpoint: Checkpoint) -> bool:
    return offset >= checkpoint.next_offset


async def throughput(bench: Bench, rounds: int) -> None:
    """Measure worker and archive separately. The result is the median round."""
    workers, archives = [], []
    for number in range(1, rounds + 1):
        with ExitStack() as stack:
            stores = bench.services.stores(stack)
            bench.say(f"Round {number} of {rounds}: worker over {bench.feed.traffic.sent:,} events")
            with bench.role("worker", stores) as process:
                workers.append(await bench.worker(stores, process))
            bench.say(f"Round {number} of {rounds}: archive over the same")
            with bench.role("archive", stores) as process:
                archives.append(await bench.archive(stores, process))
            await bench.verify(stores, f"round {number}", archive=True)
    bench.report.add(*_rates("worker, alone: Redis and usage_hourly", workers, target=True))
    bench.report.add(*_rates("archive, alone: usage_events", archives))


async def together_and_memory(bench: Bench, memory_events: int) -> None:
    """Measure worker and archive at the same time; then the memory of the worker alone."""
    with ExitStack() as stack:
        stores = bench.services.stores(stack)
        bench.say("Worker and archive side by side")
        worker = stack.enter_context(bench.role("worker", stores))
        with bench.role("archive", stores) as archive:
            rates = await asyncio.gather(bench.worker(stores, worker), bench.archive(stores, archive))
        await bench.verify(stores, "side by side", archive=True)
        bench.report.add(*_rates("worker, beside the archive", rates[:1]))
        bench.report.add(*_rates("archive, beside the worker", rates[1:]))
        bench.say(f"The same worker goes on to {memory_events:,} events")
        await _memory(bench, stores, worker, memory_events)
        await bench.worker(stores, worker)
        await bench.verify(stores, "memory run", archive=False)


async def _memory(bench: Bench, stores: Stores, worker: Process, events: int) -> None:
    store = RedisLiveView(stores.valkey.url)
    samples: list[tuple[int, int]] = []
    counted, traffic = 0, bench.feed.traffic
    deadline_s = time.monotonic() + MEMORY_TIMEOUT_S
    while counted < events and time.monotonic() < deadline_s:
        worker.check()
        if traffic.sent < min(events, counted + AHEAD_EVENTS_MAX):
            await asyncio.to_thread(bench.feed.send, min(SEND_EVENTS, events - traffic.sent))
        else:
            await asyncio.sleep(POLL_INTERVAL_S)
        counted = await bench.counted(store)
        samples.append((counted, resident_bytes(worker.pid or 0)))
    await store.close()
    middle = [size for at, size in samples if 0.4 * counted <= at <= 0.6 * counted]
    last = [size for at, size in samples if at >= 0.8 * counted]
    section = f"(c) Worker's memory over {counted:,} events"
    if not middle or not last:
        bench.report.fail(f"memory: only {counted} events were counted in {MEMORY_TIMEOUT_S:.0f} s")
        return
    if counted < events:
        section += f" (of {events:,}; the time was up)"
    growth = median(last) - median(middle)
    verdict = "met" if growth < FLAT_GROWTH_BYTES else "missed"
    flat = f"from the middle fifth to the last; flat is below {FLAT_GROWTH_BYTES / MEGABYTE:.0f} MB"
    bench.report.add(
        Figure(section, "resident in the middle fifth", median(middle) / MEGABYTE, "MB"),
        Figure(section, "resident in the last fifth", median(last) / MEGABYTE, "MB"),
        Figure(section, "highest", max(size for _, size in samples) / MEGABYTE, "MB"),
        Figure(section, "growth", growth / MEGABYTE, "MB", None, flat, verdict),
    )


def _rates(name: str, rates: Sequence[Rate], *, target: bool = False) -> list[Figure]:
    per_s = median(rate.events_per_s for rate in rates)
    verdict = ("met" if per_s >= TARGET_EVENTS_PER_S else "missed") if target else ""
    notes = [f"target {TARGET_EVENTS_PER_S:,}"] if target else []
    notes.append(spread([rate.events_per_s for rate in rates]))
    cpu_us = median(rate.cpu_us for rate in rates)
    note = "; ".join(filter(None, notes))
    return [
        Figure(SECTION, name, per_s, "events/s", 1e6 / per_s, note, verdict),
        Figure(SECTION, "  processor time of its own process", cpu_us, "µs", cpu_us),
    ]
