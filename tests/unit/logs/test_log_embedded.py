"""Promises of the embedded log beyond the shared suite: several processes, kills, retention, limits."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pipeline.logs import embedded, embedded_writer
from pipeline.logs.embedded import POLL_INTERVAL_S, SqliteLog
from pipeline.logs.open import open_log
from schemas.errors import InvalidInput, OperatorNeeded, Transient
from schemas.log import TopicSpec
from tests.worlds.clock import ManualClock

START_MS = 1_760_000_000_000
HOUR_MS = 3_600_000
TOPIC = "usage.events"

APPENDER = """
import asyncio, sys, time
from pathlib import Path
from pipeline.clock import SystemClock
from pipeline.logs.embedded import SqliteLog

async def main(path, name, count):
    log = SqliteLog(Path(path), SystemClock())
    await log.start()
    for number in range(int(count)):
        offset = await log.append("usage.events", 0, f"{name}:{number}".encode())
        print(offset, flush=True)
    await log.close()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(START_MS)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "log.db"


@pytest.fixture
async def log(path: Path, clock: ManualClock) -> AsyncIterator[SqliteLog]:
    driver = SqliteLog(path, clock)
    await driver.start()
    await driver.create_topics([TopicSpec(TOPIC, partitions=2, retention_ms=HOUR_MS)])
    yield driver
    await driver.close()


