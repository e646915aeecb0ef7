"""The Stripe simulator as a process, its customers, its faults and what it holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import httpx

from pipeline.local.processes import LocalProcess, python
from stripe_simulator.__main__ import READY_PREFIX
from tests.integration.deployment import ROOT, clean_environment

KEY: Final = "sk_test_tidemark"
TIMEOUT_S: Final = 30.0


class LocalStripe(LocalProcess):
    """One simulator process; it is not killed, because Stripe is not ours to restart."""

    def __init__(self, folder: Path) -> None:
        self.url = ""
        folder.mkdir(parents=True, exist_ok=True)
        options = ("--summary-lag-s", "1", "--validation-window-s", "1", "--validation-delay-s", "0")
        super().__init__(
            "the Stripe simulator", python("tests.services.stripe_shapes", *options), folder / "simulator.log",
            environment=clean_environment(), cwd=ROOT,
        )  # fmt: skip

    def start(self) -> None:
        """Start it and return when it answers."""
        super().start()
        self.url = self.wait_line(READY_PREFIX).removeprefix(READY_PREFIX)

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
