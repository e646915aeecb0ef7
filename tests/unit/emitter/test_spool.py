"""The spool: events without an answer survive their process, and every problem of the disk is reported."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emitter import Answer, Event, QueueFull, spool_file
from emitter.encoding import encoded
from emitter.spool import Place, Spool, SpoolSettings
from emitter.spool_file import SpoolFile
from tests.worlds.emitter import FakeGateway, conserved, make

ROOT: Final = Path(__file__).resolve().parents[3]
AWAY: Final = (ConnectionRefusedError("away"),) * 100_000


def until(holds: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Waits until the condition holds."""
    deadline_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline_s, "in vain"
        time.sleep(0.002)


def left_by_a_dead_process(folder: Path, events: int = 3, **more: Any) -> list[str]:
    """A process emits while the gateway is away, and is killed by SIGKILL. Returns the ids."""
    script = f"""
import json, os, signal
from emitter import Emitter
emitter = Emitter("http://127.0.0.1:9", "k", source="dead", spool_path={str(folder)!r}, **{more!r})
print(json.dumps([emitter.emit("t", "acme", {{"n": number}}) for number in range({events})]), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False, timeout=90,
    )  # fmt: skip
    assert done.returncode == -9, done.stderr
    ids: list[str] = json.loads(done.stdout)
    return ids


def files(folder: Path) -> list[Path]:
    """The files of the spool, the oldest first."""
    return sorted(folder.glob("*.spool"))


@contextmanager
def a_full_disk(bytes_left: int) -> Iterator[None]:
    """No file of this process may grow beyond that size."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_left, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("sync", ["each", "interval"])
def test_events_of_a_killed_process_are_sent_by_the_next_one_under_their_ids(tmp_path: Path, sync: str) -> None:
    """The next process emits nothing itself. What it sends is what the dead process would have sent."""
    ids = left_by_a_dead_process(tmp_path, spool_sync=sync)

    gateway = FakeGateway()
    with make(gateway, spool_path=tmp_path) as emitter:
        until(lambda: len(gateway.stored) == 3)
        assert emitter.flush()

    sent = [event for request in gateway.requests for event in request]
    assert [event["id"] for event in sent] == ids
    assert [(event["source"], event["data"]) for event in sent] == [("dead", {"n": number}) for number in range(3)]
    stats = emitter.stats()
    assert (stats.recovered, stats.accepted, stats.emitted, stats.pending) == (3, 3, 0, 0)
    assert files(tmp_path) == []


def test_an_answered_event_is_not_sent_again(tmp_path: Path) -> None:
    """A process that dies at once after an answer leaves only what had none."""
    first = FakeGateway(script=("judge", *AWAY))
    emitter = make(first, spool_path=tmp_path)
    emitter.emit("t", "acme", id="answered")
    assert emitter.flush()
    emitter.emit("t", "acme", id="unanswered")
    emitter.close(0.05)

    second = FakeGateway()
    with make(second, spool_path=tmp_path):
        until(lambda: bool(second.stored))

    assert second.stored == {"unanswered": 1}


def test_what_close_cannot_send_stays_for_the_next_process(tmp_path: Path) -> None:
    """It is not dropped: `on_dropped` would make the application keep it a second time."""
    dropped: list[str] = []
    emitter = make(FakeGateway(script=AWAY), spool_path=tmp_path, on_dropped=lambda event, _: dropped.append(event.id))
    emitter.emit("t", "acme", id="a")

    assert not emitter.close(0.05)
    assert (emitter.stats().pending, emitter.stats().dropped, dropped) == (1, 0, [])
    assert conserved(emitter)

    gateway = FakeGateway()
    with make(gateway, spool_path=tmp_path):
        until(lambda: gateway.stored == {"a": 1})


def test_events_beyond_the_memory_wait_on_the_disk_in_their_order(tmp_path: Path) -> None:
    """A gateway that is away for hours must not fill the memory, and `emit` does not block."""
    gateway = FakeGateway()
    gateway.gate.clear()
    with make(gateway, spool_path=tmp_path, queue_events_max=10, batch_events_max=5, block_timeout_s=0) as emitter:
        ids = [emitter.emit("t", "acme", {"n": number}) for number in range(200)]
        assert emitter.stats().pending == 200
        assert not emitter.flush(0.01)
        gateway.gate.set()
        assert emitter.flush()
        assert conserved(emitter)

    assert [event["id"] for request in gateway.requests for event in request] == ids
    assert emitter.stats().accepted == 200


