"""`make fuzz`: the C core, the routes and the doors, one after the other; exits 1 at the first failure."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final, NamedTuple

import click

from pipeline.http.api_keys import Role
from pipeline.native.build import build
from pipeline.native.load import load
from tests.fuzz.api import ALL, fuzz_api, served
from tests.fuzz.core import fuzz_core
from tests.fuzz.doors import NOTHING, ROUND, Tally, Wrong, fuzz_doors, replayed
from tests.fuzz.files import fuzz_files
from tests.fuzz.processes import fuzz_processes
from tests.traffic.malformed import Door

CORE_S: Final = 60
API_S: Final = 150
INPUTS: Final = 1_000_000
# Of the processes, which take longer for each.
REAL_INPUTS: Final = 4_000
FILES: Final = 2_000
GROWTH_BYTES_MAX: Final = 32 << 20


class Given(NamedTuple):
    """What the command line says."""

    seconds: float
    events_max: int
    seed: int
    library: str
    inputs: int
    processes: int
    replay: str


def core(given: Given) -> str:
    """Compare the C core with Python on broken and odd records."""
    if not given.library:
        said = build()
        if not load(enabled=True).library:
            return said
    reached, events, taken = fuzz_core(given.seed, given.seconds or CORE_S, given.events_max, given.library)
    return f"the same: {events} events, seeds {given.seed} to {reached - 1}; the core took {taken}"


def api(given: Given) -> str:
    """Ask every route with every role."""
    with served() as gateway:
        whole_s = given.seconds or API_S
        for key in gateway.keys:
            # What a key may not do is answered the same way whatever is asked, so most of the time is the admin's.
            share = 0.4 if key == Role.ADMIN else 0.6 / (len(gateway.keys) - 1)
            if failures := fuzz_api(gateway, key, given.seed, ALL, max(1, int(whole_s * share))):
                raise Wrong(f"{failures}\nreplay: python -m tests.fuzz api --seed {given.seed} (key: {key})")
    return f"the routes answer as documented: {len(gateway.keys)} kinds of keys, seed {given.seed}"


def doors(given: Given) -> str:
    """Send broken inputs to every door."""
    if given.replay:
        return _told(replayed(Path(given.replay)))
    build()
    seeds = range(given.seed, given.seed + -(-given.inputs // ROUND))
    shares = [seeds[each :: given.processes] for each in range(given.processes)]
    with ProcessPoolExecutor(given.processes, get_context("spawn")) as pool:
        done = list(pool.map(fuzz_doors, [each for each in shares if each], repeat(ROUND)))
    for share in done:
        if share.late_bytes > share.early_bytes + GROWTH_BYTES_MAX:
            raise Wrong(f"the memory grew from {share.early_bytes >> 20} to {share.late_bytes >> 20} MiB")
    memory = ", ".join(f"{share.early_bytes >> 20} MiB, at the end {share.late_bytes >> 20}" for share in done)
    return f"{_told(sum((share.tally for share in done), NOTHING))}\n  memory after a tenth: {memory}"


def _told(tally: Tally) -> str:
    """What became of inputs, in lines."""
    lines = [f"{tally.inputs} inputs of {len(Door)} doors, nothing lost, every valid event exact"]
    for what, counts in (
        ("refused", tally.refused),
        ("events of requests", tally.events),
        ("in the log", tally.counters),
    ):
        lines.append(f"  {what}: " + ", ".join(f"{name} {count}" for name, count in counts.most_common()))
    return "\n".join(lines)


def processes(given: Given) -> str:
    """Send broken inputs to real processes."""
    return fuzz_processes(given.seed, min(given.inputs, REAL_INPUTS))


def files(given: Given) -> str:
    """Read broken catalog files."""
    return fuzz_files(given.seed, min(given.inputs, FILES))


PARTS: Final[dict[str, Callable[[Given], str]]] = {
    "core": core,
    "api": api,
    "doors": doors,
    "files": files,
    "processes": processes,
}


@click.command()
@click.argument("parts", nargs=-1, type=click.Choice(list(PARTS)))
@click.option("--seconds", default=0.0, help="How long the core and the routes take; 60 and 150 if not said.")
@click.option("--events", "events_max", default=1 << 60, help="Of the core: how many events at most.")
@click.option("--seed", default=0, show_default=True, help="Where the seeds begin.")
@click.option("--inputs", default=INPUTS, show_default=True, help="Of the doors: how many broken inputs.")
@click.option("--processes", default=2, show_default=True, help="Of the doors: how many processes send.")
@click.option("--replay", default="", help="Of the doors: a file of inputs that failed.")
@click.option("--library", default="", help="A build of the C core, such as one with sanitizers.")
def main(parts: tuple[str, ...], **given: Any) -> None:
    """Send broken and odd inputs. PARTS: all if none is named."""
    logging.disable(logging.CRITICAL)
    for name in parts or PARTS:
        began_s = time.monotonic()
        try:
            said = PARTS[name](Given(**given))
        except Wrong as error:
            raise click.ClickException(str(error)) from error
        click.echo(f"{name}: {said} ({time.monotonic() - began_s:.0f} s)")


if __name__ == "__main__":
    main()
