"""Sessions of checkout and of the portal through stripe-python. tests/integration/test_stripe_pages.py clicks them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.services.stripe_sdk import Sdk
from tests.services.stripe_shop import Shop

URLS = {"success_url": "https://shop.example/done", "cancel_url": "https://shop.example/"}


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"mode": ""}, "mode", "parameter_invalid_empty"),
        ({"line_items": [{"price": "price_none", "quantity": 1}]}, "line_items[0][price]", "resource_missing"),
        ({"line_items": [{"quantity": 1}]}, "line_items[0][price]", "parameter_missing"),
        ({"customer": "cus_none"}, "customer", "resource_missing"),
        ({"mode": "payment"}, "line_items", None),
        ({"mode": "setup"}, "currency", "parameter_missing"),
        ({"colour": "red"}, "colour", "parameter_unknown"),
        ({"success_url": "javascript:alert(1)"}, "success_url", "url_invalid"),
        ({"success_url": "shop.example/done"}, "success_url", "url_invalid"),
        ({"cancel_url": "data:text/html,x"}, "cancel_url", "url_invalid"),
        ({"cancel_url": "https://[shop"}, "cancel_url", "url_invalid"),
    ],
    ids=[
        "mode",
        "price",
        "no price",
        "customer",
        "recurring",
        "currency",
        "unknown",
        "script",
        "no scheme",
        "data",
        "no host",
    ],
)
async def test_bad_checkout_session_is_refused(
    sdk: Sdk, shop: Shop, change: dict[str, Any], param: str, code: str | None
) -> None:
    """With Stripe's parameter and code, and nothing is stored."""
    price = await shop.price(4_900)
    params = {"mode": "subscription", "line_items": [{"price": price, "quantity": 1}], **URLS, **change}

    error = await sdk.error("v1.checkout.sessions.create", params)

    assert (error["status"], error["param"], error.get("code")) == (400, param, code)
    assert (await sdk("v1.checkout.sessions.list"))["data"] == []


async def test_checkout_session_shows_the_first_invoice_and_creates_nothing(sdk: Sdk, shop: Shop) -> None:
    """Amounts with discount and tax; customer, subscription and events come with the payment only."""
    price = await shop.price(10_000)
    coupon = await sdk("v1.coupons.create", {"percent_off": 25, "duration": "once"})
    params = {"mode": "subscription", "line_items": [{"price": price, "quantity": 2}], **URLS}

    session = await sdk("v1.checkout.sessions.create", {**params, "discounts": [{"coupon": coupon["id"]}]})

    assert (session["amount_subtotal"], session["amount_total"]) == (20_000, 15_000)
    assert session["total_details"] == {"amount_discount": 5_000, "amount_shipping": 0, "amount_tax": 0}
    for name in ("customers", "subscriptions", "invoices"):
        assert (await sdk(f"v1.{name}.list"))["data"] == []


async def test_checkout_session_expires_by_itself(sdk: Sdk) -> None:
    """After a day, with an event; a second time is refused."""
    session = await sdk("v1.checkout.sessions.create", {"mode": "setup", "currency": "usd", **URLS})
    sdk.clock.advance(86_400_000)

    assert (await sdk("v1.checkout.sessions.retrieve", session["id"]))["status"] == "expired"
    types = [event["type"] for event in (await sdk("v1.events.list"))["data"]]
    assert types == ["checkout.session.expired"]
    assert (await sdk.error("v1.checkout.sessions.expire", session["id"]))["status"] == 400


async def test_portal_session_needs_a_customer(sdk: Sdk, shop: Shop) -> None:
    """And has the address of its page."""
    await shop.open("2027-01-01")
    portal = await sdk(
        "v1.billing_portal.sessions.create", {"customer": shop.customer, "return_url": "https://a.example"}
    )

    assert portal["url"].endswith(f"/_simulator/portal/{portal['id']}")
    error = await sdk.error("v1.billing_portal.sessions.create", {"customer": "cus_none"})
    assert (error["status"], error["param"]) == (400, "customer")
    error = await sdk.error(
        "v1.billing_portal.sessions.create", {"customer": shop.customer, "return_url": "javascript:alert(1)"}
    )
    assert (error["code"], error["param"]) == ("url_invalid", "return_url")
    error = await sdk.error("v1.billing_portal.sessions.create", {"return_url": "https://a.example"})
    assert (error["code"], error["param"]) == ("parameter_missing", "customer")


async def test_the_plans_of_a_portal_are_shown_only_when_expanded(sdk: Sdk, shop: Shop) -> None:
    """In an answer and in a list, as at Stripe."""
    price = await shop.price(4_900)
    product = (await sdk("v1.prices.retrieve", price))["product"]
    update = {
        "enabled": True, "default_allowed_updates": ["price"], "products": [{"product": product, "prices": [price]}],
    }  # fmt: skip
    made = await sdk("v1.billing_portal.configurations.create", {"features": {"subscription_update": update}})
    path = "features.subscription_update.products"
    expanded = await sdk("v1.billing_portal.configurations.retrieve", made["id"], {"expand": [path]})
    (listed,) = (await sdk("v1.billing_portal.configurations.list", {"expand": [f"data.{path}"]}))["data"]

    assert "products" not in made["features"]["subscription_update"]
    assert expanded == listed
    (shown,) = expanded["features"]["subscription_update"]["products"]
    assert (shown["product"], shown["prices"]) == (product, [price])
