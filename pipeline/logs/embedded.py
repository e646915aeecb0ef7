"""The embedded log: one durable SQLite file that several processes of one machine can use at the same time."""

from __future__ import annotations

import asyncio
import dataclasses
import fcntl
import json
import os
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import quote

from pipeline.logs.embedded_writer import OFFSET_BITS, Append, Call, Writer, connect, create_layout
from pipeline.logs.limits import check_partitions, check_size, check_spec, settings_of, unknown_partition
from schemas.clock import Clock
from schemas.errors import OperatorNeeded, Transient
from schemas.log import OFFSET_MAX, Bounds, Headers, Record, TopicSpec

# `append` waits while this many records or bytes are not stored yet.
PENDING_RECORDS_MAX: Final = 10_000
PENDING_BYTES_MAX: Final = 64 * 1024 * 1024
READ_BYTES_MAX: Final = 8 * 1024 * 1024
# The delay before this process sees an append by another process. Appends by this process are seen at once.
POLL_INTERVAL_S: Final = 0.05
# The fields of `TopicSpec`, in order.
TOPIC_COLUMNS: Final = "name, partitions, retention_ms, replication, min_insync_replicas, record_bytes_max"

T = TypeVar("T")


class Batch(NamedTuple):
    """The records of `read_many` by (topic, partition). `version` is the file's version for `wait_changed`."""

    version: int
    records: dict[tuple[str, int], list[Record]]


