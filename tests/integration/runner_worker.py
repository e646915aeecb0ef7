"""A worker process for the runner's tests: its state and its position stand in one SQLite file, as the design wants."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import sys
from collections.abc import Sequence

from pipeline.clock import SystemClock
from pipeline.runner.runner import RunnerSettings, run, run_in_loop
from schemas.errors import Fenced
from schemas.log import Record

LAYOUT = """
CREATE TABLE IF NOT EXISTS checkpoints(part INTEGER PRIMARY KEY, next INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS processed(part INTEGER, record INTEGER, worker INTEGER, PRIMARY KEY(part, record));
CREATE TABLE IF NOT EXISTS starts(at INTEGER PRIMARY KEY, worker INTEGER, part INTEGER, next INTEGER);
"""


class FencedStore:
    """Which offsets were processed, and the next one, changed together and only by who knows the present state."""

    def __init__(self, path: str) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, timeout=30)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.executescript(LAYOUT)

    def next_offset(self, partition: int) -> int:
        row = self._connection.execute("SELECT next FROM checkpoints WHERE part=?", (partition,)).fetchone()
        return 0 if row is None else int(row[0])

    def note_start(self, partition: int, offset: int) -> None:
        sql = "INSERT INTO starts(worker, part, next) VALUES(?,?,?)"
        self._connection.execute(sql, (os.getpid(), partition, offset))

    def commit(self, partition: int, believed: int, records: Sequence[Record]) -> int:
        """One transaction; raises `Fenced` where the stored position is not `believed`."""
        self._connection.execute("BEGIN IMMEDIATE")
        if self.next_offset(partition) != believed:
            self._connection.execute("ROLLBACK")
            raise Fenced(f"partition {partition} stands at {self.next_offset(partition)}, not at {believed}")
        rows = [(partition, record.offset, os.getpid()) for record in records]
        self._connection.executemany("INSERT INTO processed VALUES(?,?,?)", rows)
        following = records[-1].next_offset
        self._connection.execute("INSERT OR REPLACE INTO checkpoints VALUES(?,?)", (partition, following))
        self._connection.execute("COMMIT")
        return following

    def processed(self) -> dict[int, list[int]]:
        """Offsets by partition."""
        found: dict[int, list[int]] = {}
        for partition, offset in self._connection.execute("SELECT part, record FROM processed ORDER BY part, record"):
            found.setdefault(partition, []).append(offset)
        return found

    def count(self) -> int:
        return int(self._connection.execute("SELECT count(*) FROM processed").fetchone()[0])

    def workers(self) -> set[int]:
        """Process ids that have processed something."""
        return {row[0] for row in self._connection.execute("SELECT DISTINCT worker FROM processed")}

    def starts(self, worker: int) -> dict[int, int]:
        """Where `worker` last started each partition."""
        sql = "SELECT part, next FROM starts WHERE worker=? ORDER BY at"
        return dict(self._connection.execute(sql, (worker,)).fetchall())

    def close(self) -> None:
        self._connection.close()


class StoreProcessor:
    """Processes into a `FencedStore`, `pause_s` per step."""

    def __init__(self, topic: str, store: FencedStore, pause_s: float) -> None:
        self.topic = topic
        self._store = store
        self._pause_s = pause_s
        self._believed: dict[int, int] = {}

    async def start_offset(self, partition: int) -> int:
        self._believed[partition] = self._store.next_offset(partition)
        self._store.note_start(partition, self._believed[partition])
        return self._believed[partition]

    async def step(self, partition: int, records: Sequence[Record]) -> None:
        await asyncio.sleep(self._pause_s)
        self._believed[partition] = self._store.commit(partition, self._believed[partition], records)

    async def revoked(self, partition: int) -> None:
        del self._believed[partition]

    async def idle(self, partition: int) -> None:
        assert partition in self._believed


async def main(log_url: str, topic: str, group: str, store_path: str, pause_s: float) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    settings = RunnerSettings(
        group,
        flush_events_max=5,
        commit_interval_s=0.2,
        session_timeout_s=6,
        heartbeat_interval_s=0.5,
        idle_interval_s=0.1,
    )
    await run([StoreProcessor(topic, FencedStore(store_path), pause_s)], log_url, SystemClock(), settings, stop)


if __name__ == "__main__":
    log_url, topic, group, store_path, pause_s = sys.argv[1:]
    run_in_loop(main(log_url, topic, group, store_path, float(pause_s)))
