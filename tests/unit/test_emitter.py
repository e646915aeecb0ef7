"""The emitter: returns at once, repeats under the same ids, and never loses an event in silence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from emitter import Answer, Emitter, Event, QueueFull, uuid7
from emitter.answers import pause_s
from emitter.encoding import encoded

ROOT = Path(__file__).resolve().parents[2]

Judge = Callable[[dict[str, Any]], dict[str, Any]]


def accept(_event: dict[str, Any]) -> dict[str, Any]:
    """Take every event."""
    return {"status": "accepted"}


class FakeGateway:
    """A transport that answers as the gateway does. `script` makes the first answers; then `judge` decides."""

    def __init__(self, judge: Judge = accept, script: tuple[object, ...] = ()) -> None:
        self.judge = judge
        self.script = list(script)
        self.requests: list[list[dict[str, Any]]] = []
        self.stored: Counter[str] = Counter()
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, body: bytes, headers: Mapping[str, str]) -> Answer:
        assert headers["authorization"] == "Bearer tm_key"
        events = json.loads(body)
        self.requests.append(events)
        assert self.gate.wait(30)
        step = self.script.pop(0) if self.script else "judge"
        if isinstance(step, Exception):
            raise step
        if isinstance(step, Answer):
            return step
        answers = []
        for index, event in enumerate(events):
            verdict = self.judge(event)
            self.stored[event["id"]] += verdict["status"] == "accepted"
            answers.append({"index": index, "id": event["id"], **verdict})
        if step == "lose the answer":
            raise ConnectionResetError("gone")
        return Answer(202, {}, json.dumps({"events": answers}).encode())


def make(gateway: FakeGateway, **settings: Any) -> Emitter:
    """An emitter that does not make tests wait."""
    quick = {"flush_interval_s": 0.001, "retry_base_s": 0.001, "retry_max_s": 0.002}
    return Emitter("http://unused", "tm_key", source="test", transport=gateway, **{**quick, **settings})


def conserved(emitter: Emitter) -> bool:
    """Whether every event is accounted for."""
    stats = emitter.stats()
    return stats.emitted == stats.accepted + stats.rejected + stats.dropped + stats.pending


def test_every_event_arrives_once_in_order_and_in_batches() -> None:
    """The plain way."""
    gateway = FakeGateway()
    with make(gateway, batch_events_max=10) as emitter:
        ids = [emitter.emit("api.request", "acme", {"n": number}) for number in range(25)]
        assert emitter.flush()

    assert [event["id"] for request in gateway.requests for event in request] == ids
    assert max(map(len, gateway.requests)) <= 10
    assert emitter.stats().accepted == 25
    assert gateway.requests[0][0] == {
        "specversion": "1.0",
        "id": ids[0],
        "source": "test",
        "type": "api.request",
        "subject": "acme",
        "time": gateway.requests[0][0]["time"],
        "data": {"n": 0},
    }


@pytest.mark.parametrize(
    "failure",
    [
        pytest.param("lose the answer", id="answer lost after the events were stored"),
        pytest.param(ConnectionRefusedError("no"), id="refused"),
        pytest.param(TimeoutError("slow"), id="timeout"),
        pytest.param(RuntimeError("a defect"), id="transport fails oddly"),
        pytest.param(Answer(503, {"retry-after": "0"}, b"{}"), id="503"),
        pytest.param(Answer(429, {}, b""), id="429"),
        pytest.param(Answer(500, {}, b"\xff"), id="500 with garbage"),
        pytest.param(Answer(401, {}, b'{"error":{"code":"unauthorized","message":"key"}}'), id="401"),
        pytest.param(Answer(200, {}, b"<html>welcome</html>"), id="2xx of something that is no gateway"),
        pytest.param(Answer(202, {}, b'{"events":[]}'), id="2xx about other events"),
    ],
)
def test_what_has_no_verdict_is_sent_again_under_the_same_ids(failure: object) -> None:
    """The gateway may have taken the events: only the same ids make repeating harmless."""
    gateway = FakeGateway(script=(failure, failure))
    with make(gateway) as emitter:
        emitter.emit("t", "acme")
        assert emitter.flush()

    first, second, third = gateway.requests

    assert first == second == third
    assert emitter.stats().accepted == 1
    assert emitter.stats().retries == 2
    assert emitter.stats().last_error == ""


def test_a_rejected_event_is_told_and_never_retried_and_costs_its_neighbours_nothing() -> None:
    """A bad event stays bad."""
    told: list[tuple[str, str, str]] = []

    def judge(event: dict[str, Any]) -> dict[str, Any]:
        if event["id"] == "bad":
            return {"status": "rejected", "reason": "negative_quantity", "detail": "tokens", "remedy": "send 0"}
        return {"status": "accepted"}

    gateway = FakeGateway(judge)
    with make(gateway, on_rejected=lambda event, reason, detail: told.append((event.id, reason, detail))) as emitter:
        for event_id in ("a", "bad", "b"):
            emitter.emit("t", "acme", id=event_id)
        assert emitter.flush()

    assert told == [("bad", "negative_quantity", "tokens; send 0")]
    assert (emitter.stats().accepted, emitter.stats().rejected) == (2, 1)
    assert Counter(event["id"] for request in gateway.requests for event in request)["bad"] == 1


def test_only_events_without_a_verdict_are_sent_again() -> None:
    """A partial answer settles what it can."""
    entries = [{"index": 0, "id": "a", "status": "accepted"}, {"index": 1, "id": "b", "status": "unknown"}]
    partial = Answer(503, {}, json.dumps({"events": entries}).encode())
    gateway = FakeGateway(script=(partial,))
    emitter = make(gateway, flush_interval_s=10)
    emitter.emit("t", "acme", id="a")
    emitter.emit("t", "acme", id="b")

    assert emitter.flush()
    assert emitter.close()

    assert [[event["id"] for event in request] for request in gateway.requests] == [["a", "b"], ["b"]]
    assert emitter.stats().accepted == 2


def test_an_event_that_spoils_its_request_is_found_by_halving() -> None:
    """Where the gateway cannot read a request at all, its good events must still arrive."""
    told: list[str] = []

    class Spoilt(FakeGateway):
        def __call__(self, body: bytes, headers: Mapping[str, str]) -> Answer:
            if b'"poison"' in body:
                self.requests.append(json.loads(body))
                return Answer(400, {}, b'{"error":{"code":"bad","message":"unreadable"}}')
            return super().__call__(body, headers)

    gateway = Spoilt()
    with make(gateway, flush_interval_s=10, on_rejected=lambda event, *_: told.append(event.id)) as emitter:
        for number in range(9):
            emitter.emit("t", "acme", id="poison" if number == 5 else str(number))
        assert emitter.flush()

    assert told == ["poison"]
    assert sorted(gateway.stored) == ["0", "1", "2", "3", "4", "6", "7", "8"]
    assert max(gateway.stored.values()) == 1


def test_a_full_queue_that_drops_counts_and_tells() -> None:
    """Never silent."""
    gateway = FakeGateway()
    gateway.gate.clear()
    told: list[tuple[str, str]] = []
    emitter = make(
        gateway, queue_events_max=2, when_full="drop", on_dropped=lambda event, why: told.append((event.id, why))
    )
    for event_id in ("a", "b", "c"):
        emitter.emit("t", "acme", id=event_id)

    assert told == [("c", "queue_full")]
    assert emitter.stats().dropped == 1
    assert conserved(emitter)

    gateway.gate.set()
    assert emitter.close()
    assert sorted(gateway.stored) == ["a", "b"]


def test_a_full_queue_that_blocks_raises_after_its_bound_and_takes_events_again_later() -> None:
    """The caller keeps the event; nothing is counted as emitted."""
    gateway = FakeGateway()
    gateway.gate.clear()
    emitter = make(gateway, queue_events_max=1, block_timeout_s=0.01)
    emitter.emit("t", "acme", id="a")

    with pytest.raises(QueueFull):
        emitter.emit("t", "acme", id="b")

    gateway.gate.set()
    assert emitter.flush()
    emitter.emit("t", "acme", id="b")
    assert emitter.close()

    assert sorted(gateway.stored) == ["a", "b"]
    assert emitter.stats().refused == 1
    assert emitter.stats().emitted == 2


def test_close_drops_what_cannot_be_sent_in_time_and_says_so() -> None:
    """A gateway that is away must not keep a process from ending, nor may its events vanish."""
    told: list[tuple[str, str]] = []
    gateway = FakeGateway(script=(ConnectionRefusedError(),) * 10_000)
    emitter = make(gateway, on_dropped=lambda event, why: told.append((event.id, why)), retry_max_s=5, retry_base_s=5)
    emitter.emit("t", "acme", id="a")

    assert not emitter.flush(0.05)
    assert not emitter.close(0.05)

    assert told == [("a", "closed")]
    assert emitter.stats().dropped == 1
    assert conserved(emitter)
    with pytest.raises(RuntimeError, match="closed"):
        emitter.emit("t", "acme")


def test_an_answer_after_the_end_of_close_changes_no_count() -> None:
    """Each event is settled once."""
    gateway = FakeGateway()
    gateway.gate.clear()
    emitter = make(gateway)
    emitter.emit("t", "acme")

    assert not emitter.close(0.02)
    gateway.gate.set()
    thread = emitter._thread
    assert thread is not None
    thread.join()

    assert (emitter.stats().accepted, emitter.stats().dropped) == (0, 1)


def test_an_event_that_stays_undelivered_is_given_up_and_told() -> None:
    """Retries are bounded too."""
    told: list[str] = []
    gateway = FakeGateway(script=(ConnectionRefusedError(),) * 3)
    with make(gateway, retry_for_s=-1, on_dropped=lambda _event, why: told.append(why)) as emitter:
        emitter.emit("t", "acme")
        assert emitter.flush()

    assert told == ["not_delivered"]


def test_callbacks_that_raise_do_not_stop_the_sending() -> None:
    """The application's mistake must not cost other events."""

    def fails(*_: object) -> None:
        raise RuntimeError("the application's")

    gateway = FakeGateway()
    with make(gateway, on_rejected=fails) as emitter:
        emitter.emit("t", "acme", {"bad": float("nan")})
        emitter.emit("t", "acme", id="good")
        assert emitter.flush()

    assert sorted(gateway.stored) == ["good"]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param({"n": float("inf")}, id="infinity"),
        pytest.param({"n": Decimal("NaN")}, id="decimal NaN"),
        pytest.param({"n": object()}, id="object"),
        pytest.param({"n": "\ud800"}, id="lone surrogate"),
        pytest.param({Decimal(1): 1}, id="decimal key"),
        pytest.param({"n": 10**5000}, id="an integer Python will not print"),
    ],
)
def test_data_that_is_no_json_is_rejected_here_and_costs_no_other_event(data: dict[Any, Any]) -> None:
    """What the gateway could not even read must not travel with good events."""
    told: list[str] = []
    gateway = FakeGateway()
    with make(gateway, on_rejected=lambda _event, reason, _detail: told.append(reason)) as emitter:
        emitter.emit("t", "acme", data)
        emitter.emit("t", "acme", id="good")
        assert emitter.flush()

    assert told == ["not_serializable"]
    assert sorted(gateway.stored) == ["good"]


