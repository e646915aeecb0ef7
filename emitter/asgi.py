"""ASGI middleware: one event for each HTTP request, emitted after the response was sent."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from emitter.emitter import Emitter
from emitter.request_events import Request, RequestEvents, UsageOf, joined

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


class UsageMiddleware:
    """Wraps an ASGI application, such as one of FastAPI or Starlette. Needs no framework."""

    def __init__(self, app: Application, emitter: Emitter, usage: UsageOf, *, id_headers: Sequence[str] = ()) -> None:
        """`usage(request, status)` returns (type, account, data), or None for a request that does not count. It runs
        in the event loop after the response, so it must not block. If it raises, the request is not counted and a
        warning is logged. An application that fails before it answers has the status 500.

        The first of `id_headers` that a request has gives the event its id, so a request that a load balancer repeats
        is counted once. Whoever may set these headers decides what is counted once.
        """
        self._app = app
        self._events = RequestEvents(emitter, usage, id_headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve as the application does. WebSockets and the lifespan make no event."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # Routers and mounted applications change the scope.
        method, path, query = scope["method"], scope["path"], scope.get("query_string", b"").decode("latin-1")
        status = 500
        is_over = False

        def end() -> None:
            nonlocal is_over
            if not is_over:
                is_over = True
                headers = joined(
                    (name.decode("latin-1"), value.decode("latin-1")) for name, value in scope.get("headers", ())
                )
                self._events.emit(Request(method, path, query, headers, scope), status)

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                end()

        try:
            await self._app(scope, receive, sending)
        finally:
            end()
