"""The emitter: `emit` returns at once, retries keep the ids, and no event is lost silently."""

from __future__ import annotations

import json
import socket
import threading
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest

from emitter import Answer, Emitter, QueueFull
from emitter.answers import pause_s
from tests.worlds.emitter import FakeGateway, conserved, make


def test_every_event_arrives_once_in_order_and_in_batches() -> None:
    """The normal case."""
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
def test_events_without_an_answer_are_sent_again_under_the_same_ids(failure: object) -> None:
    """The gateway may have taken the events; retries are harmless only with the same ids."""
    gateway = FakeGateway(script=(failure, failure))
    with make(gateway) as emitter:
        emitter.emit("t", "acme")
        assert emitter.flush()

    first, second, third = gateway.requests

    assert first == second == third
    assert emitter.stats().accepted == 1
    assert emitter.stats().retries == 2
    assert emitter.stats().last_error == ""


def test_a_rejected_event_is_reported_never_retried_and_harms_no_other() -> None:
    """A bad event stays bad."""
    reported: list[tuple[str, str, str]] = []

    def judge(event: dict[str, Any]) -> dict[str, Any]:
        if event["id"] == "bad":
            return {"status": "rejected", "reason": "negative_quantity", "detail": "tokens", "remedy": "send 0"}
        return {"status": "accepted"}

    gateway = FakeGateway(judge)
    with make(
        gateway, on_rejected=lambda event, reason, detail: reported.append((event.id, reason, detail))
    ) as emitter:
        for event_id in ("a", "bad", "b"):
            emitter.emit("t", "acme", id=event_id)
        assert emitter.flush()

    assert reported == [("bad", "negative_quantity", "tokens; send 0")]
    assert (emitter.stats().accepted, emitter.stats().rejected) == (2, 1)
    assert Counter(event["id"] for request in gateway.requests for event in request)["bad"] == 1


def test_only_events_without_an_answer_are_sent_again() -> None:
    """A partial answer settles the events that it mentions."""
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


def test_an_event_that_spoils_its_request_is_isolated_by_halving() -> None:
    """If the gateway cannot read a whole request, the good events must still arrive."""
    reported: list[str] = []

    class Spoilt(FakeGateway):
        def __call__(self, body: bytes, headers: Mapping[str, str]) -> Answer:
            if b'"poison"' in body:
                self.requests.append(json.loads(body))
                return Answer(400, {}, b'{"error":{"code":"bad","message":"unreadable"}}')
            return super().__call__(body, headers)

    gateway = Spoilt()
    with make(gateway, flush_interval_s=10, on_rejected=lambda event, *_: reported.append(event.id)) as emitter:
        for number in range(9):
            emitter.emit("t", "acme", id="poison" if number == 5 else str(number))
        assert emitter.flush()

    assert reported == ["poison"]
    assert sorted(gateway.stored) == ["0", "1", "2", "3", "4", "6", "7", "8"]
    assert max(gateway.stored.values()) == 1


@pytest.mark.parametrize("status", [400, 404, 421, 502])
def test_what_a_proxy_refuses_is_sent_again(status: int) -> None:
    """nginx answers 400 to a missing Host and to HTTP at a TLS port: a whole spool was rejected for ever."""
    page = Answer(status, {"content-type": "text/html"}, b"<h1>400 Bad Request</h1>")
    gateway = FakeGateway(script=(page, page, page))
    with make(gateway, flush_interval_s=10) as emitter:
        for number in range(4):
            emitter.emit("t", "acme", id=str(number))
        assert emitter.flush()

    assert gateway.stored == dict.fromkeys("0123", 1)
    assert (emitter.stats().rejected, len(gateway.requests)) == (0, 4)


def test_a_connection_that_the_gateway_closed_while_it_was_idle_is_no_failure() -> None:
    """Who emits less than once in five seconds was told of an outage with every event."""
    listening = socket.create_server(("127.0.0.1", 0))
    closed = threading.Event()

    def serve() -> None:
        for _ in range(3):
            connection, _ = listening.accept()
            body = b""
            while not body.endswith(b"]"):
                body += connection.recv(1 << 16)
            (event,) = json.loads(body.partition(b"\r\n\r\n")[2])
            content = json.dumps({"events": [{"index": 0, "id": event["id"], "status": "accepted"}]}).encode()
            connection.sendall(b"HTTP/1.1 202 Accepted\r\nContent-Length: %d\r\n\r\n%s" % (len(content), content))
            connection.close()
            closed.set()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{listening.getsockname()[1]}"
    with Emitter(address, "tm_key", source="test", flush_interval_s=0.001) as emitter:
        for number in range(3):
            closed.clear()
            emitter.emit("t", "acme", id=str(number))
            assert emitter.flush()
            assert closed.wait(30)
        stats = emitter.stats()
    thread.join(30)
    listening.close()

    assert (stats.accepted, stats.retries, stats.last_error) == (3, 0, "")


