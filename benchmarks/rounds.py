"""Sections (b) and (g) of `make bench`: worker and archive, alone and side by side, and the hand-written loop.

A shared machine changes its speed within minutes. So every round measures all of them, and the targets compare what
was measured in the same round.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack
from statistics import median
from typing import Final, NamedTuple

from benchmarks.broker import Bench, Rate
from benchmarks.figures import Figure
from benchmarks.machine import spread

TARGET_EVENTS_PER_S: Final = 150_000
# Without the C core.
PYTHON_EVENTS_PER_S: Final = 100_000
BY_HAND_RATIO_MIN: Final = 4.0
BARE_RATIO_MAX: Final = 4.0
SECTION: Final = "(b) Events per second of one process, real broker"


class Round(NamedTuple):
    """What one round measured."""

    worker: Rate
    python_worker: Rate
    archive: Rate
    worker_beside: Rate
    archive_beside: Rate
    bare: Rate
    by_hand: Rate

    @property
    def in_bare_loops(self) -> float:
        """The time of the worker alone, divided by the time of the bare loop."""
        return self.bare.events_per_s / self.worker.events_per_s

    @property
    def in_bare_cpu(self) -> float:
        """The same for processor time of the own process, which other work on the machine changes less."""
        return self.worker.cpu_us / self.bare.cpu_us

    @property
    def in_hand_loops(self) -> float:
        """The speed of the slower of both roles side by side, divided by the speed of the hand-written loop."""
        slower = min(self.worker_beside.events_per_s, self.archive_beside.events_per_s)
        return slower / self.by_hand.events_per_s


async def measure_rounds(bench: Bench, rounds: int, by_hand_events: int) -> None:
    """Measure everything `rounds` times and report the medians."""
    measured = [await _round(bench, f"round {number} of {rounds}", by_hand_events) for number in range(1, rounds + 1)]
    bare_us = [1e6 / each.bare.events_per_s for each in measured]
    bench.report.bare_us = median(bare_us)
    bench.report.machine["bare rounds"] = spread(bare_us)
    bench.report.add(
        *_rates("worker, alone: Redis and usage_hourly", [each.worker for each in measured], TARGET_EVENTS_PER_S),
        _ratio("  in times of the bare loop", [each.in_bare_loops for each in measured], at_most=BARE_RATIO_MAX),
        _ratio("  in processor times of the bare loop", [each.in_bare_cpu for each in measured]),
        *_rates("worker, alone, without the C core", [each.python_worker for each in measured], PYTHON_EVENTS_PER_S),
        *_rates("archive, alone: usage_events", [each.archive for each in measured]),
        *_rates("worker, beside the archive", [each.worker_beside for each in measured]),
        *_rates("archive, beside the worker", [each.archive_beside for each in measured]),
        _ratio(
            "  the slower one in speeds of (g)", [each.in_hand_loops for each in measured], at_least=BY_HAND_RATIO_MIN
        ),
        *_rates("events", [each.by_hand for each in measured], section="(g) Written by hand, same bytes"),
    )


async def _round(bench: Bench, name: str, by_hand_events: int) -> Round:
    bench.say(f"{name}: bare consume-and-decode of {bench.feed.traffic.sent:,} events")
    bare = await asyncio.to_thread(bench.bare)
    with ExitStack() as stack:
        stores = bench.services.stores(stack)
        bench.say(f"{name}: worker")
        with bench.role("worker", stores) as process:
            worker = await bench.worker(stores, process)
        bench.say(f"{name}: archive")
        with bench.role("archive", stores) as process:
            archive = await bench.archive(stores, process)
        await bench.verify(stores, name, archive=True)
    with ExitStack() as stack:
        stores = bench.services.stores(stack)
        bench.say(f"{name}: worker without the C core")
        with bench.role("worker", stores, native=False) as process:
            python_worker = await bench.worker(stores, process)
        await bench.verify(stores, f"{name}, without the C core", archive=False)
    with ExitStack() as stack:
        stores = bench.services.stores(stack)
        bench.say(f"{name}: worker and archive side by side")
        processes = [stack.enter_context(bench.role(role, stores)) for role in ("worker", "archive")]
        worker_beside, archive_beside = await asyncio.gather(
            bench.worker(stores, processes[0]), bench.archive(stores, processes[1])
        )
        await bench.verify(stores, f"{name}, side by side", archive=True)
    bench.say(f"{name}: written by hand")
    by_hand = await asyncio.to_thread(bench.by_hand, by_hand_events)
    return Round(worker, python_worker, archive, worker_beside, archive_beside, bare, by_hand)


def _rates(name: str, rates: Sequence[Rate], target: int = 0, section: str = SECTION) -> list[Figure]:
    per_s = median(rate.events_per_s for rate in rates)
    verdict = ("met" if per_s >= target else "missed") if target else ""
    notes = [f"target {target:,}"] if target else []
    notes.append(spread([rate.events_per_s for rate in rates]))
    cpu_us = median(rate.cpu_us for rate in rates)
    return [
        Figure(section, name, per_s, "events/s", 1e6 / per_s, "; ".join(filter(None, notes)), verdict),
        Figure(section, "  processor time of its own process", cpu_us, "µs", cpu_us),
    ]


def _ratio(
    name: str, ratios: Sequence[float], *, at_least: float | None = None, at_most: float | None = None
) -> Figure:
    ratio, verdict, target = median(ratios), "", ""
    if at_least is not None:
        verdict, target = "met" if ratio >= at_least else "missed", f"at least {at_least:g}"
    elif at_most is not None:
        verdict, target = "met" if ratio <= at_most else "missed", f"at most {at_most:g}"
    return Figure(SECTION, name, ratio, "×", None, "; ".join(filter(None, [target, spread(ratios)])), verdict)
