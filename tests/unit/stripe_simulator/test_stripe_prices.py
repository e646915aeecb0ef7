"""Products, prices, coupons, promotion codes and tax, through stripe-python."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest

from stripe_simulator.engine.discounts import apply
from stripe_simulator.engine.lines import Line
from stripe_simulator.engine.periods import Period
from stripe_simulator.engine.tiers import total
from stripe_simulator.engine.totals import totals
from stripe_simulator.errors import ApiError
from stripe_simulator.resources import coupons, tax
from stripe_simulator.resources.prices import engine_price, recurrence_of
from tests.services.stripe_sdk import Sdk
from tests.services.stripe_wire import DAY_S, NOW_S

MONTHLY = {"currency": "usd", "recurring": {"interval": "month"}, "product_data": {"name": "Essential"}}
TIERS: list[dict[str, Any]] = [
    {"up_to": 5, "unit_amount": 700},
    {"up_to": 10, "unit_amount": 650},
    {"up_to": "inf", "unit_amount": 600},
]
CALLS: list[dict[str, Any]] = [
    {"up_to": 10_000, "unit_amount": 0},
    {"up_to": 100_000, "unit_amount_decimal": "0.2"},
    {"up_to": "inf", "unit_amount_decimal": "0.10"},
]
METER = {"display_name": "Calls", "event_name": "calls", "default_aggregation": {"formula": "sum"}}


def tiered(mode: str, tiers: list[dict[str, Any]]) -> dict[str, Any]:
    """The amounts of a tiered price."""
    return {"billing_scheme": "tiered", "tiers_mode": mode, "tiers": tiers}


async def test_product_has_its_life(sdk: Sdk) -> None:
    """Create with an id, change, archive: each change is an event, and no change is none."""
    body = await sdk("v1.products.create", {"id": "prod_pro", "name": "Pro", "metadata": {"plan": "pro"}})
    sdk.clock.advance(1_000)
    again = await sdk.error("v1.products.create", {"id": "prod_pro", "name": "Pro"})
    same = await sdk("v1.products.update", "prod_pro", {"name": "Pro"})
    after = await sdk("v1.products.update", "prod_pro", {"active": False, "description": "all", "metadata": {"a": "b"}})

    assert (again["status"], again["code"]) == (400, "resource_already_exists")
    assert same == body
    changed = {"active": False, "description": "all", "metadata": {"plan": "pro", "a": "b"}, "updated": NOW_S + 1}
    assert after == {**body, **changed} == await sdk("v1.products.retrieve", "prod_pro")
    assert [row["id"] for row in (await sdk("v1.products.list", {"active": False}))["data"]] == ["prod_pro"]
    events = (await sdk("v1.events.list"))["data"]
    assert [event["type"] for event in events] == ["product.updated", "product.created"]


@pytest.mark.parametrize(
    ("amounts", "quantity", "expected"),
    [
        ({"unit_amount": 7900}, 1, 7900),
        ({"unit_amount_decimal": "0.05"}, 12_344, 617),
        ({"unit_amount": 1000, "transform_quantity": {"divide_by": 60, "round": "up"}}, 61, 2000),
        *((tiered("volume", TIERS), units, cents) for units, cents in
          ((1, 700), (5, 3500), (6, 3900), (20, 12000), (25, 15000))),
        *((tiered("graduated", TIERS), units, cents) for units, cents in
          ((1, 700), (5, 3500), (6, 4150), (20, 12750), (25, 15750))),
        (tiered("graduated", CALLS), 137_510, 18_000 + 3_751),
        (tiered("graduated", [{"up_to": 10, "flat_amount": 4500}, {"up_to": "inf", "unit_amount": 1500}]), 13, 9000),
    ],
)  # fmt: skip
async def test_price_costs_what_it_says(sdk: Sdk, amounts: dict[str, Any], quantity: int, expected: int) -> None:
    """The golden tiers (scenario 2) and the calls of scenario 1, as the engine computes them from the stored price."""
    body = await sdk("v1.prices.create", {**MONTHLY, **amounts})

    stored = sdk.simulator.test.store.get("price", body["id"])
    assert stored is not None
    assert total(engine_price(stored), quantity) == expected
    assert (recurrence_of(stored), engine_price(stored).product) == (("month", 1), body["product"])


@pytest.mark.parametrize(
    ("given", "whole", "decimal"),
    [
        ({"unit_amount": 7900}, 7900, "7900"),
        ({"unit_amount_decimal": "7900.00"}, 7900, "7900"),
        ({"unit_amount_decimal": "0.0500"}, None, "0.05"),
        ({"unit_amount": 0}, 0, "0"),
    ],
    ids=["whole", "whole as decimal", "fraction", "free"],
)
async def test_amount_is_in_both_fields(sdk: Sdk, given: dict[str, Any], whole: int | None, decimal: str) -> None:
    """`unit_amount` is null for a fraction of a cent."""
    body = await sdk("v1.prices.create", {**MONTHLY, **given})

    assert (body["unit_amount"], str(body["unit_amount_decimal"])) == (whole, decimal)


async def test_tiers_are_shown_only_when_expanded(sdk: Sdk) -> None:
    """In an answer, in a list and in events."""
    body = await sdk("v1.prices.create", {**MONTHLY, **tiered("graduated", CALLS)})
    expanded = await sdk("v1.prices.retrieve", body["id"], {"expand": ["tiers"]})
    (listed,) = (await sdk("v1.prices.list", {"expand": ["data.tiers"]}))["data"]
    (event,) = (await sdk("v1.events.list", {"type": "price.created"}))["data"]

    assert "tiers" not in body
    assert "tiers" not in event["data"]["object"]
    assert listed == expanded
    assert [(tier["up_to"], tier["unit_amount"], str(tier["unit_amount_decimal"])) for tier in expanded["tiers"]] == [
        (10_000, 0, "0"),
        (100_000, None, "0.2"),
        (None, None, "0.1"),
    ]
    assert (expanded["unit_amount"], expanded["unit_amount_decimal"]) == (None, None)


async def test_metered_price_has_its_meter(sdk: Sdk) -> None:
    """Metered per month."""
    meter = await sdk("v1.billing.meters.create", METER)
    recurring = {"interval": "month", "usage_type": "metered", "meter": meter["id"]}
    body = await sdk("v1.prices.create", {**MONTHLY, "recurring": recurring, "unit_amount_decimal": "0.1"})

    assert body["recurring"] == {**recurring, "interval_count": 1, "trial_period_days": None}


@pytest.mark.parametrize(
    ("params", "code", "param"),
    [
        ({}, "parameter_missing", "unit_amount"),
        ({"unit_amount": 1, "unit_amount_decimal": "1"}, "parameters_exclusive", "unit_amount"),
        ({"unit_amount": -1}, "parameter_invalid_integer", "unit_amount"),
        ({"unit_amount_decimal": "0.0000000000001"}, None, "unit_amount_decimal"),
        ({"unit_amount": 1, "currency": "dollars"}, None, "currency"),
        ({"unit_amount": 1, "product_data": None}, "parameter_missing", "product"),
        ({"unit_amount": 1, "product": "prod_none"}, "parameters_exclusive", "product"),
        ({"unit_amount": 1, "product": "prod_none", "product_data": None}, "resource_missing", "product"),
        ({"unit_amount": 1, "tiers_mode": "volume"}, None, "tiers_mode"),
        ({**tiered("volume", TIERS), "unit_amount": 1}, None, "unit_amount"),
        ({**tiered("volume", TIERS), "transform_quantity": {"divide_by": 2, "round": "up"}}, None,
         "transform_quantity"),
        (tiered("volume", TIERS[:2]), None, "tiers"),
        (tiered("volume", [TIERS[1], TIERS[0], TIERS[2]]), None, "tiers"),
        ({"billing_scheme": "tiered", "tiers": TIERS}, "parameter_missing", "tiers_mode"),
        ({"unit_amount": 1, "recurring": {"interval": "month", "interval_count": 0}}, "parameter_invalid_integer",
         "recurring[interval_count]"),
        ({"unit_amount": 1, "transform_quantity": {"divide_by": 0, "round": "up"}}, "parameter_invalid_integer",
         "transform_quantity[divide_by]"),
        ({"unit_amount": 1, "recurring": {"interval": "month", "usage_type": "metered"}}, None, "recurring[meter]"),
        ({"unit_amount": 1, "recurring": {"interval": "month", "usage_type": "metered", "meter": "mtr_none"}},
         "resource_missing", "recurring[meter]"),
    ],
)  # fmt: skip
async def test_wrong_prices_are_refused(sdk: Sdk, params: dict[str, Any], code: str, param: str) -> None:
    """400 with the code and the parameter, and neither a price nor a product."""
    given = {name: value for name, value in {**MONTHLY, **params}.items() if value is not None}

    error = await sdk.error("v1.prices.create", given)

    assert (error["status"], error.get("code"), error["param"]) == (400, code, param)
    assert (await sdk("v1.products.list"))["data"] == []


async def test_lookup_key_moves_only_when_asked(sdk: Sdk) -> None:
    """The old price loses the key in the same request."""
    old = await sdk("v1.prices.create", {**MONTHLY, "unit_amount": 1, "lookup_key": "pro"})
    new = await sdk("v1.prices.create", {**MONTHLY, "unit_amount": 2})
    refused = await sdk.error("v1.prices.update", new["id"], {"lookup_key": "pro"})
    moved = await sdk("v1.prices.update", new["id"], {"lookup_key": "pro", "transfer_lookup_key": True})

    assert (refused["status"], refused["param"]) == (400, "lookup_key")
    assert refused["message"] == f"A price (`{old['id']}`) already uses that lookup key."
    assert moved == {**new, "lookup_key": "pro"}
    assert (await sdk("v1.prices.list", {"lookup_keys": ["pro"]}))["data"] == [moved]
    assert (await sdk("v1.prices.retrieve", old["id"]))["lookup_key"] is None


async def test_price_is_archived(sdk: Sdk) -> None:
    """Filters find the rest."""
    body = await sdk("v1.prices.create", {**MONTHLY, "unit_amount": 1, "tax_behavior": "exclusive"})
    after = await sdk("v1.prices.update", body["id"], {"active": False, "nickname": "old", "metadata": {"a": "b"}})

    assert after == {**body, "active": False, "nickname": "old", "metadata": {"a": "b"}}
    assert (await sdk("v1.prices.list", {"active": True}))["data"] == []
    assert (await sdk("v1.prices.list", {"active": False, "product": body["product"]}))["data"] == [after]


async def discount(sdk: Sdk, entry: dict[str, Any], customer: str = "") -> dict[str, Any]:
    """Redeem an entry of `discounts`, as a subscription does."""
    customer = customer or (await sdk("v1.customers.create", {}))["id"]
    mode = sdk.simulator.test
    with mode.journal.transaction():
        return coupons.redeem(mode, entry, customer, subscription="sub_1")


@pytest.mark.parametrize(
    ("coupon", "amounts", "cuts"),
    [
        ({"percent_off": 20, "duration": "forever"}, [5000], [1000]),
        ({"amount_off": 500, "currency": "usd"}, [1000, 2000], [166, 334]),
        ({"percent_off": 12.5}, [1000], [125]),
        ({"amount_off": 500, "currency": "usd", "applies_to": {"products": ["p1"]}}, [1000, 2000], [0, 500]),
    ],
    ids=["20 % (scenario 21)", "500 over two lines (scenario 21)", "half a percent", "one product"],
)
async def test_coupon_takes_off_what_it_says(
    sdk: Sdk, coupon: dict[str, Any], amounts: list[int], cuts: list[int]
) -> None:
    """The discount of a stored coupon, applied by the engine to lines of the products p0, p1, …"""
    body = await sdk("v1.coupons.create", coupon)
    stored = await discount(sdk, {"coupon": body["id"]})

    discounts = coupons.discounts_of(sdk.simulator.test, {"discounts": [stored["id"]]}, NOW_S)
    parts = [Line("", "", f"p{number}", amount, Fraction(1), Period(0, 1)) for number, amount in enumerate(amounts)]

    taken = apply(parts, list(discounts.values()))
    assert [sum(cut.amount for cut in line) for line in taken] == cuts
    assert "applies_to" not in body
    expanded = await sdk("v1.coupons.retrieve", body["id"], {"expand": ["applies_to"]})
    assert expanded["applies_to"] == coupon.get("applies_to")
    (event,) = (await sdk("v1.events.list", {"type": "customer.discount.created"}))["data"]
    assert event["data"]["object"]["subscription"] == "sub_1"


@pytest.mark.parametrize(
    ("duration", "end", "left"),
    [
        ({"duration": "once"}, None, [False, False]),
        ({"duration": "repeating", "duration_in_months": 1}, NOW_S + 30 * DAY_S, [True, False]),
        ({"duration": "forever"}, None, [True, True]),
    ],
    ids=["once", "repeating", "forever"],
)
async def test_discount_lasts_as_its_coupon_says(
    sdk: Sdk, duration: dict[str, Any], end: int | None, left: list[bool]
) -> None:
    """What is left after an invoice of today and after one in 40 days; the end is an event."""
    body = await sdk("v1.coupons.create", {"percent_off": 10, **duration})
    stored = await discount(sdk, {"coupon": body["id"]})
    mode, owner = sdk.simulator.test, {"discounts": [stored["id"]]}

    with mode.journal.transaction():
        remaining = [coupons.remaining_after(mode, owner, NOW_S + days * DAY_S) for days in (0, 40)]

    assert stored["end"] == end
    assert [ids == [stored["id"]] for ids in remaining] == left
    events = (await sdk("v1.events.list", {"type": "customer.discount.deleted"}))["data"]
    assert len(events) == left.count(False)


@pytest.mark.parametrize(
    ("params", "code", "param"),
    [
        ({}, "parameter_missing", "percent_off"),
        ({"percent_off": 1, "amount_off": 1}, "parameters_exclusive", "percent_off"),
        ({"percent_off": 101}, None, "percent_off"),
        ({"amount_off": 0, "currency": "usd"}, "parameter_invalid_integer", "amount_off"),
        ({"percent_off": 5, "max_redemptions": 0}, "parameter_invalid_integer", "max_redemptions"),
        ({"amount_off": 5}, "parameter_missing", "currency"),
        ({"percent_off": 5, "duration": "repeating"}, None, "duration_in_months"),
        ({"percent_off": 5, "duration_in_months": 2}, None, "duration_in_months"),
        ({"percent_off": 5, "id": "TAKEN"}, "resource_already_exists", "id"),
    ],
)
async def test_wrong_coupons_are_refused(sdk: Sdk, params: dict[str, Any], code: str, param: str) -> None:
    """400 with the code and the parameter."""
    await sdk("v1.coupons.create", {"percent_off": 1, "id": "TAKEN"})

    error = await sdk.error("v1.coupons.create", params)

    assert (error["status"], error.get("code"), error["param"]) == (400, code, param)
    assert [row["id"] for row in (await sdk("v1.coupons.list"))["data"]] == ["TAKEN"]


async def test_coupon_is_used_up_or_expires(sdk: Sdk) -> None:
    """The next redemption is refused."""
    once = await sdk("v1.coupons.create", {"percent_off": 5, "max_redemptions": 1})
    until = await sdk("v1.coupons.create", {"percent_off": 5, "redeem_by": NOW_S + 10})
    await discount(sdk, {"coupon": once["id"]})
    sdk.clock.advance(10_000)

    bodies = [await sdk("v1.coupons.retrieve", body["id"]) for body in (once, until)]

    assert [(body["valid"], body["times_redeemed"]) for body in bodies] == [(False, 1), (True, 0)]
    for body in bodies:
        with pytest.raises(ApiError) as refused:
            await discount(sdk, {"coupon": body["id"]})
        assert (refused.value.code, refused.value.param) == ("coupon_expired", "discounts[0][coupon]")


async def test_promotion_code_is_for_one_customer_and_once(sdk: Sdk) -> None:
    """A code that is used up leaves its name to another."""
    coupon = await sdk("v1.coupons.create", {"percent_off": 30})
    customer = (await sdk("v1.customers.create", {}))["id"]
    params = {
        "promotion": {"type": "coupon", "coupon": coupon["id"]},
        "code": "EARLY",
        "customer": customer,
        "max_redemptions": 1,
        "expires_at": NOW_S + 100,
    }
    code = await sdk("v1.promotion_codes.create", params)
    taken = await sdk.error("v1.promotion_codes.create", params)
    with pytest.raises(ApiError):
        await discount(sdk, {"promotion_code": code["id"]})
    stored = await discount(sdk, {"promotion_code": code["id"]}, customer)
    with pytest.raises(ApiError):
        await discount(sdk, {"promotion_code": code["id"]}, customer)
    again = await sdk("v1.promotion_codes.create", params)

    assert (taken["status"], taken["param"]) == (400, "code")
    assert (stored["promotion_code"], stored["source"]["coupon"]) == (code["id"], coupon["id"])
    used = await sdk("v1.promotion_codes.retrieve", code["id"])
    assert used == {**code, "active": False, "times_redeemed": 1}
    assert (await sdk("v1.promotion_codes.list", {"code": "EARLY", "active": True}))["data"] == [again]
    assert (await sdk("v1.coupons.retrieve", coupon["id"]))["times_redeemed"] == 1
    sdk.clock.advance(100_000)
    with pytest.raises(ApiError):
        await discount(sdk, {"promotion_code": again["id"]}, customer)


async def test_promotion_code_needs_a_coupon(sdk: Sdk) -> None:
    """A generated code has eight characters."""
    coupon = await sdk("v1.coupons.create", {"percent_off": 30})
    code = await sdk("v1.promotion_codes.create", {"promotion": {"type": "coupon", "coupon": coupon["id"]}})

    assert (len(code["code"]), code["active"]) == (8, True)
    error = await sdk.error("v1.promotion_codes.create", {"promotion": {"type": "coupon", "coupon": "none"}})
    assert (error["code"], error["param"]) == ("resource_missing", "promotion[coupon]")


@pytest.mark.parametrize(
    ("customer", "tax_of_4750"),
    [
        ({"address": {"country": "AT"}}, 950),
        ({"address": {"country": "DE"}}, 903),
        ({"address": {"country": "US"}}, None),
        ({}, None),
        ({"address": {"country": "AT"}, "tax_exempt": "reverse"}, None),
    ],
    ids=["20 % (scenario 4)", "19 %", "no rate", "no address", "reverse charge"],
)
async def test_tax_is_that_of_the_country(sdk: Sdk, customer: dict[str, Any], tax_of_4750: int | None) -> None:
    """One exclusive rate, which the invoice names."""
    body = await sdk("v1.customers.create", customer)
    mode = sdk.simulator.test

    with mode.journal.transaction():
        applied = [tax.rate_of(mode, body) for _ in range(2)]

    assert applied[0] == applied[1]
    rate = applied[0]
    line = Line("", "", "", 4750, Fraction(1), Period(0, 1))
    assert (rate and totals([line], tax_percentage=rate.percentage).total_tax) == tax_of_4750
    listed = (await sdk("v1.tax_rates.list"))["data"]
    assert [row["id"] for row in listed] == ([rate.id] if rate else [])
    if rate:
        assert (await sdk("v1.tax_rates.retrieve", rate.id))["percentage"] == float(rate.percentage)
        assert rate.percentage == Fraction(round(listed[0]["percentage"]))
