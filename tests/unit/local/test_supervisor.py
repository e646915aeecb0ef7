"""What a deployment on one machine does when the process that starts its roles dies."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from pipeline.local import supervisor as supervising
from pipeline.local.supervisor import Supervisor
from schemas.errors import OperatorNeeded

# Answers as the nursery does, without its imports; the roles it names are no processes.
ANSWERS = """
import json, sys
for number, line in enumerate(sys.stdin):
    name = json.loads(line)["name"]
    print(json.dumps({"started": name, "pid": 2**30 + number}), flush=True)
"""
DIES_AT_AN_ORDER = "import sys; sys.stdin.readline(); sys.exit(7)"


class Nurseries:
    """Stands in for the start of a process: what the next one does, and those that were started."""

    def __init__(self) -> None:
        self.script = ANSWERS
        self.started: list[asyncio.subprocess.Process] = []
        self._start: Any = asyncio.create_subprocess_exec

    async def start(self, program: str, *_arguments: str, **options: Any) -> asyncio.subprocess.Process:
        self.started.append(await self._start(program, "-c", self.script, **options))
        return self.started[-1]


@pytest.fixture
def nurseries(monkeypatch: pytest.MonkeyPatch) -> Nurseries:
    made = Nurseries()
    monkeypatch.setattr(asyncio, "create_subprocess_exec", made.start)
    monkeypatch.setattr(supervising, "RESTART_DELAY_S", 0.01)
    return made


@pytest_asyncio.fixture
async def running(nurseries: Nurseries, tmp_path: Path) -> AsyncIterator[Supervisor]:
    """Two roles."""
    supervisor = Supervisor(tmp_path)
    for name in ("worker", "gateway"):
        await supervisor.start_role(name, [name], {})
    yield supervisor
    for child in supervisor.children.values():
        # Nothing of them is left to be told to stop: they are no processes.
        child.pid = None
    await supervisor.stop()


def _are_back(running: Supervisor, restarts: int) -> bool:
    return all(child.restarts == restarts and child.pid is not None for child in running.children.values())


async def test_roles_are_back_after_the_nursery_was_killed(running: Supervisor, nurseries: Nurseries) -> None:
    """As the kernel does where memory runs out. One other nursery starts them all."""
    for kills in (1, 2):
        os.kill(nurseries.started[-1].pid, signal.SIGKILL)
        await running.wait_ready("worker", lambda: _are_back(running, kills))  # noqa: B023 - awaited here

    assert len(nurseries.started) == 3
    assert not running.failure.done()


async def test_nursery_that_dies_at_every_order_is_told(running: Supervisor, nurseries: Nurseries) -> None:
    """Nobody else would learn that no role runs any more."""
    nurseries.script = DIES_AT_AN_ORDER
    os.kill(nurseries.started[-1].pid, signal.SIGKILL)

    with pytest.raises(OperatorNeeded, match=r"dies at its start \(Transient: the nursery ended \(exit 7\)"):
        await asyncio.wait_for(running.failure, 10)


async def test_nursery_that_cannot_be_started_is_told(
    running: Supervisor, nurseries: Nurseries, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more processes, or no memory for one."""

    async def fail(*_arguments: str, **_options: Any) -> asyncio.subprocess.Process:
        raise BlockingIOError("resource temporarily unavailable")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", fail)
    os.kill(nurseries.started[-1].pid, signal.SIGKILL)

    with pytest.raises(OperatorNeeded, match=r"dies at its start \(BlockingIOError"):
        await asyncio.wait_for(running.failure, 10)
