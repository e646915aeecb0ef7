"""`ReconciliationRecords` in this process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from schemas.reconciliation import FindingRow, PastRead, RepairRow, RunRow


class FakeReconciliations:
    """Stores runs and rows in dictionaries."""

    def __init__(self) -> None:
        self.runs: dict[str, RunRow] = {}
        self.repairs: list[RepairRow] = []
        self.findings: dict[tuple[str, int], FindingRow] = {}

    async def insert(self, run: RunRow, findings: Sequence[FindingRow]) -> None:
        self.findings.update({row[:2]: row for row in findings})
        self.runs[run.run] = run

    async def past_reads(self) -> Sequence[PastRead]:
        last: dict[tuple[str, str, str, int, int], PastRead] = {}
        for row in self.findings.values():
            is_read = row.pair in ("stripe", "invoices", "flags") and row.cause != "unchecked"
            if not is_read or not row.stripe_customer or not (row.event_name or row.pair == "flags"):
                continue
            key = (row.pair, row.event_name, row.stripe_customer, row.period_start_ms or 0, row.period_end_ms or 0)
            if key not in last or last[key].read_at_ms < row.read_at_ms:
                last[key] = PastRead(*key, row.read_at_ms, row.cause)
        return [last[key] for key in sorted(last)]

    async def stripe_reads(self, from_ms: int) -> int:
        return sum(run.stripe_reads for run in self.runs.values() if run.started_ms >= from_ms)

    async def last_run(self, role: str = "") -> RunRow | None:
        runs = (run for run in self.runs.values() if role in ("", run.role))
        return max(runs, key=lambda run: (run.started_ms, run.run), default=None)

    async def causes(self, run: str, limit: int) -> Sequence[tuple[str, str, int]]:
        wanted = (row for row in self.findings.values() if row.run == run)
        counts = Counter((row.pair, row.cause) for row in wanted if row.cause not in ("confirmed", "unchecked"))
        found = sorted(counts.items(), key=lambda each: (-each[1], each[0]))
        return [(pair, cause, count) for (pair, cause), count in found[:limit]]

    async def note_repair(self, row: RepairRow) -> None:
        self.repairs.append(row)

    async def repair(self, step: str) -> RepairRow | None:
        rows = [row for row in self.repairs if row.step == step]
        return max(rows, key=lambda row: (row.at_ms, row.result != "begun"), default=None)
