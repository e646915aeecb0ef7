"""Grants at Stripe, purchases and the lines that sell packs, on PostgreSQL and on the simulation's fake."""

from __future__ import annotations

import asyncio
from typing import Any, Final, cast

import pytest

from schemas.billing_events import ObjectKind
from schemas.catalog_changes import CatalogKind, CatalogPlan, StripeRecord
from schemas.clock import MINUTE_MS
from schemas.credits import Category, NewGrant
from schemas.errors import InvalidInput
from schemas.packs import How, LostLine, Purchase, PurchaseState
from schemas.side_tables import SideTables
from schemas.stripe_credits import GrantOrder, OrderState, Source
from sinks.sql.side_tables import SqlSideTables
from tests.unit.catalog.files import SMALL, catalog_of
from tests.worlds.mirrored import NOW_MS, mirrored_with

ORDER: Final = GrantOrder(
    "operator:1", "acme", "cus_1", "prepaid", Source.PROMOTIONAL, 500, "usd", ("price_1",), 50, NOW_MS, None, NOW_MS,
    "ann", "sorry",
)  # fmt: skip
BUY: Final = Purchase(
    "buy_1", "acme", "cus_1", "gifts", "p9", 1, "price_9", "usd", 9, 2, How.PAGE, "https://app.example", "ann", NOW_MS
)  # fmt: skip
KEY: Final = "tm.pack.gifts.p9.v1.usd"


@pytest.fixture
async def tables(side_tables: SideTables) -> SqlSideTables:
    await side_tables.link("acme", "cus_1", 0, "ann", "", NOW_MS)
    return cast("SqlSideTables", side_tables)


async def test_an_order_is_noted_once_and_moves_on(tables: SqlSideTables) -> None:
    store = tables.grant_orders
    assert [await store.order([ORDER, ORDER._replace(key="operator:2")]) for _ in range(2)] == [2, 0]
    assert [each.key for each in await store.waiting(10)] == ["operator:1", "operator:2"]
    assert [await store.stuck(0, NOW_MS + each) for each in (0, 1)] == [(0, 0), (0, 2)]
    first = await store.sent("operator:1", NOW_MS + 5)
    assert (await store.sent("operator:1", NOW_MS + 9)).sent_ms == first.sent_ms == NOW_MS + 5

    made = await store.settle(first, OrderState.MADE, NOW_MS + 10, "credgr_1", "")
    assert (made.state, made.stripe_id, made.prices) == (OrderState.MADE, "credgr_1", ("price_1",))
    assert await store.settle(first, OrderState.REFUSED, NOW_MS + 11, "", "late") == made
    refused = await store.settle(await store.sent("operator:2", NOW_MS), OrderState.REFUSED, NOW_MS + 12, "", "no")
    assert (await store.waiting(10), await store.refused(10)) == ([], [refused])
    assert [await store.stuck(NOW_MS + each, NOW_MS + 1) for each in (12, 13)] == [(1, 0), (0, 0)]
    assert {each.key for each in await store.of_account("acme")} == {"operator:1", "operator:2"}
    trail = [row for row in await tables.audit("acme") if row.entity == "stripe_grant"]
    assert [(row.actor, row.entity_id) for row in trail] == [
        ("ann", "operator:1"), ("ann", "operator:2"), ("credits", "operator:1"), ("credits", "operator:2"),
    ]  # fmt: skip


async def test_a_grant_is_taken_back_once(tables: SqlSideTables) -> None:
    store = tables.grant_orders
    await store.order([ORDER])
    assert await store.end("globex", ORDER.key, "ann", "a mistake", NOW_MS) is None
    assert await store.end("acme", "none", "ann", "a mistake", NOW_MS) is None
    with pytest.raises(InvalidInput, match="reason"):
        await store.end("acme", ORDER.key, "ann", " ", NOW_MS)
    ending = await store.end("acme", ORDER.key, "ann", "a mistake", NOW_MS)
    assert ending is not None
    assert ending.state is OrderState.ENDING
    assert await store.end("acme", ORDER.key, "bob", "again", NOW_MS) == ending
    assert await store.waiting(10) == [ending]


async def test_orders_of_two_processes_at_once_are_one(tables: SqlSideTables) -> None:
    made = await asyncio.gather(*(tables.grant_orders.order([ORDER]) for _ in range(4)))
    assert sum(made) == 1


async def test_grants_are_mirrored_of_linked_customers(tables: SqlSideTables) -> None:
    columns: dict[str, Any] = {
        "name": "gift", "category": "paid", "currency": "usd", "exponent": 2, "amount_minor": 500,
        "available_minor": 300, "priority": 10, "prices_json": '["price_1"]', "source": "operator:1",
        "created_ms": NOW_MS, "effective_ms": NOW_MS, "expires_ms": None, "voided_ms": None,
    }  # fmt: skip
    await mirrored_with(tables, ObjectKind.CREDIT_GRANT, "cus_1", {}, **columns)
    await mirrored_with(tables, ObjectKind.CREDIT_GRANT, "cus_2", {}, number=2, **columns)
    (found,) = await tables.grant_orders.mirrored(())
    assert (found.customer, found.available_minor, found.prices) == ("cus_1", 300, ("price_1",))
    assert (found.priority, found.source) == (10, "operator:1")
    assert await tables.grant_orders.mirrored(["cus_1"]) == [found]
    assert [each.customer for each in await tables.grant_orders.mirrored(["cus_2"])] == ["cus_2"]


