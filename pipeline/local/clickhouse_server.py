"""A process that owns the ClickHouse engine of a directory and serves ClickHouse's HTTP interface on loopback.

One engine has two listeners: read-write for the roles, read-only for analysts. Any client of the HTTP interface
(clickhouse.com/docs/interfaces/http) can connect: curl, clickhouse-connect, BI tools.

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
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from pipeline.http.serving import serving, stop_event
from pipeline.local.clickhouse_http import SERVER_NAME, Call, encoded, error_answer, read_call
from pipeline.local.clickhouse_statements import NotAllowed, Statement, check_read_only, read_statement
from sinks.clickhouse.engine import Engine, EngineError, EngineResult

HOST: Final = "127.0.0.1"

# The blanks and the line end between a format's name and the rows.
_LINE_END: Final = re.compile(rb"\A[ \t\r]*\n?")

# The settings that an analyst may change. Other settings could lift a limit or name a file.
ANALYST_SETTINGS: Final = frozenset({
    "cast_string_to_dynamic_use_inference", "date_time_input_format", "date_time_output_format", "extremes", "final",
    "join_use_nulls", "limit", "offset", "output_format_decimal_trailing_zeros",
    "output_format_json_quote_64bit_integers", "session_timezone",
})  # fmt: skip


class Fault(NamedTuple):
    """A failure that a test injects into one request; clients cannot cause one. `drop_answer` cuts the connection."""

    delay_s: float = 0.0
    refuse: bool = False
    drop_answer: bool = False


class Faults(Protocol):
    """A test's plan of failures."""

    def next(self, statement: bytes) -> Fault:
        """Return the fault for a statement. The read-write listener calls this once before the statement runs."""
        ...


@dataclass(frozen=True)
class Limits:
    """Limits of requests. `running_max` statements run at once and `waiting_max` wait; the next gets status 503."""

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
        """The settings of a read-only session. `readonly` comes last because it forbids further changes."""
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


