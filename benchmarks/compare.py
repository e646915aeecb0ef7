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
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

import uvloop

from benchmarks.__main__ import ACCOUNTS, latest_time_ms
from benchmarks.broker import POLL_INTERVAL_S, Bench, Feed, Rate
from benchmarks.figures import Report
from benchmarks.machine import cpu_s, description
from benchmarks.services import ROOT, SECRET, Services, Stores
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


class Cost(NamedTuple):
    """The rate of a role, and the processor time of Valkey and ClickHouse per event."""

    rate: Rate
    stores_us: float


class Pair(NamedTuple):
    """The costs of one role of both checkouts, measured one after the other."""

    before: Cost
    after: Cost


def say(message: str) -> None:
    """Print progress to standard error."""
    print(message, file=sys.stderr, flush=True)


async def router_cost(bench: Bench, shape: Shape, checkout: Path) -> Cost:
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
    rate = Rate(events / max(1e-3, last[0] - first[0]), (last[1] - first[1]) / max(1, events) * 1e6)
    return Cost(rate, 0.0)


async def _inbox(bench: Bench, *, committed: bool) -> int:
    """The sum of the inbox' end offsets, or of the offsets that the routers' group has committed."""
    log, total = bench.base.log, 0
    for number in range(bench.base.genesis.partitions):
        if committed:
            total += await log.committed(ROUTER_GROUP, INBOX_TOPIC, number) or 0
        else:
            total += (await log.bounds(INBOX_TOPIC, number)).next
    return total


async def reader_cost(bench: Bench, role: str, checkout: Path) -> Cost:
    """Measure a worker or an archive over all of `usage.events`; a worker's totals are compared with the traffic's."""
    with ExitStack() as stack:
        stores = bench.services.stores(stack)
        began_s = _stores_cpu_s(stores)
        with bench.role(role, stores, checkout) as process:
            if role == "archive":
                rate = await bench.archive(stores, process)
            else:
                rate = await bench.worker(stores, process)
            stores_us = (_stores_cpu_s(stores) - began_s) / bench.feed.traffic.sent * 1e6
        if role == "worker":
            await bench.verify(stores, f"{role} of {checkout}", archive=False)
        return Cost(rate, stores_us)


def _stores_cpu_s(stores: Stores) -> float:
    return cpu_s(stores.valkey.pid or 0) + cpu_s(stores.clickhouse.pid or 0)


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
                costs = {}
                # Each goes first as often as the other: the machine may become slower all the time.
                for code in (checkout, ROOT) if number % 2 else (ROOT, checkout):
                    if role == "router":
                        costs[code] = await router_cost(bench, shape, code)
                    else:
                        costs[code] = await reader_cost(bench, role, code)
                pairs.append(Pair(costs[checkout], costs[ROOT]))
                say(f"{shape.name}, {role}, round {number}: {_line([pairs[-1]])}")
            print(f"{shape.name:8} {role:8} {_line(pairs)}", flush=True)
        feed.close()
        await base.log.close()


def _line(pairs: list[Pair]) -> str:
    def compared(measure: Callable[[Cost], float]) -> tuple[float, float, float]:
        """The medians before and after, and the median of the pairs' ratios."""
        before, after = [measure(pair.before) for pair in pairs], [measure(pair.after) for pair in pairs]
        ratios = [new / max(0.01, old) for old, new in zip(before, after, strict=True)]
        return median(before), median(after), median(ratios)

    wall = "{:9,.0f} → {:9,.0f} events/s ({:5.2f} ×)".format(*compared(lambda cost: cost.rate.events_per_s))
    own = "{:6.1f} → {:5.1f} µs own ({:4.2f} ×)".format(*compared(lambda cost: cost.rate.cpu_us))
    stores = "{:5.1f} → {:5.1f} µs stores ({:4.2f} ×)".format(*compared(lambda cost: cost.stores_us))
    return f"{wall}  {own}  {stores}"


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
