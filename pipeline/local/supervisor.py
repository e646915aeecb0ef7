"""Runs the processes of a deployment on one machine, and starts again what dies."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from pipeline.local.processes import die_with_parent
from schemas.errors import OperatorNeeded, Transient

RESTART_DELAY_S: Final = 0.2
RESTART_DELAY_S_MAX: Final = 10.0
STOP_TIMEOUT_S: Final = 30.0
READY_TIMEOUT_S: Final = 60.0
LOG_TAIL_BYTES: Final = 2_000
# A process that dies this soon after its start, this often, will not come up by itself.
QUICK_DEATH_S: Final = 5.0
QUICK_DEATHS_MAX: Final = 5


class Running(Protocol):
    """A process that was started."""

    pid: int

    def wait(self) -> Awaitable[int]:
        """Its exit code, negative for a signal, once it has ended."""
        ...


Starter = Callable[[], Awaitable[Running]]


class Child:
    """One process: `start`, then it is kept running until `stop`."""

    def __init__(self, name: str, starter: Starter, log_path: Path, on_failure: Callable[[str], None]) -> None:
        self.name = name
        self.restarts = 0
        self.pid: int | None = None
        self._starter = starter
        self._log_path = log_path
        self._on_failure = on_failure
        self._ended = asyncio.Event()
        self._stopping = False
        self._keeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the process and keep it running."""
        process = await self._starter()
        self.pid = process.pid
        self._keeper = asyncio.create_task(self._keep(process))

    async def _keep(self, process: Running | None) -> None:
        """Start it again whenever it ends. A start that fails, such as for lack of memory, counts as a quick death."""
        quick_deaths, quick, end = 0, True, ""
        loop = asyncio.get_running_loop()
        while True:
            if process is not None:
                began_s = loop.time()
                code = await process.wait()
                self.pid = None
                if self._stopping:
                    self._ended.set()
                    return
                quick = loop.time() - began_s < QUICK_DEATH_S and code != -signal.SIGKILL
                end = f"exit {code}"
            quick_deaths = quick_deaths + 1 if quick else 0
            if quick_deaths >= QUICK_DEATHS_MAX:
                tail = self.log_tail()
                self._on_failure(f"{self.name} dies at its start ({end}); {self._log_path} ends with:\n{tail}")
                self._ended.set()
                return
            self.restarts += 1
            await asyncio.sleep(min(RESTART_DELAY_S * 2**quick_deaths, RESTART_DELAY_S_MAX))
            try:
                process = await self._starter()
                self.pid = process.pid
            except Exception as error:  # noqa: BLE001 - nobody waits for this task, so nobody else would be told
                process, quick, end = None, True, f"{type(error).__name__}: {error}"

    def kill(self) -> bool:
        """SIGKILL, as a crash would; it is started again. False where it is not running at the moment."""
        if self.pid is None:
            return False
        os.killpg(self.pid, signal.SIGKILL)
        return True

    async def stop(self) -> None:
        """Stop in order; killed after a time. Safe to call twice."""
        self._stopping = True
        if self._keeper is None:
            return
        if self.pid is None:
            self._keeper.cancel()
            return
        # It may have died with the nursery, which is told a moment later.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGTERM)
        try:
            await asyncio.wait_for(self._ended.wait(), STOP_TIMEOUT_S)
        except TimeoutError:
            self.kill()
            await self._ended.wait()

    def log_tail(self) -> str:
        """The end of what it printed."""
        if not self._log_path.exists():
            return ""
        return self._log_path.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")