def test_an_object_that_contains_itself_is_rejected_here() -> None:
    """json.dumps notices it; nothing hangs."""
    loop: dict[str, Any] = {}
    loop["self"] = loop
    gateway = FakeGateway()
    with make(gateway) as emitter:
        emitter.emit("t", "acme", {"loop": loop})
        assert emitter.flush()

    assert emitter.stats().rejected == 1


@pytest.mark.parametrize(
    ("value", "written"),
    [
        pytest.param(Decimal("0.1"), '"0.1"', id="decimal"),
        pytest.param(Decimal("12345678901234567.123456789"), '"12345678901234567.123456789"', id="long decimal"),
        pytest.param(Decimal("1E+3"), '"1E+3"', id="exponent"),
        pytest.param(0.1, "0.1", id="float in its shortest form"),
        pytest.param(2**60 + 1, str(2**60 + 1), id="large integer"),
        pytest.param(True, "true", id="boolean"),
    ],
)
def test_quantities_are_written_exactly(value: object, written: str) -> None:
    """No digit may change on the way (I5)."""
    body = encoded(Event("1", "t", "acme", {"n": value}, 0), "test")

    assert f'"n":{written}'.encode() in body


def test_data_is_copied_one_level_deep() -> None:
    """What the documentation promises, no more and no less."""
    gateway = FakeGateway()
    data = {"n": 1}
    emitter = make(gateway, flush_interval_s=10)
    emitter.emit("t", "acme", data)
    data["n"] = 2

    assert emitter.close()
    assert gateway.requests[0][0]["data"] == {"n": 1}


