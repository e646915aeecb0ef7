"""The only module that imports clickhouse_connect and chdb: connections, settings and errors of ClickHouse."""

from __future__ import annotations

import asyncio
import logging
import math
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Protocol, TypeVar, cast
from urllib.parse import parse_qs, unquote, urlsplit

import clickhouse_connect
import msgspec
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError, DatabaseError, OperationalError

from schemas.errors import HeldUp, InvalidInput, OperatorNeeded, Refused, Transient

# Older versions lack functions that the recount uses. Newer versions may change a default that the counts depend on.
VERSION_MIN: Final = (25, 3)
VERSION_MAX: Final = (26, 12)
CONCURRENCY_MAX: Final = 32
# Long enough for the largest insert and the statements of a rebuild.
TIMEOUT_S: Final = 60.0

# All settings that decide whether and when an insert is stored. Version 26.2 enabled asynchronous inserts and
# deduplication of views by default (system.settings_changes).
INSERT_SETTINGS: Final[Mapping[str, str]] = {
    "async_insert": "0",
    "wait_for_async_insert": "1",
    "insert_deduplicate": "0",
    "deduplicate_blocks_in_dependent_materialized_views": "0",
    "input_format_parallel_parsing": "0",
    "input_format_null_as_default": "0",
    "max_insert_block_size": "1048576",
}
SELECT_SETTINGS: Final[Mapping[str, str]] = {
    # The partition key is computed from the sort key, so all rows of an identity are in one partition.
    "do_not_merge_across_partitions_select_final": "1",
    "enable_extended_results_for_datetime_functions": "1",
    # A recount branches by meter on every row. Masking the rows of each branch costs ten times more than it saves.
    "short_circuit_function_evaluation": "disable",
    "max_query_size": "268435456",
    "max_ast_elements": "1000000",
    "max_expanded_ast_elements": "5000000",
}

# Numbers from github.com/ClickHouse/ClickHouse src/Common/ErrorCodes.cpp; `SELECT errorCodeToName(243)` gives a name.
# A full disk is among them: an operator must free space, but needs to restart nothing afterwards.
_TRANSIENT_CODES: Final = frozenset({
    3, 74, 75, 95, 96, 159, 160, 173, 198, 201, 202, 203, 204, 209, 210, 212, 216, 225, 234, 236, 241, 242, 243, 252,
    254, 265, 279, 285, 286, 290, 319, 364, 373, 384, 394, 411, 425, 439, 473, 499, 529, 574, 677, 692, 700, 722, 733,
    734, 735, 745, 749, 999,
})  # fmt: skip
# Errors of the operating system, whose cause is in the text: errno 28 is a full disk, 23 and 24 are too many open
# files, 12 is no memory. The texts of other errors may quote user data, so only these texts are searched.
_SYSTEM_CODES: Final = frozenset({24, 76, 88, 1000, 1001, 1002})
_SHORT_OF: Final = re.compile(r"errno: (?:12|23|24|28)\b|No space left on device|Too many open files")
_REFUSED_CODES: Final = frozenset({192, 193, 194, 497, 516})
_READONLY: Final = 164
_CODE: Final = re.compile(r"Code: (\d+)")

Value = TypeVar("Value")

# The driver logs errors that it also raises.
logging.getLogger("clickhouse_connect").setLevel(logging.CRITICAL)


class EngineConnection(Protocol):
    """One session of the engine in this process, with its own settings and database. Not safe for concurrent use."""

    def query(self, statement: bytes | str, output_format: str, /, params: Mapping[str, object] | None = None) -> Any:
        """Run one statement and block until its result is complete. Raises RuntimeError with ClickHouse's text."""
        ...

    def close(self) -> None: ...


def connect_engine(path: str) -> EngineConnection:
    """A new session on the engine of the directory `path`. A process can open one engine, hence one path.

    Blocks for about 2 ms, the first time for 0.1 to 2 s. Raises `OperatorNeeded` if another process uses the directory.
    """
    import chdb  # a library of 500 MB: only processes that own an engine load it

    try:
        connect: Any = chdb.connect  # some builds ship no types for it
        return cast("EngineConnection", connect(path))
    except RuntimeError as error:
        raise OperatorNeeded(
            f"cannot open the ClickHouse directory {path}: {error}; only one process may have it open: "
            "stop the other one, or reach it by http:// instead of chdb://"
        ) from error


