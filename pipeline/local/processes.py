"""Child processes that end with their parent, and free ports."""

from __future__ import annotations

import asyncio
import ctypes
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, Self

from schemas.errors import OperatorNeeded, Transient

PR_SET_PDEATHSIG: Final = 1
START_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 30.0
POLL_INTERVAL_S: Final = 0.02
LOG_TAIL_BYTES: Final = 4_000
FIRST_PORT: Final = 20_000
PORTS: Final = 12_000
PORT_ATTEMPTS: Final = 100


def python(*arguments: str) -> list[str]:
    """The command `python -m ARGUMENTS`, with this interpreter."""
    return [sys.executable, "-m", *arguments]


def free_port() -> int:
    """A TCP port of the loopback interface that was free a moment ago. Raises `OperatorNeeded` if none is found.

    The port lies below those that systems give to outgoing connections (Linux from 32768, others from 49152):
    such a connection could take the port before the server does.
    """
    for _ in range(PORT_ATTEMPTS):
        port = FIRST_PORT + secrets.randbelow(PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OperatorNeeded(f"found no free TCP port in {PORT_ATTEMPTS} attempts; end the processes that use them")


class LocalProcess:
    """A child process in its own session. Output is appended to a log file. `with` starts and stops the process.

    On Linux the kernel kills the child when the parent dies. A process that has ended can start again.
    """

    stop_signal: signal.Signals = signal.SIGTERM

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log_path: Path,
        *,
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        """`environment` is the whole environment of the process; None inherits the environment of this process."""
        self.name = name
        self.log_path = log_path
        self._command = list(command)
        self._environment = environment
        self._cwd = cwd
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    @property
    def pid(self) -> int | None:
        """The process id while the process runs."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def exit_code(self) -> int | None:
        """The exit code of the last run, negative for a signal; None before the first start and during a run."""
        return None if self._process is None else self._process.poll()

    def start(self) -> None:
        """Start the process. Raises `OSError` if the system cannot."""
        # A role may log what only its owner may read.
        with os.fdopen(os.open(self.log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "ab") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                self._command,
                cwd=self._cwd,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent,  # noqa: PLW1509  one call into libc; this process holds no lock here
            )

    def check(self) -> None:
        """Raise `OperatorNeeded` with the end of the log if the process has ended."""
        if self.pid is None:
            raise OperatorNeeded(
                f"{self.name} ended (exit {self.exit_code}); {self.log_path} ends with:\n{self.log_tail()}"
            )

    def wait_until(self, ready: Callable[[], bool], timeout_s: float = START_TIMEOUT_S) -> None:
        """Block until `ready()` is true.

        Raises `OperatorNeeded` if the process ends before. Kills the process and raises `Transient` after `timeout_s`.
        """
        deadline_s = time.monotonic() + timeout_s
        while not ready():
            self.check()
            if time.monotonic() > deadline_s:
                self.kill()
                raise Transient(f"{self.name} is not ready after {timeout_s:.0f} s:\n{self.log_tail()}")
            time.sleep(POLL_INTERVAL_S)

    def wait_line(self, part: str, timeout_s: float = START_TIMEOUT_S) -> str:
        """Block until the process has printed a line that contains `part`; returns the line. Raises as `wait_until`."""

        def lines() -> list[str]:
            return [line for line in self.output().splitlines(keepends=True) if part in line and line.endswith("\n")]

        self.wait_until(lambda: bool(lines()), timeout_s)
        return lines()[0].strip()

    def wait(self, timeout_s: float | None = None) -> int:
        """Block until the process ends; returns its exit code. Raises `subprocess.TimeoutExpired`."""
        return 0 if self._process is None else self._process.wait(timeout_s)

    async def ended(self) -> int:
        """Return the exit code once the process has ended."""
        while self.pid is not None:  # noqa: ASYNC110  the system has no event for it that every platform knows
            await asyncio.sleep(POLL_INTERVAL_S)
        return self.exit_code or 0

    def signal(self, number: int) -> bool:
        """Send a signal to the process and its own children; False if the process does not run."""
        pid = self.pid
        if pid is not None:
            os.killpg(pid, number)
        return pid is not None

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Send `stop_signal` and wait; SIGKILL after `timeout_s`. Safe to call twice."""
        if self.signal(self.stop_signal):
            try:
                self.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self) -> bool:
        """Send SIGKILL and wait for the end; False if the process does not run."""
        killed = self.signal(signal.SIGKILL)
        self.wait()
        return killed

    def output(self) -> str:
        """The output of the process since its last start."""
        return self.log_path.read_bytes()[self._log_start :].decode(errors="replace")

    def log_tail(self) -> str:
        """The end of the log, over all starts."""
        return self.log_path.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace") if self.log_path.exists() else ""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stop()


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
