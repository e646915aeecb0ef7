"""The paths of revenue: who may read them, and the figures of a small business."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_asyncio

from pipeline.http import revenue
from schemas.billing_events import ObjectKind
from schemas.clock import DAY_MS
from schemas.revenue import RevenueStores
from schemas.side_tables import Row
from tests.worlds.gateway import Gateway, running
from tests.worlds.mirrored import NOW_MS, mirrored_with
from tests.worlds.notices import NoticeWorld

SPAN: Final = "from=2026-11&to=2027-01"
PATHS: Final = ("mrr", "movements", "retention", "cohorts", "recognized", "deferred")


@pytest_asyncio.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    """A gateway with one invoice of 40 days, from November 11 on."""
    world = NoticeWorld()
    await world.begin()
    start_ms = NOW_MS // DAY_MS * DAY_MS - 10 * DAY_MS
    line: Row = {
        "id": "il_1", "invoice_id": "invoice_1", "amount_minor": 4_000, "start_ms": start_ms,
        "end_ms": start_ms + 40 * DAY_MS,
    }  # fmt: skip
    terms: dict[str, Any] = {"currency": "usd", "exponent": 2, "status": "open", "finalized_ms": start_ms}
    await mirrored_with(world.sql, ObjectKind.INVOICE, "cus_1", {"invoice_lines": [line]}, **terms)
    stores = RevenueStores(world.sql.catalog, world.sql.revenue, world.sql.invoice_books)

    async def revenue_stores() -> RevenueStores:
        return stores

    async with running(tmp_path, revenue=revenue_stores) as gateway:
        yield gateway


async def test_what_was_recognized_and_what_is_deferred(gateway: Gateway) -> None:
    recognized = (await gateway.get(f"/v1/revenue/recognized?{SPAN}", "finance")).json()["rows"]
    deferred = (await gateway.get(f"/v1/revenue/deferred?{SPAN}&by=whole", "finance")).json()["rows"]
    assert [(row["from"], row["to"], row["earned"], row["recognized"]) for row in recognized] == [
        ("2026-11-01", "2026-12-01", 2_000, 2_000), ("2026-12-01", "2027-01-01", 2_000, 2_000),
    ]  # fmt: skip
    assert deferred == [
        {
            "from": "2026-11-01", "to": "2027-01-01", "currency": "usd", "exponent": 2, "start": 0, "billed": 4_000,
            "taken_back": 0, "recognized": 4_000, "end": 0, "deferred": 0, "unbilled": 0,
        }
    ]  # fmt: skip


async def test_only_finance_reads_it(gateway: Gateway) -> None:
    expected = {"read": 403, "operator": 403, "acme": 403, "finance": 200, "": 401}
    for path in PATHS:
        wanted = f"/v1/revenue/{path}?{SPAN}"
        assert {key: (await gateway.get(wanted, key)).status_code for key in expected} == expected, path


async def test_a_span_that_is_none(gateway: Gateway) -> None:
    queries = {
        "from=soon": "from",
        "to=2027-02-30": "to",
        "to=": "to",
        "from=": "from",
        "from=2027-02&to=2027-01": "to",
        "from=2020-01&by=day": "from",
    }
    for query, field in queries.items():
        answer = await gateway.get(f"/v1/revenue/deferred?{query}", "finance")
        assert (answer.status_code, answer.json()["error"]["field"]) == (400, field), query


async def test_not_everybody_waits(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revenue, "WAITING_MAX", 0)
    answer = await gateway.get(f"/v1/revenue/mrr?{SPAN}", "finance")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")


async def test_without_postgresql_there_is_no_revenue(tmp_path: Path) -> None:
    async with running(tmp_path) as gateway:
        assert (await gateway.get("/v1/revenue/mrr", "finance")).status_code == 501
