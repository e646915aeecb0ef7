"""The fake of the side tables: the same transactions over SQLite in memory, without threads and without waiting."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy import Connection, StaticPool, create_engine, event

from schemas.side_tables import Overlaps, Timeline
from sinks.sql.schema import claim_database
from sinks.sql.side_tables import SqlSideTables, no_overlaps
from sinks.sql.tables import metadata

Answer = TypeVar("Answer")


class FakeSideTables(SqlSideTables):
    """An empty store. Each call runs its transaction at once, so no other call can come between."""

    def __init__(self, timeline: Timeline, overlaps: Overlaps = no_overlaps) -> None:
        super().__init__(timeline, overlaps)
        # The garbage collector may close the connection in another thread than the one that used it.
        self._engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
        event.listen(self._engine, "connect", _add_exactly)
        # One for all calls: to open one takes as long as a small query.
        self._connection = self._engine.connect()

    async def migrate(self, scope: str, log_id: str) -> None:
        def body(connection: Connection) -> None:
            metadata.create_all(connection)
            claim_database(connection, scope, log_id)

        await self._run(body)

    async def close(self) -> None:
        """Keep the data: a process that ends does not empty the store."""

    async def _run(self, body: Callable[[Connection], Answer]) -> Answer:
        with self._connection.begin():
            return body(self._connection)


class _ExactSum:
    """SQLite's `sum` for whole numbers of any size as text."""

    def __init__(self) -> None:
        self._total = 0

    def step(self, value: str) -> None:
        self._total += int(value)

    def finalize(self) -> str:
        return str(self._total)


def _add_exactly(connection: sqlite3.Connection, _record: object) -> None:
    connection.create_aggregate("sum", 1, _ExactSum)  # type: ignore[arg-type]  # any arguments
