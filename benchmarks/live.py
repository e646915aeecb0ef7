"""Memory of Valkey and latency of the gateway with very many counters."""

from __future__ import annotations

import http.client
import json
import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from statistics import median
from typing import Final

import msgspec
from redis import Redis

from aggregators.partitioning import partition_of
from benchmarks.figures import Figure
from benchmarks.machine import quantile, spread
from benchmarks.services import SECRET, Process, Services, Stores
from benchmarks.traffic import RECORD_EVENTS, time_text
from pipeline.clock import SystemClock
from pipeline.http.api_keys import Role, create_key
from pipeline.local.processes import START_TIMEOUT_S, free_port
from pipeline.open import Base
from pipeline.rollup.processor import RollupProcessor, RollupSettings
from schemas.log import EVENTS_TOPIC, Record
from sinks.redis.view import RedisLiveView

# One event per meter and account: every event makes a mark, a cell and a counter.
OTHER_KINDS: Final = {
    "u:": "distinct value of a `unique` meter",
    "reports:": "report entry (account, meter) of an open report bucket",
}
EVENTS_OF_AN_ACCOUNT: Final = (
    ("api.request", {"method": "GET", "region": "eu-west-1"}),
    ("llm.completion", {"model": "small", "tokens": 1234}),
    ("storage.sampled", {"gigabytes": "12.345"}),
    ("user.active", {"user": "u1"}),
    ("seats.changed", {"seats": 12}),
)
ROUNDS: Final = 5
FILL_RECORDS: Final = 20
TARGET_P99_MS: Final = 5.0
TARGET_MARK_BYTES: Final = 10.0