class _Forked:
    """A role that the nursery forked."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._code: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def wait(self) -> Awaitable[int]:
        """See `Running`."""
        return asyncio.shield(self._code)

    def ended(self, code: int) -> None:
        """Told by the nursery."""
        if not self._code.done():
            self._code.set_result(code)


class _Nursery:
    """Our end of `pipeline.local.nursery`. Where that process dies, all roles die too, and the next fork starts
    another."""

    def __init__(self, log_path: Path) -> None:
        self._log_path = log_path
        self._starting = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        self._started: dict[str, asyncio.Future[_Forked]] = {}
        self._running: dict[int, _Forked] = {}
        self._reader: asyncio.Task[None] | None = None

    async def start(self) -> asyncio.subprocess.Process:
        """Start it where it does not run."""
        # All roles are started again at the same moment.
        async with self._starting:
            if self._process is None:
                with self._log_path.open("ab") as log:
                    self._process = await asyncio.create_subprocess_exec(
                        sys.executable, "-m", "pipeline.local.nursery",
                        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=log,
                        start_new_session=True, preexec_fn=die_with_parent,
                    )  # fmt: skip
                self._reader = asyncio.create_task(self._read(self._process))
            return self._process

    async def fork(self, name: str, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> _Forked:
        """Start a role. Raises `Transient` or `OSError` where the nursery dies before it says that it did."""
        process = await self.start()
        assert process.stdin is not None, "it was asked for"  # noqa: S101
        order = {"name": name, "arguments": list(arguments), "environment": dict(environment), "log": str(log)}
        started: asyncio.Future[_Forked] = asyncio.get_running_loop().create_future()
        self._started[name] = started
        process.stdin.write(json.dumps(order).encode() + b"\n")
        await process.stdin.drain()
        return await started

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None, "it was asked for"  # noqa: S101
        while line := await process.stdout.readline():
            told = json.loads(line)
            if "started" in told:
                forked = self._running[told["pid"]] = _Forked(told["pid"])
                started = self._started.pop(told["started"])
                # Cancelled where the role was stopped meanwhile.
                if not started.done():
                    started.set_result(forked)
            elif "ended" in told and told["pid"] in self._running:
                self._running.pop(told["pid"]).ended(told["code"])
        code = await process.wait()
        self._process = None
        running, self._running = self._running, {}
        for forked in running.values():
            forked.ended(code)
        waiting, self._started = self._started, {}
        for started in waiting.values():
            if not started.done():
                started.set_exception(Transient(f"the nursery ended (exit {code}); see {self._log_path}"))
                # Whoever failed to write the order does not wait for its answer.
                started.exception()

    async def stop(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            await self._process.wait()
        if self._reader is not None:
            await self._reader


class Supervisor:
    """The children of one process. `failure` is set when one of them will not come up."""

    def __init__(self, log_dir: Path) -> None:
        self._log_dir = log_dir
        self.children: dict[str, Child] = {}
        self.failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._nursery: _Nursery | None = None

    async def start(self, name: str, arguments: Sequence[str], environment: Mapping[str, str]) -> Child:
        """Start `python -m ARGUMENTS` and keep it running."""
        log_path = self._log_path(name)

        async def starter() -> Running:
            with log_path.open("ab") as log:
                return await asyncio.create_subprocess_exec(
                    sys.executable, "-m", *arguments,
                    env={**os.environ, **environment, "PYTHONUNBUFFERED": "1"},
                    stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log,
                    start_new_session=True, preexec_fn=die_with_parent,
                )  # fmt: skip

        return await self._keep(name, starter, log_path)

    async def prepare_roles(self) -> None:
        """Start importing what the roles need; `start_role` waits for it."""
        if self._nursery is None:
            self._nursery = _Nursery(self._log_path("nursery"))
            await self._nursery.start()

    async def start_role(self, name: str, arguments: Sequence[str], environment: Mapping[str, str]) -> Child:
        """Start `tidemark ARGUMENTS` from a process that has imported everything, and keep it running."""
        await self.prepare_roles()
        nursery, log_path = self._nursery, self._log_path(name)
        assert nursery is not None, "prepared"  # noqa: S101

        async def starter() -> Running:
            return await nursery.fork(name, arguments, environment, log_path)

        return await self._keep(name, starter, log_path)

    async def _keep(self, name: str, starter: Starter, log_path: Path) -> Child:
        child = Child(name, starter, log_path, self._fail)
        self.children[name] = child
        await child.start()
        return child

    def _log_path(self, name: str) -> Path:
        self._log_dir.mkdir(parents=True, exist_ok=True)
        return self._log_dir / f"{name}.log"

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
        """Stop all children, the roles together and before what they use. Safe to call twice."""
        children = list(self.children.values())
        services = [child for child in children if child.name in ("clickhouse", "stripe")]
        await asyncio.gather(*(child.stop() for child in children if child not in services))
        if self._nursery is not None:
            await self._nursery.stop()
        await asyncio.gather(*(child.stop() for child in services))
        if self.failure.done() and not self.failure.cancelled():
            self.failure.exception()
