"""One process owns the ClickHouse engine of a directory and serves ClickHouse's HTTP interface on loopback.

Two listeners on one engine: a read-write one for our own roles and a read-only one for analysts. Any client of
ClickHouse's HTTP interface can use them (clickhouse.com/docs/interfaces/http): curl, clickhouse-connect, BI tools.

    python -m pipeline.local.clickhouse_server --path DIR --port N --read-only-port M
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import binascii
import contextlib
import hmac
import json
import os
import re
import signal
import socket
import sys
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from pipeline.local.clickhouse_http import SERVER_NAME, Call, encoded, error_answer, read_call
from pipeline.local.clickhouse_statements import NotAllowed, Statement, check_read_only, read_statement
from sinks.clickhouse.engine import Engine, EngineError, EngineResult

HOST: Final = "127.0.0.1"
TOKEN_VARIABLE: Final = "TIDEMARK_CLICKHOUSE_TOKEN"  # noqa: S105  # a variable's name, not a secret

# Between a format's name and the rows: blanks up to the end of the line.
_LINE_END: Final = re.compile(rb"\A[ \t\r]*\n?")

# What an analyst may set; everything else could lift a limit or name a file.
ANALYST_SETTINGS: Final = frozenset({
    "cast_string_to_dynamic_use_inference", "date_time_input_format", "date_time_output_format", "extremes", "final",
    "join_use_nulls", "limit", "offset", "output_format_decimal_trailing_zeros",
    "output_format_json_quote_64bit_integers", "session_timezone",
})  # fmt: skip


class Fault(NamedTuple):
    """What is to go wrong with one request. Made by tests, in Python; no request can ask for it."""

    delay_s: float = 0.0
    refuse: bool = False
    drop_answer: bool = False


class Faults(Protocol):
    """Decides, per request, what goes wrong."""

    def next(self, statement: bytes) -> Fault:
        """Called once per statement of the read-write listener, before it runs."""
        ...


@dataclass(frozen=True)
class Limits:
    """What one request may cost. `running_max` run at once, `waiting_max` more wait; beyond that the answer is 503."""

    running_max: int = 4
    waiting_max: int = 128
    body_bytes_max: int = 128 * 1024 * 1024
    read_only_running_max: int = 2
    read_only_body_bytes_max: int = 1024 * 1024
    read_only_execution_s: int = 60
    read_only_result_rows: int = 1_000_000
    read_only_result_bytes: int = 256 * 1024 * 1024
    read_only_memory_bytes: int = 2 * 1024 * 1024 * 1024

    def analyst_settings(self) -> dict[str, str]:
        """The settings of a read-only session; `readonly` comes last, because nothing can be set after it."""
        return {
            "do_not_merge_across_partitions_select_final": "1",
            "allow_introspection_functions": "0",
            "max_execution_time": str(self.read_only_execution_s),
            "max_result_rows": str(self.read_only_result_rows),
            "max_result_bytes": str(self.read_only_result_bytes),
            "result_overflow_mode": "throw",
            "max_memory_usage": str(self.read_only_memory_bytes),
            "readonly": "1",
        }


class _DroppedAnswer(Response):
    """Announces a body and ends without it, so that the server cuts the connection."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  # ASGI's own
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1")]})


