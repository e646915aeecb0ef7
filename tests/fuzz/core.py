"""Odd records through the C core and through Python, which must agree: `python -m tests.fuzz core`."""

from __future__ import annotations

import time

import click

from schemas.clock import MINUTE_MS
from tests.traffic.odd_records import METER_SET, NOW_MS, OddRecords
from tests.worlds.native import BothMakers, BothRows, native_library

RECORDS_OF_A_SEED = 200
# From one to so many records are taken together.
TAKEN_TOGETHER = 5


def fuzz_core(seed: int, seconds: float, events_max: int, path: str = "") -> tuple[int, int, int]:
    """Compare for so long, or for so many events. Returns the next seed, the events, and how many the core took."""
    library, ends_s, events, taken = native_library(path), time.monotonic() + seconds, 0, 0
    while time.monotonic() < ends_s and events < events_max:
        # In long records little is odd: those are compared many times faster.
        oddness, length = ((1.0, 6), (0.5, 12), (0.1, 60), (0.01, 120))[seed % 4]
        records, makers, rows = OddRecords(seed, oddness), BothMakers(library, METER_SET), BothRows(library, METER_SET)
        try:
            for offset in range(0, RECORDS_OF_A_SEED, TAKEN_TOGETHER):
                now_ms = NOW_MS + offset // 50 * 31 * MINUTE_MS
                run = [records.record(length) for _ in range(1 + offset // TAKEN_TOGETHER % TAKEN_TOGETHER)]
                makers.go_to(now_ms)
                share = makers.compare(offset, *run, ahead=offset % 7 != 0)
                for number, value in enumerate(run):
                    rows.compare(offset + number, now_ms, value)
                events, taken = events + share.events, taken + share.taken
        except BaseException:
            click.echo(f"replay: python -m tests.fuzz core --seed {seed} (offset {offset})", err=True)
            raise
        seed += 1
    return seed, events, taken