class Listener:
    """The HTTP routes of one listener. Statements run in a bounded number of threads."""

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
        self._body_bytes_max = limits.read_only_body_bytes_max if read_only else limits.body_bytes_max
        self._running_max = limits.read_only_running_max if read_only else limits.running_max
        self._executor = ThreadPoolExecutor(self._running_max, thread_name_prefix="engine")
        self._accepted = 0
        names = engine.run(b"SELECT lower(name) FROM system.table_functions").body if read_only else b""
        self._table_functions = frozenset(names.decode().split())

    def app(self) -> Starlette:
        """The ASGI application. To keep web pages out, requests for other host names than loopback's are refused."""
        routes = [Route("/", self._query, methods=["GET", "POST"]), Route("/ping", _ping, methods=["GET"])]
        app = Starlette(
            routes=routes, middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])]
        )
        app.router.redirect_slashes = False
        return app

    def close(self) -> None:
        """Block until running statements end; waiting statements are dropped."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    async def _query(self, request: Request) -> Response:
        query_id = request.query_params.get("query_id") or str(uuid.uuid4())
        try:
            self._check_token(request)
            if not request.query_params.get("query") and request.method == "GET":
                return PlainTextResponse("Ok.\n")
            call = await read_call(request, self._body_bytes_max)
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
            return Response(headers={"Content-Length": "1"})  # the server cuts the connection: the body is missing
        headers = {
            "X-ClickHouse-Query-Id": query_id,
            "X-ClickHouse-Server-Display-Name": SERVER_NAME,
            "X-ClickHouse-Timezone": "UTC",
            "X-ClickHouse-Summary": _summary(result),
        }
        if statement.keyword != "INSERT" and (result.body or statement.named_format):
            headers["X-ClickHouse-Format"] = statement.named_format or call.default_format
        return Response(encoded(result.body, request, headers), 200, headers, "text/plain; charset=UTF-8")

    async def _run(self, call: Call, statement: Statement) -> EngineResult:
        if self._accepted >= self._running_max + self._limits.waiting_max:
            raise NotAllowed(202, "Too many simultaneous queries: try again", "TOO_MANY_SIMULTANEOUS_QUERIES")
        self._accepted += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, self._run_now, call, statement)
        finally:
            self._accepted -= 1

    def _run_now(self, call: Call, statement: Statement) -> EngineResult:
        rows, sql = None, call.statement
        if statement.format_end >= 0:
            source, end = statement.source_at, statement.format_end
            rows = _LINE_END.sub(b"", sql[end : end + 256], count=1) + sql[end + 256 :]
            sql = sql[:source] + b"FROM INFILE {file} " + sql[source:end]
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
            # The answer to an insert means that the rows are stored, unless the client asks for asynchronous inserts.
            return {"async_insert": "0", **dict(sorted(call.settings.items()))}
        own = self._limits.analyst_settings()
        for name in call.settings.keys() - ANALYST_SETTINGS - own.keys():
            raise EngineError(f"Code: 164. DB::Exception: Cannot modify '{name}' setting in readonly mode. (READONLY)")
        allowed = {name: value for name, value in sorted(call.settings.items()) if name in ANALYST_SETTINGS}
        return {**allowed, **own}

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


def _summary(result: EngineResult) -> str:
    summary = {
        "read_rows": result.rows_read,
        "read_bytes": result.bytes_read,
        "written_rows": result.rows_written,
        "written_bytes": result.bytes_written,
        "total_rows_to_read": 0,
        "result_rows": result.rows_written,
        "result_bytes": len(result.body),
        "elapsed_ns": result.elapsed_ns,
    }
    return json.dumps({name: str(value) for name, value in summary.items()})


class ClickHouseServer:
    """The engine of the directory `path` behind two listeners of this process. Port 0 takes a free port."""

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
        self._token = token
        self._limits = limits or Limits()
        self._faults = faults
        self._running = contextlib.AsyncExitStack()
        self.port = port
        self.read_only_port = read_only_port

    @property
    def url(self) -> str:
        """The read-write URL, with the token, for `TIDEMARK_CLICKHOUSE_URL`."""
        user = f"default:{self._token}@" if self._token else ""
        return f"http://{user}{HOST}:{self.port}"

    @property
    def read_only_url(self) -> str:
        """The read-only URL."""
        return f"http://{HOST}:{self.read_only_port}"

    async def start(self) -> None:
        """Open the engine and listen.

        Raises `OperatorNeeded` if another process has the directory open, OSError if a port is taken.
        """
        async with contextlib.AsyncExitStack() as stack:
            engine = await asyncio.to_thread(Engine, self._path)
            stack.push_async_callback(asyncio.to_thread, engine.close)
            read_write = Listener(engine, self._limits, read_only=False, token=self._token, faults=self._faults)
            read_only = Listener(engine, self._limits, read_only=True)
            for listener in (read_write, read_only):
                stack.push_async_callback(asyncio.to_thread, listener.close)
            self.port = await stack.enter_async_context(_listening(read_write, self.port))
            self.read_only_port = await stack.enter_async_context(_listening(read_only, self.read_only_port))
            self._running = stack.pop_all()

    async def stop(self) -> None:
        """Stop listening, wait for running statements and close the engine. Safe to call twice."""
        await self._running.aclose()


def _listening(listener: Listener, port: int) -> contextlib.AbstractAsyncContextManager[int]:
    return serving(
        listener.app(), HOST, port,
        http="h11", h11_max_incomplete_event_size=1024 * 1024, timeout_keep_alive=60, timeout_graceful_shutdown=10,
    )  # fmt: skip


async def _serve(arguments: argparse.Namespace) -> None:
    server = ClickHouseServer(
        arguments.path,
        port=arguments.port,
        read_only_port=arguments.read_only_port,
        token=os.environ.get("TIDEMARK_CLICKHOUSE_TOKEN") or None,
    )
    stopped = stop_event()
    await server.start()
    ready = {"ready": "clickhouse", "port": server.port, "read_only_port": server.read_only_port}
    print(json.dumps(ready), flush=True)
    await stopped.wait()
    await server.stop()


def main() -> None:
    """Serve until SIGINT or SIGTERM. Prints one line of JSON with the ports when the server is ready."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.local.clickhouse_server", description=main.__doc__)
    parser.add_argument("--path", required=True, help="the engine's directory; only one process can open it")
    parser.add_argument("--port", type=int, default=0, help="read-write port on loopback; 0 takes a free one")
    parser.add_argument("--read-only-port", type=int, default=0, help="port for analysts; 0 takes a free one")
    # The engine takes its default time zone from the process; stored times are UTC.
    os.environ["TZ"] = "UTC"
    time.tzset()
    asyncio.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()
