"""Rebuilds views on a real Valkey and ClickHouse engine, and compares every key and row before and after.

`python -m benchmarks.rebuild --events 5000000 --view archive` prints the duration and exits with 1 on a difference.
`--view` can be repeated; `recount` rebuilds `usage_hourly` from `usage_events`.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from benchmarks.services import SECRET
from benchmarks.traffic import RECORD_EVENTS, Traffic
from pipeline.clock import SystemClock
from pipeline.ingest.archive import ArchiveProcessor
from pipeline.local.valkey import LocalValkey
from pipeline.logs.control_records import ensure_deployment, ensure_meter_set
from pipeline.logs.open import open_log
from pipeline.open import read_meter_set
from pipeline.rebuild.archive import ArchiveRebuild
from pipeline.rebuild.hourly import HourlyRebuild
from pipeline.rebuild.live_view import LiveViewRebuild
from pipeline.rebuild.recount import HourlyRecount
from pipeline.rollup.processor import RollupProcessor
from pipeline.rollup.relays import HourlyRelay, ReportRelay
from pipeline.settings import Settings
from schemas.log import EVENTS_TOPIC, Log
from sinks.clickhouse.client import ClickHouse, open_clickhouse
from sinks.clickhouse.reader import ClickHouseReader
from sinks.clickhouse.staging import ClickHouseStaging
from sinks.clickhouse.writer import ClickHouseStore
from sinks.redis.view import RedisLiveView

PARTITIONS: Final = 4
SECRET_BYTES: Final = SECRET.encode()
VIEWS: Final = ("redis", "usage_hourly", "recount", "archive")
TABLES: Final = {
    "usage_hourly": ("usage_hourly", "usage_duplicates"),
    "recount": ("usage_hourly",),
    "archive": ("usage_events", "dedup_decisions", "control_log", "archive_positions"),
}
FLUSH_RECORDS: Final = 20
APPENDS_AT_ONCE: Final = 50
# Keys that are empty after a relay or belong to one generation.
PASSING: Final = ("checkpoint", "dirty:", "cells:", "cell-buckets", "duplicates", "report", "generation")
READS: Final = {
    "hash": ("HGETALL",), "set": ("SMEMBERS",), "zset": ("ZRANGE", "0", "-1", "WITHSCORES"), "string": ("GET",),
}  # fmt: skip


def digests(store: RedisLiveView, partition: int) -> dict[str, str]:
    """Digests of the lasting keys of the partition's live generation, by key without prefix."""
    prefix, cursor, by_name = store.keyspace.keys(partition).prefix, "0", {}
    while True:
        ((cursor, names),) = store.keyspace.server.run([("SCAN", cursor, "MATCH", prefix + "*", "COUNT", 1_000)])
        lasting = [name for name in names if not name.removeprefix(prefix).startswith(PASSING)]
        kinds = store.keyspace.server.run([("TYPE", name) for name in lasting]) if lasting else []
        reads = [(READS[kind][0], name, *READS[kind][1:]) for name, kind in zip(lasting, kinds, strict=True)]
        contents: list[Any] = store.keyspace.server.run(reads) if reads else []
        for name, kind, content in zip(lasting, kinds, contents, strict=True):
            items = [content] if kind == "string" else content
            if kind in ("hash", "zset"):
                items = list(zip(items[::2], items[1::2], strict=True))
            text = repr(sorted(map(repr, items))).encode()
            by_name[name.removeprefix(prefix)] = hashlib.blake2b(text, digest_size=16).hexdigest()
        if cursor == "0":
            return by_name


