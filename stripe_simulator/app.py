"""The ASGI application. Every call goes through the same steps, in Stripe's order:

route → API key → due jobs → parameters → fault before execution → rate limit → Idempotency-Key → lock → execution and
its record in one transaction → fault after the commit → answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import ASGIApp, Receive, Scope, Send

from stripe_simulator import admin
from stripe_simulator.admission import livemode_of, store_answer, stored_answer
from stripe_simulator.contract.parameters import BODY_BYTES_MAX, Raw, coerce, parse_form, parse_json
from stripe_simulator.errors import ApiError, conflict, rate_limited, unauthorized
from stripe_simulator.expansion import expand
from stripe_simulator.faults import Fault, FaultKind
from stripe_simulator.mode import Call, Mode, Route
from stripe_simulator.pages import hosted, operator
from stripe_simulator.registry import ROUTES, Router
from stripe_simulator.simulator import Simulator
from stripe_simulator.store import Object


class _Answer(NamedTuple):
    status: int
    body: Any
    headers: Mapping[str, str] = {}

    @classmethod
    def of(cls, error: ApiError) -> _Answer:
        return cls(error.status, {"error": error.details()}, error.headers)


class _LostAnswer(Exception):
    """No answer: the connection stays open until the client gives up (at most `hold_s`), then it is cut."""

    def __init__(self, hold_s: float) -> None:
        super().__init__("the answer is lost")
        self.hold_s = hold_s


def create_app(simulator: Simulator, routes: Sequence[Route] = ROUTES) -> ASGIApp:
    """The application of one simulator, with the admin routes and the pages under `/_simulator/`."""
    under = [*admin.routes(simulator), *hosted.routes(simulator), *operator.routes(simulator)]
    pages, api = Starlette(routes=[Mount("/_simulator", routes=under)]), _Api(simulator, Router(routes))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        # A general router in front of the API costs a seventh of a request.
        is_page = scope["type"] != "http" or scope["path"].startswith("/_simulator/")
        await (pages if is_page else api)(scope, receive, send)

    return app


class _Api:
    """The routes under `/v1` and `/v2`."""

    def __init__(self, simulator: Simulator, router: Router) -> None:
        self._simulator = simulator
        self._router = router
        self._requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._requests += 1
        request_id = f"req_{self._requests:014d}"
        received = {name: value.decode("latin-1") for name, value in scope["headers"]}
        key = received.get(b"idempotency-key", "") if scope["method"] == "POST" else ""
        try:
            answer = await self._answer(scope, receive, received.get(b"authorization", ""), request_id, key)
        except ApiError as error:
            answer = _Answer.of(error)
        except _LostAnswer as lost:
            await _lose(lost.hold_s, receive, send)
            return
        except Exception as error:
            # The server answers 500 in its own form; the tests look here.
            self._simulator.violations.append(f"{scope['method']} {scope['path']} {error!r}")
            raise
        body = msgspec.json.encode(answer.body)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), "Request-Id": request_id}
        headers |= answer.headers
        if version := received.get(b"stripe-version"):
            headers["Stripe-Version"] = version
        if key and key.isprintable() and key.isascii():
            headers["Idempotency-Key"] = key
        encoded = [(name.lower().encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": answer.status, "headers": encoded})
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, scope: Scope, receive: Receive, authorization: str, request_id: str, key: str) -> _Answer:
        simulator, method, path = self._simulator, scope["method"], scope["path"]
        route, ids = self._router.find(method, path)
        if route.authenticate:
            mode, key = route.authenticate((simulator.live, simulator.test), authorization), ""
        else:
            mode = simulator.mode(livemode_of(authorization))
        simulator.catch_up()
        raw = await _raw(scope, receive)
        params = coerce(route.name, raw, route.takes)
        fault = simulator.faults.take(method, path, params, simulator.now_ms())
        _fail_before(fault, simulator.settings.hold_s)
        simulator.limits.check(mode.livemode, path, simulator.now_ms())
        asked = [method, path, raw]
        if key and (stored := stored_answer(mode, key, asked)):
            headers = {"Idempotent-Replayed": "true", "Original-Request": stored["request"]}
            return _Answer(stored["status"], stored["body"], headers)
        rejection = fault.reason or "meter_event_invalid_value" if fault and fault.kind is FaultKind.REJECTED else ""
        call = Call(path, params, ids, rejection)
        name = route.lock(mode, call) if route.lock else ()
        if name in mode.running:
            raise conflict()
        running = {key, name} - {"", ()}
        mode.running |= running
        try:
            if name and simulator.settings.latency_s:
                await asyncio.sleep(simulator.settings.latency_s)
            answer = self._execute(mode, route, call, fault, request_id, key, asked)
        finally:
            mode.running -= running
        if fault and fault.kind is FaultKind.TIMEOUT_AFTER_COMMIT:
            raise _LostAnswer(simulator.settings.hold_s)
        if fault and fault.kind is FaultKind.CONNECTION_DROPPED_AFTER_COMMIT:
            raise _LostAnswer(0)
        return answer

    def _execute(
        self, mode: Mode, route: Route, call: Call, fault: Fault | None, request_id: str, key: str, asked: list[Any]
    ) -> _Answer:
        """Run the route. Its changes and the stored answer are one transaction."""

        def store(answer: _Answer) -> _Answer:
            if key:
                store_answer(mode, key, asked, answer.status, answer.body, request_id)
            return answer

        mode.store.request = {"id": request_id, "idempotency_key": key or None}
        try:
            with mode.journal.transaction():
                if fault and fault.kind is FaultKind.SERVER_ERROR:
                    raise _server_error()
                try:
                    answer = _Answer(200, self._run(mode, route, call))
                except ApiError as error:
                    if not error.kept:
                        raise
                    return store(_Answer.of(error))
                if fault and fault.kind is FaultKind.SERVER_ERROR_AFTER_COMMIT:
                    answer = _Answer.of(_server_error())
                return store(answer)
        except ApiError as error:
            answer = _Answer.of(error)
            return store(answer) if error.stored else answer
        finally:
            mode.store.request = {"id": None, "idempotency_key": None}

    def _run(self, mode: Mode, route: Route, call: Call) -> Object:
        simulator = self._simulator
        body = expand(route.name, route.run(mode, call), call.params.get("expand") or (), mode.store.find)
        if simulator.check:
            simulator.checked.add(route.name)
            if problems := simulator.check(route.name, body):
                simulator.violations += [f"{route.name} {problem}" for problem in problems]
                message = f"The response differs from Stripe's shape: {problems}"
                raise ApiError(500, message, kind="api_error", stored=False)
        return body


def _server_error() -> ApiError:
    return ApiError(500, "An unknown error occurred", kind="api_error")


async def _raw(scope: Scope, receive: Receive) -> Raw:
    """The unchecked parameters. GET and DELETE have them in the query, POST in the body."""
    if scope["method"] != "POST":
        return parse_form(scope["query_string"].decode("latin-1"))
    body, more = bytearray(), True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _LostAnswer(0)
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > BODY_BYTES_MAX:
            raise ApiError(413, "Request body too large.")
    if scope["path"].startswith("/v2/"):
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
            raise ApiError(403, "The provided key does not have the required permissions for this endpoint.")
        case FaultKind.TIMEOUT:
            raise _LostAnswer(hold_s)
        case FaultKind.CONNECTION_DROPPED:
            raise _LostAnswer(0)


async def _lose(hold_s: float, receive: Receive, send: Send) -> None:
    """Wait, then send half of a response and return. The server then cuts the connection."""
    with suppress(TimeoutError):
        async with asyncio.timeout(hold_s):
            while hold_s and (await receive())["type"] != "http.disconnect":
                pass
    headers = [(b"content-length", b"1000"), (b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"{", "more_body": True})
