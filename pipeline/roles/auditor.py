"""The auditor role: a reconciliation every night, kept as rows and shown as gauges."""

from __future__ import annotations

import asyncio

from pipeline.audit.auditor import ROLE, Auditor
from pipeline.audit.reconciling import Opened, ReportGauges, opened, reads_left, reconcile_and_record
from pipeline.http.serving import Readiness, ops_app, serving, stop_event
from pipeline.metrics import Metrics
from pipeline.settings import Settings
from reconciler.records import run_gauges
from reconciler.report import gauge_values
from schemas.errors import Transient


async def run_auditor(settings: Settings) -> None:
    """Reconcile once a day until stopped. Raises `OperatorNeeded` if the stores do not belong together."""
    stop, metrics = stop_event(), Metrics()
    async with opened(settings) as stores:
        await stores.store.migrate()
        gauges = ReportGauges(metrics.registry)
        auditor = _auditor(stores, gauges)
        last = await stores.records.last_run(ROLE)
        if last is not None:
            gauges.show(run_gauges(last))
        shown = 0

        def refresh() -> None:
            nonlocal shown
            metrics.add("tidemark_auditor_failures_total", auditor.failures - shown)
            shown = auditor.failures

        async def readiness() -> Readiness:
            try:
                last = await stores.records.last_run(ROLE)
            except Transient as error:
                return Readiness(False, {"error": str(error)})
            return Readiness(True, {"last_run": last._asdict() if last else None})

        async with serving(ops_app(metrics, readiness, refresh), settings.metrics_host, settings.metrics_port):
            tasks = [asyncio.create_task(stop.wait()), asyncio.create_task(auditor.run())]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                if tasks[1].done():
                    tasks[1].result()
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)


def _auditor(stores: Opened, gauges: ReportGauges) -> Auditor:
    async def audit(reads_max: int) -> None:
        report, is_stored = await reconcile_and_record(stores, ROLE, reads_max)
        gauges.show(gauge_values(report))
        if not is_stored:
            raise Transient("the reconciliation is not recorded")

    settings = stores.base.settings
    return Auditor(stores.records, stores.base.clock, settings.auditor_time, audit, lambda: reads_left(stores))