async def fill(base: Base, stores: Stores, counters: int) -> None:
    """Count events with the worker's processor and store until there are `counters` counters."""
    store = RedisLiveView(stores.valkey.url)
    settings = RollupSettings(cache_entries_max=50_000, replay_from_start=True)
    rollup = RollupProcessor(base.log, store.state, SystemClock(), SECRET.encode(), settings)
    names: list[list[str]] = [[] for _ in range(base.genesis.partitions)]
    for number in range(counters // len(EVENTS_OF_AN_ACCOUNT)):
        name = _account(number)
        names[partition_of(name, len(names))].append(name)
    for partition, accounts in enumerate(names):
        await rollup.start_offset(partition)
        # Only genesis and meter set come from the log; the events are in no log.
        head = (await base.log.read(EVENTS_TOPIC, partition, 0, 100))[:2]
        await rollup.step(partition, head)
        for records in _records(partition, head[-1].next_offset, accounts, base.clock.now_ms()):
            await rollup.step(partition, records)
    await store.close()


def _account(number: int) -> str:
    return f"acct_{number:06d}"


def _records(partition: int, offset: int, accounts: list[str], now_ms: int) -> Iterator[list[Record]]:
    at_once = RECORD_EVENTS // len(EVENTS_OF_AN_ACCOUNT)
    records: list[Record] = []
    for start in range(0, len(accounts), at_once):
        events = [
            {
                "specversion": "1.0", "id": f"{account}/{kind}", "source": "benchmark", "type": kind,
                "subject": account, "time": time_text(now_ms), "data": data,
            }
            for account in accounts[start : start + at_once]
            for kind, data in EVENTS_OF_AN_ACCOUNT
        ]  # fmt: skip
        records.append(Record(EVENTS_TOPIC, partition, offset, now_ms, None, msgspec.json.encode(events)))
        offset = records[-1].next_offset
        if len(records) == FILL_RECORDS:
            yield records
            records = []
    if records:
        yield records


def query_figures(services: Services, stores: Stores, counters: int, requests: int) -> list[Figure]:
    """Measure GET /v1/accounts/{id}/usage of a gateway process over one kept-alive connection."""
    keys, port = stores.folder / "keys.jsonl", free_port()
    key, _ = create_key(keys, Role.READ, SystemClock())
    environment = {
        **stores.environment(services.kafka.url),
        "TIDEMARK_API_KEYS": str(keys),
        "TIDEMARK_GATEWAY_PORT": str(port),
    }
    with Process(["pipeline.cli", "gateway"], stores.folder / "gateway.log", environment) as gateway:
        gateway.wait_until(lambda: _answers(port))
        rounds = [_round(port, key, counters, requests, seed) for seed in range(ROUNDS)]
    p50_ms = [quantile(costs_ms, 0.5) for costs_ms in rounds]
    p99_ms = [quantile(costs_ms, 0.99) for costs_ms in rounds]
    section = f"(f) Live usage over HTTP, {counters:,} counters"
    verdict = "met" if median(p99_ms) <= TARGET_P99_MS else "missed"
    return [
        Figure(section, "p50", median(p50_ms), "ms", None, spread(p50_ms)),
        Figure(section, "p99", median(p99_ms), "ms", None, f"target {TARGET_P99_MS} ms; {spread(p99_ms)}", verdict),
    ]


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def _round(port: int, key: str, counters: int, requests: int, seed: int) -> list[float]:
    chance = random.Random(seed)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    headers = {"Authorization": f"Bearer {key}"}
    costs_ms = []
    for _ in range(requests):
        account = _account(chance.randrange(counters // len(EVENTS_OF_AN_ACCOUNT)))
        began_s = time.perf_counter()
        connection.request("GET", f"/v1/accounts/{account}/usage", headers=headers)
        response = connection.getresponse()
        body = response.read()
        costs_ms.append((time.perf_counter() - began_s) * 1000)
        if response.status != 200:
            raise RuntimeError(f"the gateway answered {response.status}: {body[:300]!r}")
        values = {row["meter"]: row["value"] for row in json.loads(body)["meters"]}
        assert values["tokens"] == "1234", f"{account} has {values}"
    connection.close()
    return costs_ms


def memory_figures(stores: Stores) -> list[Figure]:
    """Measure the memory of each kind of key. Empties the store."""
    section = "(d) Valkey's memory, keys and all"
    kinds = bytes_by_kind(stores)
    (mark, marks), (dirty, _), (cell, cells) = kinds["m:"], kinds["dirty:"], kinds["cells:"]
    (ranked, _), (total, totals), (index, _) = kinds["r:"], kinds["t:"], kinds["totals"]
    verdict = "met" if mark <= TARGET_MARK_BYTES else "missed"
    return [
        Figure(section, "dedup mark", mark, "bytes", None, f"target {TARGET_MARK_BYTES:.0f}; {marks:,} marks", verdict),
        Figure(section, "live cell, relayed", cell, "bytes", None, f"{cells:,} cells"),
        Figure(section, "live cell, not yet relayed", cell + dirty, "bytes"),
        Figure(section, "counter (account, period, meter)", total, "bytes", None, f"{totals:,} counters, 5 an account"),
        Figure(section, "its place in the ranking", ranked, "bytes"),
        Figure(section, "account and period in the index of totals", index, "bytes"),
        *(
            Figure(section, name, kinds[kind][0], "bytes", None, f"{kinds[kind][1]:,}")
            for kind, name in OTHER_KINDS.items()
            if kinds[kind][1]
        ),
    ]


def bytes_by_kind(stores: Stores) -> dict[str, tuple[float, int]]:
    """(bytes per entry, number of entries) by the prefix of the keys. Empties the store.

    Compares Valkey's used memory before and after the keys of a kind are deleted.
    """
    with Redis.from_url(stores.valkey.url, decode_responses=True) as redis:
        members: dict[str, Callable[[str], int]] = {
            "m:": lambda name: int(redis.scard(name)),
            "dirty:": lambda name: int(redis.hlen(name)),
            "cells:": lambda name: int(redis.hlen(name)),
            "r:": lambda name: int(redis.zcard(name)),
            "t:": lambda name: int(redis.hlen(name)),
            "u:": lambda name: int(redis.scard(name)),
            "totals": lambda name: int(redis.zcard(name)),
            "reports:": lambda name: int(redis.hlen(name)),
        }
        kinds = {}
        for kind, count in members.items():
            names = list(redis.scan_iter(f"*}}:{kind}*", count=10_000))
            entries = sum(map(count, names))
            before = _used_bytes(redis)
            for start in range(0, len(names), 1000):
                redis.delete(*names[start : start + 1000])
            _wait_until_freed(redis)
            kinds[kind] = (before - _used_bytes(redis)) / max(1, entries), entries
        return kinds


def _wait_until_freed(redis: Redis) -> None:
    # Valkey frees large keys in another thread.
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while int(redis.info("memory")["lazyfree_pending_objects"]):
        if time.monotonic() > deadline_s:
            raise RuntimeError("Valkey does not free what was deleted")
        time.sleep(0.05)


def _used_bytes(redis: Redis) -> int:
    return int(redis.info("memory")["used_memory"])


async def live_figures(services: Services, base: Base, counters: int, requests: int) -> list[Figure]:
    """Measure latency and memory on new stores."""
    with ExitStack() as stack:
        stores = services.stores(stack)
        await fill(base, stores, counters)
        return [*query_figures(services, stores, counters, requests), *memory_figures(stores)]
