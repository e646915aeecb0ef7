"""The Stripe simulator as a process, its customers, its faults and what it holds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import httpx

from pipeline.local.processes import die_with_parent
from stripe_simulator.__main__ import READY_PREFIX
from tests.integration.deployment import ROOT, clean_environment

KEY: Final = "sk_test_tidemark"
TIMEOUT_S: Final = 30.0


class LocalStripe:
    """One simulator process; it is not killed, because Stripe is not ours to restart."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[str] | None = None
        self.url = ""

    def start(self) -> None:
        """Start it and return when it answers."""
        self._folder.mkdir(parents=True, exist_ok=True)
        arguments = ["--summary-lag-s", "1", "--validation-window-s", "1", "--validation-delay-s", "0"]
        with (self._folder / "simulator.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "stripe_simulator", *arguments],
                cwd=ROOT, env=clean_environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log,
                text=True, start_new_session=True,
                preexec_fn=die_with_parent,  # noqa: PLW1509  one call into libc; no lock of ours is held here
            )  # fmt: skip
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.startswith(READY_PREFIX):
            raise RuntimeError(f"the Stripe simulator did not start: see {self._folder}")
        self.url = line.removeprefix(READY_PREFIX).strip()

    def kill(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            if self._process.stdout is not None:
                self._process.stdout.close()
        self._process = None

    def make_customer(self, customer: str) -> None:
        """Add a customer with this id."""
        self._post("customers", {"id": customer, "name": customer})

    def go_wrong(self, kind: str, count: int) -> None:
        """The next `count` meter events fail in this way."""
        self._post("faults", {"kind": kind, "count": count})

    def be_well(self) -> None:
        """Forget the faults that have not happened."""
        httpx.delete(f"{self.url}/_simulator/faults", timeout=TIMEOUT_S).raise_for_status()

    def state(self) -> dict[str, Any]:
        """Everything it holds."""
        answer = httpx.get(f"{self.url}/_simulator/state", timeout=TIMEOUT_S)
        return dict(answer.raise_for_status().json())

    def _post(self, what: str, body: dict[str, Any]) -> None:
        httpx.post(f"{self.url}/_simulator/{what}", json=body, timeout=TIMEOUT_S).raise_for_status()
