"""The audit as revenue reads it, on PostgreSQL and on the simulation's fake."""

from __future__ import annotations

import pytest

from schemas.billing_events import ObjectKind
from sinks.sql import revenue
from sinks.sql.side_tables import SqlSideTables
from tests.worlds.mirrored import mirrored


@pytest.mark.parametrize("rows", [1, 2, 3, 1_000])
async def test_the_rows_of_an_account_come_together_wherever_pages_end(
    side_tables: SqlSideTables, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr(revenue, "PAGE_ROWS", rows)
    for account in ("a", "b", "c"):
        await side_tables.link(account, f"cus_{account}", 0, "ann", "", 1_000)
    for status in ("trialing", "past_due", "canceled"):
        for number, account in enumerate("ab"):
            customer = f"cus_{account}"
            await mirrored(side_tables, ObjectKind.SUBSCRIPTION, "subscriptions", customer, number, status=status)
    await mirrored(side_tables, ObjectKind.INVOICE, "invoices", "cus_a", 1, created_ms=5)

    found = [
        [(each.account, each.after["subscriptions"][each.entity_id]["status"]) for each in changes]
        async for changes in side_tables.revenue.changes()
    ]
    assert found == [[(account, status) for status in ("trialing", "past_due", "canceled")] for account in "ab"]
