"""The ClickHouse server as its clients see it: curl, clickhouse-connect, analysts, and our own store under faults."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import clickhouse_connect
import httpx
import lz4.frame  # type: ignore[import-untyped]  # lz4 ships no types
import pytest
from clickhouse_connect.driver.exceptions import DatabaseError

from pipeline.clickhouse_server import ClickHouseServer, Fault, Limits
from schemas.analytics import EventRow
from schemas.errors import OperatorNeeded, Refused, Transient
from sinks.clickhouse import client as clickhouse_client
from sinks.clickhouse.client import open_clickhouse
from sinks.clickhouse.writer import ClickHouseStore
from tests.services.clickhouse import ROOT, RunningClickHouse, run_sql, start_clickhouse, stop_clickhouse


class ScriptedFaults:
    """Hands out the given faults to statements that contain a text, in order; then nothing goes wrong."""

    def __init__(self, text: bytes, *faults: Fault) -> None:
        self.text = text
        self.left = list(faults)

    def next(self, statement: bytes) -> Fault:
        return self.left.pop(0) if self.left and self.text in statement else Fault()


def query(url: str, sql: str, **arguments: str) -> httpx.Response:
    return httpx.post(url, params=arguments, content=sql.encode(), timeout=30)


@pytest.fixture
def read_write(clickhouse_server: RunningClickHouse) -> str:
    return clickhouse_server.url


@pytest.fixture
def read_only(clickhouse_server: RunningClickHouse) -> str:
    return clickhouse_server.read_only_url


@pytest.fixture(params=["read-write", "read-only"])
def either(request: pytest.FixtureRequest, clickhouse_server: RunningClickHouse) -> str:
    return clickhouse_server.url if request.param == "read-write" else clickhouse_server.read_only_url


def test_curl_without_any_header_gets_tab_separated_text(either: str) -> None:
    """`curl 'http://127.0.0.1:8123/?query=SELECT+1'` is the first thing a newcomer tries."""
    answer = httpx.get(f"{either}/?query=SELECT+1,'a'")

    assert (answer.status_code, answer.text) == (200, "1\ta\n")
    assert answer.headers["x-clickhouse-format"] == "TabSeparated"
    assert answer.headers["x-clickhouse-timezone"] == "UTC"
    assert httpx.get(f"{either}/ping").text == httpx.get(f"{either}/").text == "Ok.\n"


def test_query_may_come_in_the_body_the_url_or_both(either: str) -> None:
    """As ClickHouse: the body follows the query parameter."""
    assert query(either, "SELECT 1 AS x FORMAT JSONEachRow").text == '{"x":1}\n'
    assert query(either, "1 + 1", query="SELECT").text == "2\n"
    assert query(either, "SELECT 1 AS x", default_format="CSVWithNames").text == '"x"\n1\n'


def test_parameters_are_values_and_never_text_of_the_statement(either: str) -> None:
    """`param_x` fills `{x:Type}`; quotes in it stay quotes."""
    sql = "SELECT {name:String}, {numbers:Array(UInt8)}[2]"

    assert query(either, sql, param_name="x' OR 1 --", param_numbers="[1,2]").text == "x\\' OR 1 --\t2\n"


def test_settings_hold_for_their_request_only(read_write: str) -> None:
    """No request may see what another one set."""
    sql = "SELECT getSetting('max_block_size')"
    usual = query(read_write, sql).text

    assert query(read_write, sql, max_block_size="123").text == "123\n"
    assert query(read_write, sql).text == usual != "123\n"


def test_compression_is_negotiated_both_ways(read_write: str) -> None:
    """Only where the client asks for it, as ClickHouse does."""
    sql = "SELECT number FROM numbers(2000)"
    plain = query(read_write, sql)
    lz4_headers = {"Accept-Encoding": "lz4", "Content-Encoding": "lz4"}
    compressed = httpx.post(
        read_write,
        params={"enable_http_compression": "1"},
        content=lz4.frame.compress(sql.encode()),
        headers=lz4_headers,
    )
    zipped = httpx.post(
        read_write,
        params={"enable_http_compression": "1"},
        content=gzip.compress(sql.encode()),
        headers={"Accept-Encoding": "gzip", "Content-Encoding": "gzip"},
    )

    assert "content-encoding" not in plain.headers
    assert (compressed.headers["content-encoding"], zipped.headers["content-encoding"]) == ("lz4", "gzip")
    assert plain.content == lz4.frame.decompress(compressed.content) == zipped.content


ERRORS = {
    "syntax": ("SELEC 1", 400, 62),
    "unknown table": ("SELECT * FROM nowhere", 404, 60),
    "unknown setting": ("SELECT 1 SETTINGS no_such_setting = 1", 400, 115),
    "two statements": ("SELECT 1; SELECT 2", 400, 62),
    "empty": ("  ", 400, 62),
    "division": ("SELECT intDiv(1, 0)", 500, 153),
    "a format of the engine's own": ("SELECT 1 FORMAT NoSuchFormat", 400, 73),
}


@pytest.mark.parametrize(("sql", "status", "code"), ERRORS.values(), ids=ERRORS.keys())
def test_errors_are_clickhouses_own_text_with_a_status_and_a_code(
    read_write: str, sql: str, status: int, code: int
) -> None:
    """Clients parse `Code: N. DB::Exception:`; nobody gets a stack trace."""
    answer = query(read_write, sql)

    assert (answer.status_code, answer.headers["x-clickhouse-exception-code"]) == (status, str(code))
    assert answer.text.startswith(f"Code: {code}. DB::Exception: ")
    assert "Traceback" not in answer.text
    assert query(read_write, "SELECT 1").text == "1\n"


def test_ordinary_client_inserts_and_reads_in_its_native_format(clickhouse_database: str) -> None:
    """clickhouse-connect with its defaults: compression, sessions, Native both ways."""
    host, database = clickhouse_database.removeprefix("http://").split("/")
    client = clickhouse_connect.get_client(host="127.0.0.1", port=int(host.split(":")[1]), database=database)
    client.command("CREATE TABLE t (a UInt64, b String, c Array(Decimal(9, 2))) ENGINE = MergeTree ORDER BY a")

    summary = client.insert("t", [[n, f"it's {n}\0;", [n]] for n in range(5000)], column_names=["a", "b", "c"])

    assert summary.written_rows == 5000
    assert client.query("SELECT count(), sum(a) FROM t").result_rows == [(5000, 12_497_500)]
    assert client.query("SELECT b FROM t WHERE a = {a:UInt64}", parameters={"a": 7}).result_rows == [("it's 7\0;",)]
    assert client.command("SELECT 5") == 5
    with pytest.raises(DatabaseError, match="UNKNOWN_TABLE"):
        client.query("SELECT * FROM nowhere")
    client.close()


def test_ordinary_client_works_read_only(clickhouse_server: RunningClickHouse) -> None:
    """What a BI tool does on connecting must not trip over the restrictions."""
    port = int(clickhouse_server.read_only_url.rsplit(":", 1)[1])
    client = clickhouse_connect.get_client(host="127.0.0.1", port=port)

    assert client.query("SELECT sum(number) FROM numbers(4)").result_rows == [(6,)]
    with pytest.raises(DatabaseError, match="READONLY"):
        client.command("CREATE TABLE t (a Int8) ENGINE = Memory")
    client.close()


READ_ONLY_ALLOWED = {
    "with": "WITH 1 AS x SELECT x",
    "brackets": "(SELECT 1) UNION ALL (SELECT 2)",
    "comment first": "-- drop table\nSELECT 1 /* INSERT */",
    "forbidden names in text": "SELECT 'file(''/etc/passwd'')', 'DROP'",
    "show": "SHOW TABLES",
    "describe": "DESCRIBE system.one",
    "explain": "EXPLAIN SELECT 1",
    "exists": "EXISTS system.one",
    "trailing semicolon": "SELECT 1;",
    "format function": "SELECT format('{}', 'x')",
    "from first": "FROM numbers(2) SELECT number",
}


@pytest.mark.parametrize("sql", READ_ONLY_ALLOWED.values(), ids=READ_ONLY_ALLOWED.keys())
def test_analysts_may_read(read_only: str, sql: str) -> None:
    """The restrictions must not get in the way of plain questions."""
    assert query(read_only, sql).status_code == 200


READ_ONLY_REFUSED = {
    "insert": "INSERT INTO t VALUES (1)",
    "create": "CREATE TABLE t (a Int8) ENGINE = Memory",
    "drop": "DROP DATABASE default",
    "temporary table": "CREATE TEMPORARY TABLE t (a Int8)",
    "set": "SET readonly = 0",
    "use": "USE system",
    "kill": "KILL QUERY WHERE 1",
    "system": "SYSTEM SHUTDOWN",
    "with insert": "WITH 1 AS x INSERT INTO t SELECT x",
    "from infile": "INSERT INTO t FROM INFILE '/etc/passwd' FORMAT LineAsString",
    "settings clause": "SELECT 1 SETTINGS readonly = 0",
    "lifting a limit": "SELECT 1 SETTINGS max_execution_time = 0",
    "second statement": "SELECT 1; DROP TABLE t",
    "comment before": "/* SELECT */ DROP TABLE t",
    "file table": "SELECT * FROM file('/etc/passwd', 'LineAsString')",
    "file function": "SELECT file('/etc/passwd')",
    "file function, quoted": "SELECT `file`('/etc/passwd')",
    "file function, spaced": "SELECT FiLe /* x */ ('/etc/passwd')",
    "file function, applied": "SELECT * APPLY(file) FROM (SELECT '/etc/passwd')",
    "file function, applied without brackets": "SELECT * APPLY file FROM (SELECT '/etc/passwd')",
    "file function, passed": "SELECT arrayMap(file, ['/etc/passwd'])",
    "file function, strange blank": "SELECT file\u00a0('/etc/passwd')",
    "file by name": "SELECT * FROM `/etc/passwd`",
    "describe file": "DESCRIBE file('/etc/passwd')",
    "explain file": "EXPLAIN SYNTAX SELECT * FROM file('/etc/passwd')",
    "into outfile": "SELECT 1 INTO OUTFILE '/tmp/tidemark_must_not_exist'",
    "explain into outfile": "EXPLAIN SELECT 1 INTO/**/OUTFILE '/tmp/tidemark_must_not_exist'",
    "url": "SELECT * FROM url('http://127.0.0.1:1/', 'LineAsString')",
    "s3": "SELECT * FROM s3('http://127.0.0.1:1/bucket/x', 'TSV', 'a String')",
    "remote": "SELECT * FROM remote('127.0.0.1', 'system.one')",
    "mysql": "SELECT * FROM mysql('127.0.0.1:1', 'a', 'b', 'c', 'd')",
    "executable": "SELECT * FROM executable('ls', 'TSV', 'a String')",
    "python": "SELECT * FROM python('os')",
    "sleep": "SELECT sleep(3)",
    "open quote": "SELECT 'x",
}


@pytest.mark.parametrize("sql", READ_ONLY_REFUSED.values(), ids=READ_ONLY_REFUSED.keys())
def test_analysts_may_not_write_nor_reach_files_programs_or_the_network(read_only: str, sql: str) -> None:
    """Refused with ClickHouse's own code for it, before or by the engine."""
    answer = query(read_only, sql)

    assert answer.status_code in (400, 403)
    assert answer.text.startswith("Code: ")
    assert "root:" not in answer.text
    assert not Path("/tmp/tidemark_must_not_exist").exists()  # noqa: S108  # that it is absent is the point


