"""The account of a scenario, on a simulator of its own. All responses are compared with the SDK's shapes."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from stripe_simulator import Simulator, SimulatorSettings
from tests.scenarios.receiver import receiving
from tests.scenarios.vocabulary import Account
from tests.services.stripe import check_shapes, running
from tests.services.stripe_sdk import Sdk
from tests.services.stripe_shapes import problems
from tests.services.stripe_wire import NOW_MS
from tests.worlds.clock import ManualClock


@pytest_asyncio.fixture(params=[0], ids=["no faults"])
async def account(request: pytest.FixtureRequest) -> AsyncIterator[Account]:
    """An account without a customer yet. At the end every webhook has arrived, whatever happened to deliveries.

    The parameter is the seed of the delivery faults, 0 for none: `with_delivery_faults` sets it.
    """
    seed: int = request.param
    settings = SimulatorSettings(summary_lag_s=0, validation_window_s=10, seed=seed)
    clock = ManualClock(NOW_MS)
    simulator = Simulator(clock, settings, check=problems)
    sdk = Sdk(simulator, clock)
    async with receiving() as receiver, running(simulator):
        endpoint = {"url": receiver.url, "enabled_events": ["*"]}
        receiver.secret = (await sdk("v1.webhook_endpoints.create", endpoint))["secret"]
        account = Account(sdk, receiver)
        if seed:
            account.disturb(seed)
        yield account
        await account.deliver()
        assert bool(seed) == any(simulator.faults.happened)
    await sdk.close()
    check_shapes(simulator.violations, simulator.checked)
