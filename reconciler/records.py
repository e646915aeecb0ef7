"""A report as rows (`schemas.reconciliation`)."""

from __future__ import annotations

from typing import Final

from reconciler.causes import Verdict
from reconciler.report import GaugeKey, Report, Row
from schemas.reconciliation import FindingRow, RunRow

# The verdict of a run that has not ended; it stays if the run is interrupted.
RUNNING: Final = "running"


def begun(run: str, role: str, started_ms: int) -> RunRow:
    """The row of a run that has just begun."""
    return RunRow(run, role, started_ms, started_ms, None, None, RUNNING, 0, 0, 0, 0, 0, None, 0)


def run_row(report: Report, run: str, role: str, started_ms: int, ended_ms: int) -> RunRow:
    """The row of the whole run. It replaces the one of `begun` with the same start."""
    unread = [covered.oldest_unread_ms for covered in (report.sums, report.invoices)]
    return RunRow(
        run,
        role,
        started_ms,
        ended_ms,
        report.from_ms,
        report.to_ms,
        report.verdict.value,
        report.differences,
        report.sums.due,
        report.sums.read,
        report.invoices.due,
        report.invoices.read,
        min((ends_ms for ends_ms in unread if ends_ms is not None), default=None),
        report.stripe_reads,
    )


def run_gauges(row: RunRow) -> dict[GaugeKey, int]:
    """The gauges of a report that are in its run's row, for a process that did not make the report."""
    values = {GaugeKey("tidemark_reconcile_started_at_seconds", ()): row.started_ms // 1_000}
    for verdict in Verdict:
        key = GaugeKey("tidemark_reconcile_verdict", (("verdict", verdict.value),))
        values[key] = int(row.verdict == verdict)
    return values


def finding_rows(report: Report, run: str) -> list[FindingRow]:
    """The rows of the report, then those of what is confirmed."""
    rows = enumerate((*report.rows, *report.confirmed))
    return [_finding(row, run, number, report.started_at_ms) for number, row in rows]


def _finding(row: Row, run: str, number: int, read_at_ms: int) -> FindingRow:
    return FindingRow(
        run, number, read_at_ms, row.pair.name.lower(), row.cause.value, row.partition, row.account, row.meter,
        row.event_name, row.stripe_customer,
        row.period.start_ms if row.period else None, row.period.end_ms if row.period else None, row.hour_ms,
        row.dimensions, row.expected, row.found, row.items, row.invoices, row.detail,
    )  # fmt: skip
