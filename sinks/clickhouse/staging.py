"""`TableStaging` on ClickHouse: a staging table beside the live table, swapped in by one EXCHANGE.

After any crash, the comments of the two tables show which table is newer. No other record of a rebuild exists.

The name of a staging table contains the token of the command that claimed last: a command that takes over a rebuild
renames the table first. A statement of an earlier command that is still running (EXCHANGE, DROP, INSERT) is executed
before the renaming, or it finds no table of its name. A staging table is created under a preliminary name. The command
that takes over drops tables with preliminary names of other commands, so none of them can become a staging table later.
"""

# ruff: noqa: S608  # names of our own tables
from __future__ import annotations

from collections.abc import Awaitable, Collection, Mapping, Sequence
from typing import Final, TypeVar

from schemas.analytics import HourlyRow
from schemas.errors import Transient
from schemas.log import POSITION_MAX
from schemas.rebuild import AnalyticalStore, Building, RebuildClaim
from sinks.clickhouse.claimed import answered, claimed_store
from sinks.clickhouse.client import ClickHouse, quoted_name, quoted_text
from sinks.clickhouse.table_marks import Mark, beside_name, beside_of, names_of, new_name, read_marks
from sinks.clickhouse.writer import ClickHouseStore

_LOOKS_MAX: Final = 10
Value = TypeVar("Value")


class ClickHouseStaging:
    """Staging tables of one database, for the command that has the claim. Without a claim, for reading only."""

    def __init__(self, clickhouse: ClickHouse, claim: RebuildClaim | None = None) -> None:
        self._clickhouse = clickhouse
        self._claim = claim
        self._token = claim.token if claim else ""

    async def building(self, tables: Sequence[str]) -> Building | None:
        return building_of(tables, await self._taken_over(tables))

    async def begin(self, tables: Sequence[str], note: str) -> Building:
        marks = await self._taken_over(tables)
        begun = building_of(tables, marks)
        if begun is not None and begun.is_partial(tables):
            await self.drop(tables)
            marks, begun = await self._taken_over(tables), None
        mark = mark_to_make(tables, marks, begun, note)
        for table in tables:
            if begun is None or table not in begun.swapped | begun.beside:
                new_table = quoted_name(new_name(table, self._token))
                comment = quoted_text(mark.comment)
                await self._do(f"CREATE TABLE IF NOT EXISTS {new_table} AS {quoted_name(table)} COMMENT {comment}")
                await self._do(f"RENAME TABLE {new_table} TO {self._beside(table)}")
        begun = building_of(tables, await read_marks(self._clickhouse))
        if begun is None and self._claim is not None:
            await self._claim.check()
        assert begun is not None, "a table was made"  # noqa: S101 - an invariant, not input
        return begun

    def beside(self, tables: Collection[str]) -> AnalyticalStore:
        """See `TableStaging`. The store shares the connections of this object: closing one closes both."""
        store = ClickHouseStore(self._clickhouse, {table: beside_name(table, self._token) for table in tables})
        return claimed_store(store, self._claim) if self._claim else store

    async def swap(self, table: str) -> None:
        marks = await read_marks(self._clickhouse)
        built = marks.get(beside_name(table, self._token))
        if built is None or built.number > marks[table].number:
            await self._do(f"EXCHANGE TABLES {quoted_name(table)} AND {self._beside(table)}")

    async def drop(self, tables: Sequence[str]) -> None:
        for table in tables:
            await self._do(f"DROP TABLE IF EXISTS {self._beside(table)} SYNC")

    async def account_before_last(self, partition: int, accounts: int) -> str:
        rows = await self._answered(
            self._clickhouse.rows(
                f"SELECT DISTINCT account FROM {self._beside('usage_hourly')} WHERE partition = {{partition:UInt16}} "
                "ORDER BY account DESC LIMIT 1 OFFSET {before:UInt32}",
                {"partition": partition, "before": accounts - 1},
            )
        )
        return str(rows[0][0]) if rows else ""

    async def carry_over(self, partition: int, from_position: int) -> None:
        columns = ", ".join(HourlyRow._fields)
        await self._do(
            f"INSERT INTO usage_hourly ({columns}) SELECT {columns} FROM {self._beside('usage_hourly')} FINAL "
            f"WHERE partition = {int(partition)} "
            f"AND bitAnd(version, {POSITION_MAX}) >= {int(from_position)}"
        )

    def _beside(self, table: str) -> str:
        return quoted_name(beside_name(table, self._token))

    async def _do(self, sql: str) -> None:
        """Run a statement. Raises `Fenced` if another command has claimed."""
        if self._claim is not None:
            await self._claim.check()
        await self._answered(self._clickhouse.command(sql))

    async def _answered(self, call: Awaitable[Value]) -> Value:
        return await (answered(call, self._claim) if self._claim is not None else call)

    async def _taken_over(self, tables: Sequence[str]) -> Mapping[str, Mark]:
        """The marks of all tables, after every staging table has this command's name and no other one can appear."""
        for _ in range(_LOOKS_MAX):
            marks = await read_marks(self._clickhouse)
            if self._claim is None:
                return marks
            others = [
                (name, table, is_new)
                for table in tables
                for is_new in (False, True)
                for name in names_of((new_name if is_new else beside_name)(table), marks)
                if name not in (beside_name(table, self._token), new_name(table, self._token))
            ]
            if not others:
                return marks
            for name, table, is_new in others:
                if is_new:
                    await self._do(f"DROP TABLE IF EXISTS {quoted_name(name)} SYNC")
                else:
                    await self._do(f"RENAME TABLE IF EXISTS {quoted_name(name)} TO {self._beside(table)}")
        raise Transient("the staging tables changed during every read; run the command again")


def building_of(tables: Sequence[str], marks: Mapping[str, Mark]) -> Building | None:
    """The rebuild of these tables that has begun, from the marks of all tables; None if there is none."""
    beside = {table: mark for table in tables if (mark := beside_of(table, marks)) is not None}
    if not beside:
        return None
    number, note = max([*beside.values(), *(marks[table] for table in tables if table in marks)])
    return Building(note, frozenset(table for table in tables if marks[table].number == number), frozenset(beside))


def mark_to_make(tables: Sequence[str], marks: Mapping[str, Mark], begun: Building | None, note: str) -> Mark:
    """The mark for new staging tables: of the rebuild that has begun, or of a new rebuild with this note."""
    if begun is None:
        return Mark(1 + max(mark.number for mark in marks.values()), note)
    existing = [marks[table] for table in tables] + [beside_of(table, marks) for table in tables]
    return max(mark for mark in existing if mark is not None)