def test_read_only_settings_cannot_be_changed_by_the_url(read_only: str) -> None:
    """Neither limits nor `readonly`, nor settings that name files."""
    for name, value in (("output_format_schema", "/tmp/x"), ("max_query_size", "1")):  # noqa: S108  # refused
        assert "Cannot modify" in query(read_only, "SELECT 1", **{name: value}).text
    answer = query(read_only, "SELECT getSetting('readonly'), getSetting('max_execution_time')", readonly="0")

    assert answer.text == "1\t60\n"
    assert query(read_only, "SELECT getSetting('final')", final="1").text == "true\n"


def test_files_of_the_server_cannot_be_named_by_those_who_may_write_either(read_write: str) -> None:
    """As a ClickHouse server: INFILE and OUTFILE are for command-line clients."""
    for sql in ("SELECT 1 INTO OUTFILE '/tmp/tidemark_must_not_exist'", "INSERT INTO t FROM INFILE '/x' FORMAT CSV"):
        assert query(read_write, sql).headers["x-clickhouse-exception-code"] == "62"


ROWS = {
    "tab separated": ("TabSeparated", b"1\ta;b\n2\t; SELECT 1;\n"),
    "json lines, and blanks before the line's end": (
        "JSONEachRow  \t",
        b'{"a":1,"b":"a;b"}\n{"a":2,"b":"; SELECT 1;"}\n',
    ),
    "with settings": ("CSV", b'1,"a;b"\n2,"; SELECT 1;"\n'),
}


