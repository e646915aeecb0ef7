"""Holds Redis, ClickHouse and Stripe against what the oracle recounts from the producers' own bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from aggregators.codec import parse_value
from demo.plan import ANCHOR_MS, ANCHORED_ACCOUNTS, FREE_ACCOUNTS
from oracle.model import Oracle
from oracle.producers import from_producer_files
from pipeline.open import open_rollup_store
from pipeline.settings import Settings
from schemas.aggregations import Aggregation
from schemas.meters import MeterSet
from schemas.rollup import TotalKey
from sinks.clickhouse.client import open_clickhouse

TotalName = tuple[str, str, int]
DimensionName = tuple[str, str, int, str]


class Expected(NamedTuple):
    """The oracle's counts: by (account, meter, period start), by dimension too, and the counters."""

    totals: dict[TotalName, int]
    dimensions: dict[DimensionName, int]
    counters: dict[str, int]
    ambiguous: int


class Mismatch(NamedTuple):
    """One value that a store holds otherwise than the oracle."""

    store: str
    name: tuple[object, ...]
    expected: int | None
    found: int | None


def recount(folder: Path, meter_set: MeterSet, broken: int) -> Expected:
    """Recount the producers' files; `broken` records hold no JSON and are rejected as one each. Takes a while."""
    anchored = {"effective_from_ms": ANCHOR_MS, "anchor_ms": ANCHOR_MS, "interval": "month", "interval_count": 1}
    bindings = {account: [anchored] for account in ANCHORED_ACCOUNTS}
    files = [folder / "application.jsonl", folder / "inbox.jsonl"]
    oracle: Oracle = from_producer_files(files, meter_set.model_dump(mode="json"), bindings)
    counters = oracle.counter_sums()
    counters["received"] += broken
    counters["rejected"] += broken
    return Expected(
        {(account, meter, period[0]): value for (account, meter, period), value in oracle.totals.items()},
        {
            (account, meter, period[0], dimensions): value
            for (account, meter, period, dimensions), value in oracle.by_dimension().items()
        },
        counters,
        len(oracle.order_sensitive),
    )


def differences(store: str, expected: Mapping[Any, int], found: Mapping[Any, int]) -> list[Mismatch]:
    """Every key whose value differs; a value of 0 and none are the same."""
    return [
        Mismatch(store, key, expected.get(key), found.get(key))
        for key in sorted(expected.keys() | found.keys(), key=str)
        if (expected.get(key) or 0) != (found.get(key) or 0)
    ]


async def redis_totals(settings: Settings) -> dict[TotalName, int]:
    """All totals of all partitions."""
    store = open_rollup_store(settings)
    found: dict[TotalName, int] = {}
    try:
        for partition in range(settings.partitions):
            cursor, keys = 0, set[TotalKey]()
            while True:
                cursor, some = await store.total_keys(partition, cursor, 1000)
                keys.update(some)
                if cursor == 0:
                    break
            _, totals = await store.account_totals(partition, sorted(keys))
            for key, fields in totals.items():
                for meter, text in fields.items():
                    found[key.account, meter, key.period_start_ms] = parse_value(text).minor
    finally:
        await store.close()
    return found


async def redis_counters(settings: Settings) -> tuple[Counter[str], list[tuple[int, int]]]:
    """The counters of all partitions, and (next offset, stream time) of each checkpoint."""
    store = open_rollup_store(settings)
    counters: Counter[str] = Counter()
    positions = []
    try:
        for partition in range(settings.partitions):
            checkpoint = await store.load_checkpoint(partition)
            if checkpoint is not None:
                counters.update(checkpoint.counters._asdict())
                positions.append((checkpoint.next_offset, checkpoint.stream_time_ms))
    finally:
        await store.close()
    return counters, positions


async def clickhouse_dimensions(settings: Settings) -> dict[DimensionName, int]:
    """What the analysts' view says, in minor units, by dimension."""
    clickhouse = open_clickhouse(settings.clickhouse_url)
    merged = ", ".join(f"aggregation = '{each}', {each.rule.merged_sql}" for each in Aggregation)
    sql = f"""
        SELECT account, meter, period_start_ms, dimensions, toInt64(multiIf({merged}, 0))
        FROM usage_hourly FINAL GROUP BY account, meter, period_start_ms, dimensions, aggregation"""  # noqa: S608  # constants
    try:
        rows = await clickhouse.rows(sql)
    finally:
        await clickhouse.close()
    return {(account, meter, start, dimensions): value for account, meter, start, dimensions, value in rows}


def stripe_totals(stripe_url: str, meter_set: MeterSet) -> dict[TotalName, int]:
    """What Stripe holds, per account, meter and the period its events' timestamps lie in."""
    state = httpx.get(f"{stripe_url}/_simulator/state", timeout=60).json()
    scales = {meter.stripe_event_name: (meter.slug, meter.scale) for meter in meter_set.meters}
    accounts = {customer["id"]: customer["name"] for customer in state["customers"]}
    found: Counter[TotalName] = Counter()
    for event in state["meter_events"]:
        if event["status"] != "accepted":
            continue
        slug, scale = scales[event["event_name"]]
        account = accounts[event["customer"]]
        start_ms = period_start_ms(account, event["timestamp_s"] * 1000)
        found[account, slug, start_ms] += int(Decimal(event["value"]).scaleb(scale))
    return dict(found)


def period_start_ms(account: str, instant_ms: int) -> int:
    """The start of the demo's periods, written out."""
    from datetime import UTC, datetime

    if account in ANCHORED_ACCOUNTS and instant_ms >= ANCHOR_MS:
        return ANCHOR_MS
    moment = datetime.fromtimestamp(instant_ms // 1000, UTC)
    return int(datetime(moment.year, moment.month, 1, tzinfo=UTC).timestamp()) * 1000


async def mismatches(settings: Settings, stripe_url: str, meter_set: MeterSet, expected: Expected) -> list[Mismatch]:
    """All differences between the stores and the oracle."""
    counters, _ = await redis_counters(settings)
    unique = {meter.slug for meter in meter_set.meters if meter.aggregation.rule.distinct}
    clickhouse = await clickhouse_dimensions(settings)
    found = differences("counters", expected.counters, counters)
    found += differences("redis", expected.totals, await redis_totals(settings))
    found += differences(
        "clickhouse", expected.dimensions, {key: value for key, value in clickhouse.items() if key[1] not in unique}
    )
    distinct: Counter[TotalName] = Counter()
    for (account, meter, start, _), value in clickhouse.items():
        if meter in unique:
            distinct[account, meter, start] += value
    expected_unique = {key: value for key, value in expected.totals.items() if key[1] in unique}
    found += differences("clickhouse", expected_unique, distinct)
    billed = {key: value for key, value in expected.totals.items() if key[0] not in FREE_ACCOUNTS}
    found += differences("stripe", billed, stripe_totals(stripe_url, meter_set))
    return found
