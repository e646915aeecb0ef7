"""`CorrectionArchive` on ClickHouse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aggregators.meters import in_force_after
from schemas.control import ControlKind, CorrectionRecord, MeterSetRecord
from schemas.corrections import CORRECTIONS_OF_EVENT_MAX, ArchivedCorrection, CorrectionArchive
from schemas.measures import ArchivedAdjustment
from schemas.meters import MeterSet
from schemas.usage_evidence import ArchivedEvent
from sinks.clickhouse.client import ClickHouse
from sinks.clickhouse.evidence import ClickHouseEvidence
from sinks.clickhouse.measures import ClickHouseMeasures


class ClickHouseCorrections(CorrectionArchive):
    """Reads from one `ClickHouse`, which the caller closes."""

    def __init__(self, clickhouse: ClickHouse) -> None:
        self._clickhouse = clickhouse

    async def event(self, account: str, identifier: str) -> ArchivedEvent | None:
        """See `CorrectionArchive`."""
        return await ClickHouseEvidence(self._clickhouse).event(account, identifier)

    async def meter_set_at(self, partition: int, position: int) -> MeterSet | None:
        """See `CorrectionArchive`."""
        rows = await self._clickhouse.rows(
            "SELECT value FROM control_log FINAL WHERE kind = {kind:String} AND partition = {partition:UInt16} "
            "AND position < {position:UInt64} ORDER BY control_log.position",
            {"kind": ControlKind.METER_SET.value, "partition": partition, "position": position},
        )
        current: MeterSet | None = None
        for (value,) in rows:
            current = in_force_after(current, MeterSetRecord.model_validate_json(value).meter_set)
        return current

    async def corrections(self, partition: int, since: int, before: int, rows_max: int) -> Sequence[ArchivedCorrection]:
        """See `CorrectionArchive`."""
        return await self._rows(
            "partition = {partition:UInt16} AND position >= {since:UInt64} AND position < {before:UInt64} "
            "ORDER BY position",
            {"partition": partition, "since": since, "before": before},
            rows_max,
        )

    async def corrections_of(self, account: str, event: str | None, rows_max: int) -> Sequence[ArchivedCorrection]:
        """See `CorrectionArchive`."""
        of_event = "" if event is None else "AND JSONExtractString(value, 'event') = {event:String} "
        rows = await self._rows(
            f"account = {{account:String}} {of_event}ORDER BY position DESC",
            {"account": account, "event": event or ""},
            rows_max,
        )
        return list(reversed(rows))

    async def deciding(self, account: str, event: str, before: int) -> Sequence[ArchivedCorrection]:
        """See `CorrectionArchive`."""
        # All records of an account are on one partition.
        first_of_names = (
            "SELECT min(position) FROM control_log FINAL WHERE kind = {kind:String} AND account = {account:String} "
            "GROUP BY JSONExtractString(value, 'correction')"
        )
        return await self._rows(
            "account = {account:String} AND JSONExtractString(value, 'event') = {event:String} "
            f"AND position < {{before:UInt64}} AND position IN ({first_of_names}) ORDER BY position",
            {"account": account, "event": event, "before": before},
            2 * CORRECTIONS_OF_EVENT_MAX,
        )

    async def named(self, account: str, correction: str) -> ArchivedCorrection | None:
        """See `CorrectionArchive`."""
        rows = await self._rows(
            "account = {account:String} AND JSONExtractString(value, 'correction') = {name:String} ORDER BY position",
            {"account": account, "name": correction},
            1,
        )
        return rows[0] if rows else None

    async def told(
        self, partition: int, accounts: Sequence[str], prefix: str, before: int, from_us: int = 0
    ) -> Sequence[ArchivedAdjustment]:
        """See `MeasureArchive`."""
        return await ClickHouseMeasures(self._clickhouse).told(partition, accounts, prefix, before, from_us)

    async def _rows(self, chosen: str, parameters: dict[str, Any], rows_max: int) -> list[ArchivedCorrection]:
        rows = await self._clickhouse.rows(
            "SELECT position, stream_time_ms, value FROM control_log FINAL WHERE kind = {kind:String} "  # noqa: S608  # constants
            f"AND {chosen} LIMIT {int(rows_max)}",
            {"kind": ControlKind.CORRECTION.value, **parameters},
        )
        return [
            ArchivedCorrection(int(at), int(time_ms), CorrectionRecord.model_validate_json(value))
            for at, time_ms, value in rows
        ]
