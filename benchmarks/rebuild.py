"""Rebuilds the live view of many events on a real Valkey and ClickHouse engine, and compares every key with the old.

`python -m benchmarks.rebuild --events 5000000` prints the time it took and exits with 1 where a byte differs.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from benchmarks.services import SECRET
from benchmarks.traffic import RECORD_EVENTS, Traffic
from pipeline.clock import SystemClock
from pipeline.deployment import ensure_catalog, ensure_deployment
from pipeline.local_valkey import LocalValkey
from pipeline.logs.open import open_log
from pipeline.processors.drains import HourlyDrain, ReportDrain
from pipeline.processors.rollup import RollupProcessor
from pipeline.rebuild.live_view import LiveViewRebuild
from pipeline.settings import Settings
from pipeline.stores import read_catalog
from schemas.log import EVENTS_TOPIC, Log
from sinks.clickhouse.client import open_clickhouse
from sinks.clickhouse.writer import ClickHouseStore
from sinks.redis.writer import RedisRollupStore

PARTITIONS: Final = 4
FLUSH_RECORDS: Final = 20
APPENDS_AT_ONCE: Final = 50
# Empty again once drained, or of the generation itself.
PASSING: Final = ("fence", "dirty:", "cells:", "cell-buckets", "duplicates", "report", "generation")
READS: Final = {
    "hash": ("HGETALL",), "set": ("SMEMBERS",), "zset": ("ZRANGE", "0", "-1", "WITHSCORES"), "string": ("GET",),
}  # fmt: skip


def digests(store: RedisRollupStore, partition: int) -> dict[str, str]:
    """A digest of the content of each lasting key of the partition's live generation, by its name within it."""
    prefix, cursor, found = store.keys(partition).prefix, "0", {}
    while True:
        ((cursor, names),) = store.server.run([("SCAN", cursor, "MATCH", prefix + "*", "COUNT", 1_000)])
        lasting = [name for name in names if not name.removeprefix(prefix).startswith(PASSING)]
        kinds = store.server.run([("TYPE", name) for name in lasting]) if lasting else []
        reads = [(READS[kind][0], name, *READS[kind][1:]) for name, kind in zip(lasting, kinds, strict=True)]
        contents: list[Any] = store.server.run(reads) if reads else []
        for name, kind, content in zip(lasting, kinds, contents, strict=True):
            items = [content] if kind == "string" else content
            if kind in ("hash", "zset"):
                items = list(zip(items[::2], items[1::2], strict=True))
            text = repr(sorted(map(repr, items))).encode()
            found[name.removeprefix(prefix)] = hashlib.blake2b(text, digest_size=16).hexdigest()
        if cursor == "0":
            return found


async def fill(log: Log, events: int, now_ms: int) -> None:
    """Append records of 1 000 events, a seventh of them sent again."""
    batches = list(Traffic(2_000, PARTITIONS, now_ms).records(events // RECORD_EVENTS))
    for start in range(0, len(batches), APPENDS_AT_ONCE):
        some = batches[start : start + APPENDS_AT_ONCE]
        await asyncio.gather(*(log.append(EVENTS_TOPIC, batch.partition, batch.value) for batch in some))


async def run(folder: Path, valkey: LocalValkey, events: int) -> int:
    """Fold, rebuild, compare; 1 where anything differs."""
    clock, secret = SystemClock(), SECRET.encode()
    log = open_log(f"embedded://{folder / 'log.db'}", clock)
    await log.start()
    await ensure_deployment(log, secret, Settings(partitions=PARTITIONS, retention_days=3650).topics())
    await ensure_catalog(log, secret, read_catalog(None))
    store = RedisRollupStore(valkey.url)
    hourly = ClickHouseStore(open_clickhouse(f"chdb://{folder / 'clickhouse'}"))
    await hourly.migrate()
    await fill(log, events, clock.now_ms())

    began_s = time.perf_counter()
    rollup = RollupProcessor(log, store, clock, secret)
    for partition in range(PARTITIONS):
        offset = await rollup.start_offset(partition)
        while records := await log.read(EVENTS_TOPIC, partition, offset, FLUSH_RECORDS):
            await rollup.step(partition, records)
            offset = records[-1].next_offset
        while not (await HourlyDrain(store, hourly).drain(partition)).complete:
            pass
        await ReportDrain(store, log).drain(partition)
    counted_s = time.perf_counter() - began_s
    before = [await asyncio.to_thread(digests, store, partition) for partition in range(PARTITIONS)]
    counters = {partition: fence.counters for partition, fence in rollup.fences.items()}

    began_s = time.perf_counter()
    generation = await LiveViewRebuild(log, store, hourly, clock, secret).run()
    rebuilt_s = time.perf_counter() - began_s
    # Reading the fence tells the store which generation's keys are live.
    fences = [await store.load_fence(partition) for partition in range(PARTITIONS)]
    after = [await asyncio.to_thread(digests, store, partition) for partition in range(PARTITIONS)]
    same = (
        before == after
        and all(map(len, after))
        and all(fence and fence.counters == counters[at] for at, fence in enumerate(fences))
    )
    received = sum(each.received for each in counters.values())
    print(f"events            {received:>12,}   counted {sum(each.counted for each in counters.values()):,}")
    print(f"counted live in   {counted_s:>12.1f} s {received / counted_s:>12,.0f} events/s")
    print(f"rebuilt in        {rebuilt_s:>12.1f} s {received / rebuilt_s:>12,.0f} events/s   generation {generation}")
    differing = [
        key
        for old, new in zip(before, after, strict=True)
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
    for key in differing[:20]:
        print(f"differs: {key}")
    print(f"keys compared     {sum(map(len, before)):>12,}   {'equal' if same else 'DIFFERENT'}")
    await hourly.close()
    await store.close()
    await log.close()
    return 0 if same else 1


def main() -> int:
    """Run in a folder of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    events = parser.parse_args().events
    with tempfile.TemporaryDirectory() as name, LocalValkey(Path(name) / "valkey") as valkey:
        return asyncio.run(run(Path(name), valkey, events))


if __name__ == "__main__":
    sys.exit(main())
