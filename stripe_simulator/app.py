"""The ASGI application. Every call goes through the same steps, in Stripe's order:

API key → parameters → fault before execution → Idempotency-Key → lock → execution and its record in one transaction →
fault after the commit → answer.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
from collections.abc import Callable
from typing import NamedTuple

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from stripe_simulator import admin, core_events, customers, forms, meters
from stripe_simulator.errors import (
    ApiError,
    conflict,
    forbidden,
    idempotency_key_in_use,
    idempotency_mismatch,
    rate_limited,
    server_error,
    unauthorized,
)
from stripe_simulator.faults import Fault, FaultKind
from stripe_simulator.forms import Params, Spec
from stripe_simulator.simulator import IDEMPOTENCY_WINDOW_MS, Simulator

BODY_BYTES_MAX = 1 << 20
IDEMPOTENCY_KEY_CHARACTERS_MAX = 255

_KEY = re.compile(r"^(sk|rk)_(test|live)_[A-Za-z0-9_]{1,200}$")


class Call(NamedTuple):
    """One call with a valid API key. `target` is the id in the path; `rejection` is an error code from a fault."""

    livemode: bool
    params: Params
    target: str
    rejection: str = ""


class Endpoint(NamedTuple):
    """A route: its parameters, its function, and whether it locks the meter and customer during execution."""

    method: str
    path: str
    spec: Spec
    run: Callable[[Simulator, Call], dict[str, object]]
    locks: bool = False


class LostAnswer(Response):
    """No answer: the connection stays open until the client gives up (at most `hold_s`), then it is cut."""

    def __init__(self, hold_s: float) -> None:
        super().__init__()
        self.hold_s = hold_s

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Wait, then send half of a response and return. The server then cuts the connection."""
        if self.hold_s:
            try:
                async with asyncio.timeout(self.hold_s):
                    while (await receive())["type"] != "http.disconnect":
                        pass
            except TimeoutError:
                pass
        headers = [(b"content-length", b"1000"), (b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"{", "more_body": True})


ENDPOINTS = (
    Endpoint("GET", "/v1/account", meters.NOTHING, lambda s, _: customers.account(s)),
    Endpoint("POST", "/v1/customers", customers.CREATE, lambda s, c: customers.create(s, c.livemode, c.params)),
    Endpoint("GET", "/v1/customers", customers.LIST, lambda s, c: customers.list_all(s, c.livemode, c.params)),
    Endpoint("GET", "/v1/customers/{id}", meters.NOTHING, lambda s, c: customers.retrieve(s, c.livemode, c.target)),
    Endpoint("POST", "/v1/billing/meters", meters.CREATE, lambda s, c: meters.create(s, c.livemode, c.params)),
    Endpoint("GET", "/v1/billing/meters", meters.LIST, lambda s, c: meters.list_all(s, c.livemode, c.params)),
    Endpoint("GET", "/v1/billing/meters/{id}", meters.NOTHING, lambda s, c: meters.retrieve(s, c.livemode, c.target)),
    Endpoint(
        "POST",
        "/v1/billing/meters/{id}",
        meters.UPDATE,
        lambda s, c: meters.update(s, c.livemode, c.target, c.params),
    ),
    Endpoint(
        "POST",
        "/v1/billing/meters/{id}/deactivate",
        meters.NOTHING,
        lambda s, c: meters.set_active(s, c.livemode, c.target, False),
    ),
    Endpoint(
        "POST",
        "/v1/billing/meters/{id}/reactivate",
        meters.NOTHING,
        lambda s, c: meters.set_active(s, c.livemode, c.target, True),
    ),
    Endpoint(
        "GET",
        "/v1/billing/meters/{id}/event_summaries",
        meters.SUMMARIES,
        lambda s, c: meters.summaries(s, c.livemode, c.target, c.params),
    ),
    Endpoint(
        "POST",
        "/v1/billing/meter_events",
        meters.EVENT,
        lambda s, c: meters.create_event(s, c.livemode, c.params, c.rejection),
        locks=True,
    ),
    Endpoint("GET", "/v2/core/events", core_events.LIST, lambda s, c: core_events.list_all(s, c.livemode, c.params)),
    Endpoint("GET", "/v2/core/events/{id}", meters.NOTHING, lambda s, c: core_events.retrieve(s, c.livemode, c.target)),
)


def create_app(simulator: Simulator) -> Starlette:
    """The application of one simulator, with the admin routes under `/_simulator/`."""
    routes = [Route(endpoint.path, _handler(simulator, endpoint), methods=[endpoint.method]) for endpoint in ENDPOINTS]
    app = Starlette(routes=[*routes, *admin.routes(simulator)])
    app.router.redirect_slashes = False
    app.add_exception_handler(404, _unrecognized)
    app.add_exception_handler(405, _unrecognized)
    return app


async def _unrecognized(request: Request, _error: Exception) -> Response:
    message = f"Unrecognized request URL ({request.method}: {request.url.path})."
    return JSONResponse(ApiError(404, message).body(), status_code=404)


def _handler(simulator: Simulator, endpoint: Endpoint) -> Callable[[Request], object]:
    running: set[tuple[bool, str]] = set()

    async def handle(request: Request) -> Response:
        request_id = simulator.next_request_id()
        name = f"{endpoint.method} {endpoint.path}"
        simulator.calls[name] = simulator.calls.get(name, 0) + 1
        key = request.headers.get("idempotency-key", "") if endpoint.method == "POST" else ""
        try:
            response = await _answer(simulator, endpoint, request, key, request_id, running)
        except ApiError as error:
            response = JSONResponse(error.body(), status_code=error.status, headers=error.headers)
        response.headers["Request-Id"] = request_id
        if version := request.headers.get("stripe-version"):
            response.headers["Stripe-Version"] = version
        if key and key.isprintable() and key.isascii():
            response.headers["Idempotency-Key"] = key
        return response

    return handle


