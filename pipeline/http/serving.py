"""Serves `/metrics`, `/healthz` and `/readyz` of each role for operators."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, NamedTuple

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from pipeline.metrics import Metrics
from schemas.errors import Transient


class Readiness(NamedTuple):
    """Whether a role makes progress, and details for operators."""

    ready: bool
    detail: dict[str, object]


class QuietServer(uvicorn.Server):
    """uvicorn without signal handlers: the role decides when the server stops."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def ops_app(metrics: Metrics, readiness: Callable[[], Awaitable[Readiness]], refresh: Callable[[], None]) -> Starlette:
    """The app with the three paths. `/healthz` answers 200. `/readyz` answers 503 if the role makes no progress.

    The app calls `refresh` before it renders `/metrics`, to set the gauges.
    """

    async def exposition(_: Request) -> Response:
        refresh()
        content, media_type = metrics.render()
        return Response(content, media_type=media_type)

    async def healthz(_: Request) -> Response:
        return JSONResponse({"status": "alive"})

    async def readyz(_: Request) -> Response:
        state = await readiness()
        return JSONResponse({"ready": state.ready, **state.detail}, 200 if state.ready else 503)

    app = Starlette(routes=[Route("/metrics", exposition), Route("/healthz", healthz), Route("/readyz", readyz)])
    # The redirect would go to http://, also behind a TLS proxy.
    app.router.redirect_slashes = False
    return app


def stop_event() -> asyncio.Event:
    """An event that SIGTERM or SIGINT sets."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


@contextlib.asynccontextmanager
async def serving(app: Starlette, host: str, port: int, **more: Any) -> AsyncIterator[int]:
    """Serve an app in this loop during the block. Yields the port. Raises `Transient` if the port is in use.

    `more` are options of `uvicorn.Config`.
    """
    # asyncio sets TCP_NODELAY only if the protocol is IPPROTO_TCP. Otherwise an answer may wait 40 ms for an ACK.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        reason = f"cannot listen on {host}:{port}: {error.strerror}"
        raise Transient(f"{reason}. Stop the process that has the port, or set another address") from error
    options: dict[str, Any] = {"timeout_graceful_shutdown": 5, **more}
    server = QuietServer(uvicorn.Config(app, log_level="warning", access_log=False, ws="none", **options))
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        while not server.started and not task.done():  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.005)
        if task.done():
            task.result()
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await task
        listener.close()
