"""`python -m benchmarks [--quick] [--json] [--accounts N]`; see docs/benchmarks.md."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import uvloop

from aggregators.instants import civil_from_days, days_from_civil
from benchmarks import growth
from benchmarks.access import access_figures
from benchmarks.broker import Bench, Feed
from benchmarks.emitting import emit_figures
from benchmarks.figures import Report
from benchmarks.live import live_figures
from benchmarks.machine import description
from benchmarks.memory import measure_memory
from benchmarks.rounds import measure_rounds
from benchmarks.services import SECRET, Services
from benchmarks.single_events import measure_single_events
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
    single_events: int
    growth: growth.GrowthPlan


QUICK = Plan(600_000, 2, 1_000_000, 200_000, 100_000, 500, 5, 5, 150_000, growth.QUICK)
FULL = Plan(2_000_000, 3, 10_000_000, 500_000, 1_000_000, 2_000, 15, 10, 400_000, growth.FULL)
ACCOUNTS = 2_000
ACCOUNTS_MAX = 10_000_000


def latest_time_ms(now_ms: int) -> int:
    """The latest event time. All events of a run lie in one calendar month with an open period."""
    year, month, _ = civil_from_days(now_ms // DAY_MS)
    month_ms = days_from_civil(year, month, 1) * DAY_MS
    return now_ms if now_ms - month_ms > SPAN_MS else month_ms - 1


async def measure(
    plan: Plan, accounts: int, folder: Path, report: Report, say: Callable[[str], None], *, broker_only: bool
) -> None:
    """Measure the pipeline of events; then, unless `broker_only`, `emit()` and live usage."""
    meter_set = read_meter_set(None)
    now_ms = latest_time_ms(SystemClock().now_ms())
    with Services(folder, say) as services:
        base = await open_base(load_settings(log_url=services.kafka.url, secret=SECRET))
        try:
            await apply_meter_set(base, meter_set)
            feed = Feed(services.kafka.url.removeprefix("kafka://"), Traffic(accounts, base.genesis.partitions, now_ms))
            bench = Bench(services, base, feed, report, say)
            for number in sorted({200, accounts}):
                say(f"Pure core, {number} accounts")
                report.add(*stage_figures(meter_set, now_ms, number, plan.flushes))
            say(f"Producing {plan.events:,} events")
            feed.send(plan.events)
            await measure_rounds(bench, plan.rounds, plan.by_hand_events)
            await measure_memory(bench, plan.memory_events)
            feed.close()
            if not broker_only:
                say("emit()")
                emitted = emit_figures(plan.bursts)
                say(f"Live usage at {plan.counters:,} counters")
                report.add(*await live_figures(services, base, plan.counters, plan.requests), *emitted)
        finally:
            await base.log.close()
    for name in ("single", "growth"):
        (folder / name).mkdir()
    await measure_single_events(plan.single_events, accounts, now_ms, folder / "single", report, say)
    say("Growth: more and more events, then accounts")
    report.add(*await growth.Growth(folder / "growth", report, say).figures(plan.growth))


async def only_access(folder: Path, report: Report, say: Callable[[str], None], *, quick: bool) -> None:
    """Measure checks alone."""
    report.add(*await access_figures(folder, say, quick=quick))


def main() -> int:
    """Run, print, and return 1 if counts are wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure Tidemark on this machine.")
    parser.add_argument("--quick", action="store_true", help="a part of the events")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON instead of the table")
    parser.add_argument("--only", choices=["access", "broker"], help="one part alone")
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
            if arguments.only == "access"
            else measure(
                QUICK if arguments.quick else FULL,
                arguments.accounts,
                Path(folder),
                report,
                say,
                broker_only=arguments.only == "broker",
            )
        )
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main_coroutine)
    report.machine["accounts"] = f"{arguments.accounts:,}"
    report.machine["run"] = f"{'quick' if arguments.quick else 'full'}, {time.monotonic() - began_s:.0f} s"
    sys.stdout.write((report.json() if arguments.json else report.table()) + "\n")
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