@pytest.mark.parametrize(
    ("time", "written"),
    [
        pytest.param(datetime(2026, 11, 21, 10, tzinfo=UTC), "2026-11-21T10:00:00+00:00", id="UTC"),
        pytest.param(
            datetime(2026, 11, 21, 10, tzinfo=timezone(timedelta(hours=-5))), "2026-11-21T10:00:00-05:00", id="offset"
        ),
        pytest.param("2026-11-21T10:00:00Z", "2026-11-21T10:00:00Z", id="text"),
        pytest.param(None, "2026-11-21T10:00:00.000001+00:00", id="now"),
    ],
)
def test_times_are_written_with_an_offset(time: datetime | str | None, written: str) -> None:
    """The gateway refuses a time without one."""
    gateway = FakeGateway()
    with make(gateway, now_ns=lambda: 1_795_255_200_000_001_000) as emitter:
        emitter.emit("t", "acme", time=time)
        assert emitter.flush()

    assert gateway.requests[0][0]["time"] == written


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param({"type": ""}, id="empty type"),
        pytest.param({"type": "t" * 257}, id="long type"),
        pytest.param({"account": ""}, id="empty account"),
        pytest.param({"id": ""}, id="empty id"),
        pytest.param({"id": "i" * 10_000}, id="long id"),
        pytest.param({"time": datetime(2026, 1, 1)}, id="time without a zone"),  # noqa: DTZ001
        pytest.param({"time": ""}, id="empty time"),
    ],
)
def test_what_is_wrong_at_once_raises_at_once(arguments: dict[str, Any]) -> None:
    """The caller can still do something about it."""
    emitter = make(FakeGateway())

    with pytest.raises(ValueError, match=r".+"):
        emitter.emit(**{"type": "t", "account": "acme", **arguments})

    assert emitter.stats().emitted == 0
    assert emitter.close()


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"source": ""}, id="no source"),
        pytest.param({"queue_events_max": 0}, id="no queue"),
        pytest.param({"when_full": "ignore"}, id="unknown policy"),
        pytest.param({"transport": None, "gateway_url": "ftp://x"}, id="not HTTP"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any]) -> None:
    """At the start, not with the first event."""
    with pytest.raises(ValueError, match=r".+"):
        Emitter(**{"gateway_url": "http://x", "api_key": "k", "source": "s", "transport": FakeGateway(), **settings})


