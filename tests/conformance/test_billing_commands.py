"""The commands about side tables on PostgreSQL, a log in a file, and the simulator over HTTP."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest_asyncio

from pipeline.commands.billing import run_resync, status
from pipeline.open import Base, open_base, open_side_tables, open_stripe_objects
from pipeline.settings import Settings
from pipeline.webhooks.processor import BillingEventProcessor
from pipeline.webhooks.resync import BATCH_RECORDS
from schemas.billing_events import StripeObjects
from schemas.log import BILLING_EVENTS_TOPIC
from schemas.side_tables import SideTables
from tests.services.stripe import TEST_KEY, ServedSimulator
from tests.services.stripe_sdk import Sdk


@pytest_asyncio.fixture
async def settings(tmp_path: Path, postgres_url: str, served_simulator: ServedSimulator) -> Settings:
    """A deployment of the simulator's account with one partition."""
    settings = Settings.model_validate(
        {
            "log_url": f"embedded://{tmp_path}/log.db",
            "partitions": 1,
            "secret": "x" * 32,
            "sql_url": postgres_url,
            "stripe_account": "acct_simulator",
            "stripe_api_key": TEST_KEY,
            "stripe_api_base": served_simulator.url,
        }
    )
    base = await open_base(settings)
    await base.log.close()
    return settings


async def process(base: Base, tables: SideTables, objects: StripeObjects, done: asyncio.Event) -> None:
    """What the role `mirror` does, until all is processed after `done`."""
    processor = BillingEventProcessor(base.log, tables, objects, base.clock)
    offset = await processor.start_offset(0)
    while True:
        is_last = done.is_set()
        if batch := await base.log.read(BILLING_EVENTS_TOPIC, 0, offset, 200):
            await processor.step(0, batch)
            offset = batch[-1].next_offset
        elif is_last:
            return
        else:
            await base.clock.sleep(0.05)


async def test_a_resync_fills_an_empty_database_and_status_says_so(
    settings: Settings, served_simulator: ServedSimulator
) -> None:
    """More objects than a batch."""
    sdk = Sdk(served_simulator.simulator, served_simulator.clock)
    customers = [(await sdk("v1.customers.create", {}))["id"] for _ in range(BATCH_RECORDS + 20)]
    base = await open_base(settings, create=False)
    tables, objects, done = await open_side_tables(base), await open_stripe_objects(base), asyncio.Event()
    assert (0, 0, "") == (await status(settings))[:3]
    mirror = asyncio.create_task(process(base, tables, objects, done))
    told: list[int] = []
    counts = await run_resync(settings, "monday", told=told.append)
    done.set()
    await mirror

    assert {"customer": len(customers)} == {kind: count for kind, count in counts.items() if count}
    assert [BATCH_RECORDS, len(customers)] == told
    found = await status(settings)
    assert (0, 0) == (found.lag_events, found.lag_s)
    assert len(customers) == found.rows["stripe_customers"]
    assert set(customers) == {event.customer for event in found.held}
    assert [] == found.set_aside

    await base.log.append(BILLING_EVENTS_TOPIC, 0, b"{}")
    while not (waiting := await status(settings)).lag_s:
        assert 1 == waiting.lag_events
    for store in (objects, tables, base.log, sdk):
        await store.close()
