"""What all roles share: stopping, running a processor with its operators' pages, background loops."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any

from pipeline.http.serving import Readiness, ops_app, serving, stop_event
from pipeline.metrics import Metrics
from pipeline.open import Base
from pipeline.runner.runner import Runner, RunnerSettings
from pipeline.settings import Settings
from schemas.errors import HeldUp, Refused, TidemarkError, Transient
from schemas.processing import Processor

RELAY_BACKOFF_S_MAX = 30.0
RELAY_BACKOFF_DOUBLINGS_MAX = 10
STUCK_AFTER_MS = 60_000

# What makes a relay wait. Any other `OperatorNeeded` says that going on would risk the counts.
_WAITS = (Transient, Refused, HeldUp)

_log = logging.getLogger(__name__)


def runner_settings(
    settings: Settings,
    group: str,
    flush_records_max: int | None = None,
    linger_s: float = 0.0,
    catch_up_linger_s: float = 0.0,
) -> RunnerSettings:
    """How a group runs under these settings."""
    return RunnerSettings(
        group,
        flush_records_max=flush_records_max or settings.flush_records_max,
        session_timeout_s=settings.session_timeout_s,
        heartbeat_interval_s=min(3.0, settings.session_timeout_s / 3),
        idle_interval_s=0.5,
        linger_s=linger_s,
        catch_up_linger_s=catch_up_linger_s,
    )


async def run_processor(
    base: Base,
    processor: Processor,
    settings: RunnerSettings,
    *beside: Awaitable[None],
    metrics: Metrics | None = None,
    refresh: Callable[[], None] = lambda: None,
    details: Callable[[], dict[str, Any]] = dict,
) -> None:
    """Run a processor, its operators' pages and background loops until stopped; the first failure ends all.

    `refresh` brings gauges up to date and is called before each scrape; `details` is what else `/readyz` tells.
    """
    stop = stop_event()
    counted = metrics or Metrics()
    runner = Runner([processor], base.settings.log_url, base.clock, settings)

    def refreshed() -> None:
        _progress_gauges(runner, counted)
        refresh()

    app = ops_app(counted, lambda: _readiness(runner, base.clock.now_ms(), details()), refreshed)
    async with serving(app, base.settings.metrics_host, base.settings.metrics_port):
        loops = [asyncio.ensure_future(each) for each in beside]
        running = asyncio.create_task(runner.run(stop))
        await asyncio.wait({running, *loops}, return_when=asyncio.FIRST_COMPLETED)
        stop.set()
        for each in loops:
            each.cancel()
        results = await asyncio.gather(running, *loops, return_exceptions=True)
        failures = [each for each in results if isinstance(each, Exception)]
        if failures:
            raise failures[0]


def _readiness(runner: Runner, now_ms: int, details: Mapping[str, Any]) -> Readiness:
    """Ready is who has partitions and gets on with them: a lag that nothing has touched for a minute is not."""
    progress = runner.progress()
    stuck = [each.partition for each in progress if each.lag and now_ms - (each.last_step_ms or 0) > STUCK_AFTER_MS]
    partitions = [
        {"partition": each.partition, "next_offset": each.next_offset, "lag": each.lag, "queued": each.queued_records}
        for each in progress
    ]
    return Readiness(bool(progress) and not stuck, {"partitions": partitions, "stuck": stuck, **details})


def _progress_gauges(runner: Runner, metrics: Metrics) -> None:
    metrics.clear("tidemark_partition_next_offset")
    metrics.clear("tidemark_partition_lag_records")
    for each in runner.progress():
        labels = {"topic": each.topic, "partition": str(each.partition)}
        metrics.set("tidemark_partition_next_offset", each.next_offset, **labels)
        metrics.set("tidemark_partition_lag_records", each.lag, **labels)


async def relaying(
    owned: Callable[[], set[int]],
    relay: Callable[[int], Awaitable[object]],
    interval_s: float,
    prepare: Callable[[], Awaitable[None]] | None = None,
    on_failure: Callable[[], None] = lambda: None,
) -> None:
    """Relay the owned partitions for ever. A store that does not answer, or says no, is tried again, ever more slowly;
    what waits meanwhile stays in Redis. `prepare` must have succeeded once before the first relay.

    A store that says no for good does not end this: live counts do not need it, and end with the process. It is
    counted as any other failure and logged once, with what a person must do.
    """
    failures = 0
    said: type[Exception] | None = None
    while True:
        try:
            if prepare is not None:
                await prepare()
                prepare = None
            failed: TidemarkError | None = await _each(owned(), relay)
        except _WAITS as error:
            failed = error
        # A server that says no for good often did not answer at first.
        if failed and type(failed) is not said:
            person = not isinstance(failed, Transient)
            _log.log(logging.ERROR if person else logging.WARNING, "a relay waits, nothing is lost: %s", failed)
        said = type(failed) if failed else None
        failures = failures + 1 if failed else 0
        if failed:
            on_failure()
        await asyncio.sleep(min(interval_s * 2 ** min(failures, RELAY_BACKOFF_DOUBLINGS_MAX), RELAY_BACKOFF_S_MAX))


async def _each(partitions: Collection[int], relay: Callable[[int], Awaitable[object]]) -> TidemarkError | None:
    """Relay each partition once: what does not answer for one must not hold up the others. The first failure."""
    first: TidemarkError | None = None
    for partition in sorted(partitions):
        try:
            await relay(partition)
        except _WAITS as error:
            first = first or error
    return first
