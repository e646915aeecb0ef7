"""Our own store against a ClickHouse server that dies, drops answers, refuses, delays, or is of another version."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest

from pipeline.local.clickhouse_server import ClickHouseServer, Fault, Limits
from schemas.analytics import EventRow
from schemas.errors import OperatorNeeded, Refused, Transient
from sinks.clickhouse import client as clickhouse_client
from sinks.clickhouse.client import open_clickhouse
from sinks.clickhouse.writer import ClickHouseStore
from tests.services.clickhouse import ROOT, RunningClickHouse, run_sql, start_clickhouse


class ScriptedFaults:
    """Hands out the given faults to statements that contain a text, in order; then nothing goes wrong."""

    def __init__(self, text: bytes, *faults: Fault) -> None:
        self.text = text
        self.left = list(faults)

    def next(self, statement: bytes) -> Fault:
        return self.left.pop(0) if self.left and self.text in statement else Fault()


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
    running.process.kill()
    await store.close()

    again = start_clickhouse(tmp_path / "data")

    try:
        assert run_sql(f"{again.url}/meter", "SELECT count() FROM events") == "5000\n"
    finally:
        again.process.stop()


def test_second_process_on_the_directory_says_what_to_do(clickhouse_server: RunningClickHouse) -> None:
    """The engine allows one process per directory."""
    second = subprocess.run(
        [sys.executable, "-m", "pipeline.local.clickhouse_server", "--path", str(clickhouse_server.path)],
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
        threading.Thread(
            target=lambda: answers.append(httpx.post(server.url, content=b"SELECT sleep(0.5)", timeout=30).status_code)
        )
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
