"""The period-close controller beside the sink's sender, and its gauges."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Final, Protocol

from aggregators.partitioning import partition_of
from pipeline.billing.closing import ClosingController, ClosingPolicy, ClosingStatus, Flush, Published, Told
from pipeline.logs.bindings import HasAccounts
from pipeline.logs.flushes import FlushWatch, flush_account
from pipeline.metrics import MetricName, Metrics
from pipeline.open import Base, account_log, scope_of
from pipeline.roles.base import relaying
from pipeline.runner.runner import Runner
from schemas.bills import Bill, BillState, StripeInvoiceItems
from schemas.clock import SECOND_MS
from schemas.control import Genesis
from schemas.live_view import MeasuredInstants
from schemas.log import REPORTS_TOPIC
from schemas.reports import StripeMeters
from sinks.redis.view import RedisLiveView
from sinks.sql.side_tables import SqlSideTables

TURN_INTERVAL_S: Final = 30.0
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


class ClosingBeside:
    """The controller beside a runner of `billing.reports`: only the process that owns partition 0 takes turns."""

    def __init__(
        self,
        base: Base,
        tables: SqlSideTables,
        items: StripeInvoiceItems,
        meters: StripeMeters,
        flush: Flush,
        told: Told,
    ) -> None:
        settings = base.settings
        policy = ClosingPolicy(late=settings.late_usage, close_lead_ms=round(settings.close_lead_s * SECOND_MS))
        self._controller = ClosingController(
            scope_of(base), tables.bills, tables.intents, items, meters, flush, told, base.log, base.clock, policy
        )
        self._owned: Callable[[], set[int]] = set

    def loops(self, runner: Runner) -> Iterable[Awaitable[None]]:
        """The loop of turns, for `run_processor`."""
        self._owned = lambda: {0} & set(runner.assigned(REPORTS_TOPIC))
        return (relaying(self._owned, lambda _: self._controller.turn(), TURN_INTERVAL_S),)

    def show(self, metrics: Metrics) -> None:
        """Set the gauges. They end with the ownership: the next owner shows newer values."""
        show(metrics, self._controller.status(), is_owner=bool(self._owned()))


def show(metrics: Metrics, status: ClosingStatus, *, is_owner: bool) -> None:
    """Set the gauges of the owner; those of another process end."""
    for gauge in OWNER_GAUGES:
        metrics.clear(gauge)
    if status.turned_ms is None or not is_owner:
        return
    metrics.set("tidemark_billing_turn_seconds", status.turned_ms / SECOND_MS)
    metrics.set("tidemark_billing_drafts", status.drafts)
    metrics.set("tidemark_billing_late_drafts", status.late_drafts)
    metrics.set("tidemark_billing_unequal_drafts", status.unequal_drafts)
    for state in _SHOWN:
        metrics.set("tidemark_billing_invoices", status.states.get(state, 0), state=state)
    if status.not_sold is not None:
        metrics.set("tidemark_billing_not_sold", status.not_sold)


def flush_by(base: Base, view: RedisLiveView) -> Flush:
    """Flushes by records in the usage log."""

    async def flush(account: str) -> Published:
        made = await flush_account(account_log(base), view, account)
        # Who settles the intents is seen in the ledger, so the watch reads only what comes after.
        watch = FlushWatch(base.log, view, made, (await base.log.bounds(REPORTS_TOPIC, made.partition)).next)

        async def is_published() -> bool:
            return (await watch.look()).is_published

        return is_published

    return flush


class HasMeasured(HasAccounts, Protocol):
    """A live view, or the parts of one that know the accounts and how far measured meters are told."""

    @property
    def measured(self) -> MeasuredInstants: ...


def told_by(genesis: Genesis, view: HasMeasured) -> Told:
    """Looks how far the measurer has come. Whatever it has told is in the log before a flush that comes now."""

    async def is_told(account: str, bill: Bill, since_ms: int) -> bool:
        partition = partition_of(account, genesis.partitions)
        checkpoint, _ = await view.accounts.accounts(partition, [account])
        meters = checkpoint.meter_set.meters if checkpoint is not None and checkpoint.meter_set is not None else ()
        if not any(meter.stripe_event_name == bill.event_name and meter.aggregation.rule.measured for meter in meters):
            return True
        reached = await view.measured.measured_to(partition)
        if reached is None or reached.log_id != genesis.log_id:
            return False
        return reached.until_ms >= bill.end_ms and reached.as_of_ms >= since_ms

    return is_told
