"""Runs the processes of a deployment on one machine and restarts processes that end."""

from __future__ import annotations

import asyncio
import inspect
import math
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pipeline.local.processes import POLL_INTERVAL_S, START_TIMEOUT_S, STOP_TIMEOUT_S, LocalProcess, python
from schemas.errors import OperatorNeeded, TidemarkError

RESTART_DELAY_S: Final = 0.2
RESTART_DELAY_S_MAX: Final = 10.0
# A process that dies so often, so soon after its start, needs an operator.
QUICK_DEATH_S: Final = 15.0
QUICK_DEATHS_MAX: Final = 5
KILLED: Final = f"exit {-signal.SIGKILL}"


class Child:
    """A process that is restarted until `stop`. SIGKILL does not count as a quick death."""

    def __init__(
        self,
        process: LocalProcess,
        on_failure: Callable[[str], None],
        on_end: Callable[[str], None] = lambda _: None,
        is_excused: Callable[[float], bool] = lambda _: False,
    ) -> None:
        """`on_end` gets the way in which a run ended. A run that began at a time (of the loop) of which `is_excused` is
        true does not count as a quick death, because something else ended it.
        """
        self.process = process
        self.restarts = 0
        self.began_s = self.last_down_s = -math.inf
        self._on_failure = on_failure
        self._on_end = on_end
        self._is_excused = is_excused
        self._stopping = False
        self._keeper: asyncio.Task[None] | None = None
        self._starting: asyncio.Future[None] | None = None

    def start(self) -> None:
        """Start the process and keep it running. Raises `OSError` if the first start fails."""
        self.process.start()
        self.keep()

    def keep(self) -> None:
        """Keep a process running that was started."""
        self._keeper = asyncio.create_task(self._keep())

    async def _keep(self) -> None:
        """Restart the process when it ends. A failed start, for example without memory, counts as a quick death."""
        loop = asyncio.get_running_loop()
        quick_deaths, end = 0, ""
        self.began_s = loop.time()
        while True:
            if not end:
                code = await self.process.ended()
                end = f"exit {code}"
                self.last_down_s = loop.time()
                quick = loop.time() - self.began_s < QUICK_DEATH_S and code != -signal.SIGKILL
                if not self._is_excused(self.began_s):
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
            self._on_end(end)
            self.restarts += 1
            await asyncio.sleep(min(RESTART_DELAY_S * 2**quick_deaths, RESTART_DELAY_S_MAX))
            self.began_s, end = loop.time(), ""
            try:
                # A service blocks until it answers.
                self._starting = asyncio.ensure_future(asyncio.to_thread(self.process.start))
                await asyncio.shield(self._starting)
            except (OSError, subprocess.SubprocessError) as error:
                end = f"{type(error).__name__}: {error}"
            except TidemarkError:
                # A service that ended before it answered: its exit code says how.
                pass
            self.last_down_s = loop.time()

    async def stop(self) -> None:
        """Send the signal that stops the process and wait; SIGKILL after `STOP_TIMEOUT_S`. Safe to call twice."""
        self._stopping = True
        if self._keeper is None:
            return
        if self.process.pid is None:
            self._keeper.cancel()
        else:
            self.process.signal(self.process.stop_signal)
            await asyncio.wait({self._keeper}, timeout=STOP_TIMEOUT_S)
            self.process.kill()
        await asyncio.wait({self._keeper})
        if self._starting is not None:
            # The thread of a start goes on without the keeper.
            while not self._starting.done():
                self.process.kill()
                await asyncio.sleep(POLL_INTERVAL_S)
            self._starting.exception()
            self.process.kill()


def _ended(process: LocalProcess, end: str) -> str:
    return f"{process.name} ended ({end}); starting it again"


class Supervisor:
    """The child processes of this process: roles, and the services that the roles use.

    `failure` raises `OperatorNeeded` when a child dies at every start. A role that ends while a service is away is not
    to blame: the service is, which is started again and reported by itself.
    """

    def __init__(self, log_dir: Path, notice: Callable[[str], None] = lambda _: None) -> None:
        """`notice` gets a line when a process ended, but not when a role ended because a service was away."""
        self._log_dir = log_dir
        self._notice = notice
        self.children: dict[str, Child] = {}
        self.services: dict[str, Child] = {}
        self.failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def start(
        self, name: str, arguments: Sequence[str], environment: Mapping[str, str], *, service: bool = False
    ) -> Child:
        """Start `python -m ARGUMENTS`, and restart it when it ends. Raises `OSError` if the first start fails."""
        self._log_dir.mkdir(parents=True, exist_ok=True)
        whole = {**os.environ, **environment, "PYTHONUNBUFFERED": "1"}
        process = LocalProcess(name, python(*arguments), self._log_dir / f"{name}.log", environment=whole)
        child = self._service(name, process) if service else self._role(process)
        self.children[name] = child
        child.start()
        return child

    async def start_service(self, name: str, process: LocalProcess) -> None:
        """Start a service that blocks until it answers, and restart it when it ends. Raises as `process.start`."""
        await asyncio.to_thread(process.start)
        child = self.children[name] = self._service(name, process)
        child.keep()

    def _service(self, name: str, process: LocalProcess) -> Child:
        self.services[name] = Child(process, self._fail, lambda end: self._notice(_ended(process, end)))
        return self.services[name]

    def _role(self, process: LocalProcess) -> Child:
        def on_end(end: str) -> None:
            # While a service is away or starts, its roles end again and again. Nothing but a kill is news then.
            if end == KILLED or not self._service_starts():
                self._notice(_ended(process, end))

        return Child(process, self._fail, on_end, self._service_was_away)

    def _service_was_away(self, since_s: float) -> bool:
        """Whether a service did not run at some time since `since_s`, or shortly before, when it was still starting."""
        services = self.services.values()
        return any(service.process.pid is None or service.last_down_s > since_s - QUICK_DEATH_S for service in services)

    def _service_starts(self) -> bool:
        """Whether a service does not run, or began to run a moment ago."""
        since_s = asyncio.get_running_loop().time() - QUICK_DEATH_S
        return any(child.process.pid is None or child.began_s > since_s for child in self.services.values())

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
        roles = [child for name, child in self.children.items() if name not in self.services]
        for children in (roles, list(self.services.values())):
            await asyncio.gather(*(child.stop() for child in children))
        if self.failure.done() and not self.failure.cancelled():
            self.failure.exception()
