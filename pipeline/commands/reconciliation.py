"""`tidemark reconcile`: run a reconciliation, and show it."""

from __future__ import annotations

import asyncio
import logging
from http.client import HTTPException
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, push_to_gateway

from pipeline.audit.reconciling import ReportGauges, opened, reconcile_and_record, reconcile_deployment
from pipeline.settings import Settings
from reconciler.causes import Verdict
from reconciler.page import render_page
from reconciler.report import Report, gauge_values, to_json
from reconciler.table import render_table
from schemas.errors import Transient

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


def push_gauges(report: Report, address: str) -> None:
    """Push the report's gauges to a Prometheus push gateway. Raises `Transient` if the gateway does not answer."""
    registry = CollectorRegistry()
    ReportGauges(registry).show(gauge_values(report))
    try:
        push_to_gateway(address, job="tidemark_reconcile", registry=registry)
    except (OSError, ValueError, HTTPException) as error:
        raise Transient(f"the push gateway at {address[:100]!a} did not answer: {error}") from error
