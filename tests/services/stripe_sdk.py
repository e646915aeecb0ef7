"""A Stripe simulator as stripe-python sees it, synchronously and asynchronously."""

from __future__ import annotations

import asyncio
import operator
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
import pytest_asyncio
import stripe

from stripe_simulator import SimulatorSettings
from tests.services.stripe import TEST_KEY, ServedSimulator, serve_simulator
from tests.services.stripe_wire import NOW_MS
from tests.worlds.clock import ManualClock


class _Transport(stripe.HTTPXClient):
    """The library's client hands bodies over by a deprecated name."""

    def _get_request_args_kwargs(
        self, method: str, url: str, headers: Mapping[str, str], post_data: Any
    ) -> tuple[tuple[str, str], dict[str, Any]]:
        return (method, url), {"headers": headers, "content": post_data or b"", "timeout": self._timeout}


class Sdk:
    """Calls of stripe-python, in a thread or in the event loop."""

    def __init__(self, served: ServedSimulator, *, is_async: bool, key: str = TEST_KEY) -> None:
        base = served.url
        self.served = served
        self.simulator = served.simulator
        self.clock = served.clock
        self._transport = _Transport(allow_sync_methods=True, verify_ssl_certs=False)
        self.client = stripe.StripeClient(
            key,
            max_network_retries=0,
            http_client=self._transport,
            base_addresses={"api": base, "connect": base, "files": base, "meter_events": base},
        )
        self._is_async = is_async

    async def __call__(self, name: str, *arguments: Any) -> Any:
        """One call, as in `sdk("v1.customers.create", {...})`: the answer as plain JSON values."""
        if self._is_async:
            answer = await operator.attrgetter(f"{name}_async")(self.client)(*arguments)
        else:
            answer = await asyncio.to_thread(operator.attrgetter(name)(self.client), *arguments)
        return answer.to_dict()

    async def close(self) -> None:
        """Close all connections."""
        self._transport.close()
        await self._transport.close_async()

    async def error(self, name: str, *arguments: Any) -> dict[str, Any]:
        """The error of a call that must fail: status, type, code, param and message."""
        with pytest.raises(stripe.StripeError) as raised:
            await self(name, *arguments)
        error = raised.value
        body = (error.json_body or {})["error"]
        return {"status": error.http_status, "replayed": "idempotent-replayed" in (error.headers or {}), **body}


@pytest_asyncio.fixture(params=[False, True], ids=["sync", "async"])
async def sdk(request: pytest.FixtureRequest) -> AsyncIterator[Sdk]:
    """stripe-python on a fresh simulator without lag."""
    settings = SimulatorSettings(summary_lag_s=0, validation_window_s=10, validation_delay_s=0, hold_s=5)
    async with serve_simulator(ManualClock(NOW_MS), settings) as served:
        sdk = Sdk(served, is_async=request.param)
        yield sdk
        await sdk.close()
