"""The ClickHouse engine as a process of its own, one for the session; a fresh database for each test."""

from __future__ import annotations

import json
import os
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from pipeline.local.processes import LocalProcess, python

ROOT = Path(__file__).resolve().parents[2]


class RunningClickHouse(NamedTuple):
    """A server process, its directory and its two addresses."""

    process: LocalProcess
    path: Path
    url: str
    read_only_url: str


def start_clickhouse(path: Path, *, port: int = 0, read_only_port: int = 0, token: str = "") -> RunningClickHouse:
    """Start the server on `path` and wait until it is ready; the caller ends the process."""
    ports = ("--port", str(port), "--read-only-port", str(read_only_port))
    process = LocalProcess(
        "the ClickHouse server",
        python("pipeline.local.clickhouse_server", "--path", str(path), *ports),
        path.with_name(f"{path.name}.log"),
        environment={**os.environ, "TZ": "UTC", "TIDEMARK_CLICKHOUSE_TOKEN": token},
        cwd=ROOT,
    )
    process.start()
    ready = json.loads(process.wait_line('"ready"'))
    return RunningClickHouse(
        process,
        path,
        f"http://127.0.0.1:{ready['port']}",
        f"http://127.0.0.1:{ready['read_only_port']}",
    )


def run_sql(url: str, sql: str) -> str:
    """Run one statement at a server or database URL and return the answer's text; raises on an error answer."""
    base, _, database = url.removeprefix("http://").partition("/")
    address = f"http://{base}/?database={database or 'default'}"
    with urllib.request.urlopen(urllib.request.Request(address, sql.encode(), method="POST"), timeout=30) as answer:
        return str(answer.read().decode())


@pytest.fixture(scope="session")
def clickhouse_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningClickHouse]:
    """The session's ClickHouse."""
    running = start_clickhouse(tmp_path_factory.mktemp("clickhouse"))
    yield running
    running.process.stop()


@pytest.fixture(scope="session")
def clickhouse_url(clickhouse_server: RunningClickHouse) -> str:
    """The read-write address of the session's ClickHouse, without a database."""
    return clickhouse_server.url


@pytest.fixture
def clickhouse_database(clickhouse_url: str) -> Iterator[str]:
    """The URL of a database that no other test knows; `ClickHouseStore.migrate` fills it, the fixture drops it."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    run_sql(clickhouse_url, f"CREATE DATABASE {name}")
    yield f"{clickhouse_url}/{name}"
    run_sql(clickhouse_url, f"DROP DATABASE IF EXISTS {name} SYNC")