class Listener:
    """The routes of one listener. Statements run in a bounded number of threads."""

    def __init__(
        self,
        engine: Engine,
        limits: Limits,
        *,
        read_only: bool,
        token: str | None = None,
        faults: Faults | None = None,
    ) -> None:
        self._engine = engine
        self._limits = limits
        self._read_only = read_only
        self._token = token
        self._faults = faults
        self._running_max = limits.read_only_running_max if read_only else limits.running_max
        self._executor = ThreadPoolExecutor(self._running_max, thread_name_prefix="engine")
        self._accepted = 0
        self._table_functions = _table_functions(engine) if read_only else frozenset[str]()

    def app(self) -> Starlette:
        """The ASGI application. Other host names than loopback's are refused, so that no web page can reach it."""
        return Starlette(
            routes=[
                Route("/", self._query, methods=["GET", "POST"]),
                Route("/ping", _ping, methods=["GET"]),
            ],
            middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])],
        )

    def close(self) -> None:
        """Wait for running statements."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    async def _query(self, request: Request) -> Response:
        query_id = request.query_params.get("query_id") or str(uuid.uuid4())
        try:
            self._check_token(request)
            if not request.query_params.get("query") and request.method == "GET":
                return PlainTextResponse("Ok.\n")
            call = await read_call(request, self._body_bytes_max())
            return await self._answer(request, call, query_id)
        except (NotAllowed, EngineError) as error:
            return error_answer(error.code, str(error), query_id)
        except ClientDisconnect:
            return Response(status_code=400)

    async def _answer(self, request: Request, call: Call, query_id: str) -> Response:
        statement = read_statement(call.statement)
        if self._read_only or request.method == "GET":
            check_read_only(call.statement, self._table_functions)
        fault = self._faults.next(call.statement) if self._faults else Fault()
        if fault.delay_s:
            await asyncio.sleep(fault.delay_s)
        if fault.refuse:
            raise NotAllowed(202, "Too many simultaneous queries", "TOO_MANY_SIMULTANEOUS_QUERIES")
        result = await self._run(call, statement)
        if fault.drop_answer:
            return _DroppedAnswer()
        headers = {
            "X-ClickHouse-Query-Id": query_id,
            "X-ClickHouse-Server-Display-Name": SERVER_NAME,
            "X-ClickHouse-Timezone": "UTC",
            "X-ClickHouse-Summary": _summary(result),
        }
        if not statement.is_insert and (result.body or statement.named_format):
            headers["X-ClickHouse-Format"] = statement.named_format or call.default_format
        return Response(encoded(result.body, request, headers), 200, headers, "text/plain; charset=UTF-8")

    async def _run(self, call: Call, statement: Statement) -> EngineResult:
        if self._accepted >= self._running_max + self._limits.waiting_max:
            raise NotAllowed(202, "Too many simultaneous queries: try again", "TOO_MANY_SIMULTANEOUS_QUERIES")
        self._accepted += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._executor,
                lambda: self._run_now(call, statement),
            )
        finally:
            self._accepted -= 1

    def _run_now(self, call: Call, statement: Statement) -> EngineResult:
        rows, sql = None, call.statement
        if statement.format_end >= 0:
            at, end = statement.source_at, statement.format_end
            rows = _LINE_END.sub(b"", sql[end : end + 256], count=1) + sql[end + 256 :]
            sql = sql[:at] + b"FROM INFILE {file} " + sql[at:end]
        return self._engine.run(
            sql,
            rows=rows,
            output_format=call.default_format,
            database=call.database,
            settings=self._settings(call),
            parameters=call.parameters,
        )

    def _settings(self, call: Call) -> dict[str, str]:
        if not self._read_only:
            # An insert is answered when it is stored, as long as nobody asks for something else.
            return {"async_insert": "0", **dict(sorted(call.settings.items()))}
        own = self._limits.analyst_settings()
        for name in call.settings.keys() - ANALYST_SETTINGS - own.keys():
            raise EngineError(f"Code: 164. DB::Exception: Cannot modify '{name}' setting in readonly mode. (READONLY)")
        allowed = {name: value for name, value in sorted(call.settings.items()) if name in ANALYST_SETTINGS}
        return {**allowed, **own}

    def _body_bytes_max(self) -> int:
        return self._limits.read_only_body_bytes_max if self._read_only else self._limits.body_bytes_max

    def _check_token(self, request: Request) -> None:
        if self._token is None:
            return
        given = request.headers.get("x-clickhouse-key") or request.query_params.get("password") or ""
        scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "basic":
            with contextlib.suppress(binascii.Error, UnicodeDecodeError):
                given = base64.b64decode(credentials).decode().partition(":")[2]
        if not hmac.compare_digest(given.encode(), self._token.encode()):
            raise NotAllowed(516, "Authentication failed: the password is the server's token", "AUTHENTICATION_FAILED")


async def _ping(_request: Request) -> Response:
    return PlainTextResponse("Ok.\n")


def _table_functions(engine: Engine) -> frozenset[str]:
    return frozenset(engine.run(b"SELECT lower(name) FROM system.table_functions").body.decode().split())


def _summary(result: EngineResult) -> str:
    return json.dumps(
        {
            "read_rows": str(result.rows_read),
            "read_bytes": str(result.bytes_read),
            "written_rows": str(result.rows_written),
            "written_bytes": str(result.bytes_written),
            "total_rows_to_read": "0",
            "result_rows": str(result.rows_written),
            "result_bytes": str(len(result.body)),
            "elapsed_ns": str(result.elapsed_ns),
        }
    )


class _Server(uvicorn.Server):
    """Leaves signals to the process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class ClickHouseServer:
    """The engine of `path` behind two listeners of this process, from `start` to `stop`. Port 0 takes a free one."""

    def __init__(
        self,
        path: str,
        *,
        port: int = 0,
        read_only_port: int = 0,
        token: str | None = None,
        limits: Limits | None = None,
        faults: Faults | None = None,
    ) -> None:
        self._path = path
        self._ports = (port, read_only_port)
        self._token = token
        self._limits = limits or Limits()
        self._faults = faults
        self._engine: Engine | None = None
        self._listeners: list[Listener] = []
        self._servers: list[tuple[_Server, asyncio.Task[None]]] = []
        self.port = 0
        self.read_only_port = 0

    @property
    def url(self) -> str:
        """The read-write address, as `TIDEMARK_CLICKHOUSE_URL` takes it."""
        user = f"default:{self._token}@" if self._token else ""
        return f"http://{user}{HOST}:{self.port}"

    @property
    def read_only_url(self) -> str:
        """The analysts' address."""
        return f"http://{HOST}:{self.read_only_port}"

    async def start(self) -> None:
        """Open the engine and listen. Raises `OperatorNeeded` where another process has the directory open,
        OSError where a port is taken."""
        sockets = [_listening(port) for port in self._ports]
        self.port, self.read_only_port = (sock.getsockname()[1] for sock in sockets)
        self._engine = await asyncio.to_thread(Engine, self._path)
        self._listeners = [
            Listener(self._engine, self._limits, read_only=False, token=self._token, faults=self._faults),
            Listener(self._engine, self._limits, read_only=True),
        ]
        for sock, listener in zip(sockets, self._listeners, strict=True):
            server = _Server(
                uvicorn.Config(
                    listener.app(),
                    log_level="warning",
                    access_log=False,
                    lifespan="off",
                    timeout_keep_alive=60,
                    timeout_graceful_shutdown=10,
                    h11_max_incomplete_event_size=1024 * 1024,
                    http="h11",
                    ws="none",
                )
            )
            task = asyncio.create_task(server.serve(sockets=[sock]))
            self._servers.append((server, task))
            while not server.started:
                if task.done():
                    await task
                await asyncio.sleep(0.005)

    async def stop(self) -> None:
        """Stop listening, finish running statements, close the engine. Safe to call twice."""
        for server, _ in self._servers:
            server.should_exit = True
        for _, task in self._servers:
            await task
        for listener in self._listeners:
            await asyncio.to_thread(listener.close)
        if self._engine is not None:
            await asyncio.to_thread(self._engine.close)
        self._servers, self._listeners, self._engine = [], [], None


