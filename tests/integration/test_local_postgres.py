"""The PostgreSQL that `tidemark dev` and the tests start: on any folder, as any user, after any end."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from pipeline.local.postgres import LocalPostgres
from schemas.errors import OperatorNeeded

PARENT = """
import sys
from pathlib import Path
from pipeline.local.postgres import LocalPostgres
server = LocalPostgres(Path(sys.argv[1]), durable=False)
server.start()
print(server.pid, flush=True)
sys.stdin.read()
"""


def until(condition: Callable[[], bool]) -> None:
    """Block until `condition` holds."""
    deadline_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def modes(folder: Path) -> list[tuple[Path, int, int]]:
    """Permissions and owner of a folder and its parents."""
    return [(path, path.stat().st_mode, path.stat().st_uid) for path in (folder, *folder.parents)]


def test_a_killed_server_starts_again_with_what_was_committed(own_postgres: LocalPostgres) -> None:
    """The start waits for a process of the killed server that still has the shared memory."""
    # A server also ends with the thread that started it, so the thread lives until the end of the test.
    with ThreadPoolExecutor(1) as thread, psycopg.connect(own_postgres.url) as client:
        client.execute("CREATE TABLE kept AS SELECT 1 AS one")
        client.commit()
        client.execute("INSERT INTO kept VALUES (2)")
        left_behind = client.info.backend_pid
        os.kill(left_behind, signal.SIGSTOP)
        own_postgres.kill()
        starting = thread.submit(own_postgres.start)
        until(lambda: "is still in use" in own_postgres.log_tail())
        os.kill(left_behind, signal.SIGCONT)
        starting.result()
        with pytest.raises(psycopg.OperationalError):
            client.execute("SELECT 1")
        with psycopg.connect(own_postgres.url) as another:
            assert another.execute("SELECT one FROM kept").fetchall() == [(1,)]


def test_a_server_stops_although_clients_are_connected(own_postgres: LocalPostgres) -> None:
    with psycopg.connect(own_postgres.url):
        started_s = time.monotonic()
        own_postgres.stop()
        assert time.monotonic() - started_s < 15
    assert own_postgres.exit_code == 0


def test_a_server_needs_no_permission_on_the_folders_above(tmp_path: Path) -> None:
    folder = tmp_path / "private" / "state"
    folder.mkdir(parents=True)
    folder.parent.chmod(0o700)
    folder.chmod(0o700)
    before = modes(folder)
    with LocalPostgres(folder / "postgres", durable=False) as server, psycopg.connect(server.url) as client:
        assert client.execute("SHOW fsync").fetchone() == ("off",)
    assert modes(folder) == before


def test_data_of_a_durable_server_is_synced(tmp_path: Path) -> None:
    with LocalPostgres(tmp_path / "postgres") as server, psycopg.connect(server.url) as client:
        assert client.execute("SHOW fsync").fetchone() == ("on",)


def test_a_folder_that_was_not_made_to_the_end_is_made_again(tmp_path: Path) -> None:
    (tmp_path / "postgres" / "data.new" / "base").mkdir(parents=True)
    with LocalPostgres(tmp_path / "postgres", durable=False) as server, psycopg.connect(server.url) as client:
        assert client.execute("SELECT 1").fetchone() == (1,)


def test_a_second_server_on_a_folder_is_refused(own_postgres: LocalPostgres, tmp_path: Path) -> None:
    second = LocalPostgres(tmp_path / "postgres", durable=False)
    with pytest.raises(OperatorNeeded, match="another postmaster"):
        second.start()
    with psycopg.connect(own_postgres.url) as client:
        assert client.execute("SELECT 1").fetchone() == (1,)


def test_a_server_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PARENT, str(tmp_path / "postgres")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        server = int(parent.stdout.readline())
        assert Path(f"/proc/{server}").exists()
        parent.send_signal(signal.SIGKILL)
    until(lambda: not Path(f"/proc/{server}/cmdline").exists() or not Path(f"/proc/{server}/cmdline").read_bytes())


def test_root_without_setpriv_is_told_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    with pytest.raises(OperatorNeeded, match=r"install util-linux, .* TIDEMARK_SQL_URL"):
        LocalPostgres(tmp_path)
