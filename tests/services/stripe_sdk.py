"""A Stripe simulator as stripe-python sees it, synchronously and asynchronously."""

from __future__ import annotations

import asyncio
import operator
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx
import pytest
import pytest_asyncio
import stripe

from stripe_simulator import Simulator, SimulatorSettings
from tests.services.stripe import TEST_KEY, check_shapes, running, serve_simulator
from tests.services.stripe_requests import application
from tests.services.stripe_shapes import problems
from tests.services.stripe_wire import NOW_MS
from tests.worlds.clock import ManualClock


class _Transport(stripe.HTTPXClient):
    """httpx without its warning for a deprecated argument; asynchronous calls reach the application directly."""

    def __init__(self, simulator: Simulator) -> None:
        super().__init__(allow_sync_methods=True, verify_ssl_certs=False)
        self._client_async = httpx.AsyncClient(transport=httpx.ASGITransport(application(simulator)))

    def _get_request_args_kwargs(
        self, method: str, url: str, headers: Mapping[str, str], post_data: Any
    ) -> tuple[tuple[str, str], dict[str, Any]]:
        return (method, url), {"headers": headers, "content": post_data or b"", "timeout": self._timeout}


class Sdk:
    """Calls of stripe-python: in a thread to `url`, or without one in the event loop to the application itself."""

    def __init__(self, simulator: Simulator, clock: ManualClock, url: str = "", *, key: str = TEST_KEY) -> None:
        self.simulator = simulator
        self.clock = clock
        self.url = url
        self._is_async = not url
        self._transport: Any = _Transport(simulator)
        base = url or "http://stripe.test"
        self._client: Any = stripe.StripeClient(
            key,
            max_network_retries=0,
            http_client=self._transport,
            base_addresses={"api": base, "connect": base, "files": base, "meter_events": base},
        )

    async def close(self) -> None:
        """Close all connections."""
        self._transport.close()
        await self._transport.close_async()

    async def __call__(self, name: str, *arguments: Any) -> Any:
        """One call, as in `sdk("v1.customers.create", {...})`: the answer as plain JSON values."""
        if self._is_async:
            answer = await operator.attrgetter(f"{name}_async")(self._client)(*arguments)
        else:
            answer = await asyncio.to_thread(operator.attrgetter(name)(self._client), *arguments)
        return answer and answer.to_dict()

    async def error(self, name: str, *arguments: Any) -> dict[str, Any]:
        """The error of a call that must fail: status, type, code, param and message."""
        with pytest.raises(stripe.StripeError) as raised:
            await self(name, *arguments)
        error: Any = raised.value
        body = error.json_body["error"]
        return {"status": error.http_status, "replayed": "idempotent-replayed" in (error.headers or {}), **body}


@pytest_asyncio.fixture(params=[False, True], ids=["sync", "async"])
async def sdk(request: pytest.FixtureRequest) -> AsyncIterator[Sdk]:
    """stripe-python on a fresh simulator without lag, whose responses are compared with the SDK's shapes."""
    settings = SimulatorSettings(summary_lag_s=0, validation_window_s=10, validation_delay_s=0)
    clock = ManualClock(NOW_MS)
    if request.param:
        simulator = Simulator(clock, settings, check=problems)
        sdk = Sdk(simulator, clock)
        async with running(simulator):
            yield sdk
        check_shapes(simulator.violations, simulator.checked)
    else:
        async with serve_simulator(clock, settings) as served:
            sdk = Sdk(served.simulator, clock, served.url)
            yield sdk
    await sdk.close()
