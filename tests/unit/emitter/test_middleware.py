"""The middleware: one event for each request, whatever the application and the function for its usage do."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Any, Final
from urllib.parse import urlsplit
from wsgiref.handlers import SimpleHandler
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import httpx
import pytest
from fastapi import FastAPI
from fastapi import Request as FastRequest
from starlette.responses import StreamingResponse

from emitter import Emitter, asgi, wsgi
from emitter.request_events import Request, Usage, UsageOf
from emitter.testing import FakeEmitter
from tests.worlds.emitter import FakeGateway, make


def of_the_key(request: Request, status: int) -> Usage | None:
    """One call for each answer that is no refusal."""
    if status == 401:
        return None
    return "api.call", request.headers["x-account"], {"path": request.path, "status": status}


class Served:
    """An application behind the middleware of either kind, an emitter, and what the gateway received."""

    def __init__(self, kind: str, usage: UsageOf = of_the_key, gateway: FakeGateway | None = None, **more: Any) -> None:
        self.kind = kind
        self.gateway = gateway or FakeGateway()
        self.emitter: Emitter = make(self.gateway, when_full="block", block_timeout_s=30, **more)
        self.usage = usage

    def get(self, path: str = "/", status: int = 200, headers: Mapping[str, str] | None = None, **more: Any) -> int:
        """Ask for a path; the application answers with that status, or fails if it is 0."""
        headers = {"x-account": "acme", **(headers or {})}
        if self.kind == "asgi":
            return asyncio.run(self._asgi(path, status, headers, **more))
        return self._wsgi(path, status, headers, **more)

    async def _asgi(self, path: str, status: int, headers: Mapping[str, str], **more: Any) -> int:
        async def app(_scope: asgi.Scope, _receive: asgi.Receive, send: asgi.Send) -> None:
            if not status:
                raise RuntimeError("the application's")
            await send({"type": "http.response.start", "status": status, "headers": []})
            await send({"type": "http.response.body", "body": b"a", "more_body": True})
            await send({"type": "http.response.body", "body": b"b"})

        wrapped = asgi.UsageMiddleware(app, self.emitter, self.usage, **more)
        transport = httpx.ASGITransport(wrapped, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return (await client.get(path, headers=headers)).status_code

    def _wsgi(self, path: str, status: int, headers: Mapping[str, str], **more: Any) -> int:
        def app(_environ: wsgi.Environment, start_response: Callable[..., Any]) -> Iterable[bytes]:
            if not status:
                raise RuntimeError("the application's")
            start_response(f"{status} As told", [("Content-Type", "text/plain")])
            return [b"a", b"b"]

        target = urlsplit(path)
        environ = {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in headers.items()}
        environ |= {"PATH_INFO": target.path.encode().decode("latin-1"), "QUERY_STRING": target.query}
        answer = answered(wsgi.UsageMiddleware(app, self.emitter, self.usage, **more), environ)
        return int(answer.split()[1])

    def events(self) -> list[dict[str, Any]]:
        """What arrived at the gateway."""
        assert self.emitter.close()
        return [event for request in self.gateway.requests for event in request]


def answered(app: Callable[..., Iterable[bytes]], environ: wsgi.Environment) -> bytes:
    """What an application writes to its server, which logs its exceptions."""
    setup_testing_defaults(environ)
    output = io.BytesIO()
    SimpleHandler(io.BytesIO(), output, io.StringIO(), environ).run(app)
    return output.getvalue()


@pytest.fixture(params=["asgi", "wsgi"])
def kind(request: pytest.FixtureRequest) -> str:
    """Both kinds of middleware keep the same promises."""
    return str(request.param)


@pytest.mark.parametrize("status", [200, 404, 503, 0])
def test_a_request_is_one_event_with_its_status(kind: str, status: int) -> None:
    """An application that fails before it answers has the status 500."""
    served = Served(kind)
    served.get("/v1/ö?q=1", status)

    (event,) = served.events()
    assert (event["type"], event["subject"]) == ("api.call", "acme")
    assert event["data"] == {"path": "/v1/ö", "status": status or 500}


def test_a_request_without_usage_is_no_event(kind: str) -> None:
    """The function decides."""
    served = Served(kind)
    served.get(status=401)

    assert served.events() == []


def test_a_function_that_raises_costs_its_event_only(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """The customer has an answer already."""
    served = Served(kind, lambda request, _: ("t", request.headers["x-none"], None))

    assert served.get("/broken") == 200
    assert served.events() == []
    assert "GET /broken is not counted: KeyError('x-none')" in caplog.text


def test_an_account_that_is_none_costs_its_event_only(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """As an exception of the function."""
    served = Served(kind, lambda *_: ("t", "", None))

    assert served.get() == 200
    assert "account must have 1 to 256 characters" in caplog.text


def test_a_full_queue_does_not_hold_up_a_request(kind: str) -> None:
    """Although the emitter is set to wait 30 s."""
    dropped: list[str] = []
    gateway = FakeGateway()
    gateway.gate.clear()
    served = Served(kind, gateway=gateway, queue_events_max=1, on_dropped=lambda _, why: dropped.append(why))

    assert [served.get(), served.get()] == [200, 200]
    assert dropped == ["queue_full"]
    gateway.gate.set()
    served.emitter.close()


NAMED = ("idempotency-key", "x-request-id")
AGAIN: Final = [
    pytest.param([{"idempotency-key": "k"}] * 2, "/", 1, id="a repetition"),
    pytest.param([{"x-request-id": "r"}] * 2, "/", 1, id="a repetition by the load balancer"),
    pytest.param([{"idempotency-key": "k", "x-request-id": n} for n in "12"], "/", 1, id="the first header counts"),
    pytest.param([{"idempotency-key": n} for n in "12"], "/", 2, id="two operations"),
    pytest.param([{}, {}], "/", 2, id="no header"),
    pytest.param([{"idempotency-key": " "}] * 2, "/", 2, id="an empty header"),
    pytest.param([{"idempotency-key": "k" * 4_000}] * 2, "/", 1, id="a long key"),
]


@pytest.mark.parametrize(("headers", "path", "ids"), AGAIN)
def test_a_repeated_request_has_the_same_id(kind: str, headers: list[dict[str, str]], path: str, ids: int) -> None:
    """Two events under one id are counted once."""
    served = Served(kind)
    for each in headers:
        served.get(path, headers=each, id_headers=NAMED)

    events = served.events()
    assert len(events) == 2
    assert len({event["id"] for event in events}) == ids


def test_a_key_that_is_used_for_two_paths_is_two_operations(kind: str) -> None:
    """Clients number their operations for each path."""
    served = Served(kind)
    for path in ("/a", "/b", "/b?page=2"):
        served.get(path, headers={"idempotency-key": "1"}, id_headers=NAMED)

    assert len({event["id"] for event in served.events()}) == 3


def test_no_header_is_trusted_if_none_is_named(kind: str) -> None:
    """Otherwise a customer who repeats a key would pay once."""
    served = Served(kind)
    for _ in range(2):
        served.get(headers={"idempotency-key": "free"})

    assert len({event["id"] for event in served.events()}) == 2


def test_both_kinds_give_a_request_the_same_id() -> None:
    """A service that moves from WSGI to ASGI doubles nothing."""
    ids = set[str]()
    for kind in ("asgi", "wsgi"):
        served = Served(kind)
        served.get("/v1/ö?a=b", headers={"idempotency-key": "k"}, id_headers=NAMED)
        ids.update(event["id"] for event in served.events())

    assert len(ids) == 1


async def test_the_event_is_emitted_after_the_last_byte_and_before_background_work() -> None:
    """The customer waits for neither."""
    order: list[str] = []

    async def app(_scope: asgi.Scope, _receive: asgi.Receive, send: asgi.Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})
        order.append("background")

    async def send(message: asgi.Message) -> None:
        order.append(message["type"])

    def usage(_request: Request, _status: int) -> None:
        order.append("usage")

    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    receive: Callable[[], Awaitable[asgi.Message]] = asyncio.Event().wait  # type: ignore[assignment]  # never called
    await asgi.UsageMiddleware(app, make(FakeGateway()), usage)(scope, receive, send)

    assert order == ["http.response.start", "http.response.body", "usage", "background"]


async def test_what_is_no_http_request_passes_through() -> None:
    """WebSockets and the lifespan."""
    seen: list[str] = []

    async def app(scope: asgi.Scope, _receive: asgi.Receive, _send: asgi.Send) -> None:
        seen.append(scope["type"])

    served = Served("asgi")
    await asgi.UsageMiddleware(app, served.emitter, of_the_key)({"type": "lifespan"}, None, None)  # type: ignore[arg-type]  # never called

    assert seen == ["lifespan"]
    assert served.events() == []


async def test_fastapi_tells_the_account_and_the_route_through_the_scope() -> None:
    """The example of the documentation."""
    served = Served("asgi")
    app = FastAPI()

    @app.get("/items/{item}")
    async def item(item: str, request: FastRequest) -> StreamingResponse:
        request.state.account = f"owner of {item}"
        return StreamingResponse(iter(["a", "b"]))

    def usage(request: Request, status: int) -> Usage | None:
        account = request.scope.get("state", {}).get("account")
        return ("api.call", account, {"route": request.scope["route"].path, "status": status}) if account else None

    app.add_middleware(asgi.UsageMiddleware, emitter=served.emitter, usage=usage)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        assert (await client.get("/items/7")).text == "ab"
        assert (await client.get("/unknown")).status_code == 404

    (event,) = await asyncio.to_thread(served.events)
    assert (event["subject"], event["data"]) == ("owner of 7", {"route": "/items/{item}", "status": 200})


def test_the_wsgi_middleware_keeps_to_the_protocol() -> None:
    """Judged by the standard library's validator. The application streams, and writes to its environment."""
    served = Served("wsgi", lambda request, status: ("t", request.scope["my.account"], {"status": status}))

    def app(environ: wsgi.Environment, start_response: Callable[..., Any]) -> Iterator[bytes]:
        environ["my.account"] = "acme"
        start_response("201 Created", [("Content-Type", "text/plain")])
        yield b"a"

    wrapped = validator(wsgi.UsageMiddleware(validator(app), served.emitter, served.usage))

    assert answered(wrapped, {"QUERY_STRING": ""}).endswith(b"a")
    (event,) = served.events()
    assert event["data"] == {"status": 201}


def test_an_application_that_fails_after_it_began_its_answer_has_the_status_500() -> None:
    """The server has sent nothing yet, and answers 500."""
    seen: list[int] = []

    def usage(_request: Any, status: int) -> None:
        seen.append(status)

    def app(_environ: wsgi.Environment, start_response: Callable[..., Any]) -> Iterable[bytes]:
        start_response("200 OK", [])
        raise RuntimeError("the template failed")

    environ: dict[str, Any] = {}
    setup_testing_defaults(environ)
    with FakeEmitter() as emitter, pytest.raises(RuntimeError):
        wsgi.UsageMiddleware(app, emitter, usage)(environ, lambda *_: None)

    assert seen == [500]
