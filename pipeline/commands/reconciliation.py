"""`tidemark reconcile`: run a reconciliation, and show it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, push_to_gateway

from pipeline.audit.reconciling import ReportGauges, opened, reconcile_and_record, reconcile_deployment
from pipeline.audit.repair import RepairStep, execute, plan_of
from pipeline.billing.redrive import REPORTS_KEPT_MS, Redriver, failed_intents
from pipeline.settings import Settings
from reconciler.causes import Verdict
from reconciler.compare import Range
from reconciler.page import render_page
from reconciler.report import Report, gauge_values, to_json
from reconciler.reports_index import ReportsIndex
from reconciler.table import render_table
from reconciler.views import ReconcilePolicy
from schemas.errors import InvalidInput, Transient
from schemas.log import REPORTS_TOPIC
from schemas.periods import Period
from schemas.reports import Intent

COMMAND: Final = "command"
READS_MAX: Final = 2_000
_LOG = logging.getLogger(__name__)


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


async def run_repair(
    settings: Settings,
    from_ms: int | None,
    to_ms: int | None,
    stripe_reads_max: int,
    decide: Callable[[Sequence[RepairStep]], tuple[str, str] | None],
) -> tuple[int, list[str]]:
    """Reconcile, plan repairs, and do those that can be done: (exit code, lines).

    `decide` gets the plan and returns who repairs and why, or None to change nothing. Exit code 1 if drift is left as
    it was, or a step was refused. Raises `InvalidInput` without a Stripe key.
    """
    async with opened(settings) as stores:
        meters, clock, log = stores.meters, stores.base.clock, stores.base.log
        if meters is None:
            raise InvalidInput("TIDEMARK_STRIPE_API_KEY", "is not set; only what is at Stripe can be repaired")
        tables = stores.tables
        if tables is None:
            raise InvalidInput("TIDEMARK_SQL_URL", stores.views.no_tables or "is not set; it has the ledger of reports")
        report, _ = await reconcile_and_record(stores, COMMAND, stripe_reads_max, from_ms, to_ms)
        limits = Range(from_ms, to_ms)
        failed = await failed_intents(tables.intents, await meters.rejections(clock.now_ms() - REPORTS_KEPT_MS))
        index = ReportsIndex(log, ReconcilePolicy().reports_max)
        for partition in range(await log.partition_count(REPORTS_TOPIC)):
            await index.catch_up(partition)
        wanted = (each for each in failed if limits.overlaps(_period(each.known.intent)))
        steps = plan_of(report, wanted, index.reported(), clock.now_ms())
        decided = decide(steps)
        if decided is None:
            return int(report.verdict is Verdict.DRIFT), []
        redriver = Redriver(log, tables.intents, meters, meters, clock, tables.bills)
        repaired = await execute(steps, redriver, meters, meters, stores.records, clock, *decided)
    code = int(any(not each.ok for each in repaired) or any(not step.is_executable for step in steps))
    return code, [f"{each.step.name}: {each.result}" for each in repaired]


def _period(intent: Intent) -> Period:
    return Period(intent.period_start_ms, intent.period_end_ms)


def push_gauges(report: Report, address: str) -> None:
    """Push the report's gauges to a Prometheus push gateway. Raises `Transient` if the gateway does not answer."""
    registry = CollectorRegistry()
    ReportGauges(registry).show(gauge_values(report))
    try:
        push_to_gateway(address, job="tidemark_reconcile", registry=registry)
    except (OSError, ValueError, HTTPException) as error:
        raise Transient(f"the push gateway at {address[:100]!a} did not answer: {error}") from error
