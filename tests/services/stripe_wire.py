"""A Stripe simulator as HTTP alone sees it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest_asyncio

from stripe_simulator import SimulatorSettings
from tests.services.stripe import ServedSimulator, serve_simulator
from tests.worlds.clock import ManualClock

NOW_MS = 1_795_262_400_000
NOW_S = NOW_MS // 1_000
DAY_S = 86_400
EVENT = {"event_name": "tokens", "payload[stripe_customer_id]": "cus_one", "payload[value]": "2"}
METER = {"display_name": "Tokens", "event_name": "tokens", "default_aggregation[formula]": "sum"}


class Wire:
    """A simulator and a plain HTTP client with a test key."""

    def __init__(self, served: ServedSimulator, http: httpx.AsyncClient) -> None:
        self.simulator = served.simulator
        self.clock = served.clock
        self.http = http
        self.meter = ""

    async def post(self, path: str, data: dict[str, Any] | None = None, key: str = "") -> httpx.Response:
        """A form, under an Idempotency-Key where one is given."""
        headers = {"Idempotency-Key": key} if key else {}
        return await self.http.post(path, data=data or {}, headers=headers)

    async def send(self, key: str = "", **changes: str) -> httpx.Response:
        """A meter event."""
        return await self.post("/v1/billing/meter_events", {**EVENT, **changes}, key)

    async def total(
        self, start_s: int = NOW_S - 40 * DAY_S, end_s: int = NOW_S + 2 * DAY_S, **more: str
    ) -> list[float]:
        """The values of a summary's rows."""
        query = {"customer": "cus_one", "start_time": str(start_s), "end_time": str(end_s), **more}
        answer = await self.http.get(f"/v1/billing/meters/{self.meter}/event_summaries", params=query)
        assert answer.status_code == 200, answer.text
        return [row["aggregated_value"] for row in answer.json()["data"]]


@pytest_asyncio.fixture
async def wire() -> AsyncIterator[Wire]:
    """A simulator with a meter `tokens` and the customer `cus_one`."""
    settings = SimulatorSettings(summary_lag_s=0, validation_window_s=10, validation_delay_s=0, hold_s=5)
    headers = {"Authorization": "Bearer sk_test_one"}
    async with (
        serve_simulator(ManualClock(NOW_MS), settings) as served,
        httpx.AsyncClient(base_url=served.url, headers=headers, timeout=5, trust_env=False) as http,
    ):
        wire = Wire(served, http)
        wire.simulator.create_customer(False, {}, "cus_one")
        wire.meter = (await wire.post("/v1/billing/meters", METER)).json()["id"]
        yield wire