@pytest.mark.parametrize(("name", "rows"), ROWS.values(), ids=ROWS.keys())
def test_rows_of_an_insert_are_taken_as_they_are(clickhouse_database: str, name: str, rows: bytes) -> None:
    """A semicolon in a row is no end of a statement; many rows are as good as few."""
    base, database = clickhouse_database.rsplit("/", 1)
    settings = "SETTINGS input_format_parallel_parsing = 0 " if name == "CSV" else ""
    assert query(base, "CREATE TABLE t (a UInt64, b String) ENGINE = Memory", database=database).text == ""

    head = f"INSERT INTO t (a, b) {settings}FORMAT {name}\n".encode()
    answers = [
        httpx.post(base, params={"database": database}, content=head + rows * 20_000, timeout=30),
        httpx.post(base, params={"database": database, "query": head.decode()}, content=rows),
        query(base, "INSERT INTO t VALUES (1, 'a;b'), (2, '; SELECT 1;')", database=database),
        query(base, "INSERT INTO t SELECT a, b FROM t", database=database),
    ]

    assert [answer.text for answer in answers] == [""] * 4
    found = query(base, "SELECT b, count() FROM t GROUP BY b ORDER BY b", database=database).text
    assert found == "; SELECT 1;\t40004\na;b\t40004\n"