class ClickHouse:
    """Asynchronous calls to a ClickHouse server, run in `concurrency` threads. Each thread has its own client.

    The first call connects. Calls beyond `concurrency` wait for a thread, without a limit on how many wait. With
    `abandon_after_s`, for readers only, a call that takes longer, the wait for a thread included, raises `Transient`.
    Every method raises `Transient` if no answer came (the statement may have been executed), `Refused` if the
    credentials are wrong, and `HeldUp` if the server rejects the statement permanently or has an unsupported version.
    """

    def __init__(
        self, connect: Callable[[str], Client], database: str, concurrency: int, abandon_after_s: float | None = None
    ) -> None:
        self.database = database
        self._abandon_after_s = abandon_after_s
        self._connect = connect
        self._executor = ThreadPoolExecutor(concurrency, thread_name_prefix="clickhouse")
        self._local = threading.local()
        self._clients: list[Client] = []
        self._lock = threading.Lock()

    async def rows(self, sql: str, parameters: Mapping[str, object] | None = None) -> list[tuple[Any, ...]]:
        """All rows of a SELECT. `parameters` replace the placeholders `{name:Type}`."""

        def run(client: Client) -> list[tuple[Any, ...]]:
            result = client.query(sql, parameters=dict(parameters or {}), settings=dict(SELECT_SETTINGS))
            return [tuple(row) for row in result.result_rows]

        return await self._call(run)

    async def command(self, sql: str) -> None:
        """Run a statement that returns no rows, such as DDL."""
        await self._call(lambda client: client.command(sql))

    async def insert_lines(self, table: str, columns: Sequence[str], lines: bytes) -> None:
        """Insert rows in the format JSONCompactEachRow (one JSON list per line). Returns after they are stored."""
        await self._insert(table, columns, lines, "JSONCompactEachRow")

    async def insert_native(self, table: str, columns: Sequence[str], blocks: bytes) -> None:
        """Insert blocks of the format Native, one after the other. Returns after their rows are stored."""
        await self._insert(table, columns, blocks, "Native")

    async def _insert(self, table: str, columns: Sequence[str], rows: bytes, form: str) -> None:
        def run(client: Client) -> None:
            settings = dict(INSERT_SETTINGS)
            if _version(client) >= (26, 2):
                settings["deduplicate_insert"] = "disable"
            client.raw_insert(table, list(columns), rows, settings=settings, fmt=form)

        await self._call(run)

    async def ensure_database(self) -> None:
        """Create the URL's database if it does not exist."""
        if self.database == "default":
            return

        def run() -> None:
            client = self._connect("default")
            try:
                client.command(f"CREATE DATABASE IF NOT EXISTS {quoted_name(self.database)}")
            finally:
                client.close()

        await self._in_thread(run)

    async def close(self) -> None:
        """Wait for running calls and close the connections. Safe to call twice."""
        await asyncio.to_thread(self._executor.shutdown, True, cancel_futures=True)
        with self._lock:
            clients, self._clients = self._clients, []
        for client in clients:
            await asyncio.to_thread(client.close)

    async def _call(self, run: Callable[[Client], Value]) -> Value:
        return await self._in_thread(lambda: run(self._client()))

    async def _in_thread(self, run: Callable[[], Value]) -> Value:
        try:
            async with asyncio.timeout(self._abandon_after_s):
                return await asyncio.get_running_loop().run_in_executor(self._executor, run)
        except TimeoutError as error:
            raise Transient(f"ClickHouse did not answer in {self._abandon_after_s} s; check that it runs") from error
        except (ClickHouseError, OSError) as error:
            raise translated(error) from error

    def _client(self) -> Client:
        client = cast("Client | None", getattr(self._local, "client", None))
        if client is None:
            client = self._connect(self.database)
            self._local.client = client
            with self._lock:
                self._clients.append(client)
        return client


