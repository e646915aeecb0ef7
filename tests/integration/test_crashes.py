"""Real processes, real services, kill -9: after quiescence every view says what the oracle says of the log's bytes."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import confluent_kafka
import pytest
import yaml

from demo.verify import redis_counters, redis_totals
from pipeline.dev import Dev
from pipeline.processors.witness import FileWitness
from pipeline.stores import Base
from schemas.errors import OperatorNeeded
from schemas.log import EVENTS_TOPIC, INBOX_TOPIC
from tests.integration.deployment import assert_exact, empty_redis, running, settled
from tests.traffic.generate import CATALOG, SECOND_US, Rates, events, records

SEED = 7
# Nothing that depends on how far the machine's clock has come: such events would race with the log's own time.
STEADY = Rates(late=0.0, ahead=0.0)


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    """The traffic's catalog as a file."""
    path = tmp_path / "catalog.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps(CATALOG))))
    return path


async def received(dev: Dev) -> int:
    """Events folded so far."""
    return int((await redis_counters(dev.settings()))[0]["received"])


async def progressed(dev: Dev, read: Callable[[], Awaitable[int]], beyond: int) -> None:
    """Return once a count is above a number."""

    async def above() -> bool:
        return await read() > beyond

    await dev.supervisor.wait_ready("worker", above)


async def feed(base: Base, count: int, seed: int = SEED) -> int:
    """Append seeded traffic to `usage.events`, faster than it can be folded; how many events (or bad records)."""
    start_us = base.clock.now_ms() * 1000
    sent = 0
    for record in records(
        seed, 40, count, start_us, partitions=base.genesis.partitions, span_us=SECOND_US, rates=STEADY
    ):
        await base.log.append(EVENTS_TOPIC, record.partition, record.value, headers=tuple(record.headers))
        sent += len(record.kinds)
    return sent


@pytest.mark.timeout(240)
async def test_ten_kills_of_the_worker_and_three_of_the_archive_leave_exact_counts(
    tmp_path: Path, catalog: Path
) -> None:
    """The embedded shape under load; the kills must have caused replays, or they proved nothing."""
    chance = random.Random(SEED)
    async with running(tmp_path / "data", catalog) as (dev, base):
        feeding = asyncio.create_task(feed(base, 40_000))
        for kill in range(10):
            await progressed(dev, lambda: received(dev), await received(dev) + chance.randrange(500))
            assert dev.supervisor.children["worker"].kill()
            if kill % 4 == 0:
                dev.supervisor.children["archive"].kill()
        await settled(dev, base, await feeding)

        await assert_exact(dev, base, dict(CATALOG))
        witness = FileWitness(dev.settings().data_dir / "witness")
        assert sum(witness.replayed(partition) for partition in range(base.genesis.partitions)) > 0


@pytest.mark.timeout(300)
async def test_two_workers_a_rebalance_and_a_foreign_producer_on_the_real_broker(tmp_path: Path, catalog: Path) -> None:
    """Batches on `usage.events`, single events through the inbox by librdkafka's CRC32, one worker killed twice."""
    async with running(tmp_path / "data", catalog, kafka=True, workers=2) as (dev, base):
        feeding = asyncio.create_task(feed(base, 15_000))
        producer = confluent_kafka.Producer(
            {"bootstrap.servers": dev.settings().log_url.removeprefix("kafka://"), "linger.ms": 5}
        )
        single = list(events(SEED + 1, 40, 2_000, base.clock.now_ms() * 1000, span_us=SECOND_US, rates=STEADY))
        for sent in single:
            producer.produce(INBOX_TOPIC, sent.body, key=sent.account.encode(), headers=list(sent.headers))
            producer.poll(0)
        await asyncio.to_thread(producer.flush, 30)
        for _ in range(2):
            await progressed(dev, lambda: received(dev), await received(dev))
            assert dev.supervisor.children["worker-1"].kill()
        await settled(dev, base, await feeding + len(single))

        await assert_exact(dev, base, dict(CATALOG))


@pytest.mark.timeout(240)
async def test_an_emptied_redis_is_refused_with_the_remedy_and_replayed_only_on_request(
    tmp_path: Path, catalog: Path
) -> None:
    """Never a silent restart from zero; the replay that the message names gives the same totals."""
    async with running(tmp_path / "data", catalog) as (dev, base):
        await settled(dev, base, await feed(base, 3_000))
        before = await redis_totals(dev.settings())
        empty_redis(dev)

        with pytest.raises(OperatorNeeded, match="--replay-from-start"):
            await dev.supervisor.failure
        assert (await redis_counters(dev.settings()))[1] == []

        await dev.supervisor.children["worker"].stop()
        dev.supervisor.failure = asyncio.get_running_loop().create_future()
        await dev.supervisor.start_role("replaying", ["worker", "--replay-from-start"], dev.environment)
        await dev.supervisor.wait_ready("replaying", lambda: _same_totals(dev, before))
        await assert_exact(dev, base, dict(CATALOG))


async def _same_totals(dev: Dev, before: dict[Any, int]) -> bool:
    return await redis_totals(dev.settings()) == before


@pytest.mark.timeout(240)
async def test_killed_services_come_back_and_the_counts_are_exact(tmp_path: Path, catalog: Path) -> None:
    """kill -9 of Valkey and of the ClickHouse engine under load; the roles are started again until they are back."""
    async with running(tmp_path / "data", catalog) as (dev, base):
        feeding = asyncio.create_task(feed(base, 10_000))
        await progressed(dev, lambda: received(dev), 0)
        assert dev.supervisor.children["clickhouse"].kill()
        valkey = dev._valkey
        assert valkey is not None
        await asyncio.to_thread(valkey.kill)
        await asyncio.to_thread(valkey.start)
        await settled(dev, base, await feeding)

        await assert_exact(dev, base, dict(CATALOG))
