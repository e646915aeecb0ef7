"""`python -m benchmarks [--quick] [--json] [--accounts N]`; see docs/benchmarks.md."""

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
from typing import NamedTuple

import uvloop

from aggregators.instants import civil_from_days, days_from_civil
from benchmarks import growth
from benchmarks.access import access_figures
from benchmarks.broker import RUN_TIMEOUT_S, Bench, Feed, throughput, together_and_memory
from benchmarks.emitting import emit_figures
from benchmarks.figures import Figure, Report
from benchmarks.live import live_figures
from benchmarks.machine import description, spread
from benchmarks.services import SECRET, Process, Services
from benchmarks.stages import stage_figures
from benchmarks.traffic import SPAN_MS, Traffic
from pipeline.clock import SystemClock
from pipeline.open import apply_meter_set, open_base, read_meter_set
from pipeline.settings import load_settings
from schemas.clock import DAY_MS


class Plan(NamedTuple):
    """The sizes of the measurements."""

    events: int
    rounds: int
    memory_events: int
    by_hand_events: int
    counters: int
    requests: int
    flushes: int
    bursts: int
    growth: growth.GrowthPlan


QUICK = Plan(200_000, 2, 1_000_000, 100_000, 100_000, 500, 5, 5, growth.QUICK)
FULL = Plan(1_000_000, 3, 10_000_000, 500_000, 1_000_000, 2_000, 15, 10, growth.FULL)
ACCOUNTS = 2_000
ACCOUNTS_MAX = 10_000_000


def latest_time_ms(now_ms: int) -> int:
    """The latest event time. All events of a run lie in one calendar month with an open period."""
    year, month, _ = civil_from_days(now_ms // DAY_MS)
    month_ms = days_from_civil(year, month, 1) * DAY_MS
    return now_ms if now_ms - month_ms > SPAN_MS else month_ms - 1


def by_hand(bench: Bench, events: int) -> Figure:
    """Measure the hand-written loop on the first events of the same log."""
    with ExitStack() as stack:
        stores = bench.services.stores(stack)
        port = stores.clickhouse_url.rpartition(":")[2]
        arguments = [
            "benchmarks.by_hand", bench.services.kafka.url.removeprefix("kafka://"),
            str(bench.base.genesis.partitions), str(events), stores.valkey.url, port,
        ]  # fmt: skip
        with Process(arguments, stores.folder / "by-hand.log") as process:
            result = process.result(RUN_TIMEOUT_S)
    cost_us = result["seconds"] / result["events"] * 1e6
    note = "worker and archive in one, without their guarantees"
    return Figure("(g) Written by hand, same bytes", "events", 1e6 / cost_us, "events/s", cost_us, note)


async def measure(plan: Plan, accounts: int, folder: Path, report: Report, say: Callable[[str], None]) -> None:
    """Make all measurements. The bare consume-and-decode runs before, between and after the others."""
    meter_set = read_meter_set(None)
    with Services(folder, say) as services:
        settings = load_settings(log_url=services.kafka.url, secret=SECRET)
        base = await open_base(settings)
        try:
            await apply_meter_set(base, meter_set)
            now_ms = latest_time_ms(SystemClock().now_ms())
            traffic = Traffic(accounts, base.genesis.partitions, now_ms)
            feed = Feed(services.kafka.url.removeprefix("kafka://"), traffic)
            bench = Bench(services, base, feed, report, say)
            say(f"Producing {plan.events:,} events")
            feed.send(plan.events)
            say("Bare consume-and-decode")
            bare_us = bench.bare(plan.rounds)
            for number in sorted({200, accounts}):
                say(f"Pure core, {number} accounts")
                report.add(*stage_figures(meter_set, now_ms, number, plan.flushes))
            await throughput(bench, plan.rounds)
            say("Written by hand")
            by_hand_figure = by_hand(bench, plan.by_hand_events)
            bare_us += bench.bare(1)
            report.bare_us = median(bare_us)
            report.machine["bare rounds"] = spread(bare_us)
            await together_and_memory(bench, plan.memory_events)
            feed.close()
            say("emit()")
            emitted = emit_figures(plan.bursts)
            say(f"Live usage at {plan.counters:,} counters")
            report.add(*await live_figures(services, base, plan.counters, plan.requests), *emitted, by_hand_figure)
        finally:
            await base.log.close()
    say("Growth: more and more events, then accounts")
    (folder / "growth").mkdir()
    report.add(*await growth.Growth(folder / "growth", report, say).figures(plan.growth))


async def only_access(folder: Path, report: Report, say: Callable[[str], None], *, quick: bool) -> None:
    """Measure checks alone."""
    report.add(*await access_figures(folder, say, quick=quick))


def main() -> int:
    """Run, print, and return 1 if counts are wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure Tidemark on this machine.")
    parser.add_argument("--quick", action="store_true", help="a fifth of the events, about 2 minutes instead of 12")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON instead of the table")
    parser.add_argument("--only", choices=["access"], help="one part alone")
    parser.add_argument("--accounts", type=int, default=ACCOUNTS, help=f"how many accounts emit; {ACCOUNTS} by default")
    arguments = parser.parse_args()
    if not 1 <= arguments.accounts <= ACCOUNTS_MAX:
        parser.error(f"argument --accounts: must be from 1 to {ACCOUNTS_MAX}")
    began_s = time.monotonic()

    def say(message: str) -> None:
        sys.stderr.write(f"[{time.monotonic() - began_s:4.0f} s] {message}\n")
        sys.stderr.flush()

    report = Report(description())
    with tempfile.TemporaryDirectory(prefix="tidemark-bench-") as folder:
        main_coroutine = (
            only_access(Path(folder), report, say, quick=arguments.quick)
            if arguments.only
            else measure(QUICK if arguments.quick else FULL, arguments.accounts, Path(folder), report, say)
        )
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main_coroutine)
    report.machine["accounts"] = f"{arguments.accounts:,}"
    report.machine["run"] = f"{'quick' if arguments.quick else 'full'}, {time.monotonic() - began_s:.0f} s"
    sys.stdout.write((report.json() if arguments.json else report.table()) + "\n")
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
