"""A deployment on one machine when its child processes die, and the children when the supervisor dies."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from pipeline.local import supervisor as supervising
from pipeline.local.processes import LocalProcess, free_port, python
from pipeline.local.supervisor import Supervisor
from schemas.errors import OperatorNeeded, Transient
from tests.integration.deployment import ROOT

PATIENCE_S = 60.0
LASTS = ("http.server", "--bind", "127.0.0.1", "0")
DIES = ("http.server", "--no-such-option")
# A supervisor with one child; prints the child's process id and waits.
PARENT = f"""
import asyncio
from pathlib import Path
from pipeline.local.supervisor import Supervisor

async def main():
    child = Supervisor(Path.cwd()).start("child", {LASTS!r}, {{}})
    print(child.process.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture
def notices() -> list[str]:
    """What the fixture `running` has told a person."""
    return []


@pytest_asyncio.fixture
async def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, notices: list[str]) -> AsyncIterator[Supervisor]:
    """A supervisor with two roles."""
    monkeypatch.setattr(supervising, "RESTART_DELAY_S", 0.01)
    supervisor = Supervisor(tmp_path, notices.append)
    for name in ("worker", "gateway"):
        supervisor.start(name, LASTS, {})
    yield supervisor
    await supervisor.stop()


async def test_logs_of_roles_are_for_their_owner_only(running: Supervisor) -> None:
    """A role may log what names customers."""
    modes = {child.process.log_path.stat().st_mode & 0o777 for child in running.children.values()}

    assert modes == {0o600}


async def test_killed_processes_are_restarted_and_named(running: Supervisor, notices: list[str]) -> None:
    """However often they are killed."""
    for kills in (1, 2):
        for child in running.children.values():
            assert child.process.kill()

        def are_back(restarts: int = kills) -> bool:
            return all(child.restarts == restarts and child.process.pid for child in running.children.values())

        await running.wait_ready("worker", are_back)

    assert not running.failure.done()
    assert sorted(notices) == [
        f"{name} ended (exit -9); starting it again" for name in ("gateway", "worker") for _ in range(2)
    ]


async def test_role_that_is_killed_while_a_service_is_away_is_named(running: Supervisor, notices: list[str]) -> None:
    """No store kills a role."""
    running.start("store", LASTS, {}, service=True)
    for name in ("store", "worker"):
        running.children[name].process.kill()

    await running.wait_ready("worker", lambda: len(notices) == 2)
    assert set(notices) == {f"{name} ended (exit -9); starting it again" for name in ("store", "worker")}


async def test_process_that_dies_at_every_start_is_reported(running: Supervisor) -> None:
    """With its exit code and the end of its log; otherwise nobody would notice."""
    running.start("archive", DIES, {})

    with pytest.raises(OperatorNeeded, match=r"archive dies at its start \(exit 2\)(?s:.*)no-such-option"):
        await asyncio.wait_for(running.failure, PATIENCE_S)


# Ends at once, with exit code 1, while nobody listens on the port.
NEEDS_STORE = """
import socket, sys, time

while True:
    socket.create_connection(("127.0.0.1", int(sys.argv[1]))).close()
    print("connected", flush=True)
    time.sleep(0.01)
"""


async def test_role_that_ends_because_a_service_is_away_is_not_to_blame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service is named, when it ends and when it cannot come back."""
    monkeypatch.setattr(supervising, "RESTART_DELAY_S", 0.05)
    notices: list[str] = []
    supervisor, port = Supervisor(tmp_path, notices.append), free_port()
    (tmp_path / "role.py").write_text(NEEDS_STORE)
    (tmp_path / "store.py").write_text("import http.server as s, sys; s.test(port=int(sys.argv[1]))")
    environment = {"PYTHONPATH": str(tmp_path)}
    store = supervisor.start("store", ("store", str(port)), environment, service=True)
    role = supervisor.start("worker", ("role", str(port)), environment)
    try:
        for kills in range(1, supervising.QUICK_DEATHS_MAX + 2):
            await supervisor.wait_ready("store", lambda: _listens(port))
            # A role that is still starting would miss that the store is away.
            await supervisor.wait_ready("worker", lambda: "connected" in role.process.output())
            restarts = role.restarts
            store.process.kill()

            def is_back(before: int = restarts) -> bool:
                return role.restarts > before

            await supervisor.wait_ready("worker", is_back)
            assert notices == ["store ended (exit -9); starting it again"] * kills

        (tmp_path / "store.py").write_text("raise SystemExit('the disk is full')")
        store.process.kill()

        with pytest.raises(OperatorNeeded, match=r"store dies at its start \(exit 1\)(?s:.*)the disk is full"):
            await asyncio.wait_for(supervisor.failure, PATIENCE_S)
    finally:
        await supervisor.stop()


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


async def test_process_that_cannot_be_restarted_is_reported(
    running: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine has no process or no memory left."""

    def fail(*_arguments: Any, **_options: Any) -> None:
        raise BlockingIOError("resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", fail)
    running.children["worker"].process.kill()

    with pytest.raises(OperatorNeeded, match=r"dies at its start \(BlockingIOError"):
        await asyncio.wait_for(running.failure, PATIENCE_S)


async def test_stopped_processes_stay_stopped(running: Supervisor) -> None:
    """SIGTERM ends the processes; a second stop is harmless."""
    await running.stop()
    await running.stop()

    assert [child.process.exit_code for child in running.children.values()] == [-signal.SIGTERM] * 2


async def test_service_is_stopped_by_its_own_signal(running: Supervisor, tmp_path: Path) -> None:
    """PostgreSQL waits after SIGTERM for its clients to leave, and a role keeps its connections."""

    class Waits(LocalProcess):
        stop_signal = signal.SIGQUIT

    service = Waits("store", python(*LASTS), tmp_path / "store.log")
    await running.start_service("store", service)
    await running.children["store"].stop()

    assert service.exit_code == -signal.SIGQUIT


def test_child_dies_with_a_killed_supervisor(tmp_path: Path) -> None:
    """After kill -9 of `tidemark dev` no worker may go on counting."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert _runs(child)

    parent.kill()
    parent.communicate()

    deadline_s = time.monotonic() + PATIENCE_S
    while _runs(child):
        assert time.monotonic() < deadline_s, "the child outlived its parent"
        time.sleep(0.01)


def _runs(pid: int) -> bool:
    """Whether the process exists and is no zombie that waits for its new parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False


def test_waiting_for_a_failed_process_raises_with_the_end_of_its_log(tmp_path: Path) -> None:
    """Once because the process died, once because it never becomes ready."""
    with (
        LocalProcess("it", python(*DIES), tmp_path / "dies") as dies,
        pytest.raises(OperatorNeeded, match=r"it ended \(exit 2\)(?s:.*)no-such-option"),
    ):
        dies.wait_line("Serving")
    with LocalProcess("it", python(*LASTS), tmp_path / "lasts") as lasts:
        with pytest.raises(Transient, match="it is not ready"):
            lasts.wait_until(lambda: False, 0.2)
        assert lasts.exit_code == -signal.SIGKILL