async def test_periods_are_those_of_billed_items_with_a_price(tables: SqlSideTables) -> None:
    item = {"id": "si_1", "subscription_id": "subscription_1", "price_id": "price_1"}
    span = {"period_start_ms": NOW_MS, "period_end_ms": NOW_MS + MINUTE_MS}
    parts: Any = {"subscription_items": [{**item, **span}]}
    for status, found in (("trialing", 0), ("active", 1), ("past_due", 1), ("canceled", 0)):
        await mirrored_with(tables, ObjectKind.SUBSCRIPTION, "cus_1", parts, status=status, anchor_ms=0)
        periods = await tables.grant_orders.periods(["price_1"])
        assert [(each.account, each.start_ms, each.end_ms) for each in periods] == [
            ("acme", NOW_MS, NOW_MS + MINUTE_MS)
        ] * found  # fmt: skip
    assert await tables.grant_orders.periods(["price_2"]) == []


async def test_a_purchase_is_noted_once_and_a_top_up_at_a_time(tables: SqlSideTables) -> None:
    store = tables.packs
    assert [await store.buy(BUY), await store.buy(BUY._replace(quantity=7))] == [BUY, BUY]
    assert (await store.purchase("acme", "buy_1"), await store.purchase("globex", "buy_1")) == (BUY, None)
    sent = await store.sent("buy_1", NOW_MS + 1)
    page = await store.settle(sent, PurchaseState.OPEN, NOW_MS + 2, session="cs_1", url="https://stripe.example")
    assert (page.state, page.url, page.ended_ms) == (PurchaseState.OPEN, "https://stripe.example", None)
    assert await store.settle(sent, PurchaseState.FAILED, NOW_MS + 3, detail="late") == page
    assert (await store.due(NOW_MS + 9, NOW_MS + 1, 10), await store.due(0, NOW_MS + 2, 10)) == ([], [page])
    paid = await store.settle(page, PurchaseState.PAID, NOW_MS + 4, invoice="in_1")
    assert (paid.url, paid.session, paid.ended_ms) == ("", "cs_1", NOW_MS + 4)

    top_up = BUY._replace(id="auto_1", how=How.TOP_UP)
    others = [top_up._replace(id=f"auto_{number}") for number in (2, 3)]
    made = await asyncio.gather(*(store.buy(each) for each in (top_up, *others)))
    assert len({each.id for each in made}) == 1
    assert await store.topped("acme", "gifts", NOW_MS + 99) == [made[0]]
    await store.settle(made[0], PurchaseState.FAILED, NOW_MS + 5, detail="declined")
    assert (await store.topped("acme", "gifts", NOW_MS + 99), len(await store.of_account("acme"))) == ([], 2)
    assert all("url" not in (row.after or "") for row in await tables.audit("acme"))


async def sold(tables: SqlSideTables) -> None:
    """A catalog with a pack of nine."""
    pack = "gifts: {covers: {calls: 1}, packs: {p9: {credits: 9, usd: 1}}}"
    text = SMALL.replace('gifts: {covers: {calls: "1"}}', pack)
    plan = CatalogPlan(catalog_of(text), "sha", "", "", False, (), (), (), {})
    record = StripeRecord(KEY, CatalogKind.PRICE, "price_9", None, "gifts.p9", "", "usd")
    await tables.catalog.begin_catalog(plan, "ann", "a test", NOW_MS)
    await tables.catalog.activate_catalog(plan, {}, [record], NOW_MS)


async def invoiced(
    tables: SqlSideTables, status: str = "paid", paid_ms: int = NOW_MS, quantity: str = "2", **columns: Any
) -> None:
    """An invoice of cus_1 with two lines, of which one sells the pack twice."""
    lines: Any = [
        {"id": "il_1", "invoice_id": "invoice_1", "price_id": "price_9", "quantity": quantity, "amount_minor": 200,
         "discount_minor": 20},
        {"id": "il_2", "invoice_id": "invoice_1", "price_id": "price_1", "quantity": "1", "amount_minor": 100,
         "discount_minor": 0},
    ]  # fmt: skip
    usual = {"status": status, "paid_ms": paid_ms, "currency": "usd", "exponent": 2, "total_minor": 280}
    await mirrored_with(tables, ObjectKind.INVOICE, "cus_1", {"invoice_lines": lines}, **{**usual, **columns})


