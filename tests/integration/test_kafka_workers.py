"""Several workers on a real broker: a kill, a rebalance and a mixture of producers change no count."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from demo.worker import ReplayCounter
from oracle.rules import partition_of
from pipeline.local.valkey import LocalValkey
from pipeline.logs.open import kafka_servers
from schemas.log import INBOX_TOPIC
from tests.integration.deployment import Deployment, Role
from tests.integration.exactness import check_exact
from tests.integration.producers import VALID, in_mode, words_in_the_log, words_of
from tests.traffic.faults import EVENT_FAULTS
from tests.traffic.generate import SECOND_US, Rates, Sent, events, records

SEED = 4_711
ACCOUNTS = 150
EVENTS_MAX = 400_000
INBOX_EVENTS = 3_000
BACKLOG_RECORDS_MAX = 40
KILLS_MAX = 5


@pytest.fixture
async def deployment(tmp_path: Path, clickhouse_database: str, kafka_url: str) -> AsyncIterator[Deployment]:
    """On the session's broker, whose topics no other test uses as a deployment's."""
    variables = {"TIDEMARK_SESSION_TIMEOUT_S": "6", "TIDEMARK_PARTITIONS": "4"}
    with LocalValkey(tmp_path / "valkey") as valkey:
        async with Deployment(tmp_path, valkey.url, clickhouse_database, kafka_url, **variables) as made:
            yield made


async def test_kill_9_and_rebalances_among_workers_with_mixed_producers_change_no_count(
    deployment: Deployment,
) -> None:
    """What a dead worker had in hand is folded by another one, once; every producer's events arrive."""
    workers = {name: start_worker(deployment, name) for name in ("worker-1", "worker-2")}
    deployment.start("archive")
    deployment.start("router")
    stop = asyncio.Event()
    now_us = deployment.base.clock.now_ms() * 1000
    rates = Rates(duplicate=0.05, retry=0.04, conflict=0.02, malformed=0.03, late=0.05, far_late=0.02)
    batches = records(
        SEED, ACCOUNTS, EVENTS_MAX, now_us, partitions=4, batch_events_max=60, span_us=60 * SECOND_US, rates=rates
    )
    feeding = asyncio.create_task(deployment.feed(batches, stop, BACKLOG_RECORDS_MAX))
    # Other accounts' names would do; the same ones make both ways meet in the same totals.
    singles = list(
        events(
            SEED + 1, ACCOUNTS, INBOX_EVENTS, now_us, span_us=60 * SECOND_US,
            rates=Rates(duplicate=0.05, faults=EVENT_FAULTS),
        )
    )  # fmt: skip
    half = len(singles) // 2
    await asyncio.to_thread(produce_singles, deployment.settings.log_url, singles[:half])
    for name in workers:
        await handed_anything(deployment, name)

    in_hand = await kill_in_mid_flight(deployment, "worker-1")
    producing = asyncio.create_task(asyncio.to_thread(produce_singles, deployment.settings.log_url, singles[half:]))
    third = start_worker(deployment, "worker-3")
    await deployment.folded_to(in_hand)
    await handed_anything(deployment, "worker-3")
    assert await third.stop() == 0
    await deployment.folded_to(await deployment.ends())
    await producing
    stop.set()
    appended = await feeding
    await deployment.at_rest()
    await deployment.stop_roles()

    oracle = await check_exact(deployment)
    assert appended > BACKLOG_RECORDS_MAX
    assert oracle.conflicts
    assert words_of(sent.body for sent in singles if sent.kind in VALID) <= await words_in_the_log(deployment)


def start_worker(deployment: Deployment, name: str) -> Role:
    """A worker with a data folder of its own, so that its counter tells what this one was handed."""
    return deployment.start("worker", name=name, TIDEMARK_DATA_DIR=str(deployment.folder / name))


async def handed_anything(deployment: Deployment, name: str) -> None:
    """Return once a worker has been handed records."""

    async def handed() -> bool:
        return any(deployment.delivered(deployment.folder / name).values())

    await deployment.until(handed, f"{name} to be handed records")


async def kill_in_mid_flight(deployment: Deployment, name: str) -> dict[int, int]:
    """Kill a worker for good between being handed records and committing them; how far they went, by partition.

    Where the commit was faster, a worker in its place is killed.
    """
    victim = deployment.roles[name]
    for attempt in range(KILLS_MAX):
        victim.kept = False
        await asyncio.to_thread(kill_at_delivery, victim, deployment.folder / victim.name)
        folded = await deployment.folded()
        delivered = deployment.delivered(deployment.folder / victim.name)
        if in_hand := {each: end for each, end in delivered.items() if end > folded[each]}:
            return in_hand
        victim = start_worker(deployment, f"{name}-again-{attempt}")
        await handed_anything(deployment, victim.name)
    pytest.fail(f"{KILLS_MAX} kills found no record in a worker's hands: nothing was handed to two workers")


def kill_at_delivery(worker: Role, folder: Path) -> None:
    """kill -9 the moment after the worker notes that it was handed records."""
    counter = ReplayCounter(folder)
    before = [counter.delivered(partition) for partition in range(4)]
    while [counter.delivered(partition) for partition in range(4)] == before:
        time.sleep(0.0002)
    assert worker.kill()


def produce_singles(log_url: str, singles: Iterable[Sent]) -> None:
    """Send single events to `usage.inbox` as librdkafka's clients do, CRC32 partitioner and all, in every mode."""
    producer: Any = Producer({"bootstrap.servers": ",".join(kafka_servers(log_url)), "linger.ms": 5})
    partitions: dict[str, set[int]] = {}

    def note(error: Any, message: Any) -> None:
        assert error is None, error
        partitions.setdefault(message.key().decode(), set()).add(message.partition())

    for number, sent in enumerate(singles):
        value, headers = in_mode(number % 4 if sent.kind in VALID else 0, sent.body)
        producer.produce(INBOX_TOPIC, value, key=sent.account.encode(), headers=headers, on_delivery=note)
        producer.poll(0)
        if number % 100 == 99:
            producer.flush()
    producer.flush()
    # Or the test would not show that an account's events need not lie on its own partition.
    assert all(len(found) == 1 for found in partitions.values())
    assert any(found != {partition_of(account, 4)} for account, found in partitions.items())