async def fill(log: Log, events: int, now_ms: int) -> None:
    """Append records of 1 000 events; a seventh are duplicates."""
    batches = list(Traffic(2_000, PARTITIONS, now_ms).records(events // RECORD_EVENTS))
    for start in range(0, len(batches), APPENDS_AT_ONCE):
        some = batches[start : start + APPENDS_AT_ONCE]
        await asyncio.gather(*(log.append(EVENTS_TOPIC, batch.partition, batch.value) for batch in some))


class Bench(NamedTuple):
    """A deployment on a real Valkey and the ClickHouse engine."""

    log: Log
    store: RedisLiveView
    clickhouse: ClickHouse
    clock: SystemClock
    valkey_url: str

    @property
    def hourly(self) -> ClickHouseStore:
        return ClickHouseStore(self.clickhouse)

    async def count_all(self) -> int:
        """Fold, relay and archive the whole log; returns the number of received events."""
        rollup = RollupProcessor(self.log, self.store.state, self.clock, SECRET_BYTES)
        archive = ArchiveProcessor(self.log, self.hourly, SECRET_BYTES)
        for partition in range(PARTITIONS):
            began_s = time.perf_counter()
            for processor in (rollup, archive):
                offset = await processor.start_offset(partition)
                while records := await self.log.read(EVENTS_TOPIC, partition, offset, FLUSH_RECORDS):
                    await processor.step(partition, records)
                    offset = records[-1].next_offset
            relay = HourlyRelay(self.store.outbox, self.store.drops, self.store.deferred, self.hourly)
            while not (await relay.relay(partition)).complete:
                pass
            while await relay.duplicates(partition):
                pass
            await ReportRelay(self.store.reports, self.store.accounts, self.log).relay(partition)
            print(f"partition {partition} counted and archived in {time.perf_counter() - began_s:.1f} s", flush=True)
        return sum(checkpoint.counters.received for checkpoint in rollup.checkpoints.values())

    async def contents(self, view: str) -> dict[str, str]:
        """Digests of the lasting keys or the tables of a view."""
        contents: dict[str, str] = {}
        if view == "redis":
            for partition in range(PARTITIONS):
                # Loading the checkpoint makes the store use the live generation's keys.
                checkpoint = await self.store.state.load_checkpoint(partition)
                for name, digest in (await asyncio.to_thread(digests, self.store, partition)).items():
                    contents[f"{partition} {name}"] = digest
                contents[f"{partition} counters"] = str(
                    checkpoint and (checkpoint.counters, checkpoint.next_offset, checkpoint.slices)
                )
        for table in TABLES.get(view, ()):
            # Versions contain the generation of the live view, which a rebuild increments.
            columns = "* REPLACE (bitAnd(version, 72057594037927935) AS version)" if table == "usage_hourly" else "*"
            rows = await self.clickhouse.rows(
                f"SELECT count(), sum(cityHash64(*)) FROM (SELECT {columns} FROM {table} FINAL)"
            )
            contents[table] = f"{rows[0][0]} rows, {rows[0][1]}"
        return contents

    async def rebuild(self, view: str) -> None:
        """Rebuild a view."""
        staging, reader = ClickHouseStaging(self.clickhouse), ClickHouseReader(self.clickhouse)
        log, live, clock = self.log, self.store, self.clock
        if view == "redis":
            await LiveViewRebuild(log, live, self.hourly, clock, SECRET_BYTES).run()
        elif view == "usage_hourly":
            url = self.valkey_url
            await HourlyRebuild(
                log, live, lambda name: RedisLiveView(url, name), self.hourly, staging, clock, SECRET_BYTES
            ).run()  # fmt: skip
        elif view == "recount":
            await HourlyRecount(log, live, self.hourly, reader, staging, clock, SECRET_BYTES).run()
        else:
            await ArchiveRebuild(log, staging, SECRET_BYTES).run()


async def run(folder: Path, valkey: LocalValkey, events: int, views: Sequence[str]) -> int:
    """Count, rebuild each view and compare; returns 1 on a difference."""
    clock = SystemClock()
    log = open_log(f"embedded://{folder / 'log.db'}", clock)
    await log.start()
    await ensure_deployment(log, SECRET_BYTES, Settings(partitions=PARTITIONS, retention_days=3650).topics())
    await ensure_meter_set(log, SECRET_BYTES, read_meter_set(None))
    clickhouse = open_clickhouse(f"chdb://{folder / 'clickhouse'}", timeout_s=600)
    bench = Bench(log, RedisLiveView(valkey.url), clickhouse, clock, valkey.url)
    await bench.hourly.migrate()
    await fill(log, events, clock.now_ms())
    began_s = time.perf_counter()
    received = await bench.count_all()
    counted_s = time.perf_counter() - began_s
    print(f"counted and archived {received:,} events in {counted_s:.1f} s, {received / counted_s:,.0f} events/s")

    wrong = 0
    for view in views:
        before = await bench.contents(view)
        began_s = time.perf_counter()
        await bench.rebuild(view)
        rebuilt_s = time.perf_counter() - began_s
        after = await bench.contents(view)
        differing = [key for key in sorted(before.keys() | after.keys()) if before.get(key) != after.get(key)]
        verdict = "DIFFERENT" if differing or not before else "equal"
        print(
            f"{view:<14} rebuilt in {rebuilt_s:8.1f} s {received / rebuilt_s:10,.0f} events/s   "
            f"{len(before):,} {'keys' if view == 'redis' else 'tables'} {verdict}",
            flush=True,
        )
        for key in differing[:20]:
            print(f"differs: {key}: {before.get(key)} | {after.get(key)}")
        wrong += bool(differing) or not before
    await clickhouse.close()
    await bench.store.close()
    await log.close()
    return 1 if wrong else 0


def main() -> int:
    """Run in a temporary folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--view", action="append", choices=VIEWS, help="all of them, where none is named")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, LocalValkey(Path(name) / "valkey") as valkey:
        return asyncio.run(run(Path(name), valkey, chosen.events, chosen.view or VIEWS))


if __name__ == "__main__":
    sys.exit(main())
