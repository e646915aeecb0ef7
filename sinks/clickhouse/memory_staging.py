"""`TableStaging` over the dictionaries of a `MemoryClickHouse`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Final

from schemas.rebuild import Building
from sinks.clickhouse.memory import MemoryClickHouse
from sinks.clickhouse.staging import building_of
from sinks.clickhouse.table_marks import UNMARKED, Mark, beside_name, whole_number
from sinks.clickhouse.writer import POSITION_BITS

_ATTRIBUTES: Final = {
    "usage_events": "events",
    "usage_duplicates": "duplicates",
    "verdicts": "verdicts",
    "usage_hourly": "cells",
    "control_log": "control_log",
    "archive_positions": "archived",
    "drain_positions": "drained",
}


class MemoryStaging:
    """Builds dictionaries beside those of one twin."""

    def __init__(self, clickhouse: MemoryClickHouse) -> None:
        self._live = clickhouse
        self._marks: dict[str, Mark] = dict.fromkeys(_ATTRIBUTES, UNMARKED)
        self._beside: dict[str, dict[Any, Any]] = {}

    async def building(self, tables: Sequence[str]) -> Building | None:
        """As `TableStaging` says."""
        return building_of(tables, self._marks)

    async def begin(self, tables: Sequence[str], note: str) -> Building:
        """As `TableStaging` says."""
        found = building_of(tables, self._marks)
        names = [name for table in tables for name in (table, beside_name(table)) if name in self._marks]
        newest = max(self._marks[name] for name in names)
        mark = Mark(1 + max(each.number for each in self._marks.values()), note) if found is None else newest
        for table in tables:
            if found is None or table not in found.swapped:
                self._marks.setdefault(beside_name(table), mark)
                self._beside.setdefault(table, {})
        begun = building_of(tables, self._marks)
        assert begun is not None, "a table was made"  # noqa: S101 - an invariant, not input
        return begun

    def beside(self, tables: Collection[str]) -> MemoryClickHouse:
        """As `TableStaging` says."""
        store = MemoryClickHouse()
        for table, attribute in _ATTRIBUTES.items():
            setattr(store, attribute, self._beside[table] if table in tables else getattr(self._live, attribute))
        return store

    async def swap(self, table: str) -> None:
        """As `TableStaging` says."""
        beside = beside_name(table)
        if self._marks[beside].number > self._marks[table].number:
            self._marks[beside], self._marks[table] = self._marks[table], self._marks[beside]
            was_live = getattr(self._live, _ATTRIBUTES[table])
            setattr(self._live, _ATTRIBUTES[table], self._beside[table])
            self._beside[table] = was_live
            self._live.rebuilt = whole_number("usage_events", self._marks)

    async def drop(self, tables: Sequence[str]) -> None:
        """As `TableStaging` says."""
        for table in tables:
            self._marks.pop(beside_name(table), None)
            self._beside.pop(table, None)
        self._live.rebuilt = whole_number("usage_events", self._marks)

    async def account_before_last(self, partition: int, accounts: int) -> str:
        """As `TableStaging` says."""
        held = {row.account for row in self._beside["usage_hourly"].values() if row.partition == partition}
        return sorted(held, key=str.encode)[-accounts] if len(held) >= accounts else ""

    async def carry_over(self, partition: int, from_position: int) -> None:
        """As `TableStaging` says."""
        rows = self._beside["usage_hourly"].values()
        low = (1 << POSITION_BITS) - 1
        await self._live.insert_hourly(
            [row for row in rows if row.partition == partition and row.version & low >= from_position]
        )
