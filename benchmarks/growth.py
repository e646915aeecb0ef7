"""`python -m benchmarks.growth [--events N] [--accounts N]`: does an event cost more, the more there were before it?

Prints a table of steps and the growth from the first to the last; exits with 1 where anything was counted wrongly. See
docs/sizing.md.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import uvloop

from benchmarks.figures import Figure, Report
from benchmarks.growth_accounts import AccountsStep, accounts_growth
from benchmarks.growth_events import MEGABYTE, EventsGrowth, Step, events_growth
from benchmarks.machine import description

GROWTH_MAX_PERCENT: Final = 10.0
# Three slices of half a window of two hours.
FULL_HOURS: Final = 3.0
FIRST_EVENTS: Final = 1_000_000
# Well beyond the warm-up.
FIRST_EVENTS_MIN: Final = 200_000
FIRST_ACCOUNTS: Final = 1_000
ACCOUNTS: Final = 2_000
KINDS: Final = {
    "m:": "dedup mark",
    "t:": "counter (account, period, meter)",
    "r:": "its place in the ranking",
    "u:": "distinct value of a `unique` meter",
    "totals": "account and period in the index of totals",
    "cells:": "cell of an open hour",
    "dirty:": "the same while ClickHouse lacks it, on top",
    "reports:": "report entry (account, meter) of an open report bucket",
}
MARKS_REASON: Final = (
    "in the first step there is one slice of marks to look into, from the third half-window on there are three; "
    "what counts is the growth after that"
)
CELLS_REASON: Final = (
    "an event that meets a cell of its own pays for the cell: reading, writing and relaying it. Where many events "
    "share one, as in an hour of real traffic, they share that too; see the cost per cell"
)


class GrowthPlan(NamedTuple):
    """How far to go: events in all, and of how many accounts; accounts at most, and events over them each time; the
    time after which no further step is begun."""

    events: int
    of_accounts: int
    accounts: int
    events_each: int
    minutes_max: float


SHORT: Final = GrowthPlan(4_000_000, ACCOUNTS, 100_000, 300_000, 5)
SHORTER: Final = GrowthPlan(800_000, ACCOUNTS, 10_000, 100_000, 2)


def steps_to(first: int, last: int, factor: int) -> list[int]:
    """`first`, and so many times more each step, up to `last`."""
    found = [min(first, last)]
    while found[-1] < last:
        found.append(min(found[-1] * factor, last))
    return found


def growth_percent(first: float, last: float) -> float:
    """By how much the last is more than the first."""
    return (last / first - 1) * 100 if first else 0.0


async def measure(
    plan: GrowthPlan, folder: Path, report: Report, say: Callable[[str], None]
) -> tuple[EventsGrowth, list[AccountsStep]]:
    """Both parts, one after the other."""
    (folder / "events").mkdir()
    (folder / "accounts").mkdir()
    targets = steps_to(max(FIRST_EVENTS_MIN, min(FIRST_EVENTS, plan.events // 4)), plan.events, 2)
    events = await events_growth(folder / "events", targets, plan.of_accounts, plan.minutes_max, report, say)
    counts = steps_to(FIRST_ACCOUNTS, plan.accounts, 10)
    return events, await accounts_growth(folder / "accounts", counts, plan.events_each, report, say)


def growth_figures(events: EventsGrowth, accounts: Sequence[AccountsStep]) -> list[Figure]:
    """The growth as figures of `make bench`."""
    first, last = events.steps[0], events.steps[-1]
    section = f"(h) Growth from {first.events:,} to {last.events:,} events, embedded log"
    full = first_full(events.steps)
    by_first, verdict = _growth(first.worker_us, last.worker_us)
    by_full, full_verdict = _growth(full.worker_us, last.worker_us)
    by_cells = growth_percent(cost_per_cell(accounts[0]), cost_per_cell(accounts[-1]))
    over = f"(h) Growth from {accounts[0].accounts:,} to {accounts[-1].accounts:,} accounts"
    return [
        Figure(section, "worker's processor time per event", by_first, "%", None, "at most 10", verdict),
        Figure(section, f"  from {full.events:,} on, all marks full", by_full, "%", None, "at most 10", full_verdict),
        Figure(section, "worker's processor time in the last step", last.worker_us, "µs", last.worker_us),
        Figure(section, "memory of the process", (last.process_bytes - first.process_bytes) / MEGABYTE, "MB more"),
        Figure(section, "Redis", (last.redis_bytes - first.redis_bytes) / MEGABYTE, "MB more"),
        Figure(section, "active parts in ClickHouse at the end", last.clickhouse_parts, "parts"),
        Figure(section, "the log's file at the end", last.log_bytes / MEGABYTE, "MB"),
        Figure(over, "processor time per event at the first", accounts[0].cpu_us, "µs", accounts[0].cpu_us),
        Figure(over, "processor time per event at the last", accounts[-1].cpu_us, "µs", accounts[-1].cpu_us),
        Figure(
            over, "processor time per cell written", by_cells, "%", None, "negative: more cells at once are cheaper"
        ),
    ]


def cost_per_cell(step: AccountsStep) -> float:
    """µs of processor time per cell that was written and relayed."""
    return step.cpu_us / max(1e-9, step.cells_per_event)


def _growth(first: float, last: float) -> tuple[float, str]:
    percent = growth_percent(first, last)
    return percent, "met" if percent <= GROWTH_MAX_PERCENT else "missed"


def table(machine: dict[str, str], events: EventsGrowth, accounts: Sequence[AccountsStep]) -> str:
    """For people."""
    lines = [f"{name:10} {value}" for name, value in machine.items()]
    lines += ["", *_events_table(events.steps), "", *_accounts_table(accounts), ""]
    lines.append(f"{'Redis, keys and all':56} {'bytes each':>10} {'how many':>12}")
    for kind, name in KINDS.items():
        each, held = max((step.kinds[kind] for step in accounts), key=lambda found: found[1])
        each, held = events.kinds[kind] if kind in ("m:", "cells:") else (each, held)
        lines.append(f"  {name:54} {each if held else 0:>10.1f} {held:>12,}")
    lines += ["", f"{'ClickHouse, rows of all versions as they are merged':56} {'bytes each':>10} {'how many':>12}"]
    lines += [f"  {name:54} {each:>10.1f} {rows:>12,}" for name, (each, rows) in events.tables.items()]
    return "\n".join(lines)


def _columns(widths: Sequence[int], texts: Sequence[str]) -> str:
    return " ".join(f"{text:>{width}}" for width, text in zip(widths, texts, strict=True))


EVENTS_WIDTHS: Final = (12, 9, 9, 9, 9, 9, 7, 7, 11, 10, 7, 7)
EVENTS_HEADS: Final = (
    (
        *("events", "stream time", "worker", "×decode", "archive", "wall", "process", "Redis", "live marks"),
        *("ClickHouse", "", "log"),
    ),
    ("", "h", "µs/event", "", "µs/event", "µs/event", "MB", "MB", "", "parts", "MB", "MB"),
)  # fmt: skip
ACCOUNTS_WIDTHS: Final = (12, 10, 10, 10, 10, 10, 8, 8)
ACCOUNTS_HEADS: Final = (
    ("accounts", "events", "processor", "wall", "cells", "processor", "process", "Redis"),
    ("", "", "µs/event", "µs/event", "/event", "µs/cell", "MB", "MB"),
)


def _events_table(steps: Sequence[Step]) -> list[str]:
    lines = [_columns(EVENTS_WIDTHS, heads) for heads in EVENTS_HEADS]
    for step in steps:
        sizes = (step.process_bytes, step.redis_bytes, step.clickhouse_bytes, step.log_bytes)
        worker, redis, clickhouse, log = (f"{size / MEGABYTE:,.0f}" for size in sizes)
        costs = (step.worker_us, step.ratio, step.archive_us, step.wall_us)
        texts = (f"{step.events:,}", f"{step.hours:.1f}", *(f"{cost:.2f}" for cost in costs), worker, redis)
        lines += [_columns(EVENTS_WIDTHS, (*texts, f"{step.marks:,}", str(step.clickhouse_parts), clickhouse, log))]
    first, full, last = steps[0], first_full(steps), steps[-1]
    found = [
        ("worker's processor time, first step to last", first.worker_us, last.worker_us),
        ("the same × decode", first.ratio, last.ratio),
        ("wall time", first.wall_us, last.wall_us),
    ]
    if full is not last:
        found.append((f"worker's processor time, {full.events:,} events to last", full.worker_us, last.worker_us))
        found.append(("the same × decode, all slices of marks full", full.ratio, last.ratio))
    for name, before, after in found:
        percent, verdict = _growth(before, after)
        lines.append(f"growth per event: {name:70} {percent:+7.1f} %  {verdict.upper()}")
    if _growth(first.worker_us, last.worker_us)[1] == "missed":
        lines.append(f"the reason: {MARKS_REASON}")
    return lines


def first_full(steps: Sequence[Step]) -> Step:
    """The first step that began when all slices of marks had been filled, or the last of all."""
    for before, step in itertools.pairwise(steps):
        if before.hours >= FULL_HOURS:
            return step
    return steps[-1]


def _accounts_table(steps: Sequence[AccountsStep]) -> list[str]:
    lines = [_columns(ACCOUNTS_WIDTHS, heads) for heads in ACCOUNTS_HEADS]
    for step in steps:
        costs = (step.cpu_us, step.wall_us, step.cells_per_event, cost_per_cell(step))
        sizes = (f"{size / MEGABYTE:,.0f}" for size in (step.process_bytes, step.redis_bytes))
        texts = (f"{step.accounts:,}", f"{step.events:,}", *(f"{cost:.2f}" for cost in costs), *sizes)
        lines += [_columns(ACCOUNTS_WIDTHS, texts)]
    percent, verdict = _growth(steps[0].cpu_us, steps[-1].cpu_us)
    lines.append(f"growth per event: {'processor time, first step to last':70} {percent:+7.1f} %  {verdict.upper()}")
    return lines if verdict == "met" else [*lines, f"the reason: {CELLS_REASON}"]


def main() -> int:
    """Run, print, and return 1 where something was counted wrongly."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--events", type=int, default=100_000_000, help="how far to go; 100 million by default")
    parser.add_argument("--of-accounts", type=int, default=ACCOUNTS, help="how many accounts these events are of")
    parser.add_argument("--accounts", type=int, default=1_000_000, help="accounts of the second part, at most")
    parser.add_argument("--events-each", type=int, default=1_000_000, help="events over each number of accounts")
    parser.add_argument("--minutes", type=float, default=180.0, help="the first part ends after so many minutes")
    arguments = parser.parse_args()
    began_s = time.monotonic()

    def say(message: str) -> None:
        sys.stderr.write(f"[{time.monotonic() - began_s:5.0f} s] {message}\n")
        sys.stderr.flush()

    plan = GrowthPlan(
        arguments.events, arguments.of_accounts, arguments.accounts, arguments.events_each, arguments.minutes
    )
    report = Report(description())
    with (
        tempfile.TemporaryDirectory(prefix="tidemark-growth-") as folder,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        events, accounts = runner.run(measure(plan, Path(folder), report, say))
    report.machine["run"] = f"{time.monotonic() - began_s:.0f} s"
    sys.stdout.write(table(report.machine, events, accounts) + "\n")
    for failure in report.failures:
        sys.stdout.write(f"FAILED: {failure}\n")
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
