"""`CorrectionArchive` over the dictionaries of a `FakeClickHouse`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from aggregators.meters import in_force_after
from schemas.control import ControlKind, CorrectionRecord, MeterSetRecord
from schemas.corrections import ArchivedCorrection, CorrectionArchive
from schemas.measures import ArchivedAdjustment
from schemas.meters import MeterSet
from schemas.usage_evidence import ArchivedEvent
from sinks.clickhouse.fake import FakeClickHouse
from sinks.clickhouse.fake_measures import FakeMeasures

ALL_ROWS: Final = 1 << 31


class FakeCorrections(CorrectionArchive):
    """Answers from a fake's rows."""

    def __init__(self, clickhouse: FakeClickHouse) -> None:
        self._clickhouse = clickhouse

    async def event(self, account: str, identifier: str) -> ArchivedEvent | None:
        """See `CorrectionArchive`."""
        row = self._clickhouse.events.get((account, identifier))
        if row is None:
            return None
        decision = self._clickhouse.decisions.get((row.partition, row.position, account))
        decided_ms = decision.stream_time_ms if decision else None
        return ArchivedEvent(
            account, identifier, row.type, row.source, row.time_us, row.data, row.partition, row.position,
            row.stream_time_ms, bool(row.deferred), decided_ms if row.deferred else row.stream_time_ms,
            decision.outcome.value if decision else "",
        )  # fmt: skip

    async def meter_set_at(self, partition: int, position: int) -> MeterSet | None:
        """See `CorrectionArchive`."""
        rows = [
            row
            for row in self._clickhouse.control_log.values()
            if row.kind == ControlKind.METER_SET and row.partition == partition and row.position < position
        ]
        current: MeterSet | None = None
        for row in sorted(rows, key=lambda row: row.position):
            current = in_force_after(current, MeterSetRecord.model_validate_json(row.value).meter_set)
        return current

    async def corrections(self, partition: int, since: int, before: int, rows_max: int) -> Sequence[ArchivedCorrection]:
        """See `CorrectionArchive`."""
        return [each for each in self._all(partition) if since <= each.position < before][:rows_max]

    async def corrections_of(self, account: str, event: str | None, rows_max: int) -> Sequence[ArchivedCorrection]:
        """See `CorrectionArchive`."""
        rows = [each for each in self._all(None) if each.record.account == account]
        return [each for each in rows if event in (None, each.record.event)][-rows_max:]

    async def deciding(self, account: str, event: str, before: int) -> Sequence[ArchivedCorrection]:
        """See `CorrectionArchive`."""
        first: dict[str, ArchivedCorrection] = {}
        for each in await self.corrections_of(account, None, ALL_ROWS):
            first.setdefault(each.record.correction, each)
        return [each for each in first.values() if each.record.event == event and each.position < before]

    async def named(self, account: str, correction: str) -> ArchivedCorrection | None:
        """See `CorrectionArchive`."""
        rows = await self.corrections_of(account, None, ALL_ROWS)
        return next((each for each in rows if each.record.correction == correction), None)

    async def told(
        self, partition: int, accounts: Sequence[str], prefix: str, before: int, from_us: int = 0
    ) -> Sequence[ArchivedAdjustment]:
        """See `MeasureArchive`."""
        return await FakeMeasures(self._clickhouse).told(partition, accounts, prefix, before, from_us)

    def _all(self, partition: int | None) -> list[ArchivedCorrection]:
        rows = [row for row in self._clickhouse.control_log.values() if row.kind == ControlKind.CORRECTION]
        return [
            ArchivedCorrection(row.position, row.stream_time_ms, CorrectionRecord.model_validate_json(row.value))
            for row in sorted(rows, key=lambda row: row.position)
            if partition in (None, row.partition)
        ]
