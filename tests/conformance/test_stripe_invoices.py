"""Reading what Stripe bills: stripe-python over HTTP with the simulator, the client of the reconciler."""

from __future__ import annotations

from collections.abc import AsyncIterator
from decimal import Decimal

import pytest_asyncio

from aggregators.rating import amount_of, rating_of
from schemas.bills import InvoiceItem, InvoiceItemState
from schemas.clock import DAY_MS, HOUR_MS
from schemas.invoices import ListedItem
from sinks.stripe.invoice_items import StripeClientInvoiceItems
from tests.services.stripe import TEST_KEY
from tests.worlds.billed import BilledDeployment, billed_deployment
from tests.worlds.reconciler import DECEMBER_MS, NOVEMBER_MS

AFTER_MS = DECEMBER_MS + 3 * HOUR_MS


@pytest_asyncio.fixture
async def billed() -> AsyncIterator[BilledDeployment]:
    """A customer of calls."""
    async with billed_deployment(BilledDeployment) as deployment:
        yield deployment


async def test_an_item_that_the_sink_made_is_read_with_its_quantities(billed: BilledDeployment) -> None:
    """Writer and reader of the metadata are different modules. A person's own item is none of ours."""
    await billed.subscribe("ada", await billed.price(("inf", "2")))
    customer = billed.customers["ada"]
    made = InvoiceItem(
        "tmi_1", customer, "", "in_1", "calls", "price_1", NOVEMBER_MS, DECEMBER_MS, 0, Decimal(1000),
        Decimal("1125.125"), 250, "usd", 2, "late", InvoiceItemState.INTENDED,
    )  # fmt: skip
    writer = StripeClientInvoiceItems(TEST_KEY, billed.url)
    identifier = await writer.create(made)
    await writer.close()
    other = {"customer": customer, "amount": 5, "currency": "usd"}
    await billed.sdk("v1.invoice_items.create", other)
    await billed.sdk("v1.invoice_items.create", {**other, "metadata": {"tidemark_item": "edited"}})

    found = (await billed.invoices.billing_of(customer, 0)).items

    assert [
        ListedItem(identifier, "tmi_1", "calls", NOVEMBER_MS, DECEMBER_MS, Decimal("125.125"), 250, "usd", ""),
        ("edited", "", None),
    ] == [
        item if item.identifier == "tmi_1" else (item.identifier, item.event_name, item.quantity)
        for item in sorted(found, key=lambda item: item.identifier, reverse=True)
    ]


async def test_all_lines_of_an_invoice_are_read_with_the_terms_of_their_price(billed: BilledDeployment) -> None:
    """Stripe shows ten lines of an invoice; fourteen tiers have fourteen lines."""
    price = await billed.price(*((100 * tier, str(20 - tier)) for tier in range(1, 14)), ("inf", "1"))
    await billed.subscribe("ada", price)
    await billed.until(NOVEMBER_MS + 5 * DAY_MS)
    await billed.use("ada", "1400.5")
    await billed.settle()
    await billed.until(AFTER_MS)

    billing = await billed.invoices.billing_of(billed.customers["ada"], 0)

    lines = [line for invoice in billing.invoices for line in invoice.lines if line.start_ms < line.end_ms]
    november = [line for line in lines if line.end_ms == DECEMBER_MS and line.quantity]
    assert (14, Decimal("1400.5")) == (len(november), sum(line.quantity for line in november))
    rating = rating_of(billing.terms[price])
    assert sum(line.amount_minor for line in november) == amount_of(rating, Decimal("1400.5"))
    assert {("calls", DECEMBER_MS)} == {(item.event_name, item.start_ms) for item in billing.running}


async def test_reads_are_counted_and_meters_and_prices_are_read_once(billed: BilledDeployment) -> None:
    """The month's budget is kept by this number."""
    price = await billed.price(("inf", "2"))
    await billed.subscribe("ada", price)
    await billed.subscribe("bob", price)
    await billed.until(AFTER_MS)
    before = billed.invoices.reads
    await billed.invoices.billing_of(billed.customers["ada"], 0)
    first = billed.invoices.reads - before
    await billed.invoices.billing_of(billed.customers["bob"], 0)

    assert (5, 3) == (first, billed.invoices.reads - before - first)


async def test_all_pages_of_a_customers_features_are_read(billed: BilledDeployment) -> None:
    """More than Stripe lists at once."""
    product = (await billed.sdk("v1.products.create", {"name": "Everything"}))["id"]
    for number in range(103):
        feature = await billed.sdk("v1.entitlements.features.create", {"name": "f", "lookup_key": f"f{number}"})
        await billed.sdk("v1.products.features.create", product, {"entitlement_feature": feature["id"]})
    recurring = {"interval": "month"}
    price = {"currency": "usd", "product": product, "recurring": recurring, "unit_amount": 100}
    await billed.subscribe("ada", (await billed.sdk("v1.prices.create", price))["id"])
    before = billed.invoices.reads

    found = await billed.invoices.active_features(billed.customers["ada"])

    assert {f"f{number}" for number in range(103)} == found
    assert 2 == billed.invoices.reads - before
