"""What analysts may ask of the read-only address, and everything that is refused there."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from tests.services.clickhouse import RunningClickHouse


def query(url: str, sql: str, **arguments: str) -> httpx.Response:
    return httpx.post(url, params=arguments, content=sql.encode(), timeout=30)


@pytest.fixture
def read_only(clickhouse_server: RunningClickHouse) -> str:
    return clickhouse_server.read_only_url


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
