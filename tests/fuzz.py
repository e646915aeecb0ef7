"""Odd records through the C core and through Python, which must agree: `python -m tests.fuzz --seconds 60`."""

from __future__ import annotations

import time

import click

from tests.traffic.odd_records import METER_SET, NOW_MS, OddRecords
from tests.worlds.native import BothMakers, native_library

RECORDS_OF_A_SEED = 60


def fuzz(seed: int, seconds: float, events_max: int) -> tuple[int, int, int]:
    """Compare for so long, or for so many events. Returns the next seed, the events, and how many the core took."""
    library, ends_s, events, taken = native_library(), time.monotonic() + seconds, 0, 0
    while time.monotonic() < ends_s and events < events_max:
        # Every other seed has long records in which little is odd.
        oddness, length = ((1.0, 6), (0.05, 400))[seed % 2]
        records, makers = OddRecords(seed, oddness), BothMakers(library, METER_SET)
        try:
            for offset in range(RECORDS_OF_A_SEED):
                makers.go_to(NOW_MS + offset // 20 * 60_000 * 31)
                share = makers.compare(offset, records.record(length), ahead=offset % 7 != 0)
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
def main(seconds: float, events_max: int, seed: int) -> None:
    """Compare the C core with Python on broken and odd records."""
    reached, events, taken = fuzz(seed, seconds, events_max)
    click.echo(f"the same: {events} events, seeds {seed} to {reached - 1}; the core took {taken}")


if __name__ == "__main__":
    main()
