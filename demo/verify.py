"""Compares the live view with the oracle's count of the producers' files.

One view is enough, because the reconciler compares all views.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from aggregators.codec import parse_value
from demo import plan
from oracle.producers import from_producer_files
from pipeline.open import open_live_view
from pipeline.settings import Settings
from schemas.meters import MeterSet
from schemas.rollup import TotalKey

TotalName = tuple[str, str, int]


class Expected(NamedTuple):
    """The oracle's counts: totals in minor units by (account, meter, period start), and events by outcome."""

    totals: dict[TotalName, int]
    counters: dict[str, int]


class Mismatch(NamedTuple):
    """A value that differs between the live view and the oracle."""

    name: TotalName | str
    expected: int | None
    found: int | None


def recount(folder: Path, meter_set: MeterSet, broken: int) -> Expected:
    """Count the events of the producers' files, and `broken` rejected records without JSON. Blocks for long.

    Call in a separate process: disables the garbage collector, which would take a quarter of the time.
    """
    gc.disable()
    files = [folder / "application.jsonl", folder / "inbox.jsonl"]
    oracle = from_producer_files(files, meter_set.model_dump(mode="json"), plan.bindings())
    counters = oracle.counter_sums()
    counters["received"] += broken
    counters["rejected"] += broken
    totals = {(account, meter, period[0]): value for (account, meter, period), value in oracle.totals.items()}
    return Expected(totals, counters)


async def live_totals(settings: Settings) -> dict[TotalName, int]:
    """All totals in Redis, in minor units."""
    store = open_live_view(settings)
    totals: dict[TotalName, int] = {}
    try:
        for partition in range(settings.partitions):
            cursor, keys = 0, set[TotalKey]()
            while True:
                cursor, some = await store.totals.total_keys(partition, cursor, 1000)
                keys.update(some)
                if cursor == 0:
                    break
            _, read = await store.totals.account_totals(partition, sorted(keys))
            for key, fields in read.items():
                for meter, text in fields.items():
                    totals[key.account, meter, key.period_start_ms] = parse_value(text).minor
    finally:
        await store.close()
    return totals


async def live_counters(settings: Settings) -> Counter[str]:
    """Events by outcome, summed over all partitions."""
    store = open_live_view(settings)
    counters: Counter[str] = Counter()
    try:
        for partition in range(settings.partitions):
            checkpoint = await store.state.load_checkpoint(partition)
            if checkpoint is not None:
                counters.update(checkpoint.counters._asdict())
    finally:
        await store.close()
    return counters


async def mismatches(settings: Settings, expected: Expected) -> list[Mismatch]:
    """All differences between the live view and the oracle."""
    counters = _differences(expected.counters, await live_counters(settings))
    return counters + _differences(expected.totals, await live_totals(settings))


def _differences(expected: Mapping[Any, int], found: Mapping[Any, int]) -> list[Mismatch]:
    """The names with different values. A missing value equals 0."""
    return [
        Mismatch(name, expected.get(name), found.get(name))
        for name in sorted(expected.keys() | found.keys(), key=str)
        if (expected.get(name) or 0) != (found.get(name) or 0)
    ]