class SqliteLog:
    """A `schemas.log.Log` on one SQLite file in WAL mode. An append returns after the fsync.

    The transaction sets stream time to max(the partition's last stream time, the clock). So stream time never goes
    back, even if several processes append or the clock steps back.
    """

    def __init__(self, path: Path, clock: Clock) -> None:
        self.path = path
        self._clock = clock
        self._writer: Writer | None = None
        self._reader: sqlite3.Connection | None = None
        # With one thread the reading connection needs no lock.
        self._read_pool = ThreadPoolExecutor(1, thread_name_prefix="tidemark-log-reader")
        self._topics: dict[str, TopicSpec] = {}
        self._ids: dict[tuple[str, int], int] = {}
        self._locks: dict[str, int] = {}
        self._pending_records = 0
        self._pending_bytes = 0
        self._room = asyncio.Event()
        self._changed = asyncio.Event()

    async def start(self) -> None:
        """Open or create the file. Raises `OperatorNeeded` if the file cannot be opened or has another layout."""
        self._loop = asyncio.get_running_loop()
        await self._in_reader_thread(self._open)
        writer = Writer(self.path, self._clock, self._settled_in_thread)
        try:
            await asyncio.to_thread(writer.start)
        except sqlite3.Error as error:
            raise OperatorNeeded(f"cannot open the log at {self.path}: {error}. Name a writable file") from error
        self._writer = writer

    async def close(self) -> None:
        """Store all pending records, then release the file and every group. Safe to call twice."""
        writer, self._writer = self._writer, None
        if writer is not None:
            await asyncio.to_thread(writer.stop)
        reader, self._reader = self._reader, None
        if reader is not None:
            await asyncio.get_running_loop().run_in_executor(self._read_pool, reader.close)
        self._read_pool.shutdown()
        for group in list(self._locks):
            self.disown(group)

    async def create_topics(self, specs: Sequence[TopicSpec]) -> None:
        for spec in specs:
            check_spec(spec)
        await self._call(lambda connection: _create_topics(connection, specs))
        await self._in_reader_thread(self._refresh)

    async def partition_count(self, topic: str) -> int:
        spec = await self._spec(topic)
        return 0 if spec is None else spec.partitions

    async def topic_settings(self, topic: str) -> Mapping[str, str]:
        spec = await self._spec(topic)
        return {} if spec is None else settings_of(spec)

    async def append(
        self, topic: str, partition: int, value: bytes, *, key: bytes | None = None, headers: Headers = ()
    ) -> int:
        """Append one record and return its offset after the fsync.

        Waits while `PENDING_RECORDS_MAX` or `PENDING_BYTES_MAX` is reached. Raises `InvalidInput` if the record is over
        the topic's size limit or the partition is unknown. Raises `Transient` if the disk refuses the write; the record
        is then not in the log.
        """
        partition_id = await self._partition_id(topic, partition)
        check_size(topic, self._topics[topic].record_bytes_max, value, key, headers)
        while self._pending_records >= PENDING_RECORDS_MAX or self._pending_bytes >= PENDING_BYTES_MAX:
            self._room.clear()
            await self._room.wait()
        future: asyncio.Future[int] = self._loop.create_future()
        self._running_writer().put(Append(partition_id, key, _encode_headers(headers), value, future))
        self._pending_records += 1
        self._pending_bytes += len(value)
        future.add_done_callback(lambda _: self._give_back(len(value)))
        # If the caller is cancelled, the record is still stored and still counts as pending until then.
        return await asyncio.shield(future)

    async def bounds(self, topic: str, partition: int) -> Bounds:
        partition_id = await self._partition_id(topic, partition)
        return await self._in_reader_thread(lambda: self._bounds(partition_id))

    async def read(self, topic: str, partition: int, offset: int, records_max: int = 500) -> list[Record]:
        """Up to `records_max` records or about `READ_BYTES_MAX` from `offset` on. Empty at the end."""
        partition_id = await self._partition_id(topic, partition)
        return await self._in_reader_thread(
            lambda: self._read(topic, partition, partition_id, offset, records_max, READ_BYTES_MAX)
        )

    async def read_many(self, positions: Mapping[tuple[str, int], int], records_max: int, bytes_max: int) -> Batch:
        """Read several partitions in one call. The partitions share `records_max` and `bytes_max` equally. A partition
        with records returns at least one record."""
        ids = {key: await self._partition_id(*key) for key in positions}
        share_records = max(1, records_max // max(1, len(ids)))
        share_bytes = max(1, bytes_max // max(1, len(ids)))

        def read_all() -> Batch:
            version = self._data_version()
            records_of = {
                key: self._read(*key, partition_id, positions[key], share_records, share_bytes)
                for key, partition_id in ids.items()
            }
            return Batch(version, {key: records for key, records in records_of.items() if records})

        return await self._in_reader_thread(read_all)

    async def wait_changed(self, version: int, timeout_s: float) -> None:
        """Wait until any process changes the file after `version`, for up to `timeout_s`.

        Looks every `POLL_INTERVAL_S`, and after an append of this process. A look at once would find a change of any
        topic: while somebody writes, whoever waits for another topic would look without a pause.
        """
        deadline = self._loop.time() + timeout_s
        while (left_s := deadline - self._loop.time()) > 0:
            self._changed.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), min(left_s, POLL_INTERVAL_S))
            if await self._in_reader_thread(self._data_version) != version:
                return

    async def committed(self, group: str, topic: str, partition: int) -> int | None:
        def query() -> int | None:
            sql = "SELECT offset FROM committed WHERE consumer_group=? AND topic=? AND number=?"
            row = self._open_reader().execute(sql, (group, topic, partition)).fetchone()
            return None if row is None else int(row[0])

        return await self._in_reader_thread(query)

    async def commit(self, group: str, offsets: Mapping[tuple[str, int], int]) -> None:
        """Store the group's committed offset of each (topic, partition) durably."""
        rows = [(group, topic, partition, offset) for (topic, partition), offset in offsets.items()]
        sql = "INSERT OR REPLACE INTO committed(consumer_group, topic, number, offset) VALUES(?,?,?,?)"
        await self._call(lambda connection: connection.executemany(sql, rows).rowcount)

    def own(self, group: str) -> None:
        """Lock `group` for this log object. The kernel releases the lock when the process ends.

        Raises `OperatorNeeded` if another process or another log object has the lock.
        """
        path = f"{self.path}.{quote(group, safe='')}.owner"
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise OperatorNeeded(
                f"group {group} already runs on {self.path}: the embedded log feeds one process per group. "
                "Stop the other one, or use Kafka for several workers."
            ) from None
        self._locks[group] = descriptor

    def disown(self, group: str) -> None:
        """Release the lock of a group. Does nothing without the lock."""
        descriptor = self._locks.pop(group, None)
        if descriptor is not None:
            os.close(descriptor)

    def _open(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._reader = connect(self.path)
            create_layout(self._reader, self.path)
        except (sqlite3.Error, OSError) as error:
            raise OperatorNeeded(f"cannot open the log at {self.path}: {error}. Name a writable file") from error
        self._refresh()

    def _refresh(self) -> None:
        reader = self._open_reader()
        self._topics = {row[0]: TopicSpec(*row) for row in reader.execute(f"SELECT {TOPIC_COLUMNS} FROM topics")}  # noqa: S608
        rows = reader.execute("SELECT topic, number, id FROM partitions")
        self._ids = {(topic, number): partition_id for topic, number, partition_id in rows}

    async def _spec(self, topic: str) -> TopicSpec | None:
        if topic not in self._topics:
            # Another process may have created the topic.
            await self._in_reader_thread(self._refresh)
        return self._topics.get(topic)

    async def _partition_id(self, topic: str, partition: int) -> int:
        await self._spec(topic)
        try:
            return self._ids[topic, partition]
        except KeyError:
            raise unknown_partition(topic, partition) from None

    def _read(
        self, topic: str, partition: int, partition_id: int, offset: int, records_max: int, bytes_max: int
    ) -> list[Record]:
        sql = "SELECT id, ms, key, headers, value FROM records WHERE id>=? AND id<? ORDER BY id LIMIT ?"
        first, end = partition_id << OFFSET_BITS | offset, (partition_id + 1) << OFFSET_BITS
        records: list[Record] = []
        size = 0
        cursor = self._open_reader().execute(sql, (first, end, records_max))
        for row_id, timestamp_ms, key, headers, value in cursor:
            record = Record(topic, partition, row_id & OFFSET_MAX, timestamp_ms, key, value, _decode_headers(headers))
            records.append(record)
            size += len(value)
            if size >= bytes_max:
                break
        cursor.close()
        return records

    def _bounds(self, partition_id: int) -> Bounds:
        first_row, end_row = partition_id << OFFSET_BITS, (partition_id + 1) << OFFSET_BITS
        # One statement reads both offsets at the same instant.
        sql = """SELECT next, (SELECT id FROM records WHERE id>=? AND id<? ORDER BY id LIMIT 1)
                 FROM partitions WHERE id=?"""
        following, first = self._open_reader().execute(sql, (first_row, end_row, partition_id)).fetchone()
        return Bounds(following if first is None else first & OFFSET_MAX, following)

    def _data_version(self) -> int:
        # The version changes when another connection of any process commits.
        return int(self._open_reader().execute("PRAGMA data_version").fetchone()[0])

    def _open_reader(self) -> sqlite3.Connection:
        if self._reader is None:
            raise Transient("the embedded log is closed")
        return self._reader

    def _running_writer(self) -> Writer:
        if self._writer is None:
            raise Transient("the embedded log is closed")
        return self._writer

    async def _in_reader_thread(self, function: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._read_pool, function)
        except sqlite3.Error as error:
            raise Transient(f"the embedded log could not be read: {error}") from error
        except RuntimeError as error:
            raise Transient("the embedded log is closed") from error

    async def _call(self, function: Callable[[sqlite3.Connection], Any]) -> Any:
        future: asyncio.Future[Any] = self._loop.create_future()
        self._running_writer().put(Call(function, future))
        return await asyncio.shield(future)

    def _give_back(self, size: int) -> None:
        self._pending_records -= 1
        self._pending_bytes -= size
        self._room.set()

    def _settled_in_thread(self, outcomes: list[tuple[asyncio.Future[Any], Any]]) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._settle, outcomes)

    def _settle(self, outcomes: list[tuple[asyncio.Future[Any], Any]]) -> None:
        for future, outcome in outcomes:
            if future.done():
                continue
            if isinstance(outcome, BaseException):
                future.set_exception(outcome)
                future.exception()  # marks the exception as retrieved if the caller was cancelled
            else:
                future.set_result(outcome)
        self._changed.set()


def _create_topics(connection: sqlite3.Connection, specs: Sequence[TopicSpec]) -> None:
    for spec in specs:
        row = connection.execute("SELECT partitions FROM topics WHERE name=?", (spec.name,)).fetchone()
        if row is not None:
            check_partitions(spec, row[0])
            continue
        connection.execute(f"INSERT INTO topics({TOPIC_COLUMNS}) VALUES(?,?,?,?,?,?)", dataclasses.astuple(spec))
        connection.executemany(
            "INSERT INTO partitions(topic, number, retention_ms) VALUES(?,?,?)",
            [(spec.name, number, spec.retention_ms) for number in range(spec.partitions)],
        )


def _encode_headers(headers: Headers) -> bytes | None:
    if not headers:
        return None
    return json.dumps([[name, content.decode("latin-1")] for name, content in headers]).encode()


def _decode_headers(encoded: bytes | None) -> Headers:
    if encoded is None:
        return ()
    return tuple((name, content.encode("latin-1")) for name, content in json.loads(encoded))
