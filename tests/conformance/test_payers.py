"""Who subscribes to what, a page at a time: the fake and PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pytest

from schemas.backtest import PaidItem, PaidSubscription, Payer
from schemas.billing_events import ObjectKind, ObjectName
from schemas.side_tables import Fetched, Row, SideTables
from sinks.sql.side_tables import SqlSideTables
from tests.conformance.side_table_steps import ANCHOR_MS, NOW_MS, event, step


async def subscribe(store: SideTables, number: int, customer: str, items: Sequence[Row] = (), **columns: Any) -> None:
    """A subscription of the mirror, which bills by default."""
    name = ObjectName(ObjectKind.SUBSCRIPTION, f"sub_{number}")
    row: Row = {
        "id": name.id, "customer_id": customer, "status": "active", "currency": "usd", "anchor_ms": ANCHOR_MS,
        "start_ms": ANCHOR_MS, "discounts_json": "[]", "deleted": 0, **columns,
    }  # fmt: skip
    parts = [{**item, "id": f"si_{number}_{place}", "subscription_id": name.id} for place, item in enumerate(items)]
    fetched = Fetched(name, 0, {"subscriptions": [row], "subscription_items": parts})
    offset = await store.position(0) or 0
    await store.commit(step(offset, [event(number, name, customer=customer)], [fetched]))


async def read(store: SideTables, after: str = "", limit: int = 10) -> Sequence[Payer]:
    return await cast("SqlSideTables", store).payers.payers(after, limit, NOW_MS)


async def test_a_payer_has_accounts_subscriptions_and_items(side_tables: SideTables) -> None:
    """A metered item has no quantity. The subscription bills from the end of its trial on."""
    trial_end_ms = ANCHOR_MS + 14 * 86_400_000
    items: list[Row] = [
        {"price_id": "price_seat", "usage_type": "licensed", "quantity": 3, "period_end_ms": 7},
        {"price_id": "price_calls", "usage_type": "metered", "quantity": 1, "period_end_ms": 8},
    ]
    await subscribe(side_tables, 1, "cus_1", items, trial_end_ms=trial_end_ms, discounts_json='["di_1"]')
    await subscribe(side_tables, 2, "cus_1", currency="eur")
    await side_tables.link("acme", "cus_1", 0, "ann", "", NOW_MS)

    (payer,) = await read(side_tables)

    paid = (PaidItem("price_seat", 3, 7), PaidItem("price_calls", None, 8))
    first = PaidSubscription("sub_1", "usd", ANCHOR_MS, trial_end_ms, is_discounted=True, items=paid)
    second = PaidSubscription("sub_2", "eur", ANCHOR_MS, ANCHOR_MS, is_discounted=False, items=())
    assert Payer("cus_1", "acme", (first, second)) == payer


@pytest.mark.parametrize(
    ("columns", "pays"),
    [
        ({"status": "trialing"}, True), ({"status": "past_due"}, True), ({"status": "unpaid"}, True),
        ({"status": "canceled"}, False), ({"status": "incomplete"}, False), ({"status": "incomplete_expired"}, False),
        ({"deleted": 1}, False),
    ],
    ids=str,
)  # fmt: skip
async def test_a_subscription_that_bills_nothing_is_none(
    side_tables: SideTables, columns: dict[str, Any], pays: bool
) -> None:
    await subscribe(side_tables, 1, "cus_1", **columns)

    assert pays == bool(await read(side_tables))


async def test_an_account_that_left_the_customer_or_comes_later_is_not_the_customers(side_tables: SideTables) -> None:
    await subscribe(side_tables, 1, "cus_1")
    await subscribe(side_tables, 2, "cus_2")
    await side_tables.link("acme", "cus_1", 0, "ann", "", NOW_MS)
    await side_tables.link("acme", "cus_2", NOW_MS, "ann", "", NOW_MS)
    await side_tables.link("later", "cus_1", NOW_MS + 60_000, "ann", "", NOW_MS)

    assert [("cus_1", ""), ("cus_2", "acme")] == [(each.customer, each.account) for each in await read(side_tables)]


async def test_pages_have_each_customer_once(side_tables: SideTables) -> None:
    for number in range(1, 8):
        await subscribe(side_tables, number, f"cus_{number % 4}")

    pages, after = [], ""
    while page := await read(side_tables, after, 3):
        pages.append([payer.customer for payer in page])
        after = page[-1].customer

    assert [["cus_0", "cus_1", "cus_2"], ["cus_3"]] == pages
