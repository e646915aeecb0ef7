"""The ASGI application. Every call goes through the same steps, in Stripe's order:

route → API key → due jobs → parameters → fault before execution → rate limit → Idempotency-Key → lock → execution and
its record in one transaction → fault after the commit → answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec
from starlette.applications import Starlette
from starlette.types import ASGIApp, Receive, Scope, Send

from stripe_simulator import admin
from stripe_simulator.authentication import livemode_of
from stripe_simulator.bodies import Raw, parse_form, parse_json
from stripe_simulator.contract import shapes
from stripe_simulator.contract.parameters import coerce
from stripe_simulator.errors import ApiError, conflict, forbidden, rate_limited, server_error, unauthorized
from stripe_simulator.expansion import expand
from stripe_simulator.faults import Fault, FaultKind
from stripe_simulator.idempotency import StoredAnswer
from stripe_simulator.mode import Call, Mode, Route
from stripe_simulator.registry import ROUTES
from stripe_simulator.routing import Router
from stripe_simulator.simulator import Simulator
from stripe_simulator.store import Object

BODY_BYTES_MAX: Final = 1 << 20


class Answer(NamedTuple):
    """What is sent."""

    status: int
    body: Any
    headers: Mapping[str, str] = {}


class _LostAnswer(Exception):
    """No answer: the connection stays open until the client gives up (at most `hold_s`), then it is cut."""

    def __init__(self, hold_s: float) -> None:
        super().__init__("the answer is lost")
        self.hold_s = hold_s


class _Request(NamedTuple):
    """One request after its headers are read."""

    method: str
    path: str
    query: str
    headers: Mapping[bytes, bytes]
    id: str
    receive: Receive

    def header(self, name: bytes) -> str:
        return self.headers.get(name, b"").decode("latin-1")


def create_app(simulator: Simulator, routes: Sequence[Route] = ROUTES) -> ASGIApp:
    """The application of one simulator, with the admin routes under `/_simulator/`."""
    api = _Api(simulator, Router(routes))
    pages = Starlette(routes=admin.routes(simulator))
    pages.router.redirect_slashes = False

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not scope["path"].startswith("/_simulator/"):
            await api.handle(scope, receive, send)
        else:
            await pages(scope, receive, send)

    return app


class _Api:
    def __init__(self, simulator: Simulator, router: Router) -> None:
        self._simulator = simulator
        self._router = router

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request under `/v1` or `/v2`."""
        request = _Request(
            scope["method"],
            scope["path"],
            scope["query_string"].decode("latin-1"),
            dict(scope["headers"]),
            self._simulator.next_request_id(),
            receive,
        )
        key = request.header(b"idempotency-key") if request.method == "POST" else ""
        try:
            answer = await self._answer(request, key)
        except ApiError as error:
            answer = Answer(error.status, error.body(), error.headers)
        except _LostAnswer as lost:
            await _lose(lost.hold_s, receive, send)
            return
        except Exception as error:
            # The server answers 500 in its own form; the tests look here.
            self._simulator.violations.append(f"{request.method} {request.path} {error!r}")
            raise
        body = msgspec.json.encode(answer.body)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"request-id", request.id.encode()),
            *((name.lower().encode(), value.encode()) for name, value in answer.headers.items()),
        ]
        if version := request.headers.get(b"stripe-version"):
            headers.append((b"stripe-version", version))
        if key and key.isprintable() and key.isascii():
            headers.append((b"idempotency-key", key.encode()))
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, request: _Request, key: str) -> Answer:
        simulator = self._simulator
        route, ids = self._router.find(request.method, request.path)
        simulator.calls[route.name] += 1
        authorization = request.header(b"authorization")
        if route.authenticate:
            mode, key = route.authenticate((simulator.live, simulator.test), authorization), ""
        else:
            mode = simulator.mode(livemode_of(authorization, simulator.settings.keys))
        livemode = mode.livemode
        simulator.catch_up()
        raw = await _raw(request)
        params = coerce(route.name, raw, route.takes)
        fault = simulator.faults.take(request.method, request.path, params, simulator.now_ms())
        _fail_before(fault, simulator.settings.hold_s)
        simulator.limits.check(livemode, request.path, simulator.now_ms())
        asked = [request.method, request.path, raw]
        if key and (stored := simulator.idempotency.replay(livemode, key, asked, simulator.now_ms())):
            headers = {"Idempotent-Replayed": "true", "Original-Request": stored.request_id}
            return Answer(stored.status, stored.body, headers)
        rejection = fault.reason or "meter_event_invalid_value" if fault and fault.kind is FaultKind.REJECTED else ""
        call = Call(request.path, params, ids, rejection)
        name = route.lock(mode, call) if route.lock else ()
        if name:
            simulator.limits.lock(name)
        simulator.idempotency.begin(livemode, key)
        try:
            if name and simulator.settings.latency_s:
                await asyncio.sleep(simulator.settings.latency_s)
            answer = self._execute(mode, route, call, fault, request.id, key, asked)
        finally:
            simulator.idempotency.end(livemode, key)
            simulator.limits.unlock(name)
        if fault and fault.kind is FaultKind.TIMEOUT_AFTER_COMMIT:
            raise _LostAnswer(simulator.settings.hold_s)
        if fault and fault.kind is FaultKind.CONNECTION_DROPPED_AFTER_COMMIT:
            raise _LostAnswer(0)
        return answer

    def _execute(
        self, mode: Mode, route: Route, call: Call, fault: Fault | None, request_id: str, key: str, asked: list[Any]
    ) -> Answer:
        """Run the route. Its changes and the stored answer are one transaction."""

        def store(answer: Answer) -> Answer:
            if key:
                stored = StoredAnswer(asked, answer.status, answer.body, request_id, self._simulator.now_ms())
                self._simulator.idempotency.store(mode.livemode, key, stored)
            return answer

        mode.store.request = {"id": request_id, "idempotency_key": key or None}
        try:
            with mode.journal.transaction():
                if fault and fault.kind is FaultKind.SERVER_ERROR:
                    raise server_error()
                try:
                    body = self._run(mode, route, call)
                except ApiError as error:
                    if not error.kept:
                        raise
                    return store(Answer(error.status, error.body(), error.headers))
                if fault and fault.kind is FaultKind.SERVER_ERROR_AFTER_COMMIT:
                    return store(Answer(500, server_error().body()))
                return store(Answer(200, body))
        except ApiError as error:
            answer = Answer(error.status, error.body(), error.headers)
            return store(answer) if error.stored else answer
        finally:
            mode.store.request = {"id": None, "idempotency_key": None}

    def _run(self, mode: Mode, route: Route, call: Call) -> Object:
        body = expand(route.name, route.run(mode, call), call.params.get("expand") or (), mode.store.find)
        if self._simulator.settings.check_responses:
            self._simulator.checked.add(route.name)
            if problems := shapes.problems(route.name, body):
                self._simulator.violations += [f"{route.name} {problem}" for problem in problems]
                message = f"The response differs from Stripe's shape: {problems}"
                raise ApiError(500, message, kind="api_error", stored=False)
        return body