async def test_a_line_is_unpacked_once_until_its_payment_is_lost(tables: SqlSideTables) -> None:
    await sold(tables)
    await invoiced(tables, "open")
    assert await tables.packs.unpacked(10) == []
    await invoiced(tables)
    (line,) = await tables.packs.unpacked(10)
    assert (line.account, line.key, line.quantity, line.paid_minor, line.number) == ("acme", KEY, 2, 180, 0)
    assert not await tables.packs.is_unpacked("invoice_1")
    for _ in range(2):
        await tables.packs.granted(line, "gifts", "invoice:1")
    assert (await tables.packs.unpacked(10), await tables.packs.lost(10)) == ([], [])
    assert await tables.packs.is_unpacked("invoice_1")

    await invoiced(tables, "open")
    (lost,) = await tables.packs.lost(10)
    assert lost == LostLine("invoice_1", "il_1", "acme", "gifts", "invoice:1", "the payment failed later")
    await tables.packs.taken_back(lost)
    assert (await tables.packs.lost(10), await tables.packs.unpacked(10)) == ([], [])
    # Paid again just before that was noted.
    await invoiced(tables, paid_ms=NOW_MS + 1)
    assert [each.number for each in await tables.packs.unpacked(10)] == [1]


@pytest.mark.parametrize(("quantity", "packs"), [("0", []), ("2.5", [2]), ("1", [1])])
async def test_a_line_has_any_quantity(tables: SqlSideTables, quantity: str, packs: list[int]) -> None:
    """A person may have made the invoice. One pack that is sold in part gives nothing of that part."""
    await sold(tables)
    await invoiced(tables, quantity=quantity)
    assert [each.quantity for each in await tables.packs.unpacked(10)] == packs


@pytest.mark.parametrize(
    ("kind", "columns", "parts", "is_lost"),
    [
        (ObjectKind.REFUND, {"status": "succeeded", "amount_minor": 280}, {}, True),
        (ObjectKind.REFUND, {"status": "succeeded", "amount_minor": 279}, {}, False),
        (ObjectKind.REFUND, {"status": "failed", "amount_minor": 280}, {}, False),
        (ObjectKind.DISPUTE, {"status": "lost", "amount_minor": 280}, {}, True),
        (ObjectKind.DISPUTE, {"status": "needs_response", "amount_minor": 280}, {}, False),
        (ObjectKind.CREDIT_NOTE, {"status": "issued", "total_minor": 280}, {}, True),
        (ObjectKind.CREDIT_NOTE, {"status": "void", "total_minor": 280}, {}, False),
        (ObjectKind.CREDIT_NOTE, {"status": "issued", "total_minor": 200}, {"il_1": 200}, True),
        (ObjectKind.CREDIT_NOTE, {"status": "issued", "total_minor": 100}, {"il_2": 100}, False),
    ],
)
async def test_what_was_given_back_takes_the_credits_of_its_line(
    tables: SqlSideTables, kind: ObjectKind, columns: dict[str, Any], parts: dict[str, int], *, is_lost: bool
) -> None:
    await sold(tables)
    await invoiced(tables)
    (line,) = await tables.packs.unpacked(10)
    await tables.packs.granted(line, "gifts", "invoice:1")
    rows: Any = [
        {"id": f"cnl_{name}", "credit_note_id": f"{kind.value}_1", "invoice_line_id": name, "amount_minor": amount}
        for name, amount in parts.items()
    ]
    more: Any = {"credit_note_lines": rows} if rows else {}
    await mirrored_with(tables, kind, "cus_1", more, **{"invoice_id": "invoice_1", **columns})
    assert [each.grant for each in await tables.packs.lost(10)] == ["invoice:1"] * is_lost


async def test_who_bought_and_has_few_credits_left_is_low(tables: SqlSideTables) -> None:
    await sold(tables)
    await invoiced(tables)
    new = NewGrant("acme", "gifts", Category.PAID, 18, NOW_MS, "invoice:1")
    grant = (await tables.credits.grant(new, "stripe", "bought", NOW_MS)).grant
    assert await tables.packs.low("gifts", 99, NOW_MS, 10) == []
    (line,) = await tables.packs.unpacked(10)
    await tables.packs.granted(line, "gifts", "invoice:1")
    assert [await tables.packs.low("gifts", below, NOW_MS, 10) for below in (18, 19)] == [[], ["acme"]]
    await tables.credits.void("acme", grant.id, "ann", "a mistake", NOW_MS, owes=False)
    assert await tables.packs.low("gifts", 1, NOW_MS, 10) == ["acme"]
    assert await tables.packs.low("other", 1, NOW_MS, 10) == []


async def test_a_pack_gives_what_its_version_says(tables: SqlSideTables) -> None:
    await sold(tables)
    assert await tables.packs.pack_credits("gifts", "p9", 1) == 9
    unknown = [("gifts", "p9", 2), ("gifts", "p", 1), ("x", "p9", 1)]
    assert [await tables.packs.pack_credits(*name) for name in unknown] == [None] * 3
