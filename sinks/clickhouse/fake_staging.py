"""`TableStaging` over the dictionaries of a `FakeClickHouse`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, Final, cast

from schemas.errors import OperatorNeeded
from schemas.log import POSITION_MAX
from schemas.rebuild import AnalyticalStore, Building, RebuildClaim
from sinks.clickhouse.claimed import claimed_store
from sinks.clickhouse.fake import FakeClickHouse
from sinks.clickhouse.staging import building_of, mark_to_make
from sinks.clickhouse.table_marks import UNMARKED, Mark, beside_name, names_of, new_name, whole_number

_ATTRIBUTES: Final = {
    "usage_events": "events",
    "usage_duplicates": "duplicates",
    "dedup_decisions": "decisions",
    "usage_hourly": "cells",
    "control_log": "control_log",
    "archive_positions": "archived",
    "relay_positions": "relayed",
}
_TABLES: Final = {attribute: table for table, attribute in _ATTRIBUTES.items()}


class _ByName(FakeClickHouse):
    """Looks up its dictionaries by their current names at every access, as a server looks up its tables."""

    def __init__(self, table_of: Callable[[str], dict[Any, Any]]) -> None:
        self._table_of = table_of
        self.rebuilt = 0

    def __getattr__(self, name: str) -> dict[Any, Any]:
        if name not in _TABLES:
            raise AttributeError(name)
        return self._table_of(_TABLES[name])


class FakeStaging:
    """Staging dictionaries beside those of one fake, for the command that has claimed, if any."""

    def __init__(self, clickhouse: FakeClickHouse) -> None:
        self._live = clickhouse
        self._claim: RebuildClaim | None = None
        self._token = ""
        self._marks: dict[str, Mark] = dict.fromkeys(_ATTRIBUTES, UNMARKED)
        self._beside: dict[str, dict[Any, Any]] = {}

    def claim(self, claim: RebuildClaim) -> None:
        """Become the staging of this command."""
        self._claim, self._token = claim, claim.token

    def another(self, claim: RebuildClaim | None = None) -> FakeStaging:
        """The same tables for another command; without a claim, for reading only."""
        staging = FakeStaging(self._live)
        staging._marks, staging._beside = self._marks, self._beside
        if claim is not None:
            staging.claim(claim)
        return staging

    async def building(self, tables: Sequence[str]) -> Building | None:
        await self._take_over(tables)
        return building_of(tables, self._marks)

    async def begin(self, tables: Sequence[str], note: str) -> Building:
        await self._take_over(tables)
        begun = building_of(tables, self._marks)
        if begun is not None and begun.is_partial(tables):
            await self.drop(tables)
            begun = None
        mark = mark_to_make(tables, self._marks, begun, note)
        for table in tables:
            if begun is None or table not in begun.swapped | begun.beside:
                new_table = new_name(table, self._token)
                await self._check()
                self._marks[new_table], self._beside[new_table] = mark, {}
                await self._check()
                await self._known(new_table)
                self._rename(new_table, self._name(table))
        begun = building_of(tables, self._marks)
        assert begun is not None, "a table was made"  # noqa: S101 - an invariant, not input
        return begun

    def beside(self, tables: Collection[str]) -> AnalyticalStore:
        chosen = frozenset(tables)

        def table_of(table: str) -> dict[Any, Any]:
            return self._built(table) if table in chosen else self._live_table(table)

        store = _ByName(table_of)
        return claimed_store(store, self._claim) if self._claim else store

    async def swap(self, table: str) -> None:
        beside = self._name(table)
        is_swapped = self._marks.get(beside, self._marks[table]).number < self._marks[table].number
        await self._check()
        built = await self._mine(table)
        if not is_swapped:
            # Unconditional, as on a server: EXCHANGE takes the table that has the name at this moment.
            self._marks[beside], self._marks[table] = self._marks[table], self._marks[beside]
            self._beside[beside] = self._live_table(table)
            setattr(self._live, _ATTRIBUTES[table], built)
            self._live.rebuilt = whole_number("usage_events", self._marks)

    async def drop(self, tables: Sequence[str]) -> None:
        for table in tables:
            await self._check()
            self._marks.pop(self._name(table), None)
            self._beside.pop(self._name(table), None)
            self._live.rebuilt = whole_number("usage_events", self._marks)

    async def account_before_last(self, partition: int, accounts: int) -> str:
        rows = (await self._mine("usage_hourly")).values()
        names = {row.account for row in rows if row.partition == partition}
        return sorted(names, key=str.encode)[-accounts] if len(names) >= accounts else ""

    async def carry_over(self, partition: int, from_position: int) -> None:
        await self._check()
        rows = list((await self._mine("usage_hourly")).values())
        await self._live.insert_hourly(
            [row for row in rows if row.partition == partition and row.version & POSITION_MAX >= from_position]
        )

    def _name(self, table: str) -> str:
        return beside_name(table, self._token)

    def _live_table(self, table: str) -> dict[Any, Any]:
        return cast("dict[Any, Any]", getattr(self._live, _ATTRIBUTES[table]))

    def _built(self, table: str) -> dict[Any, Any]:
        if self._name(table) not in self._beside:
            raise OperatorNeeded(f"no table {self._name(table)}")
        return self._beside[self._name(table)]

    async def _mine(self, table: str) -> dict[Any, Any]:
        await self._known(self._name(table))
        return self._built(table)

    async def _known(self, name: str) -> None:
        if name not in self._beside:
            # A later command may have renamed it.
            await self._check()
            raise OperatorNeeded(f"no table {name}")

    def _rename(self, name: str, to: str) -> None:
        self._marks[to], self._beside[to] = self._marks.pop(name), self._beside.pop(name)

    async def _check(self) -> None:
        if self._claim is not None:
            await self._claim.check()

    async def _take_over(self, tables: Sequence[str]) -> None:
        if self._claim is None:
            return
        await self._claim.check()
        for table in tables:
            for name in names_of(new_name(table), self._marks):
                del self._marks[name], self._beside[name]
            for name in names_of(beside_name(table), self._marks):
                self._rename(name, self._name(table))