def test_many_threads_lose_and_repeat_nothing() -> None:
    """One emitter serves a whole threaded server."""
    gateway = FakeGateway(script=("lose the answer", Answer(503, {}, b"")))
    with make(gateway, queue_events_max=50, batch_events_max=7, block_timeout_s=30) as emitter:
        threads = [threading.Thread(target=lambda: [emitter.emit("t", "acme") for _ in range(200)]) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert emitter.flush()

    assert emitter.stats().accepted == 1_600
    assert len(gateway.stored) == 1_600
    assert sum(gateway.stored.values()) == 1_600 + len(gateway.requests[0])


def test_requests_stay_below_the_byte_limit() -> None:
    """The gateway refuses larger bodies."""
    gateway = FakeGateway()
    with make(gateway, batch_bytes_max=2_000, flush_interval_s=10) as emitter:
        for _ in range(20):
            emitter.emit("t", "acme", {"text": "x" * 500})
        assert emitter.flush()

    assert max(map(len, gateway.requests)) == 2
    assert emitter.stats().accepted == 20


def test_made_ids_are_version_7_and_follow_the_clock() -> None:
    """RFC 9562: version and variant bits, milliseconds first."""
    early, late = uuid7(lambda: 1_795_255_200_000_000_000), uuid7(lambda: 1_795_255_200_001_000_000)

    assert early < late
    assert early[:13].replace("-", "") == f"{1_795_255_200_000:012x}"
    assert early[14] == "7"
    assert early[19] in "89ab"
    assert len({uuid7() for _ in range(10_000)}) == 10_000


@pytest.mark.parametrize(
    ("retry_after", "shortest_s", "longest_s"),
    [
        pytest.param(None, 0.4, 0.8, id="backoff with jitter"),
        pytest.param("7", 7, 7, id="seconds"),
        pytest.param("99999999", 300, 300, id="bounded"),
        pytest.param("soon", 0.4, 0.8, id="garbage"),
        pytest.param("Sat, 21 Nov 2020 10:00:00 GMT", 0.4, 0.8, id="a date that is over"),
        pytest.param("Sat, 21 Nov 2099 10:00:00 GMT", 300, 300, id="a date far away"),
    ],
)
def test_pauses_grow_with_jitter_and_honour_retry_after(
    retry_after: str | None, shortest_s: float, longest_s: float
) -> None:
    """The third attempt of base 0.2 s waits 0.4 to 0.8 s unless the gateway asks for more."""
    headers = {} if retry_after is None else {"retry-after": retry_after}

    assert shortest_s <= pause_s(2, 0.2, 30, headers) <= longest_s


SERVER = """
import http.server, json, sys, threading
received = []
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        events = json.loads(self.rfile.read(int(self.headers["content-length"])))
        received.extend(event["id"] for event in events)
        body = json.dumps({"events": [{"index": i, "id": e["id"], "status": "accepted"} for i, e in enumerate(events)]})
        self.send_response(202)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())
    def log_message(self, *_): pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
server.daemon_threads = True
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}"
"""


def run_script(script: str) -> str:
    """Run a script in a Python of its own; its output."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, text=True, capture_output=True, check=True, timeout=30
    )
    return done.stdout


def test_events_pending_at_exit_are_sent() -> None:
    """A script that forgets to close still delivers."""
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER + "print(url, flush=True); sys.stdin.readline(); print(sorted(received))"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert server.stdout is not None
    url = server.stdout.readline().strip()

    run_script(f"from emitter import Emitter; Emitter({url!r}, 'k', source='s').emit('t', 'acme', id='last')")
    output, _ = server.communicate("stop\n", timeout=20)

    assert output.strip() == "['last']"


def test_a_forked_child_sends_its_own_events_and_not_its_parents() -> None:
    """Pre-forking servers import the application first; a child that resent the queue would only cost duplicates,
    but one that waited for a thread it does not have would lose its events."""
    output = run_script(
        SERVER
        + """
import os
from emitter import Emitter
emitter = Emitter(url, "k", source="s", flush_interval_s=0.3)
emitter.emit("t", "acme", id="warm-up"); assert emitter.flush()
emitter.emit("t", "acme", id="parent")
child = os.fork()
if child == 0:
    emitter.emit("t", "acme", id="child")
    assert emitter.close(10)
    assert emitter.stats().accepted == 1, emitter.stats()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert emitter.close(10)
assert emitter.stats().accepted == 2, emitter.stats()
print(sorted(received))
"""
    )

    assert output.strip() == "['child', 'parent', 'warm-up']"


def test_the_emitter_imports_nothing_but_the_standard_library() -> None:
    """It is installed alone, into applications of others."""
    output = run_script(
        "import sys; import emitter; "
        "print([name for name in sys.modules if name.split('.')[0] not in sys.stdlib_module_names "
        "and name.split('.')[0] not in ('emitter', '__main__')])"
    )

    assert [name for name in json.loads(output.replace("'", '"')) if not name.startswith("_")] == []
