"""The access client: answers come from the gateway, from memory or from the policy, and never as an exception."""

from __future__ import annotations

import asyncio
import http.server
import json
import multiprocessing
import threading
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from typing import Any

import pytest

from emitter import Access, Allowed, Answer

YES = {"allowed": True, "reason": "within_limit", "remaining": "9"}
NO = {"allowed": False, "reason": "not_in_plan", "upgrade": {"plan": "professional@4"}}
REFUSED = {"error": {"code": "invalid_input", "message": "'pso' is no feature of the catalog", "field": "feature"}}


class Gateway:
    """A transport that answers what a test says, at the time that a test says."""

    def __init__(self, answer: object = YES) -> None:
        self.answer = answer
        self.now_s = 0.0
        self.asked: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.keys: list[str | None] = []

    def post(self, path: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        assert headers["authorization"] == "Bearer tm_key"
        self.paths.append(path)
        self.keys.append(headers.get("idempotency-key"))
        self.asked.append(json.loads(body))
        if isinstance(self.answer, Exception):
            raise self.answer
        if isinstance(self.answer, Answer):
            return self.answer
        return Answer(200, {}, json.dumps(self.answer).encode())

    def access(self, **settings: Any) -> Access:
        return Access("http://unused", "tm_key", post=self.post, now_s=lambda: self.now_s, **settings)


def test_an_answer_has_the_word_of_the_gateway_and_all_of_its_answer() -> None:
    """The normal case."""
    gateway = Gateway(NO)
    found = gateway.access().check("bar", "pos")
    assert not found
    assert found == Allowed(False, "not_in_plan", NO)
    gateway.answer = YES
    assert gateway.access().check("bar", "api_calls", Decimal("2.50"), used=3)
    assert gateway.asked == [
        {"account": "bar", "feature": "pos", "quantity": "1"},
        {"account": "bar", "feature": "api_calls", "quantity": "2.50", "used": "3"},
    ]


@pytest.mark.parametrize(
    ("quantity", "text"),
    [
        pytest.param(100, "100", id="int"),
        pytest.param(0.1, "0.1", id="float is its shortest text"),
        pytest.param(Decimal("1E+3"), "1000", id="exponent"),
        pytest.param("7.25", "7.25", id="text"),
    ],
)
def test_a_quantity_is_sent_as_decimal_text(quantity: float | Decimal | str, text: str) -> None:
    gateway = Gateway()
    gateway.access().check("bar", "api_calls", quantity)
    assert gateway.asked[0]["quantity"] == text


def test_an_answer_is_used_again_for_a_second_and_then_asked_anew() -> None:
    """The cache follows the clock, and another question is another answer."""
    gateway = Gateway()
    access = gateway.access()
    for now_s in (0.0, 0.5, 1.0):
        gateway.now_s = now_s
        assert access.check("bar", "pos").age_s == now_s
    access.check("bar", "pos", 2)
    access.check("foo", "pos")
    assert len(gateway.asked) == 3
    gateway.now_s = 1.1
    gateway.answer = NO
    assert not access.check("bar", "pos")


def test_the_answers_that_are_remembered_are_bounded() -> None:
    """The answer that was asked for longest ago goes first."""
    gateway = Gateway()
    access = gateway.access(answers_max=2)
    for account in ("a", "b", "a", "c", "a", "b"):
        access.check(account, "pos")
    assert [each["account"] for each in gateway.asked] == ["a", "b", "c", "b"]


FAILURES = [
    pytest.param(ConnectionRefusedError("no"), id="refused"),
    pytest.param(TimeoutError("slow"), id="timeout"),
    pytest.param(RuntimeError("a defect"), id="transport fails oddly"),
    pytest.param(Answer(503, {}, b'{"error":{"code":"not_known_yet","message":"wait"}}'), id="503"),
    pytest.param(Answer(429, {}, b""), id="429"),
    pytest.param(Answer(200, {}, b"<html>welcome</html>"), id="2xx of something that is no gateway"),
    pytest.param(Answer(200, {}, b'{"allowed":"yes","reason":"x"}'), id="2xx with another shape"),
    pytest.param(Answer(200, {}, b"[" * 100_000), id="2xx with deep JSON"),
    pytest.param(Answer(302, {"location": "http://elsewhere"}, b""), id="redirect"),
]


@pytest.mark.parametrize("failure", FAILURES)
def test_without_the_gateway_the_policy_of_the_feature_answers(failure: object) -> None:
    """Fail-open and fail-closed, by feature; and only one caller a second waits for a gateway that is away."""
    gateway = Gateway(failure)
    access = gateway.access(on_error={"api_calls": "allow"})
    first, second = access.check("bar", "api_calls"), access.check("bar", "pos")
    assert (first.allowed, first.reason) == (True, "fallback_allow")
    assert (second.allowed, second.reason) == (False, "fallback_deny")
    assert first.problem
    assert second.problem
    assert len(gateway.asked) == 1
    gateway.now_s, gateway.answer = 1.0, YES
    assert access.check("bar", "pos") == Allowed(True, "within_limit", YES)
    assert access.check("foo", "pos").problem == ""


@pytest.mark.parametrize("failure", FAILURES)
def test_without_the_gateway_an_older_answer_stands_for_a_minute(failure: object) -> None:
    """A gateway that restarts changes no answer; one that stays away does."""
    gateway = Gateway()
    access = gateway.access()
    access.check("bar", "pos")
    gateway.answer, gateway.now_s = failure, 59.0
    stale = access.check("bar", "pos")
    assert (stale.allowed, stale.reason, stale.age_s) == (True, "within_limit", 59.0)
    assert stale.problem
    gateway.now_s = 61.0
    assert access.check("bar", "pos").reason == "fallback_deny"


def test_a_fallback_of_the_gateway_is_not_remembered() -> None:
    """The gateway may know again in a moment."""
    gateway = Gateway({"allowed": True, "reason": "fallback_allow", "fallback": True})
    access = gateway.access()
    assert access.check("bar", "pos").reason == "fallback_allow"
    gateway.answer = NO
    assert access.check("bar", "pos").reason == "not_in_plan"


def test_a_refused_question_harms_no_other(caplog: pytest.LogCaptureFixture) -> None:
    """A misspelt feature is answered by the policy, named, and says nothing of the gateway's health."""
    gateway = Gateway(Answer(400, {}, json.dumps(REFUSED).encode()))
    access = gateway.access()
    refused = access.check("bar", "pso")
    assert (refused.reason, refused.problem) == (
        "fallback_deny",
        "HTTP 400: invalid_input: feature: 'pso' is no feature of the catalog",
    )
    assert "pso" in caplog.text
    gateway.answer = YES
    assert access.check("bar", "pos")


@pytest.mark.parametrize(
    "ask",
    [
        pytest.param(lambda access: access.check(None, "pos"), id="account is None"),
        pytest.param(lambda access: access.check("bar", ["pos"]), id="feature is a list"),
        pytest.param(lambda access: access.check("bar", "pos", "many"), id="quantity is a word"),
        pytest.param(lambda access: access.check("bar", "pos", object()), id="quantity is an object"),
        pytest.param(lambda access: access.check("bar", "pos", float("nan")), id="quantity is no number"),
        pytest.param(lambda access: asyncio.run(access.check_async("bar", "pos", "many")), id="async"),
    ],
)
def test_an_invalid_question_never_raises(ask: Callable[[Access], Allowed]) -> None:
    gateway = Gateway(Answer(400, {}, json.dumps(REFUSED).encode()))
    found = ask(gateway.access())
    assert not found
    assert found.problem


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"gateway_url": "ftp://x"}, id="URL"),
        pytest.param({"on_error": {"pos": "open"}}, id="policy"),
        pytest.param({"on_error_default": "maybe"}, id="default policy"),
        pytest.param({"answers_max": 0}, id="no answers"),
        pytest.param({"connections_max": 0}, id="no connections"),
    ],
)
def test_wrong_settings_are_named_at_once(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must"):
        Access(**{"gateway_url": "http://127.0.0.1:1", "api_key": "tm_key", **settings})


async def test_who_waits_for_a_thread_when_the_client_is_closed_gets_the_policy() -> None:
    asked, answered = threading.Event(), threading.Event()

    def post(_path: str, _body: bytes, _headers: Mapping[str, str]) -> Answer:
        asked.set()
        answered.wait(30)
        return Answer(200, {}, json.dumps(YES).encode())

    access = Access("http://unused", "tm_key", post=post, connections_max=1, on_error={"pos": "allow"})
    first = asyncio.ensure_future(access.check_async("bar", "api_calls"))
    await asyncio.to_thread(asked.wait, 30)
    names = ("pos", "api_calls")
    waiting = [asyncio.ensure_future(access.check_async("bar", name, 2)) for name in names]
    ends = [asyncio.ensure_future(end("hold_1")) for end in (access.use_async, access.release_async)]
    cancelled = asyncio.ensure_future(access.check_async("bar", "sso"))
    await asyncio.sleep(0)
    cancelled.cancel()
    access.close()
    found = await asyncio.gather(*waiting)
    answered.set()

    assert [(each.allowed, each.reason) for each in found] == [(True, "fallback_allow"), (False, "fallback_deny")]
    assert all("closed" in each.problem for each in found)
    assert await asyncio.gather(*ends) == [False, False]
    assert await first == Allowed(True, "within_limit", YES)
    with pytest.raises(asyncio.CancelledError):
        await cancelled


def test_a_hold_is_taken_anew_each_time_and_ended_by_its_id() -> None:
    """A hold is for one caller: it comes from no memory, and its request has a key of its own."""
    held = {"allowed": True, "reason": "within_limit", "hold": {"id": "hold_1", "state": "open"}}
    gateway = Gateway(held)
    access = gateway.access()
    access.check("bar", "api_calls", 5)
    taken = [access.check("bar", "api_calls", 5, hold_s=60) for _ in range(2)]
    ended = access.use(taken[0].hold, Decimal("2.5")), access.use(taken[0].hold), access.release("a/b")
    assert [each.hold for each in taken] == ["hold_1", "hold_1"]
    assert ended == (True, True, True)
    wanted = {"account": "bar", "feature": "api_calls", "quantity": "5"}
    assert gateway.asked == [wanted, *[{**wanted, "hold_s": 60}] * 2, {"quantity": "2.5"}, {}, {}]
    assert gateway.paths[3:] == [f"/v1/access/holds/hold_1/{'use'}"] * 2 + ["/v1/access/holds/a%2Fb/release"]
    assert len({*gateway.keys}) == 3


def test_without_the_gateway_the_policy_answers_who_asks_for_a_hold() -> None:
    """An older yes would be one for all callers."""
    gateway = Gateway()
    access = gateway.access(on_error={"open": "allow"})
    for feature in ("api_calls", "open"):
        assert access.check("bar", feature, 5).reason == "within_limit"
    gateway.answer = ConnectionRefusedError("gone")
    found = [access.check("bar", feature, 5, hold_s=60) for feature in ("api_calls", "open") for _ in range(2)]

    assert [(each.reason, each.hold) for each in found] == [("fallback_deny", "")] * 2 + [("fallback_allow", "")] * 2
    assert access.check("bar", "api_calls", 5).reason == "within_limit"


@pytest.mark.parametrize("failure", [each for each in FAILURES if "2xx" not in str(each.id)])
def test_an_end_of_a_hold_that_fails_never_raises(failure: object, caplog: pytest.LogCaptureFixture) -> None:
    """The hold ends by itself."""
    access = Gateway(failure).access()
    assert not access.use("hold_1")
    assert not asyncio.run(access.release_async("hold_1"))
    assert "a hold could not be ended" in caplog.text


class Handler(http.server.BaseHTTPRequestHandler):
    """A gateway over real HTTP that closes each connection after two requests without saying so."""

    protocol_version = "HTTP/1.1"
    requests = 0

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        body = json.dumps({**YES, "path": self.path}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.requests += 1
        self.close_connection = self.requests == 2

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def gateway_url() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_a_connection_that_the_gateway_closed_is_replaced(gateway_url: str) -> None:
    """Many threads and asyncio code share the connections; none sees a closed one as a failure."""
    with Access(gateway_url, "tm_key", answer_age_max_s=-1.0, connections_max=3) as access:
        found = [access.check("bar", "pos") for _ in range(7)]

        async def side_by_side() -> list[Allowed]:
            return await asyncio.gather(*(access.check_async("bar", "pos", number) for number in range(20)))

        found += asyncio.run(side_by_side())
    assert [each.problem for each in found] == [""] * 27
    assert {each.answer["path"] for each in found} == {"/v1/access/check"}


def _in_child(access: Access, answers: Any) -> None:
    answers.put(access.check("bar", "pos", 2).reason)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_of_a_fork_has_connections_of_its_own(gateway_url: str) -> None:
    """Two processes on one connection would read each other's answers."""
    fork = multiprocessing.get_context("fork")
    with Access(gateway_url, "tm_key") as access:
        assert access.check("bar", "pos").problem == ""
        answers = fork.Queue()
        child = fork.Process(target=_in_child, args=(access, answers))
        child.start()
        assert answers.get(timeout=30) == "within_limit"
        child.join(30)
        assert child.exitcode == 0
        assert access.check("bar", "pos", 3).problem == ""