def test_events_that_come_while_others_wait_on_the_disk_queue_behind_them(tmp_path: Path) -> None:
    """Memory has room again, and the disk has older events."""
    ids: list[str] = []

    def judge(_: dict[str, Any]) -> dict[str, Any]:
        if len(ids) < 60:
            ids.append(emitter.emit("t", "acme"))
        return {"status": "accepted"}

    gateway = FakeGateway(judge)
    gateway.gate.clear()
    emitter = make(gateway, spool_path=tmp_path, queue_events_max=10, batch_events_max=5, block_timeout_s=0)
    ids += [emitter.emit("t", "acme") for _ in range(30)]
    gateway.gate.set()
    until(lambda: emitter.stats().accepted == 60)
    assert emitter.close()

    assert [event["id"] for request in gateway.requests for event in request] == ids


def test_answers_are_written_down_behind_a_torn_line_too(tmp_path: Path) -> None:
    """The torn line is removed when the file is adopted, and is counted once."""
    configured = SpoolSettings(tmp_path, 65_536, "each", 1.0)
    first = Spool(configured)
    for body in (b"{1}", b"{2}", b"{3}"):
        assert first.append(body, in_memory=False)
    first.forget()
    (file,) = files(tmp_path)
    os.truncate(file, file.stat().st_size - 2)

    found = []
    for _ in range(2):
        spool = Spool(configured)
        spool.adopt()
        records, _ = spool.read(1, 1_000)
        found.append((records[0].body, spool.unread, spool.damaged))
        spool.settle([records[0].place])
        spool.forget()

    assert found == [(b"{1}", 1, 1), (b"{2}", 0, 0)]


def test_a_rejected_event_leaves_the_spool_and_is_reported_as_it_was_emitted(tmp_path: Path) -> None:
    """The next process must not ask again."""
    left_by_a_dead_process(tmp_path, events=1)
    told: list[Any] = []
    gateway = FakeGateway(lambda _: {"status": "rejected", "reason": "negative_quantity"})
    with make(gateway, spool_path=tmp_path, on_rejected=lambda event, why, _: told.append((event.data, why))):
        until(lambda: bool(told))

    assert told == [({"n": 0}, "negative_quantity")]
    assert files(tmp_path) == []


def test_a_living_processs_file_is_left_alone(tmp_path: Path) -> None:
    """Two processes with one folder: each sends its own events, and those of the dead."""
    away = make(FakeGateway(script=AWAY), spool_path=tmp_path, retry_base_s=5, retry_max_s=5)
    away.emit("t", "acme", id="of the living")
    ids = left_by_a_dead_process(tmp_path)

    gateway = FakeGateway()
    with make(gateway, spool_path=tmp_path) as other:
        until(lambda: len(gateway.stored) == 3)
        other.emit("t", "acme", id="own")

    assert sorted(gateway.stored) == sorted([*ids, "own"])
    away.close(0)


