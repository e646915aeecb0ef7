"""Fixtures of the analytical store: `both` runs a test on the in-memory fake and on the real engine."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from sinks.clickhouse.client import ClickHouse, open_clickhouse
from sinks.clickhouse.fake import FakeClickHouse
from sinks.clickhouse.reader import ClickHouseReader
from sinks.clickhouse.writer import ClickHouseStore
from tests.conformance.clickhouse_rows import Both


@pytest.fixture
async def clickhouse(clickhouse_database: str) -> AsyncIterator[ClickHouse]:
    opened = open_clickhouse(clickhouse_database)
    await ClickHouseStore(opened).migrate()
    yield opened
    await opened.close()


@pytest.fixture(params=["fake", "service"])
def both(request: pytest.FixtureRequest) -> Both:
    if request.param == "fake":
        fake = FakeClickHouse()
        return Both(fake, fake)
    opened = request.getfixturevalue("clickhouse")
    return Both(ClickHouseStore(opened), ClickHouseReader(opened))
