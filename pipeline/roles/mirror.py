"""The mirror role: Stripe's events to the side tables, and the bindings that follow to the usage log."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Iterable
from typing import Final

from pipeline.metrics import MetricName, Metrics
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
from pipeline.webhooks.processor import BILLING_GROUP, BillingEventProcessor, ProcessorStatus
from pipeline.webhooks.recovery import Recovery
from pipeline.webhooks.set_aside import append_set_aside
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
LINGER_S: Final = 1.5
# What only the process that owns partition 0 knows. Another process, and one that lost the partition, shows none.
OWNER_GAUGES: Final[tuple[MetricName, ...]] = (
    "tidemark_mirror_held_events",
    "tidemark_mirror_set_aside_events",
    "tidemark_mirror_overlaps",
    "tidemark_mirror_due_bindings",
    "tidemark_mirror_due_binding_age_seconds",
    "tidemark_mirror_recovered_events",
    "tidemark_mirror_walked_seconds",
    "tidemark_mirror_canary_heard_seconds",
    "tidemark_mirror_canary_silent",
)


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

            recovery = Recovery(
                walker, canary, base.clock, lambda: bool(owned()), lambda: append_set_aside(base.log, tables)
            )
            recoveries.append(recovery)

            def failed() -> None:
                metrics.add("tidemark_relay_failures_total", view="bindings")

            return (
                relaying(owned, lambda _: outbox.relay(), settings.relay_interval_s, on_failure=failed),
                relaying(owned, lambda _: counted.count(), COUNT_INTERVAL_S),
                recovery.run(),
            )

        def refresh() -> None:
            processor_gauges(metrics, base.clock, processor.status())
            for gauge in OWNER_GAUGES:
                metrics.clear(gauge)
            for recovery in recoveries:
                if recovery.is_owner:
                    _owner_gauges(metrics, base.clock, outbox, counted)
                    recovery_gauges(metrics, recovery)

        # The events of a sign-up come within a second or two, and share their fetches if they are read together.
        runner = runner_settings(settings, BILLING_GROUP, flush_events_max=READ_EVENTS_MAX, linger_s=LINGER_S)
        await run_processor(base, processor, runner, beside, metrics, refresh)


class _Counted:
    """What waits for a person, counted now and then because a scrape cannot wait for SQL; None before the first."""

    def __init__(self, tables: SideTables) -> None:
        self._tables = tables
        self.held: int | None = None
        self.aside: int | None = None
        self.overlaps: int | None = None

    async def count(self) -> None:
        self.held = len(await self._tables.held(limit=HELD_EVENTS_MAX))
        self.aside = len(await self._tables.set_aside(HELD_EVENTS_MAX))
        self.overlaps = len(await self._tables.overlaps())


def processor_gauges(metrics: Metrics, clock: Clock, status: ProcessorStatus) -> None:
    """The gauges of every process."""
    for outcome, events in status.outcomes.items():
        metrics.set("tidemark_mirror_events", events, outcome=outcome)
    for result, fetches in status.fetches.items():
        metrics.set("tidemark_mirror_fetches", fetches, result=result)
    if status.delay_s is not None:
        metrics.set("tidemark_mirror_delay_seconds", status.delay_s)
    waiting_ms = 0 if status.waiting_ms is None else max(0, clock.now_ms() - status.waiting_ms)
    metrics.set("tidemark_mirror_oldest_event_age_seconds", waiting_ms / SECOND_MS)
    metrics.set("tidemark_mirror_gaps", status.gaps, of="log")


def _owner_gauges(metrics: Metrics, clock: Clock, outbox: BindingOutbox, counted: _Counted) -> None:
    due = outbox.status()
    if counted.held is not None:
        metrics.set("tidemark_mirror_held_events", counted.held)
    if counted.aside is not None:
        metrics.set("tidemark_mirror_set_aside_events", counted.aside)
    if counted.overlaps is not None:
        metrics.set("tidemark_mirror_overlaps", counted.overlaps)
    metrics.set("tidemark_mirror_due_bindings", due.due)
    if due.oldest_ms is not None:
        metrics.set("tidemark_mirror_due_binding_age_seconds", max(0, clock.now_ms() - due.oldest_ms) / SECOND_MS)


def recovery_gauges(metrics: Metrics, recovery: Recovery) -> None:
    """The gauges of the walks and of the canary."""
    metrics.set("tidemark_mirror_recovered_events", recovery.found)
    metrics.set("tidemark_mirror_canary_silent", int(recovery.is_silent))
    metrics.set("tidemark_mirror_gaps", recovery.gaps, of="list")
    if recovery.until_s is not None:
        metrics.set("tidemark_mirror_walked_seconds", recovery.until_s)
    if recovery.heard_s is not None:
        metrics.set("tidemark_mirror_canary_heard_seconds", recovery.heard_s)
