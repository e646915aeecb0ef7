"""`python -m benchmarks.compare CHECKOUT [--rounds N]` compares this code with the code of another checkout.

Router, worker and archive of both checkouts take turns on the same events and the same broker, each on empty stores.
The speed of a shared machine changes within minutes, so read the ratios and not the times. Events come in batches of
1 000, then one by one; the router reads the inbox, worker and archive read `usage.events`.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

import uvloop

from benchmarks.__main__ import ACCOUNTS, latest_time_ms
from benchmarks.broker import POLL_INTERVAL_S, Bench, Feed, Rate
from benchmarks.figures import Report
from benchmarks.machine import cpu_s, description
from benchmarks.services import ROOT, SECRET, Services
from benchmarks.traffic import RECORD_EVENTS, Traffic
from pipeline.clock import SystemClock
from pipeline.ingest.router import ROUTER_GROUP
from pipeline.open import apply_meter_set, open_base, read_meter_set
from pipeline.settings import load_settings
from schemas.log import INBOX_TOPIC

ROLES: Final = ("router", "worker", "archive")
# The router is much faster than the worker, and its progress is known once a second.
ROUTER_FACTOR: Final = 8
ROUTER_S: Final = 10.0


class Shape(NamedTuple):
    """How the events arrive."""

    name: str
    single: bool
    events: int


class Pair(NamedTuple):
    """The rates of one role of both checkouts, measured one after the other."""

    before: Rate
    after: Rate


def say(message: str) -> None:
    """Print progress to standard error."""
    print(message, file=sys.stderr, flush=True)


async def router_rate(bench: Bench, shape: Shape, checkout: Path) -> Rate:
    """Measure a router for `ROUTER_S` on an inbox with enough events. What is left is the next router's."""
    await asyncio.to_thread(bench.feed.send, shape.events * ROUTER_FACTOR, INBOX_TOPIC, single=shape.single)
    record_events = 1 if shape.single else RECORD_EVENTS
    with ExitStack() as stack:
        stores = bench.services.stores(stack)
        first = last = (0.0, 0.0, 0)
        end, began = await _inbox(bench, committed=False), await _inbox(bench, committed=True)
        process = stack.enter_context(bench.role("router", stores, checkout))
        while last[2] < end and (not first[2] or time.monotonic() - first[0] < ROUTER_S):
            process.check()
            now = (time.monotonic(), cpu_s(process.pid or 0), await _inbox(bench, committed=True))
            # Offsets are committed once a second, so only the instants at which they move are exact.
            if now[2] > max(last[2], began):
                first, last = (first if first[2] else now), now
            await asyncio.sleep(POLL_INTERVAL_S)
    events = (last[2] - first[2]) * record_events
    return Rate(events / max(1e-3, last[0] - first[0]), (last[1] - first[1]) / max(1, events) * 1e6)


async def _inbox(bench: Bench, *, committed: bool) -> int:
    """The sum of the inbox' end offsets, or of the offsets that the routers' group has committed."""
    log, total = bench.base.log, 0
    for number in range(bench.base.genesis.partitions):
        if committed:
            total += await log.committed(ROUTER_GROUP, INBOX_TOPIC, number) or 0
        else:
            total += (await log.bounds(INBOX_TOPIC, number)).next
    return total


async def reader_rate(bench: Bench, role: str, checkout: Path) -> Rate:
    """Measure a worker or an archive over all of `usage.events`; a worker's totals are compared with the traffic's."""
    with ExitStack() as stack:
        stores = bench.services.stores(stack)
        with bench.role(role, stores, checkout) as process:
            if role == "archive":
                return await bench.archive(stores, process)
            rate = await bench.worker(stores, process)
            await bench.verify(stores, f"{role} of {checkout}", archive=False)
            return rate


async def compare(checkout: Path, shape: Shape, roles: list[str], rounds: int, folder: Path, report: Report) -> None:
    """Measure all roles with one shape of events, and print a line for each."""
    with Services(folder, lambda _message: None) as services:
        base = await open_base(load_settings(log_url=services.kafka.url, secret=SECRET))
        await apply_meter_set(base, read_meter_set(None))
        traffic = Traffic(ACCOUNTS, base.genesis.partitions, latest_time_ms(SystemClock().now_ms()))
        feed = Feed(services.kafka.url.removeprefix("kafka://"), traffic)
        bench = Bench(services, base, feed, report, say)
        say(f"{shape.name}: producing {shape.events:,} events")
        feed.send(shape.events, single=shape.single)
        # The router writes to `usage.events`, so it comes last.
        for role in sorted(roles, key=lambda name: name == "router"):
            pairs = []
            for number in range(1, rounds + 1):
                rates = {}
                # Each goes first as often as the other: the machine may become slower all the time.
                for code in (checkout, ROOT) if number % 2 else (ROOT, checkout):
                    if role == "router":
                        rates[code] = await router_rate(bench, shape, code)
                    else:
                        rates[code] = await reader_rate(bench, role, code)
                pairs.append(Pair(rates[checkout], rates[ROOT]))
                say(f"{shape.name}, {role}, round {number}: {_line([pairs[-1]])}")
            print(f"{shape.name:8} {role:8} {_line(pairs)}", flush=True)
        feed.close()
        await base.log.close()


def _line(pairs: list[Pair]) -> str:
    before, after = (
        Rate(median(rate.events_per_s for rate in rates), median(rate.cpu_us for rate in rates))
        for rates in zip(*pairs, strict=True)
    )
    wall = median(pair.after.events_per_s / pair.before.events_per_s for pair in pairs)
    cpu = median(pair.before.cpu_us / max(0.01, pair.after.cpu_us) for pair in pairs)
    return (
        f"{before.events_per_s:9,.0f} → {after.events_per_s:9,.0f} events/s ({wall:5.2f} ×)   "
        f"{before.cpu_us:6.1f} → {after.cpu_us:6.1f} µs of its processor ({cpu:5.2f} ×)"
    )


async def run(arguments: argparse.Namespace) -> int:
    """Compare both shapes; returns 1 if a total was wrong."""
    report = Report(description())
    for name, value in report.machine.items():
        print(f"{name:10} {value}")
    shapes = (Shape("batches", False, arguments.events), Shape("single", True, arguments.single_events))
    with tempfile.TemporaryDirectory(prefix="tidemark-compare-") as folder:
        for shape in shapes:
            if shape.events:
                path = Path(folder) / shape.name
                path.mkdir()
                await compare(arguments.checkout.resolve(), shape, arguments.roles, arguments.rounds, path, report)
    for failure in report.failures:
        print(f"FAILED: {failure}")
    return 1 if report.failures else 0


def main() -> int:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("checkout", type=Path, help="the folder of the other checkout, the code before")
    parser.add_argument("--rounds", type=int, default=3, help="pairs of runs; 3 by default")
    parser.add_argument("--events", type=int, default=600_000, help="events in batches; 0 leaves them out")
    parser.add_argument("--single-events", type=int, default=60_000, help="single events; 0 leaves them out")
    parser.add_argument("--roles", nargs="+", choices=ROLES, default=list(ROLES))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
