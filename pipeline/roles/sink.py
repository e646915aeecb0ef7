"""The sink role: intents to Stripe."""

from __future__ import annotations

import contextlib
import random
from typing import Final

from pipeline.billing.customers import BindingResolver
from pipeline.billing.drawing import Drawing
from pipeline.billing.policy import policy_for
from pipeline.billing.sender import StripeSender
from pipeline.metrics import Metrics
from pipeline.open import (
    check_stripe_key,
    open_base,
    open_invoice_items,
    open_live_view,
    open_side_tables,
    open_stripe,
)
from pipeline.roles.base import run_processor, runner_settings
from pipeline.roles.closing import ClosingBeside, flush_by, told_by
from pipeline.settings import Settings
from schemas.errors import InvalidInput

SINK_GROUP: Final = "tidemark-sink"


async def run_sink(settings: Settings) -> None:
    """Send intents to Stripe until stopped. The process that owns partition 0 also looks at drafts and invoices.

    Raises as `open_side_tables`, and `InvalidInput` without a Stripe key.
    """
    base = await open_base(settings)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(base.log.close)
        view = open_live_view(settings)
        stack.push_async_callback(view.close)
        meters = open_stripe(settings)
        if meters is None:
            raise InvalidInput("TIDEMARK_STRIPE_API_KEY", "is not set; the sink has nowhere to report to")
        stack.push_async_callback(meters.close)
        await check_stripe_key(base, meters)
        items = open_invoice_items(settings)
        stack.push_async_callback(items.close)
        tables = await open_side_tables(base)
        stack.push_async_callback(tables.close)
        sender = StripeSender(
            base.log,
            tables.intents,
            meters,
            BindingResolver(view.accounts, base.genesis.partitions),
            base.clock,
            random.Random(),
            policy_for(
                livemode=base.genesis.livemode,
                rate_per_s=settings.stripe_rate_per_s,
                api=settings.stripe_meter_events,
            ),
            tables.bills,
            Drawing(tables.credits, tables.catalog, base.clock),
        )
        closing, metrics = (
            ClosingBeside(base, tables, items, meters, flush_by(base, view), told_by(base.genesis, view)),
            Metrics(),
        )

        def refresh() -> None:
            _gauges(sender, metrics)
            closing.show(metrics)

        await run_processor(
            base,
            sender,
            runner_settings(settings, SINK_GROUP, flush_events_max=500),
            closing.loops,
            metrics,
            refresh,
        )


def _gauges(sender: StripeSender, metrics: Metrics) -> None:
    status = sender.status()
    metrics.set("tidemark_sink_pending_intents", status.pending)
    metrics.clear("tidemark_sink_held_intents")
    for hold, intents in status.held.items():
        metrics.set("tidemark_sink_held_intents", intents, hold=hold)
    for result, calls in status.counts.items():
        metrics.set("tidemark_sink_results", calls, result=result)
    metrics.set("tidemark_sink_open_breakers", status.open_breakers)
    metrics.clear("tidemark_sink_held_deadline_seconds")
    if status.held_deadline_ms is not None:
        metrics.set("tidemark_sink_held_deadline_seconds", status.held_deadline_ms / 1000)
