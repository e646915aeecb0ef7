"""Runs a seed, and searches for a smaller set of faults that still fails."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import multiprocessing
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Final, NamedTuple

from pipeline.logs.control_records import tick
from schemas.clock import HOUR_MS
from schemas.log import EVENTS_TOPIC, INBOX_TOPIC
from schemas.side_tables import MIRROR_COLUMNS
from simulation.faults import Failure, Fault
from simulation.loop import SimulatedLoop, Stalled
from simulation.redrive import redriven
from simulation.roles import SECRET
from simulation.traffic import PARTITIONS
from simulation.verify import unsettled, verify
from simulation.verify_access import unentitled, verify_access
from simulation.verify_adjusted import unadjusted
from simulation.verify_dunning import verify_dunning
from simulation.verify_invoices import unbilled, verify_invoices
from simulation.verify_mirror import unmirrored, verify_mirror
from simulation.world import World

REST_S: Final = 300.0
# A relay of four cells per round needs forty rounds for a restatement; other work may need as many.
ROUNDS_MAX: Final = 600
SHRINK_RUNS_MAX: Final = 200
SEEDS_AT_ONCE: Final = 5


class RunResult(NamedTuple):
    """The result of a run. The same seed, steps and faults give the same `digest` in any process."""

    seed: int
    failures: tuple[Failure, ...]
    struck: tuple[str, ...]
    counts: Counter[Fault]
    digest: str
    calls: int
    events: int


def run(seed: int, steps: int, only: Collection[str] | None = None) -> RunResult:
    """Run one seed to its end. Errors of the product are in `failures`, not raised."""
    # The product logs many faults; logging would double the time of a run.
    logging.disable(logging.CRITICAL)
    # A run leaves little garbage; collections would take an eighth of the time.
    collecting = gc.isenabled()
    gc.disable()
    loop = SimulatedLoop()
    asyncio.set_event_loop(loop)
    loop.set_exception_handler(lambda _loop, _context: None)
    world = World(loop, seed, steps, only)
    try:
        loop.run_until_complete(_lived(world))
    except Stalled as stalled:
        world.fail("scheduler", str(stalled))
    finally:
        world.stop()
        _let_go(loop)
        logging.disable(logging.NOTSET)
        if collecting:
            gc.enable()
    events = sum(len(records) for (topic, _), records in world.log.appended.items() if topic == EVENTS_TOPIC)
    for what in _left(world):
        world.trace.note(what)
    return RunResult(
        seed, tuple(world.failures), tuple(world.faults.struck), world.faults.counts,
        world.trace.hexdigest(), world.trace.calls, events,
    )  # fmt: skip


def run_all(seeds: Sequence[int], steps: int, only: Collection[str] | None, processes: int) -> Iterator[RunResult]:
    """Yield the results of all seeds in order. `processes` seeds run at once; the results do not depend on it."""
    one = functools.partial(run, steps=steps, only=only)
    if processes == 1:
        yield from map(one, seeds)
        return
    # Forked processes would inherit the locks of thread pools.
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        yield from pool.imap(one, seeds, chunksize=SEEDS_AT_ONCE)


def _left(world: World) -> Iterator[object]:
    """The final state of a run: faults, log, stores and Stripe. The same in every process."""
    yield from world.faults.struck
    yield sorted(world.faults.counts.items())
    for place, records in sorted(world.log.appended.items()):
        for record in records:
            yield place, record.offset, record.timestamp_ms, record.key, record.value, record.headers
    for partition, stored in sorted(world.store.server.partitions.items()):
        yield partition, stored.checkpoint, sorted(stored.cells.items()), sorted(stored.reports.items())
        yield sorted((key, sorted(fields.items())) for key, fields in stored.totals.items())
        yield sorted((key, sorted(members)) for key, members in stored.marks.items())
    yield sorted(world.clickhouse.events.items())
    yield sorted(world.clickhouse.cells.items())
    yield [(sent.event, sent.received_ms, sent.code) for sent in world.stripe.events]
    if not world.bills:
        return
    yield world.tables.rows("entitlement_versions")
    for table in ("processed_events", "account_customers", "account_bindings", "audit", "overrides", *MIRROR_COLUMNS):
        yield table, world.tables.rows(table)


def _let_go(loop: SimulatedLoop) -> None:
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    if left:
        # One that does not end is said by `World.safety`.
        loop.run_until_complete(asyncio.wait(left, timeout=REST_S))
    asyncio.set_event_loop(None)
    loop.close()


async def _lived(world: World) -> None:
    await world.start()
    await world.safety()
    if world.failures:
        return
    await world.calm()
    await _at_rest(world)
    if not world.failures and await redriven(world):
        await _at_rest(world)
    if not world.failures:
        await verify(world)
    if not world.failures and world.bills:
        await verify_access(world)
        verify_dunning(world)
        await verify_invoices(world)
        await verify_mirror(world)


async def _at_rest(world: World) -> None:
    """The liveness phase: all work must end within a bounded simulated time."""
    interval_ms = world.report_interval_ms
    closing_ms = (world.clock.now_ms() // interval_ms + 1) * interval_ms + HOUR_MS
    what, rested_ms = "", 0
    for _ in range(ROUNDS_MAX):
        if world.failures:
            return
        await asyncio.sleep(REST_S)
        if world.clock.now_ms() < closing_ms:
            continue
        what = await _moving(world, closing_ms)
        if not what:
            rested_ms = rested_ms or world.clock.now_ms()
            what = await unbilled(world, rested_ms) if world.bills else ""
        if not what:
            return
        if not rested_ms:
            await tick(world.log, SECRET, world.genesis)
    world.fail("liveness", f"it never came to rest: {what}")


async def _moving(world: World, closed_ms: int) -> str:
    """A text that names unfinished work; empty if there is none."""
    for partition in range(PARTITIONS):
        stored = world.store.server.partitions.get(partition)
        checkpoint = stored.checkpoint if stored else None
        end = world.log.end(EVENTS_TOPIC, partition)
        if not stored or not checkpoint or checkpoint.next_offset < end or checkpoint.stream_time_ms < closed_ms:
            return f"the rollup of partition {partition}"
        archived = world.clickhouse.archived.get(partition)
        if archived is None or archived.next_offset < end:
            return f"the archive of partition {partition}"
        if world.adjusts and (what := unadjusted(world, partition)):
            return what
        waits = any(state.pending for state in stored.accounts.values())
        if waits or stored.dirty or stored.duplicates or stored.reports or stored.deferred:
            return f"the relays of partition {partition}"
        # Intents of a restatement are in flight until the report bucket of the restatement closes, even if no total
        # changes.
        open_ms = checkpoint.stream_time_ms // world.report_interval_ms * world.report_interval_ms
        if any(cut.before_bucket_ms >= open_ms for state in stored.accounts.values() for cut in state.restatements):
            return f"the report bucket of a restatement of partition {partition}"
        relayed = world.clickhouse.relayed.get(partition)
        if relayed is None or relayed.stream_time_ms < closed_ms:
            return f"the relay of partition {partition}"
        if any(cell.bucket_ms + HOUR_MS <= closed_ms for cell in stored.cells):
            return f"cells of closed hours of partition {partition}"
        routed = await world.log.committed("tidemark-router", INBOX_TOPIC, partition) or 0
        if routed < world.log.end(INBOX_TOPIC, partition):
            return f"the router of partition {partition}"
    pending = unsettled(world)
    if pending or not world.bills:
        return f"{pending} intents" if pending else ""
    return await unmirrored(world) or await unentitled(world)


def shrunk(
    seed: int,
    steps: int,
    outcome: RunResult,
    still_fails: Callable[[RunResult], bool] | None = None,
    runs_max: int = SHRINK_RUNS_MAX,
) -> list[str]:
    """A smaller set of faults that still makes the run fail (ddmin, Zeller: omit halves, quarters, …).

    Makes at most `runs_max` runs.
    """
    fails = still_fails or (lambda result: bool(result.failures))
    kept, parts, runs = list(dict.fromkeys(outcome.struck)), 2, 0
    while len(kept) >= 1 and runs < runs_max:
        size = max(1, len(kept) // parts)
        for start in range(0, len(kept), size):
            fewer = kept[:start] + kept[start + size :]
            runs += 1
            if runs > runs_max:
                break
            if fails(run(seed, steps, fewer)):
                kept, parts = fewer, max(2, parts - 1)
                break
        else:
            if size == 1:
                break
            parts = min(len(kept), parts * 2)
    return kept