def test_a_full_queue_that_drops_counts_and_reports() -> None:
    """No event is dropped silently."""
    gateway = FakeGateway()
    gateway.gate.clear()
    reported: list[tuple[str, str]] = []
    emitter = make(
        gateway, queue_events_max=2, when_full="drop", on_dropped=lambda event, why: reported.append((event.id, why))
    )
    for event_id in ("a", "b", "c"):
        emitter.emit("t", "acme", id=event_id)

    assert reported == [("c", "queue_full")]
    assert emitter.stats().dropped == 1
    assert conserved(emitter)

    gateway.gate.set()
    assert emitter.close()
    assert sorted(gateway.stored) == ["a", "b"]


def test_a_full_queue_that_blocks_raises_after_its_limit_and_takes_events_again_later() -> None:
    """The caller keeps the event, and the emitter does not count it as emitted."""
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


def test_close_drops_what_cannot_be_sent_in_time_and_reports_it() -> None:
    """An unreachable gateway must not keep a process from ending, and no event may vanish silently."""
    reported: list[tuple[str, str]] = []
    gateway = FakeGateway(script=(ConnectionRefusedError(),) * 10_000)
    emitter = make(
        gateway, on_dropped=lambda event, why: reported.append((event.id, why)), retry_max_s=5, retry_base_s=5
    )
    emitter.emit("t", "acme", id="a")

    assert not emitter.flush(0.05)
    assert not emitter.close(0.05)

    assert reported == [("a", "closed")]
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


def test_an_event_that_stays_undelivered_is_given_up_and_reported() -> None:
    """The number of retries is limited."""
    reported: list[str] = []
    gateway = FakeGateway(script=(ConnectionRefusedError(),) * 3)
    with make(gateway, retry_for_s=-1, on_dropped=lambda _event, why: reported.append(why)) as emitter:
        emitter.emit("t", "acme")
        assert emitter.flush()

    assert reported == ["not_delivered"]


def test_callbacks_that_raise_do_not_stop_the_sending() -> None:
    """An error in the application must not cost other events."""

    def fails(*_: object) -> None:
        raise RuntimeError("the application's")

    gateway = FakeGateway()
    with make(gateway, on_rejected=fails) as emitter:
        emitter.emit("t", "acme", {"bad": float("nan")})
        emitter.emit("t", "acme", id="good")
        assert emitter.flush()

    assert sorted(gateway.stored) == ["good"]


def test_many_threads_lose_and_repeat_nothing() -> None:
    """A threaded server shares one emitter."""
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
            emitter.emit("t", "acme", {"text": "x" * 700})
        assert emitter.flush()

    assert max(map(len, gateway.requests)) == 2
    assert emitter.stats().accepted == 20


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


def test_a_thread_that_cannot_start_is_started_by_a_later_call(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The emitter has taken the event already: if `emit` raised, the caller would emit it again under another id. The
    emitter reports the problem now and then, not at each of a million calls."""
    gateway = FakeGateway()
    emitter = make(gateway)

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        emitter.emit("t", "acme", id="first")
        emitter.emit("t", "acme", id="second")
    assert emitter.stats().pending == 2
    assert len(caplog.records) == 1

    assert emitter.close()
    assert gateway.stored == {"first": 1, "second": 1}


def test_events_whose_thread_never_starts_are_reported_as_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """No event is lost silently."""
    dropped: list[str] = []
    emitter = make(FakeGateway(), on_dropped=lambda event, reason: dropped.append(f"{event.id} {reason}"))

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    emitter.emit("t", "acme", id="first")

    assert not emitter.close()
    assert dropped == ["first closed"]
    assert conserved(emitter)


@pytest.mark.parametrize(
    "text", ["Mon, 01 Jan 2024 00:00:00 +99999999999999999999", "Mon, 01 Jan 99999999999 00:00:00 GMT", "soon", "-1"]
)
def test_an_impossible_retry_after_is_ignored(text: str) -> None:
    """A proxy may write any text; the sending thread must survive."""
    gateway = FakeGateway(script=(Answer(503, {"retry-after": text}, b""),))
    with make(gateway) as emitter:
        emitter.emit("t", "acme", id="one")

    assert gateway.stored == {"one": 1}