def test_get_requests_only_read_even_where_writing_is_allowed(read_write: str) -> None:
    """As ClickHouse: a link or an image on a web page must not change anything."""
    answer = httpx.get(read_write, params={"query": "CREATE TABLE t (a Int8) ENGINE = Memory"})

    assert (answer.status_code, answer.headers["x-clickhouse-exception-code"]) == (403, "164")


def test_other_host_names_are_refused(either: str) -> None:
    """A web page whose name was pointed at loopback must not reach the data."""
    assert httpx.get(f"{either}/?query=SELECT+1", headers={"Host": "evil.example"}).status_code == 400


def event(number: int, account: str = "acme") -> EventRow:
    return EventRow(account, f"e{number}", "llm", "app", 1_790_000_000_000_000, '{"n":1}', 3, number, 1_790_000_000_000)


async def test_rows_are_there_after_kill_9_the_moment_the_insert_was_confirmed(tmp_path: Path) -> None:
    """What the archive was told is stored is what its Kafka offset stands for."""
    running = start_clickhouse(tmp_path / "data")
    clickhouse = open_clickhouse(f"{running.url}/meter")
    store = ClickHouseStore(clickhouse)
    await store.migrate()
    for batch in range(5):
        await store.insert_events([event(batch * 1000 + number) for number in range(1000)])
    os.kill(running.process.pid, signal.SIGKILL)
    running.process.wait()
    await store.close()

    again = start_clickhouse(tmp_path / "data")

    try:
        assert run_sql(f"{again.url}/meter", "SELECT count() FROM events") == "5000\n"
    finally:
        stop_clickhouse(again)
        stop_clickhouse(running)