def _listening(port: int) -> socket.socket:
    # asyncio turns Nagle off only where the protocol is named; without it answers wait 40 ms for an acknowledgement.
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((HOST, port))
    return sock


async def _serve(arguments: argparse.Namespace) -> None:
    server = ClickHouseServer(
        arguments.path,
        port=arguments.port,
        read_only_port=arguments.read_only_port,
        token=os.environ.get(TOKEN_VARIABLE) or None,
    )
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    await server.start()
    ready = {"ready": "clickhouse", "port": server.port, "read_only_port": server.read_only_port}
    sys.stdout.write(json.dumps(ready) + "\n")
    sys.stdout.flush()
    await stopped.wait()
    await server.stop()


def main() -> None:
    """Serve until SIGINT or SIGTERM; prints one line of JSON with the ports when ready."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.local.clickhouse_server", description=main.__doc__)
    parser.add_argument("--path", required=True, help="the engine's directory; one process may have it open")
    parser.add_argument("--port", type=int, default=0, help="read-write port on loopback; 0 takes a free one")
    parser.add_argument("--read-only-port", type=int, default=0, help="port for analysts; 0 takes a free one")
    # The engine takes its default zone from the process, and our times are UTC.
    os.environ["TZ"] = "UTC"
    time.tzset()
    asyncio.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()
