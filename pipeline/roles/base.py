"""What the roles share: running a processor with its operations pages and background tasks."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from typing import Any

from pipeline.http.serving import Readiness, ops_app, serving, stop_event
from pipeline.logs.answering import silent_partitions
from pipeline.metrics import Metrics
from pipeline.open import Base
from pipeline.runner.runner import Runner, RunnerSettings
from pipeline.settings import Settings
from schemas.errors import HeldUp, Refused, TidemarkError, Transient
from schemas.processing import Processor

RELAY_BACKOFF_S_MAX = 30.0
RELAY_BACKOFF_DOUBLINGS_MAX = 10
STUCK_AFTER_MS = 60_000

# Errors that make a relay wait and retry. After any other `OperatorNeeded`, retrying would endanger the counts.
_WAITS = (Transient, Refused, HeldUp)

_log = logging.getLogger(__name__)


def runner_settings(
    settings: Settings,
    group: str,
    flush_events_max: int | None = None,
    linger_s: float = 0.0,
    catch_up_linger_s: float = 0.0,
    quiet_s: float = math.inf,
) -> RunnerSettings:
    """The runner's settings for a consumer group."""
    return RunnerSettings(
        group,
        flush_events_max=flush_events_max or settings.flush_events_max,
        session_timeout_s=settings.session_timeout_s,
        heartbeat_interval_s=min(3.0, settings.session_timeout_s / 3),
        idle_interval_s=0.5,
        linger_s=linger_s,
        catch_up_linger_s=catch_up_linger_s,
        quiet_s=quiet_s,
    )


async def run_processor(
    base: Base,
    processor: Processor,
    settings: RunnerSettings,
    beside: Callable[[Runner], Iterable[Awaitable[None]]] = lambda _runner: (),
    metrics: Metrics | None = None,
    refresh: Callable[[], None] = lambda: None,
    details: Callable[[], dict[str, Any]] = dict,
) -> None:
    """Run a processor, its operations pages and the background tasks until stopped. The first failure ends all.

    `beside` makes the background tasks, which may ask the runner about its partitions.
    `refresh` updates gauges before each scrape; `details` returns additional fields for `/readyz`.
    """
    stop = stop_event()
    counted = metrics or Metrics()
    runner = Runner([processor], base.settings.log_url, base.clock, settings)

    def refreshed() -> None:
        _progress_gauges(runner, counted)
        refresh()

    async def readiness() -> Readiness:
        partitions = runner.assigned(processor.topic)
        silent = await silent_partitions(base.log, processor.topic, partitions)
        return _readiness(runner, base.clock.now_ms(), silent, details())

    app = ops_app(counted, readiness, refreshed)
    async with serving(app, base.settings.metrics_host, base.settings.metrics_port):
        loops = [asyncio.ensure_future(loop) for loop in beside(runner)]
        running = asyncio.create_task(runner.run(stop))
        await asyncio.wait({running, *loops}, return_when=asyncio.FIRST_COMPLETED)
        stop.set()
        for loop in loops:
            loop.cancel()
        results = await asyncio.gather(running, *loops, return_exceptions=True)
        failures = [result for result in results if isinstance(result, Exception)]
        if failures:
            raise failures[0]


def _readiness(runner: Runner, now_ms: int, silent: list[int], details: Mapping[str, Any]) -> Readiness:
    """Ready if the role owns partitions, the log answers for all of them, and none is stuck.

    A partition is stuck if it has a lag and had no step for a minute. The lag is that of the last fetch, so it does not
    show that the log stopped answering.
    """
    progress = runner.progress()
    stuck = [part.partition for part in progress if part.lag and now_ms - (part.last_step_ms or 0) > STUCK_AFTER_MS]
    partitions = [
        {"partition": part.partition, "next_offset": part.next_offset, "lag": part.lag, "queued": part.queued_records}
        for part in progress
    ]
    ready = bool(progress) and not stuck and not silent
    return Readiness(ready, {"partitions": partitions, "stuck": stuck, "silent_partitions": silent, **details})


def _progress_gauges(runner: Runner, metrics: Metrics) -> None:
    metrics.clear("tidemark_partition_next_offset")
    metrics.clear("tidemark_partition_lag_records")
    for part in runner.progress():
        labels = {"topic": part.topic, "partition": str(part.partition)}
        metrics.set("tidemark_partition_next_offset", part.next_offset, **labels)
        metrics.set("tidemark_partition_lag_records", part.lag, **labels)


async def relaying(
    owned: Callable[[], set[int]],
    relay: Callable[[int], Awaitable[object]],
    interval_s: float,
    prepare: Callable[[], Awaitable[None]] | None = None,
    on_failure: Callable[[], None] = lambda: None,
) -> None:
    """Relay the owned partitions for ever. Retries a failing store with growing pauses; the outbox stays in Redis.

    `prepare` must succeed once before the first relay. A permanent rejection does not end the loop either, because the
    live counts do not need that store. `on_failure` is called for every failure; repeated failures are logged once.
    """
    failures = 0
    logged: type[Exception] | None = None
    while True:
        try:
            if prepare is not None:
                await prepare()
                prepare = None
            failed: TidemarkError | None = await _each(owned(), relay)
        except _WAITS as error:
            failed = error
        if failed:
            # Compare types: a permanent rejection often follows missing answers.
            if type(failed) is not logged:
                level = logging.WARNING if isinstance(failed, Transient) else logging.ERROR
                _log.log(level, "a relay waits, nothing is lost: %s", failed)
            on_failure()
        logged, failures = (type(failed), failures + 1) if failed else (None, 0)
        await asyncio.sleep(min(interval_s * 2 ** min(failures, RELAY_BACKOFF_DOUBLINGS_MAX), RELAY_BACKOFF_S_MAX))


async def _each(partitions: Collection[int], relay: Callable[[int], Awaitable[object]]) -> TidemarkError | None:
    """Relay each partition once, also after a failure of another one. Returns the first failure."""
    first: TidemarkError | None = None
    for partition in sorted(partitions):
        try:
            await relay(partition)
        except _WAITS as error:
            first = first or error
    return first
