"""The thread that writes the embedded log: group commit, stream time and retention. Each process has one such thread.

One file has all topics. A record's row id is (partition's row id << 40) | offset, so a read is one range scan.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

from schemas.clock import Clock
from schemas.errors import OperatorNeeded, Transient
from schemas.log import OFFSET_MAX

OFFSET_BITS: Final = 40
LAYOUT_VERSION: Final = 1
TRANSACTION_RECORDS_MAX: Final = 2_000
TRANSACTION_BYTES_MAX: Final = 32 * 1024 * 1024
BUSY_TIMEOUT_S: Final = 30.0
# A transaction removes up to this many expired records per appended record of the partition, so retention never stalls
# an append and catches up after a pause.
TRIM_FACTOR: Final = 4
TRIM_LEAST: Final = 16

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS topics(
    name TEXT PRIMARY KEY, partitions INTEGER NOT NULL, retention_ms INTEGER NOT NULL, replication INTEGER NOT NULL,
    min_insync_replicas INTEGER NOT NULL, record_bytes_max INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS partitions(
    id INTEGER PRIMARY KEY, topic TEXT NOT NULL, number INTEGER NOT NULL, retention_ms INTEGER NOT NULL,
    next INTEGER NOT NULL DEFAULT 0, last_ms INTEGER NOT NULL DEFAULT 0, UNIQUE(topic, number));
CREATE TABLE IF NOT EXISTS records(id INTEGER PRIMARY KEY, ms INTEGER NOT NULL, key BLOB, headers BLOB, value BLOB);
CREATE TABLE IF NOT EXISTS committed(
    consumer_group TEXT, topic TEXT, number INTEGER, offset INTEGER NOT NULL,
    PRIMARY KEY(consumer_group, topic, number)) WITHOUT ROWID;
"""


class Append(NamedTuple):
    """A record for the partition with row id `partition_id`. The future's result is the record's offset."""

    partition_id: int
    key: bytes | None
    headers: bytes | None
    value: bytes
    future: asyncio.Future[int]


class Call(NamedTuple):
    """A function that runs alone in a transaction. The future's result is the function's result."""

    function: Callable[[sqlite3.Connection], Any]
    future: asyncio.Future[Any]


