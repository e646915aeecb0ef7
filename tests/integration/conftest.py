"""A deployment, a log of either transport, and a topic of its own for each test."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pipeline.clock import SystemClock
from pipeline.local.valkey import LocalValkey
from pipeline.logs.open import open_log
from schemas.log import Log, TopicSpec
from tests.integration.deployment import Deployment
from tests.integration.runner_world import PARTITIONS

TRANSPORTS = ("embedded", "kafka")


@pytest.fixture
async def deployment(tmp_path: Path, own_valkey: LocalValkey, clickhouse_database: str) -> AsyncIterator[Deployment]:
    async with Deployment(tmp_path / "one", own_valkey.url, clickhouse_database) as made:
        yield made


@pytest.fixture(params=TRANSPORTS)
def log_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "embedded":
        return f"embedded://{tmp_path / 'log.db'}"
    url: str = request.getfixturevalue("kafka_url")
    return url


@pytest.fixture
async def log(log_url: str) -> AsyncIterator[Log]:
    driver = open_log(log_url, SystemClock())
    await driver.start()
    yield driver
    await driver.close()


@pytest.fixture
async def topic(log: Log) -> str:
    name = f"runner.{uuid.uuid4().hex}"
    await log.create_topics([TopicSpec(name, PARTITIONS, retention_ms=-1)])
    return name
