"""The period-close controller beside the sink's sender, and its gauges."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pipeline.billing.closing import ClosingController, ClosingPolicy, Flushes
from pipeline.metrics import MetricName, Metrics
from pipeline.open import Base, scope_of
from schemas.bills import BillState, StripeInvoiceItems
from schemas.clock import SECOND_MS
from schemas.reports import StripeMeters
from sinks.sql.side_tables import SqlSideTables

TURN_INTERVAL_S: Final = 60.0
# What only the process that owns partition 0 knows.
OWNER_GAUGES: Final[tuple[MetricName, ...]] = (
    "tidemark_billing_turn_seconds",
    "tidemark_billing_drafts",
    "tidemark_billing_late_drafts",
    "tidemark_billing_unequal_drafts",
    "tidemark_billing_invoices",
    "tidemark_billing_not_sold",
)
_SHOWN: Final = (BillState.WAITING, BillState.UNBILLED, BillState.HELD)


def closing_controller(
    base: Base, tables: SqlSideTables, items: StripeInvoiceItems, meters: StripeMeters, flushes: Flushes
) -> ClosingController:
    """The controller of a deployment."""
    settings = base.settings
    policy = ClosingPolicy(late=settings.late_usage, close_lead_ms=round(settings.close_lead_s * SECOND_MS))
    return ClosingController(
        scope_of(base), tables.bills, tables.intents, items, meters, flushes, base.log, base.clock, policy
    )


def show(metrics: Metrics, controller: ClosingController, is_owner: Callable[[], bool]) -> None:
    """Set the gauges. They end with the ownership: the next owner shows newer values."""
    for gauge in OWNER_GAUGES:
        metrics.clear(gauge)
    status = controller.status()
    if status.turned_ms is None or not is_owner():
        return
    metrics.set("tidemark_billing_turn_seconds", status.turned_ms / SECOND_MS)
    metrics.set("tidemark_billing_drafts", status.drafts)
    metrics.set("tidemark_billing_late_drafts", status.late_drafts)
    metrics.set("tidemark_billing_unequal_drafts", status.unequal_drafts)
    for state in _SHOWN:
        metrics.set("tidemark_billing_invoices", status.states.get(state, 0), state=state)
    if status.not_sold is not None:
        metrics.set("tidemark_billing_not_sold", status.not_sold)
