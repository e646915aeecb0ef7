"""What SQL has of one account: its own invoices and audit only, page by page; on the fake and on PostgreSQL."""

from __future__ import annotations

from typing import Any, cast

import pytest

from schemas.account_records import AccountRecords, invoice_cursor
from schemas.billing_events import ObjectKind, ObjectName
from schemas.clock import MINUTE_MS
from schemas.errors import InvalidInput
from schemas.side_tables import Fetched, Row, SideTables
from sinks.sql.side_tables import SqlSideTables
from tests.conformance.side_table_steps import NOW_MS, event, fetched_subscription, linked, step, subscription

MINUTE = NOW_MS // MINUTE_MS * MINUTE_MS


@pytest.fixture
def records(side_tables: SideTables) -> AccountRecords:
    return cast("SqlSideTables", side_tables).account_records


async def billed(store: SideTables, number: int, created_ms: int, customer: str = "cus_1", **columns: Any) -> None:
    """An invoice with two lines."""
    name = ObjectName(ObjectKind.INVOICE, f"in_{number}")
    row: Row = {
        "id": name.id, "customer_id": customer, "status": "paid", "total_minor": 100 * number, "currency": "usd",
        "exponent": 2, "created_ms": created_ms, "deleted": 0, **columns,
    }  # fmt: skip
    lines: list[Row] = [
        {"id": f"il_{number}_{part}", "invoice_id": name.id, "amount_minor": 50 * number} for part in range(2)
    ]
    offset = await store.position(0) or 0
    fetched = Fetched(name, 0, {"invoices": [row], "invoice_lines": lines})
    await store.commit(step(offset, [event(1_000 + number, name, customer=customer)], [fetched]))


async def ids(records: AccountRecords, account: str = "acme") -> list[str]:
    return [str(row["id"]) for row in await records.invoices(account, 100)]


async def test_invoices_come_newest_first_and_page_by_page(side_tables: SideTables, records: AccountRecords) -> None:
    await linked(side_tables)
    for number, created_ms in ((1, NOW_MS), (2, NOW_MS + 5), (3, NOW_MS + 5), (4, NOW_MS - 5)):
        await billed(side_tables, number, created_ms)
    await billed(side_tables, 5, NOW_MS, status="draft")

    pages, before = [], ""
    while rows := await records.invoices("acme", 2, before):
        pages.append([row["id"] for row in rows])
        before = invoice_cursor(rows[-1])

    assert pages == [["in_3", "in_2"], ["in_1", "in_4"]]
    assert await ids(records, "nobody") == []
    for wrong in ("x", ".", "-1.in_1", "1" * 16 + ".in_1", "1.in\0"):
        with pytest.raises(InvalidInput, match="begin without a cursor"):
            await records.invoices("acme", 2, wrong)


async def test_of_a_customer_that_changed_hands_each_account_sees_its_own_time(
    side_tables: SideTables, records: AccountRecords
) -> None:
    """The customer's invoices from before are those of the other account."""
    await linked(side_tables, "old")
    await side_tables.unlink("old", "ada", "sold", NOW_MS)
    await linked(side_tables, "new", starts_ms=MINUTE + MINUTE_MS)
    await billed(side_tables, 1, MINUTE - 1)
    await billed(side_tables, 2, MINUTE + MINUTE_MS)

    assert (await ids(records, "old"), await ids(records, "new")) == (["in_1"], ["in_2"])


async def test_an_invoice_with_its_lines_is_that_of_its_account_only(
    side_tables: SideTables, records: AccountRecords
) -> None:
    await linked(side_tables)
    await linked(side_tables, "globex", "cus_2")
    await billed(side_tables, 1, NOW_MS)

    found = await records.invoice("acme", "in_1", 1)
    whole = await records.invoice("acme", "in_1", 100)

    assert found is not None
    assert whole is not None
    assert (found.invoice["total_minor"], [line["id"] for line in found.lines]) == (100, ["il_1_0"])
    assert [line["id"] for line in whole.lines] == ["il_1_0", "il_1_1"]
    assert await records.invoice("globex", "in_1", 100) is None
    assert await records.invoice("acme", "in_\0", 100) is None


async def test_the_mirror_of_an_account_has_its_present_customer_only(
    side_tables: SideTables, records: AccountRecords
) -> None:
    await linked(side_tables)
    await side_tables.commit(step(0, [event(1, subscription())], [fetched_subscription(seats=(3, 4))]))

    found = await records.mirrored_of("acme", NOW_MS)
    later = await side_tables.unlink("acme", "ada", "sold", NOW_MS)

    assert [row["id"] for row in found["subscriptions"]] == ["sub_1"]
    assert [row["quantity"] for row in found["subscription_items"]] == [3, 4]
    assert (await records.mirrored_of("acme", later.starts_ms))["subscriptions"] == []
    assert (await records.mirrored_of("nobody\0", NOW_MS))["subscriptions"] == []


async def test_the_audit_is_read_backwards(side_tables: SideTables, records: AccountRecords) -> None:
    await linked(side_tables)
    for number in range(1, 4):
        await billed(side_tables, number, NOW_MS)

    first = await records.audit_before("acme", 3)
    second = await records.audit_before("acme", 3, first[-1].seq)

    assert [row.seq for row in (*first, *second)] == [4, 3, 2, 1]
    assert [*reversed((*first, *second))] == [*await side_tables.audit("acme")]