def appender(path: Path, name: str, count: int) -> subprocess.Popen[str]:
    """Another process that appends one record at a time and prints each offset."""
    command = [sys.executable, "-c", APPENDER, str(path), name, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


async def test_records_topics_and_offsets_survive_the_process(path: Path, clock: ManualClock, log: SqliteLog) -> None:
    """What was confirmed is on disk."""
    await log.append(TOPIC, 1, b"a", key=b"acme", headers=(("h", b"\x00"),))
    await log.commit("group", {(TOPIC, 1): 1})
    await log.close()

    again = SqliteLog(path, clock)
    await again.start()
    records = await again.read(TOPIC, 1, 0)

    assert [record[2:] for record in records] == [(0, START_MS, b"acme", b"a", (("h", b"\x00"),))]
    assert await again.committed("group", TOPIC, 1) == 1
    assert await again.append(TOPIC, 1, b"b") == 1
    await again.close()


async def test_processes_that_append_at_once_share_one_order(path: Path, log: SqliteLog) -> None:
    """Offsets are assigned inside the transaction, so two writers never get the same offset and leave no gap."""
    processes = [appender(path, name, 150) for name in ("x", "y")]

    given = [
        int(line) for process in processes for line in (await asyncio.to_thread(process.communicate))[0].splitlines()
    ]

    records = await log.read(TOPIC, 0, 0, records_max=1000)
    assert sorted(given) == list(range(300)) == [record.offset for record in records]
    for name in ("x", "y"):
        own = [record.value for record in records if record.value and record.value.startswith(name.encode())]
        assert own == [f"{name}:{number}".encode() for number in range(150)]


async def test_stream_time_is_monotonic_across_processes_whose_clocks_differ(log: SqliteLog, path: Path) -> None:
    """The other process has the machine's clock, far ahead of this test's clock; stream time may not go back."""
    await asyncio.to_thread(appender(path, "x", 1).communicate)
    await log.append(TOPIC, 0, b"late")

    ahead, late = (record.timestamp_ms for record in await log.read(TOPIC, 0, 0))

    assert late == ahead > START_MS


async def test_a_kill_loses_nothing_that_was_confirmed(path: Path, log: SqliteLog) -> None:
    """Kill -9 during appends: every printed offset is readable, and the log accepts further appends."""
    process = appender(path, "x", 100_000)
    assert process.stdout is not None
    answered = [int(await asyncio.to_thread(process.stdout.readline)) for _ in range(50)]
    process.send_signal(signal.SIGKILL)
    rest, _ = await asyncio.to_thread(process.communicate)
    answered += [int(line) for line in rest.splitlines() if line]

    bounds = await log.bounds(TOPIC, 0)
    following = await log.append(TOPIC, 0, b"after")

    assert answered == list(range(len(answered)))
    assert bounds.next in (len(answered), len(answered) + 1)
    assert following == bounds.next


async def test_a_waiting_reader_notices_an_append_by_another_process(path: Path, log: SqliteLog) -> None:
    """Readers wait for a version to change instead of reading again and again."""
    batch = await log.read_many({(TOPIC, 0): 0, (TOPIC, 1): 0}, records_max=10, bytes_max=1000)
    assert batch.records == {}
    process = appender(path, "x", 1)

    while not batch.records:
        await log.wait_changed(batch.version, timeout_s=30)
        batch = await log.read_many({(TOPIC, 0): 0, (TOPIC, 1): 0}, records_max=10, bytes_max=1000)

    assert [record.value for record in batch.records[TOPIC, 0]] == [b"x:0"]
    await asyncio.to_thread(process.communicate)


async def test_a_waiting_reader_pauses_although_somebody_writes(path: Path, log: SqliteLog) -> None:
    """Who waits for a topic without records would take a whole processor while another topic gets many."""
    batch = await log.read_many({(TOPIC, 1): 0}, records_max=10, bytes_max=1000)
    await asyncio.to_thread(appender(path, "x", 1).communicate)
    began_s = asyncio.get_running_loop().time()

    await log.wait_changed(batch.version, timeout_s=30)

    assert asyncio.get_running_loop().time() - began_s > POLL_INTERVAL_S / 2


async def test_waiting_ends_without_a_change_after_its_time_limit(log: SqliteLog) -> None:
    """The consumer must get a chance to stop."""
    batch = await log.read_many({(TOPIC, 0): 0}, records_max=10, bytes_max=1000)

    await asyncio.wait_for(log.wait_changed(batch.version, timeout_s=0.05), timeout=60)


async def test_a_topic_of_another_process_appears_without_a_restart(
    path: Path, clock: ManualClock, log: SqliteLog
) -> None:
    """The gateway may start before the command that creates the topics."""
    other = SqliteLog(path, clock)
    await other.start()
    await other.create_topics([TopicSpec("later", partitions=1, retention_ms=-1)])

    assert await log.append("later", 0, b"a") == 0

    await other.close()


async def test_retention_removes_older_records_and_nothing_else(log: SqliteLog, clock: ManualClock) -> None:
    """By stream time, during appends; the first offset moves, the next offset does not."""
    for _ in range(10):
        await log.append(TOPIC, 0, b"old")
    await log.append(TOPIC, 1, b"old")
    clock.ms += HOUR_MS
    await log.append(TOPIC, 0, b"exactly an hour later")
    assert await log.bounds(TOPIC, 0) == (0, 11)

    clock.ms += 1
    await log.append(TOPIC, 0, b"new")

    assert await log.bounds(TOPIC, 0) == (10, 12)
    assert await log.bounds(TOPIC, 1) == (0, 1)
    assert [record.offset for record in await log.read(TOPIC, 0, 0)] == [10, 11]


async def test_retention_catches_up_in_bounded_steps(log: SqliteLog, clock: ManualClock) -> None:
    """After a pause, one append must not pay for removing everything."""
    await asyncio.gather(*(log.append(TOPIC, 0, b"old") for _ in range(500)))
    clock.ms += 2 * HOUR_MS

    await log.append(TOPIC, 0, b"new")
    first = (await log.bounds(TOPIC, 0)).first
    appended = 1
    while (await log.bounds(TOPIC, 0)).first < 500:
        await log.append(TOPIC, 0, b"new")
        appended += 1

    assert 0 < first <= 20
    assert appended <= 26


async def test_a_topic_without_retention_keeps_everything(log: SqliteLog, clock: ManualClock) -> None:
    """-1 means no retention: intents must never vanish."""
    await log.create_topics([TopicSpec("kept", partitions=1, retention_ms=-1)])
    await log.append("kept", 0, b"a")
    clock.ms += 10_000 * HOUR_MS
    await log.append("kept", 0, b"b")

    assert await log.bounds("kept", 0) == (0, 2)


async def test_a_group_has_one_owner_until_it_gives_up_or_dies(path: Path, clock: ManualClock, log: SqliteLog) -> None:
    """Two owners would both process every record."""
    other = SqliteLog(path, clock)
    await other.start()
    log.own("rollup")
    other.own("archive")

    with pytest.raises(OperatorNeeded, match="group rollup already runs"):
        other.own("rollup")
    log.disown("rollup")
    other.own("rollup")

    await other.close()
    log.own("rollup")


async def test_appends_wait_while_too_many_bytes_are_under_way(log: SqliteLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """I11: the memory of an append burst is bounded, and every record is stored in the end."""
    monkeypatch.setattr(embedded, "PENDING_RECORDS_MAX", 7)

    offsets = await asyncio.gather(*(log.append(TOPIC, 0, b"a") for _ in range(100)))

    assert sorted(offsets) == list(range(100))


async def test_a_cancelled_append_leaves_the_others_intact(log: SqliteLog) -> None:
    """A caller that gives up (an HTTP timeout) may leave its record in the log."""
    task = asyncio.create_task(log.append(TOPIC, 0, b"given up"))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    offset = await log.append(TOPIC, 0, b"kept")

    assert [record.value for record in await log.read(TOPIC, 0, offset)] == [b"kept"]


async def test_a_read_ends_at_its_byte_limit_with_at_least_one_record(
    log: SqliteLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records of megabytes must not be read five hundred at a time."""
    monkeypatch.setattr(embedded, "READ_BYTES_MAX", 1000)
    for _ in range(5):
        await log.append(TOPIC, 0, bytes(600))

    assert [record.offset for record in await log.read(TOPIC, 0, 0)] == [0, 1]
    assert [record.offset for record in await log.read(TOPIC, 0, 4)] == [4]


async def test_an_append_after_the_close_raises(log: SqliteLog) -> None:
    """The append neither hangs nor drops the record silently."""
    await log.append(TOPIC, 0, b"a")
    await log.close()

    with pytest.raises(Transient, match="closed"):
        await log.append(TOPIC, 0, b"b")


async def test_a_file_of_another_layout_needs_an_operator(path: Path, clock: ManualClock) -> None:
    """An older program must not write a newer program's file."""
    path.parent.mkdir()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version=99")
    connection.close()
    log = SqliteLog(path, clock)

    with pytest.raises(OperatorNeeded, match="layout 99"):
        await log.start()
    await log.close()


async def test_a_file_that_is_no_database_needs_an_operator(path: Path, clock: ManualClock) -> None:
    """A wrong path must not be overwritten."""
    notes = b"somebody's notes, longer than a database header would be" * 10
    path.parent.mkdir()
    await asyncio.to_thread(path.write_bytes, notes)
    log = SqliteLog(path, clock)

    with pytest.raises(OperatorNeeded, match="cannot open the log"):
        await log.start()
    await log.close()

    assert await asyncio.to_thread(path.read_bytes) == notes


@pytest.mark.parametrize(
    "url",
    [
        "embedded://",
        "embedded://folder/",
        "kafka://",
        "kafka://host",
        "kafka://host:port",
        "kafka://a:1,",
        "kafka://:9092",
        "kafka://host:99999",
        "redis://a:1",
        "",
    ],
)
def test_a_wrong_log_url_is_refused_with_an_example(url: str, clock: ManualClock) -> None:
    """A newcomer's first mistake."""
    with pytest.raises(InvalidInput, match=r"embedded://PATH"):
        open_log(url, clock)


@pytest.mark.parametrize(
    "spec",
    [
        TopicSpec("t", partitions=0, retention_ms=-1),
        TopicSpec("t", partitions=1, retention_ms=0),
        TopicSpec("t", partitions=1, retention_ms=-1, record_bytes_max=1000),
    ],
    ids=["no-partitions", "no-retention", "too-small-records"],
)
async def test_a_topic_that_no_driver_supports_is_refused(log: SqliteLog, spec: TopicSpec) -> None:
    """At the creation, not at the first append."""
    with pytest.raises(InvalidInput):
        await log.create_topics([spec])


async def turns() -> None:
    """Lets other tasks run; an append takes at most two turns before it waits for the writer."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_abandoned_appends_count_towards_the_limit_until_they_are_stored(
    tmp_path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk hangs and callers give up: the memory of waiting appends stays bounded."""
    monkeypatch.setattr(embedded, "PENDING_RECORDS_MAX", 3)
    log = SqliteLog(tmp_path / "log.db", clock)
    await log.start()
    await log.create_topics([TopicSpec(TOPIC, 1, -1)])
    locked = sqlite3.connect(tmp_path / "log.db", isolation_level=None)
    locked.execute("BEGIN IMMEDIATE")
    given_up = [asyncio.ensure_future(log.append(TOPIC, 0, b"given up")) for _ in range(3)]
    await turns()
    assert log._pending_records == 3
    for task in given_up:
        task.cancel()
    await asyncio.gather(*given_up, return_exceptions=True)

    waiting = asyncio.ensure_future(log.append(TOPIC, 0, b"waits"))
    await turns()
    assert log._pending_records == 3

    locked.execute("ROLLBACK")
    assert await waiting == 3
    assert log._pending_records == 0
    locked.close()
    await log.close()


async def test_a_file_that_the_writer_cannot_open_is_reported_at_the_start(
    tmp_path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise appends would wait for ever."""

    def refuse(_path: Path) -> None:
        raise sqlite3.OperationalError("unable to open database file")

    monkeypatch.setattr(embedded_writer, "connect", refuse)
    log = SqliteLog(tmp_path / "log.db", clock)

    with pytest.raises(OperatorNeeded, match="Name a writable file"):
        await log.start()
    await log.close()