def test_a_file_that_another_process_removes_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one looks for files of dead processes and finds an empty one. What was written there had no name."""
    settings = SpoolSettings(tmp_path, 1_000_000, "each", 1.0)
    ours, theirs = Spool(settings), Spool(settings)
    locked, looked = spool_file._locked, list[bool]()

    def interleaved(descriptor: int) -> bool:
        if not looked:
            looked.append(True)
            theirs.adopt()
        return locked(descriptor)

    monkeypatch.setattr(spool_file, "_locked", interleaved)
    assert ours.append(b'{"n":1}', in_memory=True) is not None
    ours.close()

    assert Spool(settings).adopt() == 1


def test_many_processes_at_once_adopt_a_file_once(tmp_path: Path) -> None:
    """Whoever has the lock sends."""
    ids = [event_id for _ in range(2) for event_id in left_by_a_dead_process(tmp_path)]
    gateways = [FakeGateway() for _ in range(4)]
    emitters = [make(gateway, spool_path=tmp_path) for gateway in gateways]

    def sent() -> Counter[str]:
        return sum((gateway.stored for gateway in gateways), Counter())

    until(lambda: len(sent()) == len(ids))
    for emitter in emitters:
        assert emitter.close()

    assert sent() == Counter(ids)
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    ("damage", "damaged", "survive"),
    [
        pytest.param(lambda text: text[:-7], 1, [0, 1], id="the last line is torn"),
        pytest.param(lambda text: text + b"garbage", 1, [0, 1, 2], id="garbage behind the last line"),
        pytest.param(lambda text: b"\0" * 5_000 + b"\n" + text, 1, [0, 1, 2], id="garbage before the first line"),
        pytest.param(lambda text: text.replace(b'"n":1', b'"n":7'), 1, [0, 2], id="a changed byte"),
        pytest.param(lambda text: text.replace(b"\n", b"", 1), 1, [2], id="a lost line break"),
        pytest.param(lambda _: b"", 0, [], id="empty"),
        pytest.param(lambda _: b"\xff\xfe\n\n\n", 3, [], id="nothing but garbage"),
        pytest.param(lambda text: text + text, 0, [0, 1, 2], id="everything twice"),
    ],
)
def test_a_damaged_file_is_reported_and_the_rest_of_it_is_sent(
    tmp_path: Path, damage: Callable[[bytes], bytes], damaged: int, survive: list[int]
) -> None:
    """A power cut, or somebody's editor."""
    left_by_a_dead_process(tmp_path)
    (file,) = files(tmp_path)
    file.write_bytes(damage(file.read_bytes()))

    gateway = FakeGateway()
    with make(gateway, spool_path=tmp_path) as emitter:
        until(lambda: files(tmp_path) == [])
        assert emitter.flush()

    numbers = {event["data"]["n"] for request in gateway.requests for event in request}
    assert sorted(numbers) == survive
    assert emitter.stats().spool_damaged == damaged
    assert conserved(emitter)


def test_a_record_of_an_unknown_form_is_dropped_and_the_rest_is_sent(tmp_path: Path) -> None:
    """Another version may have written it; its checksum is right."""
    spool = Spool(SpoolSettings(tmp_path, 65_536, "each", 1.0))
    for body in (b"[1]", b'{"id":"a"}', b"no JSON", encoded(Event("a", "t", "acme", {}, "2026-11-21T10:00:00Z"), "s")):
        assert spool.append(body, in_memory=False)
    spool.forget()

    gateway = FakeGateway()
    with make(gateway, spool_path=tmp_path) as emitter:
        until(lambda: files(tmp_path) == [])

    assert gateway.stored == {"a": 1}
    assert (emitter.stats().recovered, emitter.stats().dropped, emitter.stats().spool_damaged) == (4, 3, 3)
    assert conserved(emitter)


