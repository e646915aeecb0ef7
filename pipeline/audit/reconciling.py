"""Opens the stores of a deployment, reconciles them, and records the run."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Gauge

from pipeline.access.revenue import amounts_of
from pipeline.open import (
    Base,
    open_base,
    open_live_view,
    open_side_tables,
    open_stripe,
    open_stripe_invoices,
    open_usage_reader,
)
from pipeline.settings import Settings
from reconciler.records import begun, finding_rows, run_row
from reconciler.report import GaugeKey, Report
from reconciler.run import reconcile
from reconciler.views import ReconcilePolicy, Views
from schemas.errors import InvalidInput, OperatorNeeded, Refused, Transient
from schemas.live_view import LiveView
from schemas.reconciliation import ReconciliationRecords
from schemas.revenue import RevenueStores
from sinks.clickhouse.client import open_clickhouse
from sinks.clickhouse.measured_recount import ClickHouseMeasuredRecount
from sinks.clickhouse.reader import ClickHouseReader
from sinks.clickhouse.reconciliations import ClickHouseReconciliations
from sinks.clickhouse.writer import ClickHouseStore
from sinks.sql.store import PostgresSideTables
from sinks.stripe.client import StripeClientMeters

_LOG = logging.getLogger(__name__)


class Opened(NamedTuple):
    """The open stores of a deployment, for reconciliations."""

    base: Base
    views: Views
    records: ReconciliationRecords
    store: ClickHouseStore
    meters: StripeClientMeters | None
    tables: PostgresSideTables | None


@asynccontextmanager
async def opened(settings: Settings, *, mirror: bool = True) -> AsyncIterator[Opened]:
    """Open the stores of the settings, and close them afterwards. Without `mirror`, the side tables are left alone.

    Raises `Transient` if Redis or ClickHouse does not answer at the start.
    """
    async with AsyncExitStack() as stack:
        view = open_live_view(settings)
        stack.push_async_callback(view.close)
        clickhouse = open_clickhouse(settings.clickhouse_url)
        stack.push_async_callback(clickhouse.close)
        await _check_answering(view, settings)
        base = await open_base(settings, create=False)
        stack.push_async_callback(base.log.close)
        meters, invoices = open_stripe(settings), open_stripe_invoices(settings)
        for client in (meters, invoices):
            if client is not None:
                stack.push_async_callback(client.close)
        store = ClickHouseStore(clickhouse)
        tables, no_tables = await _tables(base) if mirror else (None, "")
        if tables is not None:
            stack.push_async_callback(tables.close)
        reader, bills = ClickHouseReader(clickhouse), tables.bills if tables is not None else None
        recount = tables.entitlement_recount if tables is not None else None
        revenue = amounts = None
        if tables is not None:
            revenue = RevenueStores(tables.catalog, tables.revenue, tables.invoice_books)
            amounts = partial(amounts_of, tables.catalog)
        views = Views(
            view, reader, store, base.log, meters, meters, invoices, tables, bills, no_tables, recount, revenue,
            amounts, tables.credits if tables is not None else None, ClickHouseMeasuredRecount(clickhouse),
        )  # fmt: skip
        yield Opened(base, views, ClickHouseReconciliations(clickhouse), store, meters, tables)


async def _tables(base: Base) -> tuple[PostgresSideTables | None, str]:
    """The side tables, or why they cannot be read. A deployment without webhooks has none."""
    if not base.settings.sql_url.startswith("postgresql://"):
        return None, ""
    try:
        return await open_side_tables(base), ""
    except (InvalidInput, OperatorNeeded, Transient) as error:
        return None, str(error)


async def reconcile_deployment(
    settings: Settings,
    from_ms: int | None,
    to_ms: int | None,
    *,
    stripe_reads_max: int,
    archive_wait_s: float = ReconcilePolicy().archive_wait_s,
    mirror: bool = True,
) -> Report:
    """Open the stores of the settings, reconcile them and close them. Compares all, and records nothing.

    Raises `Transient` if Redis or ClickHouse does not answer at the start.
    """
    async with opened(settings, mirror=mirror) as stores:
        policy = ReconcilePolicy(stripe_reads_max=stripe_reads_max, archive_wait_s=archive_wait_s)
        return await reconcile(stores.views, stores.base.clock, from_ms=from_ms, to_ms=to_ms, policy=policy)


async def reconcile_and_record(
    stores: Opened, role: str, reads_max: int, from_ms: int | None = None, to_ms: int | None = None
) -> tuple[Report, bool]:
    """Reconcile with what earlier runs have read at Stripe in mind, and record the run: (report, whether it is stored).

    The run's row is there from its start, with the verdict `running`, and is replaced at its end. Reads no more from
    Stripe than the setting leaves for this month. Raises `Transient`, and `OperatorNeeded` if the
    tables belong to a newer version.
    """
    clock = stores.base.clock
    await stores.store.migrate()
    started_ms, run = clock.now_ms(), secrets.token_hex(8)
    await stores.records.insert(begun(run, role, started_ms), ())
    left = await reads_left(stores)
    report = await reconcile(
        stores.views, clock, from_ms=from_ms, to_ms=to_ms,
        policy=ReconcilePolicy(stripe_reads_max=min(reads_max, left)), past=await stores.records.past_reads(),
    )  # fmt: skip
    try:
        await stores.records.insert(run_row(report, run, role, started_ms, clock.now_ms()), finding_rows(report, run))
    except (Transient, Refused, OperatorNeeded) as error:
        _LOG.error("the reconciliation is not recorded: %s", error)
        return report, False
    return report, True


async def reads_left(stores: Opened) -> int:
    """How many calls to Stripe reconciliations may still make in this month. Raises `Transient`."""
    made = await stores.records.stripe_reads(month_start_ms(stores.base.clock.now_ms()))
    return max(0, stores.base.settings.stripe_reads_per_month - made)


def month_start_ms(instant_ms: int) -> int:
    """The start of the instant's month in UTC."""
    moment = datetime.fromtimestamp(instant_ms // 1_000, UTC)
    return int(datetime(moment.year, moment.month, 1, tzinfo=UTC).timestamp()) * 1_000


async def _check_answering(view: LiveView, settings: Settings) -> None:
    """Raise `Transient` if Redis or ClickHouse does not answer. Otherwise every read of every partition would wait."""
    # A client of its own, because the reconciler's queries may take longer than a command should wait here.
    reader = open_usage_reader(settings)
    try:
        checks = (view.state.load_checkpoint(0), reader.archive_positions())
        results = await asyncio.gather(*checks, return_exceptions=True)
    finally:
        await reader.close()
    for result in results:
        # The report shows every other failure.
        if isinstance(result, Transient):
            raise result


class ReportGauges:
    """The gauges of the last run in a registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._gauges: dict[str, Gauge] = {}

    def show(self, values: Mapping[GaugeKey, int]) -> None:
        """Set gauges."""
        for key, value in values.items():
            names = [name for name, _ in key.labels]
            if key.name not in self._gauges:
                text = "See docs/reconciliation.md."
                self._gauges[key.name] = Gauge(key.name, text, names, registry=self._registry)
            gauge = self._gauges[key.name]
            (gauge.labels(*(text for _, text in key.labels)) if names else gauge).set(value)
