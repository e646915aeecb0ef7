"""The mirror role: Stripe's events to the side tables, and the bindings that follow to the usage log."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Iterable
from typing import Final

from pipeline.metrics import Metrics
from pipeline.open import (
    account_log,
    check_stripe_key,
    open_base,
    open_live_view,
    open_side_tables,
    open_stripe,
    open_stripe_objects,
)
from pipeline.roles.base import relaying, run_processor, runner_settings
from pipeline.runner.runner import Runner
from pipeline.settings import Settings
from pipeline.webhooks.binding_outbox import BindingOutbox
from pipeline.webhooks.processor import BILLING_GROUP, BillingEventProcessor
from pipeline.webhooks.recovery import Recovery
from pipeline.webhooks.walker import Canary, Walker
from schemas.clock import SECOND_MS, Clock
from schemas.errors import InvalidInput
from schemas.log import BILLING_EVENTS_TOPIC
from schemas.side_tables import SideTables

# One transaction has the events of a read: small enough that its locks are short, large enough that the events of a
# sign-up share their fetches.
READ_EVENTS_MAX: Final = 200
HELD_EVENTS_MAX: Final = 10_000
COUNT_INTERVAL_S: Final = 15.0


async def run_mirror(settings: Settings) -> None:
    """Process Stripe's events until stopped. The process that owns partition 0 also sends bindings and looks for lost
    events."""
    base = await open_base(settings)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(base.log.close)
        objects = open_stripe_objects(settings)
        stack.push_async_callback(objects.close)
        meters = open_stripe(settings)
        if meters is None:
            raise InvalidInput("TIDEMARK_STRIPE_API_KEY", "is not set; the mirror has nobody to ask")
        try:
            await check_stripe_key(base, meters)
        finally:
            await meters.close()
        view = open_live_view(settings)
        stack.push_async_callback(view.close)
        tables = await open_side_tables(base)
        stack.push_async_callback(tables.close)

        processor = BillingEventProcessor(base.log, tables, objects, base.clock, settings.canary_customer)
        outbox = BindingOutbox(tables, account_log(base), view)
        canary = Canary(settings.canary_customer, objects, tables, base.clock) if settings.canary_customer else None
        walker, metrics, counted = Walker(base.log, objects, tables, base.clock), Metrics(), _Counted(tables)
        recoveries: list[Recovery] = []

        def beside(runner: Runner) -> Iterable[Awaitable[None]]:
            def owned() -> set[int]:
                return {0} & set(runner.assigned(BILLING_EVENTS_TOPIC))

            recovery = Recovery(walker, canary, base.clock, lambda: bool(owned()))
            recoveries.append(recovery)

            def failed() -> None:
                metrics.add("tidemark_relay_failures_total", view="bindings")

            return (
                relaying(owned, lambda _: outbox.relay(), settings.relay_interval_s, on_failure=failed),
                relaying(owned, lambda _: counted.count(), COUNT_INTERVAL_S),
                recovery.run(),
            )

        def refresh() -> None:
            _gauges(metrics, base.clock, processor, outbox, counted)
            for recovery in recoveries:
                _recovery_gauges(metrics, recovery)

        runner = runner_settings(settings, BILLING_GROUP, flush_events_max=READ_EVENTS_MAX)
        await run_processor(base, processor, runner, beside, metrics, refresh)


class _Counted:
    """What waits for a person, counted now and then because a scrape cannot wait for SQL; None before the first."""

    def __init__(self, tables: SideTables) -> None:
        self._tables = tables
        self.held: int | None = None
        self.overlaps: int | None = None

    async def count(self) -> None:
        self.held = len(await self._tables.held(limit=HELD_EVENTS_MAX))
        self.overlaps = len(await self._tables.overlaps())


def _gauges(
    metrics: Metrics, clock: Clock, processor: BillingEventProcessor, outbox: BindingOutbox, counted: _Counted
) -> None:
    status, due = processor.status(), outbox.status()
    for outcome, events in status.outcomes.items():
        metrics.set("tidemark_mirror_events", events, outcome=outcome)
    for result, fetches in status.fetches.items():
        metrics.set("tidemark_mirror_fetches", fetches, result=result)
    if status.delay_s is not None:
        metrics.set("tidemark_mirror_delay_seconds", status.delay_s)
    if counted.held is not None:
        metrics.set("tidemark_mirror_held_events", counted.held)
    if counted.overlaps is not None:
        metrics.set("tidemark_mirror_overlaps", counted.overlaps)
    metrics.set("tidemark_mirror_due_bindings", due.due)
    metrics.clear("tidemark_mirror_due_binding_age_seconds")
    if due.oldest_ms is not None:
        metrics.set("tidemark_mirror_due_binding_age_seconds", max(0, clock.now_ms() - due.oldest_ms) / SECOND_MS)


def _recovery_gauges(metrics: Metrics, recovery: Recovery) -> None:
    metrics.set("tidemark_mirror_recovered_events", recovery.found)
    metrics.set("tidemark_mirror_canary_silent", int(recovery.is_silent))
    if recovery.walked is not None:
        metrics.set("tidemark_mirror_walked_seconds", recovery.walked.until_s)
    if recovery.heard_s is not None:
        metrics.set("tidemark_mirror_canary_heard_seconds", recovery.heard_s)