def connect(path: Path) -> sqlite3.Connection:
    """Open the file in WAL mode with one fsync per commit."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=BUSY_TIMEOUT_S)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA wal_autocheckpoint=4000")
    connection.execute("PRAGMA journal_size_limit=67108864")
    return connection


def create_layout(connection: sqlite3.Connection, path: Path) -> None:
    """Create the tables if the file is new. Raises `OperatorNeeded` if the file has another layout version."""
    connection.execute("BEGIN IMMEDIATE")
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version not in (0, LAYOUT_VERSION):
        connection.execute("ROLLBACK")
        raise OperatorNeeded(
            f"{path} has layout {version}, this program writes layout {LAYOUT_VERSION}: "
            "start the version that made it, or name another path for a new log"
        )
    for statement in SCHEMA.split(";"):
        connection.execute(statement)
    connection.execute(f"PRAGMA user_version={LAYOUT_VERSION}")
    connection.execute("COMMIT")


class Writer:
    """Stores all appends that arrive during one fsync in the next transaction."""

    def __init__(self, path: Path, clock: Clock, on_settled: Callable[[list[tuple[asyncio.Future[Any], Any]]], None]):
        """The writer's thread calls `on_settled` with futures and their results or exceptions."""
        self._path = path
        self._clock = clock
        self._on_settled = on_settled
        # SqliteLog limits the queue: its appends wait if too much is pending.
        self._queue: queue.SimpleQueue[Append | Call | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True, name="tidemark-log-writer")

    def start(self) -> None:
        """Open the file and start the thread. May block. Raises `sqlite3.Error` if the file cannot be opened."""
        self._connection = connect(self._path)
        self._thread.start()

    def put(self, operation: Append | Call) -> None:
        """Queue an operation. Never blocks."""
        self._queue.put(operation)

    def stop(self) -> None:
        """Store all queued operations and end the thread. Blocks until the end of the thread."""
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        connection = self._connection
        postponed: Append | Call | None = None
        try:
            while True:
                operation = postponed or self._queue.get()
                postponed = None
                if operation is None:
                    return
                if isinstance(operation, Call):
                    self._on_settled([(operation.future, self._transact(connection, operation.function))])
                    continue
                appends, postponed, stopping = self._collect(operation)
                self._append(connection, appends)
                if stopping:
                    return
        finally:
            connection.close()

    def _collect(self, first: Append) -> tuple[list[Append], Call | None, bool]:
        appends, size = [first], len(first.value)
        while len(appends) < TRANSACTION_RECORDS_MAX and size < TRANSACTION_BYTES_MAX:
            try:
                operation = self._queue.get_nowait()
            except queue.Empty:
                break
            if operation is None:
                return appends, None, True
            if isinstance(operation, Call):
                return appends, operation, False
            appends.append(operation)
            size += len(operation.value)
        return appends, None, False

    def _append(self, connection: sqlite3.Connection, appends: list[Append]) -> None:
        outcome = self._transact(connection, lambda open_connection: self._insert(open_connection, appends))
        if isinstance(outcome, BaseException):
            self._on_settled([(operation.future, outcome) for operation in appends])
        else:
            self._on_settled([(operation.future, offset) for operation, offset in zip(appends, outcome, strict=True)])

    @staticmethod
    def _transact(connection: sqlite3.Connection, function: Callable[[sqlite3.Connection], Any]) -> Any:
        """Run `function` in a transaction. Return its result, or the exception after a rollback."""
        try:
            # IMMEDIATE takes the write lock first, so no other process changes the rows that `function` reads.
            connection.execute("BEGIN IMMEDIATE")
            result = function(connection)
            connection.execute("COMMIT")
        except BaseException as error:  # noqa: BLE001  the caller gets the error; the thread must go on
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            if isinstance(error, sqlite3.Error):
                return Transient(f"the embedded log could not store: {error}. Check the disk's free space and health")
            return error
        return result

    def _insert(self, connection: sqlite3.Connection, appends: list[Append]) -> list[int]:
        """Insert the records with their offsets and stream times inside the transaction. Return the offsets."""
        heads: dict[int, list[int]] = {}
        rows: list[tuple[int, int, bytes | None, bytes | None, bytes]] = []
        offsets: list[int] = []
        now_ms = self._clock.now_ms()
        for operation in appends:
            head = heads.get(operation.partition_id)
            if head is None:
                query = "SELECT next, last_ms, retention_ms, 0 FROM partitions WHERE id=?"
                head = heads[operation.partition_id] = list(
                    connection.execute(query, (operation.partition_id,)).fetchone()
                )
                head[1] = max(head[1], now_ms)
            offset = head[0]
            if offset > OFFSET_MAX:
                raise OperatorNeeded(f"a partition of {self._path} holds its last offset: start a new log")
            head[0] += 1
            head[3] += 1
            offsets.append(offset)
            row_id = operation.partition_id << OFFSET_BITS | offset
            rows.append((row_id, head[1], operation.key, operation.headers, operation.value))
        connection.executemany("INSERT INTO records(id, ms, key, headers, value) VALUES(?,?,?,?,?)", rows)
        for partition_id, (following, last_ms, retention_ms, added) in heads.items():
            update = "UPDATE partitions SET next=?, last_ms=? WHERE id=?"
            connection.execute(update, (following, last_ms, partition_id))
            if retention_ms >= 0:
                _trim(connection, partition_id, last_ms - retention_ms, added * TRIM_FACTOR + TRIM_LEAST)
        return offsets


def _trim(connection: sqlite3.Connection, partition_id: int, before_ms: int, records_max: int) -> None:
    """Delete a partition's records with a stream time before `before_ms`, among the oldest `records_max` records."""
    first, end = partition_id << OFFSET_BITS, (partition_id + 1) << OFFSET_BITS
    oldest = "SELECT id, ms FROM records WHERE id>=? AND id<? ORDER BY id LIMIT ?"
    query = f"SELECT max(id) FROM ({oldest}) WHERE ms<?"  # noqa: S608  constants only
    (last,) = connection.execute(query, (first, end, records_max, before_ms)).fetchone()
    if last is not None:
        connection.execute("DELETE FROM records WHERE id>=? AND id<=?", (first, last))