async def _answer(
    simulator: Simulator,
    endpoint: Endpoint,
    request: Request,
    key: str,
    request_id: str,
    running: set[tuple[bool, str]],
) -> Response:
    livemode = _livemode(simulator, request)
    params = await _params(request)
    forms.check(params, endpoint.spec)
    fault = simulator.faults.take(request.method, request.url.path, params)
    if lost := _fail_before(simulator, fault):
        return lost
    if len(key) > IDEMPOTENCY_KEY_CHARACTERS_MAX:
        raise ApiError(400, "The Idempotency-Key is longer than 255 characters.", kind="idempotency_error")
    if (livemode, key) in running:
        raise idempotency_key_in_use(key)
    fingerprint = _fingerprint(request, params)
    if key and (replayed := _replay(simulator, livemode, key, fingerprint)):
        return replayed
    rejection = fault.reason or "meter_event_invalid_value" if fault and fault.kind is FaultKind.REJECTED else ""
    call = Call(livemode, params, request.path_params.get("id", ""), rejection)
    if key:
        running.add((livemode, key))
    try:
        status, body, headers = await _execute(simulator, endpoint, call, fault, key, fingerprint, request_id)
    finally:
        running.discard((livemode, key))
    if fault and fault.kind is FaultKind.TIMEOUT_AFTER_COMMIT:
        return LostAnswer(simulator.settings.hold_s)
    if fault and fault.kind is FaultKind.CONNECTION_DROPPED_AFTER_COMMIT:
        return LostAnswer(0)
    return JSONResponse(body, status_code=status, headers=headers)


def _livemode(simulator: Simulator, request: Request) -> bool:
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "basic":
        try:
            key = base64.b64decode(key, validate=True).decode("ascii").partition(":")[0]
        except ValueError:
            key = ""
    elif scheme.lower() != "bearer":
        key = ""
    if not key:
        raise unauthorized("You did not provide an API key.")
    match = _KEY.match(key)
    if match is None or (simulator.settings.keys is not None and key not in simulator.settings.keys):
        raise unauthorized(f"Invalid API Key provided: {key[:8]}****")
    return match[2] == "live"


async def _params(request: Request) -> Params:
    if request.method == "GET":
        return forms.parse(request.url.query)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_BYTES_MAX:
            raise ApiError(413, "Request body too large.")
    try:
        return forms.parse(body.decode("ascii"))
    except UnicodeDecodeError as error:
        raise ApiError(400, "Invalid request body: it is not form-encoded.") from error


def _fail_before(simulator: Simulator, fault: Fault | None) -> Response | None:
    """Apply a fault that happens before execution, so that nothing is stored. A 500 is executed and stored."""
    if fault is None:
        return None
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
            return LostAnswer(simulator.settings.hold_s)
        case FaultKind.CONNECTION_DROPPED:
            return LostAnswer(0)
        case _:
            return None


def _fingerprint(request: Request, params: Params) -> str:
    text = json.dumps([request.method, request.url.path, params], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _replay(simulator: Simulator, livemode: bool, key: str, fingerprint: str) -> Response | None:
    stored = simulator.database.row(
        "SELECT fingerprint, status, body, request_id FROM idempotency"
        " WHERE key = ? AND livemode = ? AND created_ms > ?",
        (key, int(livemode), simulator.now_ms() - IDEMPOTENCY_WINDOW_MS),
    )
    if stored is None:
        return None
    if stored["fingerprint"] != fingerprint:
        raise idempotency_mismatch(key)
    headers = {"Idempotent-Replayed": "true", "Original-Request": str(stored["request_id"])}
    return JSONResponse(json.loads(stored["body"]), status_code=int(stored["status"]), headers=headers)


async def _execute(
    simulator: Simulator,
    endpoint: Endpoint,
    call: Call,
    fault: Fault | None,
    key: str,
    fingerprint: str,
    request_id: str,
) -> tuple[int, dict[str, object], dict[str, str]]:
    def run() -> tuple[int, dict[str, object], dict[str, str]]:
        try:
            with simulator.database.transaction():
                if fault and fault.kind is FaultKind.SERVER_ERROR:
                    raise server_error()
                body = endpoint.run(simulator, call)
                status = 200
                if fault and fault.kind is FaultKind.SERVER_ERROR_AFTER_COMMIT:
                    status, body = 500, server_error().body()
                if key:
                    _store(simulator, call.livemode, key, fingerprint, status, body, request_id)
                return status, body, {}
        except ApiError as error:
            if error.stored and key:
                _store(simulator, call.livemode, key, fingerprint, error.status, error.body(), request_id)
            return error.status, error.body(), error.headers

    if not endpoint.locks:
        return run()
    with simulator.lock(meters.locked(simulator, call.livemode, call.params)):
        if simulator.settings.latency_s:
            await asyncio.sleep(simulator.settings.latency_s)
        return run()


def _store(
    simulator: Simulator,
    livemode: bool,
    key: str,
    fingerprint: str,
    status: int,
    body: dict[str, object],
    request_id: str,
) -> None:
    simulator.database.execute(
        "INSERT OR REPLACE INTO idempotency(key, livemode, fingerprint, status, body, request_id, created_ms)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (key, int(livemode), fingerprint, status, json.dumps(body), request_id, simulator.now_ms()),
    )
