"""Section (c) of `make bench`: the memory of a worker that counts more and more events."""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack
from statistics import median
from typing import Final

from benchmarks.broker import POLL_INTERVAL_S, Bench
from benchmarks.figures import Figure
from benchmarks.machine import resident_bytes
from benchmarks.services import Process, Stores
from sinks.redis.view import RedisLiveView

# On a slow machine the timeout ends the measurement.
TIMEOUT_S: Final = 400.0
AHEAD_EVENTS_MAX: Final = 400_000
FLAT_GROWTH_BYTES: Final = 24 * 1024 * 1024
SEND_EVENTS: Final = 20_000
MEGABYTE: Final = 1024 * 1024


async def measure_memory(bench: Bench, events: int) -> None:
    """Run a worker over the whole log and on to `events` events; more are produced meanwhile."""
    with ExitStack() as stack:
        stores = bench.services.stores(stack)
        bench.say(f"A worker goes on to {events:,} events")
        worker = stack.enter_context(bench.role("worker", stores))
        await _memory(bench, stores, worker, events)
        await bench.worker(stores, worker)
        await bench.verify(stores, "memory run", archive=False)


async def _memory(bench: Bench, stores: Stores, worker: Process, events: int) -> None:
    store = RedisLiveView(stores.valkey.url)
    samples: list[tuple[int, int]] = []
    counted, traffic = 0, bench.feed.traffic
    deadline_s = time.monotonic() + TIMEOUT_S
    while counted < events and time.monotonic() < deadline_s:
        worker.check()
        if traffic.sent < min(events, counted + AHEAD_EVENTS_MAX):
            await asyncio.to_thread(bench.feed.send, min(SEND_EVENTS, events - traffic.sent))
        else:
            await asyncio.sleep(POLL_INTERVAL_S)
        counted = await bench.counted(store)
        samples.append((counted, resident_bytes(worker.pid or 0)))
    await store.close()
    middle = [size for at, size in samples if 0.4 * counted <= at <= 0.6 * counted]
    last = [size for at, size in samples if at >= 0.8 * counted]
    section = f"(c) Worker's memory over {counted:,} events"
    if not middle or not last:
        bench.report.fail(f"memory: only {counted} events were counted in {TIMEOUT_S:.0f} s")
        return
    if counted < events:
        section += f" (of {events:,}; the time was up)"
    growth = median(last) - median(middle)
    verdict = "met" if growth < FLAT_GROWTH_BYTES else "missed"
    flat = f"from the middle fifth to the last; flat is below {FLAT_GROWTH_BYTES / MEGABYTE:.0f} MB"
    bench.report.add(
        Figure(section, "resident in the middle fifth", median(middle) / MEGABYTE, "MB"),
        Figure(section, "resident in the last fifth", median(last) / MEGABYTE, "MB"),
        Figure(section, "highest", max(size for _, size in samples) / MEGABYTE, "MB"),
        Figure(section, "growth", growth / MEGABYTE, "MB", None, flat, verdict),
    )
