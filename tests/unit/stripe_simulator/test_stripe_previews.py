"""Previews of invoices: what a preview shows is what the change bills, and nothing changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stripe_simulator import Simulator
from tests.services.stripe_sdk import Sdk
from tests.services.stripe_shop import Shop, at
from tests.services.stripe_wire import NOW_MS
from tests.worlds.clock import ManualClock


@pytest.fixture
def shop(sdk: Sdk) -> Shop:
    """A shop without a customer yet."""
    return Shop(sdk)


async def preview(shop: Shop, mode: str = "next", **details: Any) -> tuple[list[int], int]:
    """The amounts of the lines, and the amount due."""
    params: dict[str, Any] = {"subscription": shop.subscription, "preview_mode": mode}
    if details:
        params["subscription_details"] = details
    invoice = await shop.sdk("v1.invoices.create_preview", params)
    assert (invoice["status"], invoice["id"][:12], invoice["number"]) == ("draft", "upcoming_in_", None)
    return [line["amount"] for line in invoice["lines"]["data"]], invoice["amount_due"]


async def test_preview_is_what_the_change_bills(shop: Shop) -> None:
    """Scenario 4: 4750 today for the remaining 19 days, and 14900 on March 1."""
    await shop.open("2027-02-01")
    pro = await shop.price(14900)
    item = (await shop.subscribe({"price": await shop.price(7900)}))["items"]["data"][0]["id"]
    await shop.advance("2027-02-10")
    change: dict[str, Any] = {"items": [{"id": item, "price": pro}], "proration_date": at("2027-02-10")}
    before = (await shop.get(), await shop.invoices(), (await shop.sdk("v1.events.list", {"limit": 100}))["data"])

    assert await preview(shop) == ([7900], 7900)
    assert await preview(shop, **change, proration_behavior="always_invoice") == ([-5361, 10111], 4750)
    assert await preview(shop, **change) == ([-5361, 10111, 14900], 19650)
    assert await preview(shop, **change, proration_behavior="none") == ([14900], 14900)
    assert await preview(shop, "recurring", items=change["items"]) == ([14900], 14900)

    after = (await shop.get(), await shop.invoices(), (await shop.sdk("v1.events.list", {"limit": 100}))["data"])
    assert after == before
    await shop.change(**change, proration_behavior="always_invoice")
    assert (await shop.amounts())[-1] == ("paid", 4750)
    assert await preview(shop) == ([14900], 14900)
    await shop.advance("2027-03-02")
    assert (await shop.amounts())[-1] == ("paid", 14900)


async def test_preview_of_a_schedule_and_of_a_new_subscription(shop: Shop) -> None:
    """Scenario 7: the downgrade is due on March 1 with 7900. A subscription can be shown before it exists."""
    await shop.open("2027-02-01")
    essential = await shop.price(7900)
    await shop.subscribe({"price": await shop.price(14900)})
    schedule = await shop.schedule(essential)

    assert await preview(shop) == ([7900], 7900)
    body = await shop.sdk("v1.invoices.create_preview", {"schedule": schedule})
    assert (body["amount_due"], body["created"]) == (7900, at("2027-03-01"))
    details = {"items": [{"price": essential, "quantity": 3}]}
    body = await shop.sdk("v1.invoices.create_preview", {"customer": shop.customer, "subscription_details": details})
    assert (body["amount_due"], body["billing_reason"]) == (23700, "subscription_create")
    assert len((await shop.sdk("v1.subscriptions.list", {"customer": shop.customer}))["data"]) == 1


async def test_preview_of_usage_since_a_start_date(shop: Shop) -> None:
    """Scenario 27: a price for usage that a flat subscription does not have yet, as if it had begun with the period."""
    await shop.open("2027-02-01")
    flat, usage = await shop.price(9900), await shop.metered(await shop.meter(), 2)
    item = (await shop.subscribe({"price": flat}))["items"]["data"][0]["id"]
    await shop.advance("2027-02-20")
    await shop.use(70, "2027-02-15")
    items = [{"id": item, "deleted": True}, {"price": usage}]
    change: dict[str, Any] = {"items": items, "proration_behavior": "none"}

    assert await preview(shop, **change) == ([0], 0)
    assert await preview(shop, **change, start_date=at("2027-02-01")) == ([140], 140)
    assert await preview(shop, **change, start_date=at("2027-02-16")) == ([0], 0)
    assert await preview(shop) == ([9900], 9900)


async def test_preview_of_nothing_is_refused(shop: Shop) -> None:
    """A subscription that ends has no next invoice; an unknown one is a 400."""
    await shop.open("2027-02-01")
    await shop.subscribe({"price": await shop.price(14900)})
    await shop.change(cancel_at_period_end=True)

    error = await shop.sdk.error("v1.invoices.create_preview", {"subscription": shop.subscription})
    assert (error["status"], error["code"]) == (404, "invoice_upcoming_none")
    error = await shop.sdk.error("v1.invoices.create_preview", {"subscription": "sub_none"})
    assert (error["status"], error["code"], error["param"]) == (400, "resource_missing", "subscription")


async def test_preview_with_a_promotion(shop: Shop) -> None:
    """The discount is in the preview, and the coupon is not redeemed."""
    await shop.open("2027-02-01")
    await shop.subscribe({"price": await shop.price(14900)})
    await shop.sdk("v1.coupons.create", {"id": "FIFTH", "percent_off": 20, "duration": "forever"})
    params = {"subscription": shop.subscription, "discounts": [{"coupon": "FIFTH"}]}

    invoice = await shop.sdk("v1.invoices.create_preview", params)

    assert (invoice["amount_due"], invoice["total_discount_amounts"][0]["amount"]) == (11920, 2980)
    assert (await shop.sdk("v1.coupons.retrieve", "FIFTH"))["times_redeemed"] == 0


def test_discarded_changes_are_not_in_the_file(tmp_path: Path) -> None:
    """What comes before and after a discarded block is: the replay gives the same objects."""
    state, clock = tmp_path / "state", ManualClock(NOW_MS)
    simulator = Simulator(clock, state=state)
    store, journal = simulator.test.store, simulator.journal
    with journal.transaction():
        store.save({"object": "customer", "id": "cus_1", "name": "before"})
        with journal.discarded():
            store.save({"object": "customer", "id": "cus_1", "name": "inside"})
            store.save({"object": "customer", "id": "cus_2"})
            simulator.test.clockwork.set_time("", NOW_MS + 1)
        store.save({"object": "customer", "id": "cus_3"})
    simulator.close()

    restored = Simulator(clock, state=state)
    for side in (simulator, restored):
        assert [body["id"] for body in side.test.store.newest("customer")] == ["cus_3", "cus_1"]
        assert side.test.store.get("customer", "cus_1") == {"object": "customer", "id": "cus_1", "name": "before"}
        assert [event["type"] for event in side.test.store.newest("event")] == ["customer.created"] * 2
        assert side.now_ms() == NOW_MS
    restored.close()