def open_clickhouse(
    url: str, *, concurrency: int = 4, timeout_s: float = TIMEOUT_S, abandons: bool = False
) -> ClickHouse:
    """A ClickHouse by URL: `http://[user:password@]host:port[/database]` (or https), `chdb://PATH[?database=name]`.

    `timeout_s` bounds each wait for a server. With `abandons`, for readers only, `timeout_s` bounds each whole call.
    Does no I/O; the first call connects. Raises `InvalidInput` if the URL or the concurrency is invalid.
    """
    if not 1 <= concurrency <= CONCURRENCY_MAX:
        raise InvalidInput("concurrency", f"must be 1 to {CONCURRENCY_MAX}")
    parts = urlsplit(url)
    abandon_after_s = timeout_s if abandons else None
    if parts.scheme == "chdb":
        path = unquote(parts.netloc + parts.path)
        if not path:
            raise InvalidInput("clickhouse_url", "chdb:// needs a directory, such as chdb://.tidemark/clickhouse")
        database = parse_qs(parts.query).get("database", ["default"])[0]
        return ClickHouse(lambda name: _connect_chdb(path, name), database, concurrency, abandon_after_s)
    if parts.scheme in ("http", "https") and parts.hostname:
        database = unquote(parts.path.strip("/")) or "default"
        return ClickHouse(lambda name: _connect_http(url, name, timeout_s), database, concurrency, abandon_after_s)
    raise InvalidInput("clickhouse_url", "must be chdb://PATH or http://[user:password@]host:port[/database]")


def _connect_chdb(path: str, database: str) -> Client:
    return _checked(clickhouse_connect.get_client(interface="chdb", path=path, database=database, tz_mode="aware"))


def _connect_http(url: str, database: str, timeout_s: float) -> Client:
    parts = urlsplit(url)
    client = clickhouse_connect.get_client(
        interface=parts.scheme,
        host=parts.hostname,
        port=parts.port or (8443 if parts.scheme == "https" else 8123),
        username=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password or ""),
        database=database,
        compress=False,
        connect_timeout=math.ceil(min(timeout_s, 10)),
        send_receive_timeout=math.ceil(timeout_s),
        # With a session, the server would run this client's calls one by one and lock it after a lost answer.
        autogenerate_session_id=False,
        tz_mode="aware",
    )
    return _checked(client)


def _checked(client: Client) -> Client:
    if not VERSION_MIN <= _version(client) <= VERSION_MAX:
        version = client.server_version
        client.close()
        raise HeldUp(
            f"ClickHouse {version} is not known to this version of Tidemark: use {_text(VERSION_MIN)} to "
            f"{_text(VERSION_MAX)}; defaults that the counts rest on change between versions"
        )
    return client


def _version(client: Client) -> tuple[int, int]:
    numbers = re.findall(r"\d+", client.server_version or "")
    return (int(numbers[0]), int(numbers[1])) if len(numbers) > 1 else (0, 0)


def _text(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def error_code(error: BaseException) -> int:
    """ClickHouse's number of an error; 0 if the text contains none."""
    match = _CODE.search(str(error))
    return int(match[1]) if match else 0


def translated(error: Exception) -> Transient | Refused | HeldUp:
    """The driver's error as `Transient` (retry), `Refused` (wrong credentials) or `HeldUp` (an operator must act)."""
    code = error_code(error)
    summary = str(error).strip().splitlines()[0][:500] if str(error).strip() else type(error).__name__
    if code in _REFUSED_CODES:
        return Refused(f"ClickHouse refused the credentials: correct them in TIDEMARK_CLICKHOUSE_URL ({summary})")
    if code == _READONLY:
        return Refused(f"this ClickHouse address is read-only: use the read-write one ({summary})")
    if code in _SYSTEM_CODES and _SHORT_OF.search(summary):
        return Transient(f"ClickHouse did not confirm: {summary}")
    if code in _TRANSIENT_CODES or (not code and isinstance(error, OSError | OperationalError)):
        return Transient(f"ClickHouse did not confirm: {summary}")
    if not code and isinstance(error, DatabaseError) and "HTTP" in summary:
        return Transient(f"ClickHouse did not confirm: {summary}")
    return HeldUp(f"ClickHouse rejects this permanently: {summary}; check its version, its settings and its tables")


def quoted_name(name: str) -> str:
    """A name as a ClickHouse identifier."""
    return "`" + name.replace("\\", "\\\\").replace("`", "\\`") + "`"


def quoted_text(text: str) -> str:
    """A text as a ClickHouse string literal."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def json_literal(value: object, of_type: str) -> str:
    """A value of any size as an SQL expression that the server's parser counts as one element."""
    return f"JSONExtract({quoted_text(msgspec.json.encode(value).decode())}, {quoted_text(of_type)})"
