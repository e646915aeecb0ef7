"""The simulator's state: one SQLite database, in memory or in a file that survives the process."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_SCHEMA = """
CREATE TABLE IF NOT EXISTS customers(
    seq INTEGER PRIMARY KEY, id TEXT NOT NULL, livemode INTEGER NOT NULL, body TEXT NOT NULL, UNIQUE(id, livemode));
CREATE TABLE IF NOT EXISTS meters(
    seq INTEGER PRIMARY KEY, id TEXT NOT NULL, livemode INTEGER NOT NULL, event_name TEXT NOT NULL,
    status TEXT NOT NULL, body TEXT NOT NULL, UNIQUE(id, livemode));
CREATE TABLE IF NOT EXISTS meter_events(
    seq INTEGER PRIMARY KEY, livemode INTEGER NOT NULL, identifier TEXT NOT NULL, event_name TEXT NOT NULL,
    meter TEXT NOT NULL, customer TEXT, value TEXT, timestamp_s INTEGER NOT NULL, received_ms INTEGER NOT NULL,
    status TEXT NOT NULL, code TEXT NOT NULL DEFAULT '', reported INTEGER NOT NULL DEFAULT 0,
    injected INTEGER NOT NULL DEFAULT 0);
CREATE INDEX IF NOT EXISTS meter_events_identifier ON meter_events(identifier, livemode);
CREATE INDEX IF NOT EXISTS meter_events_summary ON meter_events(meter, customer, timestamp_s);
CREATE INDEX IF NOT EXISTS meter_events_status ON meter_events(status, received_ms) WHERE status = 'received';
CREATE INDEX IF NOT EXISTS meter_events_unreported ON meter_events(reported) WHERE status = 'rejected';
CREATE TABLE IF NOT EXISTS idempotency(
    key TEXT NOT NULL, livemode INTEGER NOT NULL, fingerprint TEXT NOT NULL, status INTEGER NOT NULL,
    body TEXT NOT NULL, request_id TEXT NOT NULL, created_ms INTEGER NOT NULL, PRIMARY KEY(key, livemode));
CREATE TABLE IF NOT EXISTS core_events(
    seq INTEGER PRIMARY KEY, id TEXT NOT NULL, livemode INTEGER NOT NULL, type TEXT NOT NULL,
    object_id TEXT NOT NULL, created_ms INTEGER NOT NULL, body TEXT NOT NULL);
"""

Bindable = str | int | None


class Database:
    """One connection for one event loop. With a path, commits survive a crash of the process."""

    def __init__(self, path: Path | None = None) -> None:
        self._connection = sqlite3.connect(
            str(path) if path else ":memory:", isolation_level=None, check_same_thread=False
        )
        self._connection.row_factory = sqlite3.Row
        if path:
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = NORMAL")
        self._connection.executescript(_SCHEMA)
        self._depth = 0

    def close(self) -> None:
        """Close the connection. Safe to call twice."""
        self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """A transaction; a nested one joins the outer one. The block must not await."""
        if self._depth:
            yield
            return
        self._connection.execute("BEGIN IMMEDIATE")
        self._depth += 1
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        else:
            self._connection.execute("COMMIT")
        finally:
            self._depth -= 1

    def execute(self, statement: str, values: Sequence[Bindable] = ()) -> int:
        """Run a statement that writes. Returns the number of changed rows."""
        return self._connection.execute(statement, values).rowcount

    def insert(self, statement: str, values: Sequence[Bindable]) -> int:
        """Run an INSERT. Returns the number of the new row."""
        return int(self._connection.execute(statement, values).lastrowid or 0)

    def rows(self, statement: str, values: Sequence[Bindable] = ()) -> list[sqlite3.Row]:
        """All rows of a query."""
        return self._connection.execute(statement, values).fetchall()

    def row(self, statement: str, values: Sequence[Bindable] = ()) -> sqlite3.Row | None:
        """The first row of a query, or None."""
        row: sqlite3.Row | None = self._connection.execute(statement, values).fetchone()
        return row

    def next_seq(self, table: str) -> int:
        """The number that the next row of `table` will get."""
        row = self.row(f"SELECT coalesce(max(seq), 0) + 1 AS next FROM {table}")  # noqa: S608
        return int(row["next"]) if row else 1
