"""The Stripe simulator as a process, its customers, its faults and what it holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import httpx

from pipeline.local.processes import LocalProcess, python
from stripe_simulator.__main__ import READY_PREFIX
from tests.integration.deployment import ROOT, clean_environment

KEY: Final = "sk_test_tidemark"
TIMEOUT_S: Final = 30.0


def form(params: Mapping[str, Any], outer: str = "") -> Iterator[tuple[str, str]]:
    """Parameters as Stripe's forms have them: `items[0][price]`."""
    for name, value in params.items():
        field = f"{outer}[{name}]" if outer else name
        if isinstance(value, Mapping):
            yield from form(value, field)
        elif isinstance(value, list):
            yield from form({str(number): each for number, each in enumerate(value)}, field)
        else:
            yield field, str(value).lower() if isinstance(value, bool) else str(value)


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

    def make_endpoint(self, url: str) -> str:
        """Have all events delivered to a URL; the signing secret."""
        body = dict(form({"url": url, "enabled_events": ["*"]}))
        key = {"Authorization": f"Bearer {KEY}"}
        answer = httpx.post(f"{self.url}/v1/webhook_endpoints", data=body, headers=key, timeout=TIMEOUT_S)
        return str(answer.raise_for_status().json()["secret"])

    def go_wrong(self, kind: str, count: int, **fields: str) -> None:
        """The next `count` meter events, deliveries, or requests that match the fields fail in this way."""
        self._post("faults", {"kind": kind, "count": count, **fields})

    def be_well(self) -> None:
        """Forget the faults that have not happened."""
        httpx.delete(f"{self.url}/_simulator/faults", timeout=TIMEOUT_S).raise_for_status()

    def state(self) -> dict[str, Any]:
        """Everything it holds."""
        answer = httpx.get(f"{self.url}/_simulator/state", timeout=TIMEOUT_S)
        return dict(answer.raise_for_status().json())

    def _post(self, what: str, body: dict[str, Any]) -> None:
        httpx.post(f"{self.url}/_simulator/{what}", json=body, timeout=TIMEOUT_S).raise_for_status()
