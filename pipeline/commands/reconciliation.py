"""Reconciliation as functions: run, record and show it."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from http.client import HTTPException
from pathlib import Path
from typing import Final, NamedTuple

from prometheus_client import CollectorRegistry, Gauge, push_to_gateway

from pipeline.open import Base, open_base, open_live_view, open_stripe, open_stripe_invoices, open_usage_reader
from pipeline.settings import Settings
from reconciler.causes import Verdict
from reconciler.page import render_page
from reconciler.records import finding_rows, run_row
from reconciler.report import Report, gauge_values, to_json
from reconciler.run import reconcile
from reconciler.table import render_table
from reconciler.views import ReconcilePolicy, Views
from schemas.errors import OperatorNeeded, Refused, Transient
from schemas.live_view import LiveView
from schemas.reconciliation import ReconciliationRecords
from sinks.clickhouse.client import open_clickhouse
from sinks.clickhouse.reader import ClickHouseReader
from sinks.clickhouse.reconciliations import ClickHouseReconciliations
from sinks.clickhouse.writer import ClickHouseStore

COMMAND: Final = "command"
READS_MAX: Final = 2_000
_LOG = logging.getLogger(__name__)


class Opened(NamedTuple):
    """The open stores of a deployment, for reconciliations."""

    base: Base
    views: Views
    records: ReconciliationRecords
    store: ClickHouseStore


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Opened]:
    """Open the stores of the settings, and close them afterwards.

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
        views = Views(view, ClickHouseReader(clickhouse), store, base.log, meters, meters, invoices)
        yield Opened(base, views, ClickHouseReconciliations(clickhouse), store)


async def reconcile_deployment(
    settings: Settings,
    from_ms: int | None,
    to_ms: int | None,
    *,
    stripe_reads_max: int,
    archive_wait_s: float = ReconcilePolicy().archive_wait_s,
) -> Report:
    """Open the stores of the settings, reconcile them and close them. Compares all, and records nothing.

    Raises `Transient` if Redis or ClickHouse does not answer at the start.
    """
    async with opened(settings) as stores:
        policy = ReconcilePolicy(stripe_reads_max=stripe_reads_max, archive_wait_s=archive_wait_s)
        return await reconcile(stores.views, stores.base.clock, from_ms=from_ms, to_ms=to_ms, policy=policy)


async def reconcile_and_record(
    stores: Opened, role: str, reads_max: int, from_ms: int | None = None, to_ms: int | None = None
) -> tuple[Report, bool]:
    """Reconcile with what earlier runs have read at Stripe in mind, and record the run: (report, whether it is stored).

    Reads no more from Stripe than the setting leaves for this month. Raises `Transient`, and `OperatorNeeded` if the
    tables belong to a newer version.
    """
    clock, budget = stores.base.clock, stores.base.settings.stripe_reads_per_month
    await stores.store.migrate()
    started_ms = clock.now_ms()
    left = max(0, budget - await stores.records.stripe_reads(month_start_ms(started_ms)))
    report = await reconcile(
        stores.views, clock, from_ms=from_ms, to_ms=to_ms,
        policy=ReconcilePolicy(stripe_reads_max=min(reads_max, left)), past=await stores.records.past_reads(),
    )  # fmt: skip
    run = secrets.token_hex(8)
    try:
        await stores.records.insert(run_row(report, run, role, clock.now_ms()), finding_rows(report, run))
    except (Transient, Refused, OperatorNeeded) as error:
        _LOG.error("the reconciliation is not recorded: %s", error)
        return report, False
    return report, True


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


async def run_reconcile(
    settings: Settings,
    from_ms: int | None = None,
    to_ms: int | None = None,
    *,
    as_json: bool = False,
    stripe_reads_max: int = READS_MAX,
    rows_max: int = 50,
    pushgateway: str = "",
    record: bool = True,
    html: Path | None = None,
) -> tuple[int, str]:
    """Reconcile and return (exit code, report): 1 on drift, 0 otherwise.

    Writes the report as a page to `html`. Pushes the gauges to the Prometheus push gateway at the address `pushgateway`
    if it is not empty. If the rows or the push fail, the report is still returned, with exit code 1, and the reason is
    logged. Without `record`, nothing is stored, and everything is read again.
    """
    if record:
        async with opened(settings) as stores:
            report, is_stored = await reconcile_and_record(stores, COMMAND, stripe_reads_max, from_ms, to_ms)
    else:
        report, is_stored = (
            await reconcile_deployment(settings, from_ms, to_ms, stripe_reads_max=stripe_reads_max),
            True,
        )
    code = 1 if report.verdict is Verdict.DRIFT or not is_stored else 0
    if html is not None:
        await asyncio.to_thread(html.write_text, render_page(report), encoding="utf-8")
    if pushgateway:
        try:
            push_gauges(report, pushgateway)
        except Transient as error:
            code = 1
            _LOG.error("the report is not pushed: %s", error)
    return code, to_json(report) if as_json else render_table(report, rows_max=rows_max)


def push_gauges(report: Report, address: str) -> None:
    """Push the report's gauges to a Prometheus push gateway. Raises `Transient` if the gateway does not answer."""
    registry = CollectorRegistry()
    gauges: dict[str, Gauge] = {}
    for key, value in gauge_values(report).items():
        names = [name for name, _ in key.labels]
        if key.name not in gauges:
            gauges[key.name] = Gauge(key.name, "See docs/reconciliation.md.", names, registry=registry)
        (gauges[key.name].labels(*(text for _, text in key.labels)) if names else gauges[key.name]).set(value)
    try:
        push_to_gateway(address, job="tidemark_reconcile", registry=registry)
    except (OSError, ValueError, HTTPException) as error:
        raise Transient(f"the push gateway at {address[:100]!a} did not answer: {error}") from error
