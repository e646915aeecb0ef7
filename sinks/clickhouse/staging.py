"""`TableStaging` on ClickHouse: a table beside the live one, swapped in by one EXCHANGE.

Whatever crashed, the comments of the two tables say which of them is the newer one. Nothing about a rebuild is kept
elsewhere.
"""

# ruff: noqa: S608  # names of our own tables
from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from schemas.analytics import HourlyRow
from schemas.rebuild import Building
from sinks.clickhouse.client import ClickHouse, quoted_name, quoted_text
from sinks.clickhouse.table_marks import Mark, beside_name, read_marks
from sinks.clickhouse.writer import POSITION_BITS, ClickHouseStore


class ClickHouseStaging:
    """Builds tables of one database beside their like."""

    def __init__(self, clickhouse: ClickHouse) -> None:
        self._clickhouse = clickhouse

    async def building(self, tables: Sequence[str]) -> Building | None:
        """As `TableStaging` says."""
        return building_of(tables, await read_marks(self._clickhouse))

    async def begin(self, tables: Sequence[str], note: str) -> Building:
        """As `TableStaging` says."""
        marks = await read_marks(self._clickhouse)
        found = building_of(tables, marks)
        if found is None:
            mark = Mark(1 + max(each.number for each in marks.values()), note)
        else:
            mark = max(_all_of(tables, marks))
        comment = quoted_text(mark.comment)
        for table in tables:
            if found is None or table not in found.swapped:
                beside = quoted_name(beside_name(table))
                await self._clickhouse.command(
                    f"CREATE TABLE IF NOT EXISTS {beside} AS {quoted_name(table)} COMMENT {comment}"
                )
        begun = await self.building(tables)
        assert begun is not None, "a table was made"  # noqa: S101 - an invariant, not input
        return begun

    def beside(self, tables: Collection[str]) -> ClickHouseStore:
        """As `TableStaging` says. Shares the connections of this one: closing one closes both."""
        return ClickHouseStore(self._clickhouse, tables)

    async def swap(self, table: str) -> None:
        """As `TableStaging` says."""
        marks = await read_marks(self._clickhouse)
        if marks[beside_name(table)].number > marks[table].number:
            names = f"{quoted_name(table)} AND {quoted_name(beside_name(table))}"
            await self._clickhouse.command(f"EXCHANGE TABLES {names}")

    async def drop(self, tables: Sequence[str]) -> None:
        """As `TableStaging` says."""
        for table in tables:
            await self._clickhouse.command(f"DROP TABLE IF EXISTS {quoted_name(beside_name(table))} SYNC")

    async def account_before_last(self, partition: int, accounts: int) -> str:
        """As `TableStaging` says."""
        rows = await self._clickhouse.rows(
            f"SELECT DISTINCT account FROM {beside_name('usage_hourly')} WHERE partition = {{partition:UInt16}} "
            "ORDER BY account DESC LIMIT 1 OFFSET {before:UInt32}",
            {"partition": partition, "before": accounts - 1},
        )
        return str(rows[0][0]) if rows else ""

    async def carry_over(self, partition: int, from_position: int) -> None:
        """As `TableStaging` says."""
        columns = ", ".join(HourlyRow._fields)
        await self._clickhouse.command(
            f"INSERT INTO usage_hourly ({columns}) SELECT {columns} FROM {beside_name('usage_hourly')} FINAL "
            f"WHERE partition = {int(partition)} "
            f"AND bitAnd(version, {(1 << POSITION_BITS) - 1}) >= {int(from_position)}"
        )


def _all_of(tables: Sequence[str], marks: Mapping[str, Mark]) -> list[Mark]:
    return [marks[name] for table in tables for name in (table, beside_name(table)) if name in marks]


def building_of(tables: Sequence[str], marks: Mapping[str, Mark]) -> Building | None:
    """What is being built of these tables, from the marks of all tables there are."""
    if not any(beside_name(table) in marks for table in tables):
        return None
    number, note = max(_all_of(tables, marks))
    return Building(
        note,
        frozenset(table for table in tables if marks[table].number == number),
        frozenset(table for table in tables if beside_name(table) in marks),
    )
