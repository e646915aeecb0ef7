"""Worker and archive as in production, on a real broker. Checks the counts against the traffic's own sums."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
from confluent_kafka import ConsumerGroupState, KafkaException, Producer
from confluent_kafka.admin import AdminClient

from aggregators.codec import parse_value
from benchmarks.figures import Report
from benchmarks.machine import cpu_s
from benchmarks.services import ROOT, Process, Services, Stores
from benchmarks.traffic import RECORD_EVENTS, Traffic
from pipeline.ingest.archive import ARCHIVE_GROUP
from pipeline.ingest.router import ROUTER_GROUP
from pipeline.open import Base
from pipeline.rollup.processor import ROLLUP_GROUP
from schemas.aggregations import Aggregation
from schemas.log import EVENTS_TOPIC
from schemas.rollup import Checkpoint
from sinks.clickhouse.client import ClickHouse, open_clickhouse
from sinks.clickhouse.writer import ClickHouseStore
from sinks.redis.view import RedisLiveView

RUN_TIMEOUT_S: Final = 900.0
DRAIN_TIMEOUT_S: Final = 120.0
JOIN_TIMEOUT_S: Final = 120.0
POLL_INTERVAL_S: Final = 0.1

_split: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode
_MERGED: Final = ", ".join(f"any(aggregation) = '{each}', {each.rule.merged_sql}" for each in Aggregation)
HOURLY_TOTALS: Final = f"""
SELECT account, meter, toInt64(multiIf({_MERGED}, 0)) FROM usage_hourly FINAL GROUP BY account, meter
"""


class Rate(NamedTuple):
    """The rate of a process: events per second of wall time, and processor time per event.

    `beside_us` is the processor time per event of another process, which feeds the first one.
    """

    events_per_s: float
    cpu_us: float
    beside_us: float = 0.0


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

    def bare(self) -> Rate:
        """The bare consume-and-decode of all events so far."""
        servers = self.services.kafka.url.removeprefix("kafka://")
        arguments = ["benchmarks.bare", servers, str(self.base.genesis.partitions), str(self.feed.traffic.sent)]
        with Process(arguments, self.services.folder("bare") / "output") as process:
            return _result(process)

    def by_hand(self, events: int) -> Rate:
        """The hand-written loop over the first events of the same log."""
        with ExitStack() as stack:
            stores = self.services.stores(stack)
            arguments = [
                "benchmarks.by_hand", self.services.kafka.url.removeprefix("kafka://"),
                str(self.base.genesis.partitions), str(events), stores.valkey.url,
                stores.clickhouse_url.rpartition(":")[2],
            ]  # fmt: skip
            with Process(arguments, stores.folder / "by-hand.log") as process:
                return _result(process)

    def role(self, name: str, stores: Stores, checkout: Path = ROOT, *, native: bool = True) -> Process:
        """A process of a role that reads the whole log into empty stores. `checkout` is the folder of its code.
        `native`: with the C core, if it is built."""
        environment = {**stores.environment(self.services.kafka.url), "PYTHONPATH": str(checkout)}
        environment["TIDEMARK_NATIVE"] = str(int(native))
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

    async def joined(self, group: str, process: Process) -> None:
        """Wait until the process has all partitions of its group. Raises RuntimeError after `JOIN_TIMEOUT_S`."""
        admin = AdminClient({"bootstrap.servers": self.services.kafka.url.removeprefix("kafka://"), "log_level": 0})
        deadline_s = time.monotonic() + JOIN_TIMEOUT_S
        while time.monotonic() < deadline_s:
            process.check()
            (answer,) = admin.describe_consumer_groups([group]).values()
            # The broker refuses until it has loaded its groups.
            with contextlib.suppress(KafkaException):
                found = await asyncio.to_thread(answer.result)
                pairs = [pair for member in found.members for pair in member.assignment.topic_partitions]
                if found.state is ConsumerGroupState.STABLE and len(pairs) == self.base.genesis.partitions:
                    return
            await asyncio.sleep(POLL_INTERVAL_S / 2)
        raise RuntimeError(f"{group} has no member with all partitions after {JOIN_TIMEOUT_S:.0f} s")

    async def rate(
        self, process: Process, progress: Callable[[], Awaitable[int]], events: int, beside: Process | None = None
    ) -> Rate:
        """Measure a reader from now until it has processed `events` events. Call it when the reader has joined."""

        def now() -> tuple[float, float, float]:
            return time.monotonic(), cpu_s(process.pid or 0), cpu_s(beside.pid or 0) if beside else 0.0

        began = now()
        while (seen := await progress()) < events:
            process.check()
            if time.monotonic() > began[0] + RUN_TIMEOUT_S:
                raise RuntimeError(f"{seen} of {events} events after {RUN_TIMEOUT_S:.0f} s")
            await asyncio.sleep(POLL_INTERVAL_S)
        wall_s, own_s, beside_s = (after - before for before, after in zip(began, now(), strict=True))
        return Rate(events / wall_s, own_s / events * 1e6, beside_s / events * 1e6)

    async def worker(self, stores: Stores, process: Process, router: Process | None = None) -> Rate:
        """The rate of a worker until all events are counted; then waits until ClickHouse has all totals.

        With a router, the measurement begins when the router has joined its group.
        """
        await self.joined(ROUTER_GROUP if router else ROLLUP_GROUP, router or process)
        store = RedisLiveView(stores.valkey.url)
        clickhouse = open_clickhouse(stores.clickhouse_url)
        try:
            rate = await self.rate(process, lambda: self.counted(store), self.feed.traffic.sent, router)
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
        await self.joined(ARCHIVE_GROUP, process)
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


def _result(process: Process) -> Rate:
    result = process.result(RUN_TIMEOUT_S)
    return Rate(result["events"] / result["seconds"], result["cpu_seconds"] / result["events"] * 1e6)


def _not_before(offset: int, checkpoint: Checkpoint) -> bool:
    return offset >= checkpoint.next_offset
