"""Invoice items and prices through the product's client, at the simulator."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import httpx
import pytest
import pytest_asyncio

from schemas.bills import InvoiceItem, InvoiceItemState
from schemas.clock import DAY_MS
from schemas.errors import InvalidInput, Transient
from sinks.stripe import invoice_items
from tests.worlds.closing import ClosingWorld, ms


@pytest_asyncio.fixture
async def world() -> AsyncIterator[ClosingWorld]:
    """A deployment with the customer of `acme`."""
    world = await ClosingWorld("2027-12-02").start()
    world.customers["acme"] = world.stripe.customer()
    yield world
    await world.close()


def item_of(world: ClosingWorld, number: int = 0, **changes: Any) -> InvoiceItem:
    """An item of November."""
    made = InvoiceItem(
        f"tmi_{number}", world.customers["acme"], "", "in_1", "calls", "price_1", ms("2027-11-01"), ms("2027-12-01"),
        number, Decimal(1_000), Decimal("1125.5"), 250, "usd", 2, "API calls: 125.5", InvoiceItemState.INTENDED,
        created_ms=world.clock.ms, sent_ms=world.clock.ms, attempt=1,
    )  # fmt: skip
    return made._replace(**changes)


async def test_a_price_with_its_tiers_its_product_and_its_meter(world: ClosingWorld) -> None:
    rows = [{"up_to": 5, "unit_amount_decimal": "0.5"}, {"up_to": "inf", "unit_amount": 2, "flat_amount": 7}]
    metered = world.price({"billing_scheme": "tiered", "tiers_mode": "volume", "tiers": rows})
    found = await world.items.price(metered)
    assert (found.id, found.event_name, found.title) == (metered, "calls", "API calls")
    terms = json.loads(found.terms)
    assert (terms["currency"], terms["tiers_mode"]) == ("usd", "volume")
    assert [tier["unit_amount_decimal"] for tier in terms["tiers"]] == ["0.5", "2"]
    flat = await world.items.price(world.stripe.price(amount=4_900))
    assert (flat.event_name, json.loads(flat.terms)["unit_amount_decimal"]) == ("", "4900")
    with pytest.raises(InvalidInput, match="No such price"):
        await world.items.price("price_none")


async def test_an_item_is_made_once_for_a_key(world: ClosingWorld) -> None:
    item = item_of(world)
    first = await world.items.create(item)
    assert await world.items.create(item) == first
    assert await world.items.create(item._replace(attempt=2)) != first
    with pytest.raises(InvalidInput, match=r"[Ii]dempoten"):
        await world.items.create(item._replace(amount_minor=251))
    (made, _) = world.stripe_items("acme")
    assert (made["id"], made["amount"], made["currency"], made["description"]) == (
        first,
        250,
        "usd",
        "API calls: 125.5",
    )
    assert made["period"] == {"start": item.start_ms // 1_000, "end": item.end_ms // 1_000}


async def test_the_items_of_a_chain_are_found_among_others(
    world: ClosingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By their metadata, on any page; those of another meter or span are none of the chain."""
    monkeypatch.setattr(invoice_items, "PAGE_ROWS", 2)
    second = await world.items.create(item_of(world, 1, amount_minor=-5, to_quantity=Decimal(1_120)))
    await world.items.create(item_of(world, 2, event_name="tokens"))
    await world.items.create(item_of(world, 3, end_ms=ms("2027-12-02")))
    first = await world.items.create(item_of(world))
    body = {"customer": world.customers["acme"], "amount": 1, "currency": "usd"}
    for _ in range(3):
        world.stripe.call("POST /v1/invoiceitems", body)
    found = await world.items.made(item_of(world, 9))
    assert [(each.identifier, each.number, each.stripe_item, each.amount_minor) for each in found] == [
        ("tmi_0", 0, first, 250), ("tmi_1", 1, second, -5),
    ]  # fmt: skip
    assert [each.to_quantity for each in found] == [Decimal("1125.5"), Decimal(1_120)]
    assert {each.state for each in found} == {InvoiceItemState.CREATED}


async def test_the_look_for_items_ends_with_the_span_and_is_limited(
    world: ClosingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(invoice_items, "PAGE_ROWS", 1)
    monkeypatch.setattr(invoice_items, "PAGES_MAX", 2)
    await world.items.create(item_of(world))
    world.clock.advance(9 * DAY_MS)
    body = {"customer": world.customers["acme"], "amount": 1, "currency": "usd"}
    world.stripe.call("POST /v1/invoiceitems", body)
    assert len(await world.items.made(item_of(world))) == 1
    assert await world.items.made(item_of(world, start_ms=0, end_ms=world.clock.ms + 2 * DAY_MS)) == []
    world.stripe.call("POST /v1/invoiceitems", body)
    with pytest.raises(InvalidInput, match="too many"):
        await world.items.made(item_of(world))


async def test_metadata_that_a_person_changed_are_named(world: ClosingWorld) -> None:
    body = {"customer": world.customers["acme"], "amount": 1, "currency": "usd"}
    chain = {"tidemark_meter": "calls", "tidemark_span": f"{ms('2027-11-01')}-{ms('2027-12-01')}"}
    made = world.stripe.call("POST /v1/invoiceitems", {**body, "metadata": {**chain, "tidemark_number": "x"}})
    with pytest.raises(InvalidInput, match=made["id"]):
        await world.items.made(item_of(world))


@pytest.mark.parametrize(
    "body", [b"[]", b"{}", b'{"data": 5}', b'{"data": [{}], "has_more": true}', b'{"amount": 250}']
)
async def test_an_answer_of_another_form_is_no_answer(world: ClosingWorld, body: bytes) -> None:
    """What a proxy sends must end neither the process nor the item."""
    transport = httpx.MockTransport(lambda _request: httpx.Response(200, content=body))
    client = invoice_items.StripeClientInvoiceItems("sk_test_x", "http://stripe.test")
    client._transport._client = httpx.AsyncClient(transport=transport)
    for call in (client.price("price_1"), client.create(item_of(world)), client.made(item_of(world))):
        with pytest.raises(Transient):
            await call
    await client.close()