def test_second_process_on_the_directory_says_what_to_do(clickhouse_server: RunningClickHouse) -> None:
    """The engine allows one process per directory."""
    second = subprocess.run(
        [sys.executable, "-m", "pipeline.clickhouse_server", "--path", str(clickhouse_server.path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )

    assert second.returncode != 0
    assert "only one process may have it open" in second.stderr


@pytest.fixture
async def serve(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Callable[..., ClickHouseServer]]:
    """Makes servers in this process, on one directory, because an engine is for one directory per process."""
    path = tmp_path_factory.getbasetemp() / "clickhouse_in_process"
    servers: list[ClickHouseServer] = []

    def make(faults: ScriptedFaults | None = None, limits: Limits | None = None, token: str = "") -> ClickHouseServer:
        servers.append(ClickHouseServer(str(path), faults=faults, limits=limits, token=token or None))
        return servers[-1]

    yield make
    for server in servers:
        await server.stop()


async def test_answer_dropped_after_success_and_the_same_insert_repeated_counts_once(
    serve: Callable[..., ClickHouseServer],
) -> None:
    """The ambiguous outcome of every network: stored, but nobody was told."""
    faults = ScriptedFaults(b"usage_events")
    server = serve(faults)
    await server.start()
    clickhouse = open_clickhouse(f"{server.url}/dropped")
    store = ClickHouseStore(clickhouse)
    await store.migrate()

    faults.left = [Fault(drop_answer=True)] * 9
    with pytest.raises(Transient):
        await store.insert_events([event(1), event(2)])
    faults.left = []

    assert await clickhouse.rows("SELECT count() FROM events") == [(2,)]
    await store.insert_events([event(1), event(2)])
    assert await clickhouse.rows("SELECT count() FROM events") == [(2,)]
    await store.close()


async def test_refused_and_late_answers_are_transient(serve: Callable[..., ClickHouseServer]) -> None:
    """The caller repeats; it must not stop for good."""
    faults = ScriptedFaults(b"system.one")
    server = serve(faults)
    await server.start()
    clickhouse = open_clickhouse(server.url, timeout_s=1)
    assert await clickhouse.rows("SELECT 1") == [(1,)]

    faults.left = [Fault(refuse=True)] * 9
    with pytest.raises(Transient):
        await clickhouse.rows("SELECT * FROM system.one")
    faults.left = [Fault(delay_s=3)] * 9
    with pytest.raises(Transient):
        await clickhouse.rows("SELECT * FROM system.one")
    faults.left = []

    assert await clickhouse.rows("SELECT * FROM system.one") == [(0,)]
    await clickhouse.close()


async def test_nobody_listening_is_transient() -> None:
    """ClickHouse down does not stop live limits; the archive waits for it."""
    clickhouse = open_clickhouse("http://127.0.0.1:1", timeout_s=2)

    with pytest.raises(Transient):
        await clickhouse.rows("SELECT 1")
    await clickhouse.close()


async def test_token_guards_the_read_write_listener_only(serve: Callable[..., ClickHouseServer]) -> None:
    """Our own roles carry it in their URL; analysts need none to read."""
    server = serve(token="s3cret")
    await server.start()
    right, wrong = open_clickhouse(server.url), open_clickhouse(server.url.replace("s3cret", "guess"))
    async with httpx.AsyncClient() as client:
        bare = await client.get(f"http://127.0.0.1:{server.port}/?query=SELECT+1")
        analyst = await client.get(f"{server.read_only_url}/?query=SELECT+1")

    assert (bare.status_code, analyst.text) == (403, "1\n")
    assert await right.rows("SELECT 1") == [(1,)]
    with pytest.raises(Refused, match="credentials"):
        await wrong.rows("SELECT 1")
    await right.close()
    await wrong.close()


async def test_limits_are_told_in_clickhouses_words(serve: Callable[..., ClickHouseServer]) -> None:
    """Too large, too long, too many: refused without harm to the next request."""
    limits = Limits(body_bytes_max=1000, read_only_result_rows=10, read_only_execution_s=1)
    server = serve(limits=limits)
    await server.start()
    async with httpx.AsyncClient(timeout=30) as client:
        large = await client.post(server.url, content=b"SELECT '" + b"x" * 2000 + b"'")
        bomb = await client.post(
            server.url, content=gzip.compress(b" " * 100_000), headers={"Content-Encoding": "gzip"}
        )
        many = await client.post(server.read_only_url, content=b"SELECT * FROM numbers(100)")
        slow = await client.post(server.read_only_url, content=b"SELECT count() FROM numbers(1000000000000)")
        fine = await client.post(server.read_only_url, content=b"SELECT 1")

    assert (large.status_code, bomb.status_code) == (413, 413)
    assert "TOO_MANY_ROWS" in many.text
    assert "TIMEOUT_EXCEEDED" in slow.text
    assert fine.text == "1\n"


async def test_more_requests_than_may_wait_get_503_and_none_is_lost(serve: Callable[..., ClickHouseServer]) -> None:
    """A bounded queue says so at its limit."""
    server = serve(limits=Limits(running_max=1, waiting_max=1))
    await server.start()
    answers: list[int] = []
    threads = [
        threading.Thread(target=lambda: answers.append(query(server.url, "SELECT sleep(0.5)").status_code))
        for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    async with httpx.AsyncClient() as client:
        while len(answers) < 5:
            assert (await client.get(f"{server.url}/ping")).text == "Ok.\n"
    for thread in threads:
        thread.join()

    assert sorted(answers) == [200, 200, 503, 503, 503]


async def test_unknown_server_version_is_refused_politely(clickhouse_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Defaults that the counts rest on change between versions."""
    monkeypatch.setattr(clickhouse_client, "VERSION_MAX", (25, 12))
    clickhouse = open_clickhouse(clickhouse_url)

    with pytest.raises(OperatorNeeded, match="not known to this version"):
        await clickhouse.rows("SELECT 1")
    await clickhouse.close()


@pytest.mark.parametrize(
    ("number", "checksum", "message"),
    [(9_999, "x", "migration 9999"), (1, "x", "another text")],
    ids=["newer schema", "edited migration"],
)
async def test_schema_of_another_version_is_refused(
    clickhouse_database: str, number: int, checksum: str, message: str
) -> None:
    """Writing on would mix two meanings of one table."""
    clickhouse = open_clickhouse(clickhouse_database)
    store = ClickHouseStore(clickhouse)
    await store.migrate()
    row = json.dumps([number, "name", checksum]).encode()
    await clickhouse.insert_lines("schema_migrations", ("number", "name", "checksum"), row)

    with pytest.raises(OperatorNeeded, match=message):
        await store.migrate()
    await store.close()
