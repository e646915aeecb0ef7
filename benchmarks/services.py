"""The services of a run, on free ports of loopback and in one folder. They end with the run."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from pipeline.local.kafka import LocalKafka
from pipeline.local.processes import LocalProcess, python
from pipeline.local.valkey import LocalValkey

ROOT: Final = Path(__file__).resolve().parents[1]
SECRET: Final = "benchmark-secret-of-32-characters"  # noqa: S105  of deployments that live for minutes


class Process(LocalProcess):
    """The process `python -m ARGUMENTS` in a checkout of this repository."""

    def __init__(
        self,
        arguments: Sequence[str],
        log_path: Path,
        environment: Mapping[str, str] | None = None,
        checkout: Path = ROOT,
    ) -> None:
        whole = {**os.environ, **(environment or {}), "TZ": "UTC", "PYTHONUNBUFFERED": "1"}
        super().__init__(arguments[0], python(*arguments), log_path, environment=whole, cwd=checkout)

    def result(self, timeout_s: float) -> Any:
        """Wait for the end; return the last line of output as JSON. Raises `OperatorNeeded` on exit code ≠ 0."""
        if self.wait(timeout_s):
            self.check()
        return json.loads(self.output().splitlines()[-1])


class Stores(NamedTuple):
    """An empty Valkey and an empty ClickHouse with their folder."""

    folder: Path
    valkey: LocalValkey
    clickhouse: Process
    clickhouse_url: str

    def environment(self, log_url: str) -> dict[str, str]:
        """The environment variables of a role."""
        return {
            "TIDEMARK_LOG_URL": log_url,
            "TIDEMARK_REDIS_URL": self.valkey.url,
            "TIDEMARK_CLICKHOUSE_URL": self.clickhouse_url,
            "TIDEMARK_SECRET": SECRET,
            "TIDEMARK_DATA_DIR": str(self.folder),
        }


class Services:
    """The broker of the run; creates stores on request."""

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
        """Create a new folder."""
        self._number += 1
        path = self._folder / f"{self._number}-{name}"
        path.mkdir()
        return path

    def stores(self, stack: ExitStack) -> Stores:
        """Start empty stores; `stack` stops them."""
        folder = self.folder("stores")
        valkey = stack.enter_context(LocalValkey(folder / "valkey"))
        arguments = ["pipeline.local.clickhouse_server", "--path", str(folder / "clickhouse")]
        arguments += ["--port", "0", "--read-only-port", "0"]
        clickhouse = stack.enter_context(Process(arguments, folder / "clickhouse.log"))
        ready = json.loads(clickhouse.wait_line('"ready"'))
        return Stores(folder, valkey, clickhouse, f"http://127.0.0.1:{ready['port']}")
