"""The example business of `tidemark dev`: its usage is counted by the catalog that ships, also by measured meters."""

from __future__ import annotations

import json
from collections import Counter

from aggregators.codec import parse_value
from pipeline.local.example import ACCOUNTS, usage
from pipeline.open import read_meter_set
from pipeline.rollup.measurer import Measurer
from schemas.clock import HOUR_MS, MINUTE_MS
from schemas.log import EVENTS_TOPIC, REJECTED_TOPIC
from sinks.clickhouse.fake_measures import FakeMeasures
from tests.worlds.reconciler import Deployment

DELAY_MS = 2 * MINUTE_MS


async def counted(world: Deployment) -> dict[tuple[str, str], str]:
    """What the live view has of each account and meter once all samples are measured."""
    measurer = Measurer(
        world.log,
        world.store.accounts,
        world.clickhouse,
        FakeMeasures(world.clickhouse),
        world.store.measured,
        DELAY_MS,
    )
    await world.archive()
    assert sum([(await measurer.measure(partition)).told for partition in range(world.world.partitions)]) > 0
    await world.fold()
    return {
        (key.account, meter): text
        for stored in world.store.server.partitions.values()
        for key, fields in stored.totals.items()
        for meter, text in fields.items()
    }


async def test_all_usage_of_the_example_is_counted_and_its_samples_are_measured() -> None:
    world = Deployment()
    await world.world.start(read_meter_set(None))
    await world.advance(24 * HOUR_MS)
    # Some minutes after a whole hour, as at most starts.
    await world.advance(10 * MINUTE_MS)
    events = usage(world.clock.ms)
    for event in (*events, *events):
        await world.log.append(EVENTS_TOPIC, world.partition(event["subject"]), json.dumps(event).encode())
    await world.fold()

    totals = await counted(world)

    for partition in range(world.world.partitions):
        assert [] == await world.log.read(REJECTED_TOPIC, partition, 0)
    requests = {account.name: account.requests for account in ACCOUNTS if account.requests}
    assert {name: parse_value(totals[name, "api_requests"]).minor for name in requests} == requests
    # Until the last whole hour: 20 GB for two hours and 10 GB for 50 minutes; the tasks without their last ten minutes.
    found = Counter({key: parse_value(text).minor for key, text in totals.items()})
    assert found["bakery", "disk_usage"] == 48_333
    assert found["bakery", "compute_minutes"] == 140_000
    assert found["museum", "compute_minutes"] == 230_000
