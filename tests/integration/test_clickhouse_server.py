"""The ClickHouse server as its clients see it: curl, clickhouse-connect, analysts, and our own store under faults."""

from __future__ import annotations

import gzip

import clickhouse_connect
import httpx
import lz4.frame  # type: ignore[import-untyped]  # lz4 ships no types
import pytest
from clickhouse_connect.driver.exceptions import DatabaseError

from tests.services.clickhouse import RunningClickHouse


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
