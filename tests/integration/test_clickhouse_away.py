"""ClickHouse that is down, or whose answers are lost, behind real processes: live limits go on, views catch up."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from aggregators.instants import parse_instant_us
from oracle.model import Oracle
from oracle.rules import partition_of
from pipeline.clock import SystemClock
from pipeline.http.api_keys import Role as KeyRole
from pipeline.http.api_keys import create_key
from pipeline.local.clickhouse_server import ClickHouseServer, Fault
from pipeline.local.processes import free_port
from pipeline.local.valkey import LocalValkey
from tests.integration.deployment import ACCOUNTS, Deployment, traffic
from tests.integration.exactness import check_exact, recount
from tests.services.clickhouse import start_clickhouse
from tests.traffic.generate import METER_SET, account_name

SEED: Final = 7
SCALES: Final = {meter["slug"]: meter.get("scale", 0) for meter in METER_SET["meters"]}
TABLES: Final = (b"usage_events", b"usage_hourly", b"usage_duplicates", b"archive_positions", b"relay_positions")


async def test_clickhouse_down_does_not_stop_live_limits_and_its_views_catch_up_exactly(
    tmp_path: Path, own_valkey: LocalValkey
) -> None:
    """Rollup and archive fail apart; a worker even starts while ClickHouse is away."""
    port = free_port()
    clickhouse = start_clickhouse(tmp_path / "clickhouse", port=port)
    keys, gateway_port = tmp_path / "keys", free_port()
    key, _ = create_key(keys, KeyRole.READ, SystemClock())
    variables = {"TIDEMARK_API_KEYS": str(keys), "TIDEMARK_GATEWAY_PORT": str(gateway_port)}
    try:
        async with Deployment(tmp_path, own_valkey.url, f"http://127.0.0.1:{port}", **variables) as deployment:
            worker, archive = deployment.start("worker"), deployment.start("archive")
            deployment.start("gateway")
            await deployment.append_all(traffic(deployment, 3_000, SEED))
            await deployment.at_rest()

            clickhouse.process.kill()
            away_ms = deployment.base.clock.now_ms()
            await deployment.append_all(traffic(deployment, 2_000, SEED + 1))
            await deployment.folded_to(await deployment.ends())
            assert worker.starts == 1, "the worker must not notice"
            await live_usage_is_exact(deployment, gateway_port, key, away_ms)

            assert worker.kill()
            await deployment.append_all(traffic(deployment, 2_000, SEED + 2))
            await deployment.folded_to(await deployment.ends())
            await live_usage_is_exact(deployment, gateway_port, key, away_ms)

            clickhouse = start_clickhouse(tmp_path / "clickhouse", port=port)
            await deployment.at_rest()
            await deployment.stop_roles()
            await check_exact(deployment)
            assert worker.starts == 2
            assert "Traceback" not in worker.output() + archive.output()
    finally:
        clickhouse.process.stop()


async def live_usage_is_exact(deployment: Deployment, port: int, key: str, since_ms: int) -> None:
    """The gateway's live answers are up to date and the oracle's, for every account and meter."""
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{port}", headers={"authorization": f"Bearer {key}"}, timeout=10
    ) as client:

        async def answers() -> bool:
            try:
                return (await client.get("/healthz")).status_code == 200
            except httpx.TransportError:
                return False

        await deployment.until(answers, "the gateway")
        oracle = await recount(deployment)
        compared = 0
        for number in range(ACCOUNTS):
            usage = (await client.get(f"/v1/accounts/{account_name(number)}/usage")).raise_for_status().json()
            complete_us = parse_instant_us(usage["complete_up_to"])
            assert complete_us is not None
            assert complete_us // 1000 > since_ms
            compared += compare_live(oracle, account_name(number), usage)
        assert compared > ACCOUNTS


def compare_live(oracle: Oracle, account: str, usage: dict[str, Any]) -> int:
    """How many meters of an account's answer have a value; fails where one is not the oracle's."""
    log_ms = oracle.stream_times[partition_of(account, oracle.partitions)]
    period = oracle.period(account, log_ms)
    wanted = {
        meter: Decimal(value).scaleb(-SCALES[meter])
        for (whose, meter, start_and_end), value in oracle.totals.items()
        if whose == account and start_and_end == period
    }
    told = {each["meter"]: Decimal(each["value"]) for each in usage["meters"] if each["value"] is not None}
    assert {meter: value for meter, value in told.items() if value or meter in wanted} == wanted
    return len(wanted)


class RandomFaults:
    """Drops or refuses a share of the answers to inserts, until `over`; remembers how many of which table."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.over = False
        self.dropped: Counter[bytes] = Counter()

    def next(self, statement: bytes) -> Fault:
        head = statement[:300]
        table = next((table for table in TABLES if b"INSERT INTO" in head and table in head), None)
        if self.over or table is None:
            return Fault()
        draw = self.chance.random()
        # The first answer about each table is lost, whatever is drawn.
        if draw < 0.3 or not self.dropped[table]:
            self.dropped[table] += 1
            return Fault(drop_answer=True)
        return Fault(refuse=draw < 0.4)


@pytest.fixture
async def faulty(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[str, RandomFaults]]:
    """A server in this process, on the one directory that its engine can have open."""
    faults = RandomFaults(SEED)
    server = ClickHouseServer(str(tmp_path_factory.getbasetemp() / "clickhouse_in_process"), faults=faults)
    await server.start()
    yield f"{server.url}/away_{os.getpid()}", faults
    await server.stop()


async def test_answers_dropped_after_success_leave_every_view_exact(
    tmp_path: Path, own_valkey: LocalValkey, faulty: tuple[str, RandomFaults]
) -> None:
    """Stored, but nobody was told: archive and relays write the same again, and nothing counts twice."""
    url, faults = faulty
    async with Deployment(tmp_path, own_valkey.url, url) as deployment:
        deployment.start("worker")
        archive = deployment.start("archive")
        for part in range(6):
            await deployment.append_all(traffic(deployment, 1_000, SEED + part))
            await deployment.folded_to(await deployment.ends())
        await deployment.until(lambda: enough(faults), f"enough lost answers, {faults.dropped}")
        faults.over = True
        await deployment.at_rest()
        await deployment.stop_roles()

        await check_exact(deployment)
        assert archive.starts > 1, "the archive never repeated anything"


async def enough(faults: RandomFaults) -> bool:
    """Whether an answer about every table was lost."""
    await asyncio.sleep(0)
    return all(faults.dropped[table] for table in TABLES)
