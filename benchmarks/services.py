"""The services of a run, started here on free ports of loopback in one temporary folder; none outlives the run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final, NamedTuple, Self

from pipeline.local.kafka import LocalKafka
from pipeline.local.processes import die_with_parent
from pipeline.local.valkey import LocalValkey

ROOT: Final = Path(__file__).resolve().parents[1]
SECRET: Final = "benchmark-secret-of-32-characters"  # noqa: S105  of deployments that live for minutes
STOP_TIMEOUT_S: Final = 20.0
READY_TIMEOUT_S: Final = 60.0
POLL_INTERVAL_S: Final = 0.05
LOG_TAIL_BYTES: Final = 3_000


class Process:
    """`python -m` with its output in a file; ended with SIGTERM, and with SIGKILL where that does not help."""

    def __init__(self, arguments: Sequence[str], log_path: Path, environment: Mapping[str, str] | None = None) -> None:
        self._log_path = log_path
        with log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                cwd=ROOT,
                env={**os.environ, **(environment or {}), "TZ": "UTC", "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_parent,  # noqa: PLW1509  one call into libc; no lock of ours is held here
            )

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def check(self) -> None:
        """Raise `RuntimeError` with the end of its output where it has ended."""
        if self._process.poll() is not None:
            raise RuntimeError(f"a process ended with {self._process.returncode}:\n{self._tail()}")

    def output(self) -> str:
        """What it printed so far."""
        return self._log_path.read_text(errors="replace")

    def wait(self, timeout_s: float) -> str:
        """Wait for an orderly end and return what it printed; raises `RuntimeError` where it failed or hangs."""
        if self._process.wait(timeout_s):
            raise RuntimeError(f"a process ended with {self._process.returncode}:\n{self._tail()}")
        return self.output()

    def stop(self) -> None:
        """End it. Safe to call twice."""
        if self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stop()

    def _tail(self) -> str:
        return self._log_path.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")


def wait_until(done: Callable[[], bool], what: str, timeout_s: float, *processes: Process) -> None:
    """Poll until `done`; raises `RuntimeError` where a process dies meanwhile or the time is over."""
    deadline_s = time.monotonic() + timeout_s
    while not done():
        for process in processes:
            process.check()
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"{what}: not within {timeout_s:.0f} s")
        time.sleep(POLL_INTERVAL_S)


class Stores(NamedTuple):
    """One empty Valkey and one empty ClickHouse, and the folder they live in."""

    folder: Path
    valkey: LocalValkey
    clickhouse: Process
    clickhouse_url: str

    def environment(self, log_url: str) -> dict[str, str]:
        """What a role needs to know."""
        return {
            "TIDEMARK_LOG_URL": log_url,
            "TIDEMARK_REDIS_URL": self.valkey.url,
            "TIDEMARK_CLICKHOUSE_URL": self.clickhouse_url,
            "TIDEMARK_SECRET": SECRET,
            "TIDEMARK_DATA_DIR": str(self.folder),
        }


class Services:
    """The broker of the whole run, and stores on request."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self._folder = folder
        self._say = say
        self._number = 0
        self.stack = ExitStack()
        self.kafka = LocalKafka(folder / "kafka", progress=say)

    def __enter__(self) -> Self:
        try:
            self.stack.enter_context(self.kafka)
        except BaseException:
            self.stack.close()
            raise
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stack.close()

    def folder(self, name: str) -> Path:
        """A fresh folder."""
        self._number += 1
        path = self._folder / f"{self._number}-{name}"
        path.mkdir()
        return path

    def stores(self, stack: ExitStack) -> Stores:
        """Start empty stores; `stack` ends them."""
        folder = self.folder("stores")
        valkey = stack.enter_context(LocalValkey(folder / "valkey"))
        arguments = ["pipeline.local.clickhouse_server", "--path", str(folder / "clickhouse")]
        arguments += ["--port", "0", "--read-only-port", "0"]
        clickhouse = stack.enter_context(Process(arguments, folder / "clickhouse.log"))
        wait_until(lambda: "\n" in clickhouse.output(), "ClickHouse's start", READY_TIMEOUT_S, clickhouse)
        ready = json.loads(clickhouse.output().splitlines()[-1])
        return Stores(folder, valkey, clickhouse, f"http://127.0.0.1:{ready['port']}")
