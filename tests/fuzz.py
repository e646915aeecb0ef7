"""Odd records through the C core and through Python, which must agree: `python -m tests.fuzz --seconds 60`."""

from __future__ import annotations

import time

import click

from pipeline.native.build import build
from pipeline.native.load import load
from schemas.clock import MINUTE_MS
from tests.traffic.odd_records import METER_SET, NOW_MS, OddRecords
from tests.worlds.native import BothMakers, BothRows, native_library

RECORDS_OF_A_SEED = 200
# From one to so many records are taken together.
TAKEN_TOGETHER = 5


def fuzz(seed: int, seconds: float, events_max: int, path: str = "") -> tuple[int, int, int]:
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
            click.echo(f"seed {seed}, offset {offset}")
            raise
        seed += 1
    return seed, events, taken


@click.command()
@click.option("--seconds", default=60.0, show_default=True, help="How long.")
@click.option("--events", "events_max", default=1 << 60, help="How many events at most.")
@click.option("--seed", default=0, show_default=True, help="Where the seeds begin.")
@click.option("--library", default="", help="A build of the C core, such as one with sanitizers.")
def main(seconds: float, events_max: int, seed: int, library: str) -> None:
    """Compare the C core with Python on broken and odd records."""
    if not library:
        said = build()
        if not load(enabled=True).library:
            click.echo(said)
            return
    reached, events, taken = fuzz(seed, seconds, events_max, library)
    click.echo(f"the same: {events} events, seeds {seed} to {reached - 1}; the core took {taken}")


if __name__ == "__main__":
    main()
