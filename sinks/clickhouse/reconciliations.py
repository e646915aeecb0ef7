"""`ReconciliationRecords` on ClickHouse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from schemas.reconciliation import FindingRow, PastRead, RepairRow, RunRow
from sinks.clickhouse.client import ClickHouse

_ENCODER: Final = msgspec.json.Encoder()
_PAST: Final = """
SELECT pair, event_name, stripe_customer, ifNull(period_start_ms, 0) AS starts_ms, ifNull(period_end_ms, 0) AS ends_ms,
    max(read_at_ms), argMax(cause, read_at_ms)
FROM reconciliation_findings FINAL
WHERE pair IN ('stripe', 'invoices', 'flags') AND cause != 'unchecked' AND stripe_customer != ''
    AND (event_name != '' OR pair = 'flags')
GROUP BY pair, event_name, stripe_customer, starts_ms, ends_ms
ORDER BY pair, event_name, stripe_customer, starts_ms, ends_ms
"""


class ClickHouseReconciliations:
    """Stores runs in `reconciliation_runs` and their rows in `reconciliation_findings`."""

    def __init__(self, clickhouse: ClickHouse) -> None:
        self._clickhouse = clickhouse

    async def insert(self, run: RunRow, findings: Sequence[FindingRow]) -> None:
        """See `ReconciliationRecords`: the run's row comes last."""
        if findings:
            lines = _ENCODER.encode_lines(findings)
            await self._clickhouse.insert_lines("reconciliation_findings", FindingRow._fields, lines)
        await self._clickhouse.insert_lines("reconciliation_runs", RunRow._fields, _ENCODER.encode(run))

    async def past_reads(self) -> Sequence[PastRead]:
        """See `ReconciliationRecords`."""
        return [PastRead(*row) for row in await self._clickhouse.rows(_PAST)]

    async def stripe_reads(self, from_ms: int) -> int:
        """See `ReconciliationRecords`."""
        rows = await self._clickhouse.rows(
            "SELECT sum(stripe_reads) FROM reconciliation_runs FINAL WHERE started_ms >= {from:Int64}",
            {"from": from_ms},
        )
        return int(rows[0][0])

    async def last_run(self, role: str = "") -> RunRow | None:
        """See `ReconciliationRecords`."""
        rows = await self._clickhouse.rows(
            f"SELECT {', '.join(RunRow._fields)} FROM reconciliation_runs FINAL "  # noqa: S608  # names of ours
            "WHERE {role:String} IN ('', role) ORDER BY started_ms DESC, run DESC LIMIT 1",
            {"role": role},
        )
        return RunRow(*rows[0]) if rows else None

    async def causes(self, run: str, limit: int) -> Sequence[tuple[str, str, int]]:
        """See `ReconciliationRecords`."""
        rows = await self._clickhouse.rows(
            "SELECT pair, cause, count() AS rows FROM reconciliation_findings FINAL WHERE run = {run:String} "
            "AND cause NOT IN ('confirmed', 'unchecked') GROUP BY pair, cause ORDER BY rows DESC, pair, cause "
            "LIMIT {most:UInt64}",
            {"run": run, "most": limit},
        )
        return [(str(pair), str(cause), int(count)) for pair, cause, count in rows]

    async def note_repair(self, row: RepairRow) -> None:
        """See `ReconciliationRecords`. Every row stays."""
        await self._clickhouse.insert_lines("reconciliation_repairs", RepairRow._fields, _ENCODER.encode(row))

    async def repair(self, step: str) -> RepairRow | None:
        """See `ReconciliationRecords`."""
        rows = await self._clickhouse.rows(
            f"SELECT {', '.join(RepairRow._fields)} FROM reconciliation_repairs WHERE step = {{step:String}} "  # noqa: S608  # names of ours
            "ORDER BY at_ms DESC, result = 'begun' LIMIT 1",
            {"step": step},
        )
        return RepairRow(*rows[0]) if rows else None
