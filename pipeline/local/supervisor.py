"""Runs the processes of a deployment on one machine and restarts processes that end."""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pipeline.local.processes import START_TIMEOUT_S, STOP_TIMEOUT_S, LocalProcess, python
from schemas.errors import OperatorNeeded

RESTART_DELAY_S: Final = 0.2
RESTART_DELAY_S_MAX: Final = 10.0
# A process that dies so often, so soon after its start, needs an operator.
QUICK_DEATH_S: Final = 15.0
QUICK_DEATHS_MAX: Final = 5


class Child:
    """A process that is restarted until `stop`. SIGKILL does not count as a quick death."""

    def __init__(self, process: LocalProcess, on_failure: Callable[[str], None]) -> None:
        self.process = process
        self.restarts = 0
        self._on_failure = on_failure
        self._stopping = False
        self._keeper: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the process and keep it running. Raises `OSError` if the first start fails."""
        self.process.start()
        self._keeper = asyncio.create_task(self._keep())

    async def _keep(self) -> None:
        """Restart the process when it ends. A failed start, for example without memory, counts as a quick death."""
        loop = asyncio.get_running_loop()
        quick_deaths, began_s, end = 0, loop.time(), ""
        while True:
            if not end:
                code = await self.process.ended()
                end = f"exit {code}"
                quick = loop.time() - began_s < QUICK_DEATH_S and code != -signal.SIGKILL
                quick_deaths = quick_deaths + 1 if quick else 0
            else:
                quick_deaths += 1
            if self._stopping:
                return
            if quick_deaths >= QUICK_DEATHS_MAX:
                tail = self.process.log_tail()
                name, path = self.process.name, self.process.log_path
                self._on_failure(f"{name} dies at its start ({end}); {path} ends with:\n{tail}")
                return
            self.restarts += 1
            await asyncio.sleep(min(RESTART_DELAY_S * 2**quick_deaths, RESTART_DELAY_S_MAX))
            began_s = loop.time()
            try:
                self.process.start()
            except (OSError, subprocess.SubprocessError) as error:
                end = f"{type(error).__name__}: {error}"
            else:
                end = ""

    async def stop(self) -> None:
        """Send SIGTERM and wait; SIGKILL after `STOP_TIMEOUT_S`. Safe to call twice."""
        self._stopping = True
        if self._keeper is None:
            return
        if self.process.pid is None:
            self._keeper.cancel()
        else:
            self.process.signal(signal.SIGTERM)
            await asyncio.wait({self._keeper}, timeout=STOP_TIMEOUT_S)
            self.process.kill()
        await asyncio.wait({self._keeper})


class Supervisor:
    """The child processes of this process. `failure` raises `OperatorNeeded` when a child dies at every start."""

    def __init__(self, log_dir: Path) -> None:
        self._log_dir = log_dir
        self.children: dict[str, Child] = {}
        self.failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def start(self, name: str, arguments: Sequence[str], environment: Mapping[str, str]) -> Child:
        """Start `python -m ARGUMENTS`, and restart it when it ends. Raises `OSError` if the first start fails."""
        self._log_dir.mkdir(parents=True, exist_ok=True)
        whole = {**os.environ, **environment, "PYTHONUNBUFFERED": "1"}
        process = LocalProcess(name, python(*arguments), self._log_dir / f"{name}.log", environment=whole)
        child = self.children[name] = Child(process, self._fail)
        child.start()
        return child

    def _fail(self, message: str) -> None:
        if not self.failure.done():
            self.failure.set_exception(OperatorNeeded(message))

    async def wait_ready(self, name: str, ready: Callable[[], Any]) -> None:
        """Return when `ready()`, maybe awaitable, is true. Raises `OperatorNeeded` on a failure or after 60 s."""
        deadline_s = asyncio.get_running_loop().time() + START_TIMEOUT_S
        while True:
            if self.failure.done():
                self.failure.result()
            answer = ready()
            if inspect.isawaitable(answer):
                answer = await answer
            if answer:
                return
            if asyncio.get_running_loop().time() > deadline_s:
                tail = self.children[name].process.log_tail() if name in self.children else ""
                raise OperatorNeeded(f"{name} is not ready after {START_TIMEOUT_S:.0f} s; its log ends with:\n{tail}")
            await asyncio.sleep(0.05)

    async def stop(self) -> None:
        """Stop the roles together, then the services that the roles use. Safe to call twice."""
        services = [child for name, child in self.children.items() if name in ("clickhouse", "stripe")]
        roles = [child for child in self.children.values() if child not in services]
        for children in (roles, services):
            await asyncio.gather(*(child.stop() for child in children))
        if self.failure.done() and not self.failure.cancelled():
            self.failure.exception()