def test_a_file_that_cannot_be_read_is_given_up_and_left_to_the_next_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broken disk costs its events here, and the emitter goes on."""
    ids = left_by_a_dead_process(tmp_path)

    held: list[SpoolFile] = []

    def broken(file: SpoolFile, *_: object) -> None:
        held.append(file)
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(SpoolFile, "read", broken)
        first = FakeGateway()
        emitter = make(first, spool_path=tmp_path)
        until(lambda: emitter.stats().dropped == 3)
        emitter.emit("t", "acme", id="new")
        assert emitter.close()
        assert conserved(emitter)
        assert (first.stored, emitter.stats().spool_error) == ({"new": 1}, "Input/output error")
        # This process ends.
        held[0].forget()

    second = FakeGateway()
    with make(second, spool_path=tmp_path):
        until(lambda: len(second.stored) == 3)
    assert sorted(second.stored) == sorted(ids)


def test_own_events_whose_file_is_damaged_are_dropped_and_counted(tmp_path: Path) -> None:
    """`flush` must not wait for ever for an event that is no longer there."""
    gateway = FakeGateway()
    gateway.gate.clear()
    with make(gateway, spool_path=tmp_path, queue_events_max=2, block_timeout_s=0) as emitter:
        for number in range(5):
            emitter.emit("t", "acme", id=str(number))
        (file,) = files(tmp_path)
        os.truncate(file, file.stat().st_size - 5)
        gateway.gate.set()
        assert emitter.flush(5)

    assert sorted(gateway.stored) == ["0", "1", "2", "3"]
    assert (emitter.stats().dropped, emitter.stats().spool_damaged) == (1, 1)
    assert conserved(emitter)


def test_a_full_disk_is_reported_and_events_are_in_memory_only(tmp_path: Path) -> None:
    """The application goes on as without a spool, and the half line harms no other event."""
    gateway = FakeGateway()
    gateway.gate.clear()
    emitter = make(gateway, spool_path=tmp_path)
    emitter.emit("t", "acme", id="whole")
    (file,) = files(tmp_path)
    with a_full_disk(file.stat().st_size + 20):
        emitter.emit("t", "acme", id="half")
        emitter.emit("t", "acme", id="none")

    stats = emitter.stats()
    assert (stats.pending, stats.unspooled) == (3, 2)
    assert "No space left" in stats.spool_error
    assert len(file.read_bytes().splitlines()) == 1

    gateway.gate.set()
    assert emitter.close()
    assert sorted(gateway.stored) == ["half", "none", "whole"]


def test_what_is_not_synced_for_want_of_descriptors_is_reported_and_synced_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`spool_sync="each"` promises that the event survives a power cut."""
    spool = Spool(SpoolSettings(tmp_path, 1_000_000, "each", 1.0))
    assert spool.append(b'{"n":0}', in_memory=True) is not None
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)

    def none_left(_descriptor: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(os, "dup", none_left)
        assert spool.append(b'{"n":1}', in_memory=True) is not None
    assert (synced, spool.problem) == ([], "Too many open files")

    (descriptor,) = spool.to_sync()
    spool.synced(None)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
    spool.close()


def test_a_folder_that_cannot_be_written_is_reported_and_events_are_sent(tmp_path: Path) -> None:
    """A wrong mount must not stop the application."""
    (tmp_path / "file").write_text("no folder")
    gateway = FakeGateway()
    with make(gateway, spool_path=tmp_path / "file" / "spool") as emitter:
        emitter.emit("t", "acme", id="a")

    assert gateway.stored == {"a": 1}
    assert emitter.stats().unspooled == 1
    assert "Not a directory" in emitter.stats().spool_error


def test_beyond_the_limit_events_are_in_memory_and_then_refused(tmp_path: Path) -> None:
    """The folder never has more than its limit, whatever process wrote what is there."""
    limit, note = 65_536, {"text": "x" * 500}
    left_by_a_dead_process(tmp_path)
    gateway = FakeGateway()
    gateway.gate.clear()
    emitter = make(gateway, spool_path=tmp_path, spool_bytes_max=limit, queue_events_max=10, block_timeout_s=0.001)
    for _ in range(50):
        emitter.emit("t", "acme", note)
    with pytest.raises(QueueFull):
        all(emitter.emit("t", "acme", note) for _ in range(1_000))

    stats = emitter.stats()
    assert 0.8 * limit < sum(file.stat().st_size for file in files(tmp_path)) <= limit
    assert "limit of 65536 bytes" in stats.spool_error
    assert stats.refused == 1
    assert conserved(emitter)

    gateway.gate.set()
    assert emitter.close()
    assert emitter.stats().accepted == stats.emitted + 3
    assert files(tmp_path) == []


def test_the_spool_is_private_and_has_no_key(tmp_path: Path) -> None:
    """Events name the application's customers."""
    folder = tmp_path / "new" / "spool"
    gateway = FakeGateway()
    gateway.gate.clear()
    emitter = make(gateway, spool_path=folder)
    emitter.emit("t", "acme")
    (file,) = files(folder)

    assert (folder.stat().st_mode & 0o777, file.stat().st_mode & 0o777) == (0o700, 0o600)
    assert b"tm_key" not in file.read_bytes()
    gateway.gate.set()
    emitter.close()


def test_a_forked_child_has_files_of_its_own(tmp_path: Path) -> None:
    """A child that kept the parent's file open would keep its lock, and nobody could adopt the file."""
    script = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from emitter import Emitter
emitter = Emitter("http://127.0.0.1:9", "k", source="s", spool_path={str(tmp_path)!r}, spool_sync="each")
emitter.emit("t", "acme", id="parent")
if os.fork() == 0:
    assert emitter.stats().pending == 0
    print("ready", flush=True)
    sys.stdin.readline()
    emitter.emit("t", "acme", id="child")
    print("emitted", flush=True)
    sys.stdin.read()
    os._exit(0)
os.kill(os.getpid(), 9)
"""
    child = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with child:
        assert child.stdout is not None
        assert child.stdin is not None
        assert child.stdout.readline() == "ready\n"
        gateway = FakeGateway()
        with make(gateway, spool_path=tmp_path):
            until(lambda: bool(gateway.stored))
        assert gateway.stored == {"parent": 1}
        child.stdin.write("\n")
        child.stdin.flush()
        assert child.stdout.readline() == "emitted\n"
        (file,) = files(tmp_path)
        assert b'"id":"child"' in file.read_bytes()


def test_what_is_no_setting_is_refused(tmp_path: Path) -> None:
    """At once, not at the first event."""
    with pytest.raises(ValueError, match="spool_bytes_max must be 65536 or more"):
        make(FakeGateway(), spool_path=tmp_path, spool_bytes_max=1)
    with pytest.raises(ValueError, match="spool_sync must be each or interval"):
        make(FakeGateway(), spool_path=tmp_path, spool_sync="never")


STEPS: Final = st.lists(
    st.tuples(st.sampled_from(["emit", "emit", "emit", "read", "answer", "answer", "kill"]), st.integers(0, 7)),
    max_size=60,
)


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_whatever_happens_no_event_without_an_answer_is_lost(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]
) -> None:
    """Processes one after the other. What the next one finds are the events without an answer, and perhaps answered
    ones: the oracle is a set."""
    folder = tmp_path_factory.mktemp("spool")
    configured = SpoolSettings(folder, 65_536, "interval", 1.0)
    spool = Spool(configured)
    memory: dict[int, Place] = {}
    unanswered: set[int] = set()
    emitted = 0

    def read() -> None:
        spool._look_at_s = 0
        spool.adopt()
        records, lost = spool.read(3, 100_000)
        assert lost == 0
        for place, body in records:
            number = int(body.split()[0])
            assert number not in memory
            memory[number] = place

    for step, choice in steps:
        if step == "emit":
            in_memory = choice < 4 and not spool.unread
            place = spool.append(b"%d %s" % (emitted, b"x" * 200 * choice), in_memory=in_memory)
            assert place is not None
            unanswered.add(emitted)
            if in_memory:
                memory[emitted] = place
            emitted += 1
        elif step == "read":
            read()
        elif step == "answer":
            answered = list(memory)[: choice + 1]
            spool.settle([memory.pop(number) for number in answered])
            unanswered.difference_update(answered)
        elif step == "kill":
            spool.forget()
            memory.clear()
            spool = Spool(configured)
    spool.forget()
    memory.clear()
    spool = Spool(configured)
    for _ in range(emitted + 1):
        read()
        spool.settle([memory[number] for number in memory])
        found = set(memory)
    assert unanswered <= found
    assert found <= set(range(emitted))
    spool.close()
    assert files(folder) == []


def test_a_batch_is_unanswered_until_its_answer_comes(tmp_path: Path) -> None:
    """A lost answer, then the end: the next process repeats the batch under the same ids."""
    gateway = FakeGateway(script=("lose the answer", *AWAY))
    emitter = make(gateway, spool_path=tmp_path, flush_interval_s=0.05)
    ids = [emitter.emit("t", "acme") for _ in range(3)]
    until(lambda: len(gateway.requests) > 1)
    emitter.close(0)

    second = FakeGateway(script=(Answer(503, {}, b""),))
    with make(second, spool_path=tmp_path):
        until(lambda: bool(second.stored))

    assert [event["id"] for event in second.requests[-1]] == ids
