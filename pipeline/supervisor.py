"""Runs the processes of a deployment on one machine, and starts again what dies."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pipeline.processes import die_with_parent
from schemas.errors import OperatorNeeded

RESTART_DELAY_S: Final = 0.2
RESTART_DELAY_S_MAX: Final = 10.0
STOP_TIMEOUT_S: Final = 30.0
READY_TIMEOUT_S: Final = 60.0
LOG_TAIL_BYTES: Final = 2_000
# A process that dies this soon after its start, this often, will not come up by itself.
QUICK_DEATH_S: Final = 5.0
QUICK_DEATHS_MAX: Final = 5


class Child:
    """One process: `start`, then it is kept running until `stop`. Its output goes to a file."""

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        log_path: Path,
        on_failure: Callable[[str], None],
    ) -> None:
        self.name = name
        self.restarts = 0
        self._arguments = [sys.executable, "-m", *arguments]
        self._environment = {**os.environ, **environment, "PYTHONUNBUFFERED": "1"}
        self._log_path = log_path
        self._on_failure = on_failure
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._started = asyncio.Event()

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        running = self._process is not None and self._process.returncode is None
        return self._process.pid if self._process is not None and running else None

    async def start(self) -> None:
        """Start the process and keep it running."""
        self._keeper = asyncio.create_task(self._keep())
        await self._started.wait()

    async def _keep(self) -> None:
        quick_deaths = 0
        loop = asyncio.get_running_loop()
        while True:
            began_s = loop.time()
            with self._log_path.open("ab") as log:
                self._process = await asyncio.create_subprocess_exec(
                    *self._arguments,
                    env=self._environment,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    preexec_fn=die_with_parent,
                )
            self._started.set()
            code = await self._process.wait()
            quick = loop.time() - began_s < QUICK_DEATH_S and code != -signal.SIGKILL
            quick_deaths = quick_deaths + 1 if quick else 0
            if quick_deaths >= QUICK_DEATHS_MAX:
                self._on_failure(
                    f"{self.name} dies at its start (exit {code}); the end of {self._log_path}:\n{self.log_tail()}"
                )
                return
            self.restarts += 1
            await asyncio.sleep(min(RESTART_DELAY_S * 2**quick_deaths, RESTART_DELAY_S_MAX))

    def kill(self) -> bool:
        """SIGKILL, as a crash would; it is started again. False where it is not running at the moment."""
        pid = self.pid
        if pid is None:
            return False
        os.killpg(pid, signal.SIGKILL)
        return True

    async def stop(self) -> None:
        """Stop in order; killed after a time. Safe to call twice."""
        if self._keeper is not None:
            self._keeper.cancel()
        process = self._process
        if process is not None and process.returncode is None:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
            except TimeoutError:
                os.killpg(process.pid, signal.SIGKILL)
                await process.wait()

    def log_tail(self) -> str:
        """The end of what it printed."""
        return self._log_path.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")


class Supervisor:
    """The children of one process. `failure` is set when one of them will not come up."""

    def __init__(self, log_dir: Path) -> None:
        self._log_dir = log_dir
        self.children: dict[str, Child] = {}
        self.failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def start(self, name: str, arguments: Sequence[str], environment: Mapping[str, str]) -> Child:
        """Start a child and keep it running."""
        self._log_dir.mkdir(parents=True, exist_ok=True)
        child = Child(name, arguments, environment, self._log_dir / f"{name}.log", self._fail)
        self.children[name] = child
        await child.start()
        return child

    def _fail(self, message: str) -> None:
        if not self.failure.done():
            self.failure.set_exception(OperatorNeeded(message))

    async def wait_ready(self, name: str, ready: Callable[[], Any]) -> None:
        """Return once `ready()` (maybe awaitable) is true; raises `OperatorNeeded` where it does not get there."""
        deadline_s = asyncio.get_running_loop().time() + READY_TIMEOUT_S
        while True:
            if self.failure.done():
                self.failure.result()
            answer = ready()
            if asyncio.iscoroutine(answer):
                answer = await answer
            if answer:
                return
            if asyncio.get_running_loop().time() > deadline_s:
                tail = self.children[name].log_tail() if name in self.children else ""
                raise OperatorNeeded(f"{name} is not ready after {READY_TIMEOUT_S:.0f} s; its log ends with:\n{tail}")
            await asyncio.sleep(0.05)

    async def stop(self) -> None:
        """Stop all children, the last started first. Safe to call twice."""
        for child in reversed(self.children.values()):
            await child.stop()
        if self.failure.done() and not self.failure.cancelled():
            self.failure.exception()


def read_ready_line(log_path: Path) -> dict[str, Any] | None:
    """The last `{"ready": …}` line a child printed, or None."""
    if not log_path.exists():
        return None
    for line in reversed(log_path.read_text(errors="replace").splitlines()):
        if line.startswith('{"ready"'):
            document: dict[str, Any] = json.loads(line)
            return document
    return None