async def _raw(request: _Request) -> Raw:
    """The unchecked parameters. GET and DELETE have them in the query, POST in the body."""
    if request.method != "POST":
        return parse_form(request.query)
    body = bytearray()
    more = True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise _LostAnswer(0)
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > BODY_BYTES_MAX:
            raise ApiError(413, "Request body too large.")
    if request.path.startswith("/v2/"):
        return parse_json(bytes(body))
    try:
        return parse_form(body.decode("ascii"))
    except UnicodeDecodeError as error:
        raise ApiError(400, "Invalid request body: it is not form-encoded.") from error


def _fail_before(fault: Fault | None, hold_s: float) -> None:
    """Apply a fault that happens before execution, so that nothing is stored. A 500 is executed and stored."""
    if fault is None:
        return
    match fault.kind:
        case FaultKind.RATE_LIMITED:
            raise rate_limited(fault.reason or "endpoint-rate")
        case FaultKind.CONFLICT:
            raise conflict()
        case FaultKind.UNAUTHORIZED:
            raise unauthorized("Expired API Key provided.")
        case FaultKind.FORBIDDEN:
            raise forbidden()
        case FaultKind.TIMEOUT:
            raise _LostAnswer(hold_s)
        case FaultKind.CONNECTION_DROPPED:
            raise _LostAnswer(0)


async def _lose(hold_s: float, receive: Receive, send: Send) -> None:
    """Wait, then send half of a response and return. The server then cuts the connection."""
    if hold_s:
        try:
            async with asyncio.timeout(hold_s):
                while (await receive())["type"] != "http.disconnect":
                    pass
        except TimeoutError:
            pass
    headers = [(b"content-length", b"1000"), (b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"{", "more_body": True})
