"""Trials, pauses, pending updates, cancellation, discounts, metered items and refusals of subscriptions."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.services.stripe_shop import Shop, at, lines

CYCLES = [
    {"up_to": 10_000, "unit_amount": 0},
    {"up_to": 100_000, "unit_amount_decimal": "0.2"},
    {"up_to": "inf", "unit_amount_decimal": "0.1"},
]


async def types_of(shop: Shop, *types: str) -> list[tuple[str, int]]:
    """Type and time of the events of some types, oldest first."""
    page = await shop.sdk("v1.events.list", {"types": list(types), "limit": 100})
    return [(event["type"], event["created"]) for event in page["data"][::-1]]


async def test_usage_is_billed_in_arrears(shop: Shop) -> None:
    """Scenario 1, and usage that arrives while the invoice is a draft is billed too."""
    await shop.open("2026-11-01")
    meter = await shop.meter()
    tiered = await shop.metered(meter, billing_scheme="tiered", tiers_mode="graduated", tiers=CYCLES)
    await shop.subscribe({"price": await shop.price(4900)}, {"price": tiered})
    await shop.use(137_510, "2026-11-15")
    await shop.advance("2026-12-01 00:30:00")
    draft = (await shop.invoices())[-1]
    assert (lines(draft), draft["status"], draft["amount_due"]) == ([0, 18000, 3751, 4900], "draft", 26651)
    shop.sdk.clock.advance(10 * 86_400_000)
    await shop.use(7, "2026-11-30 23:59:00")
    await shop.use(1_000, "2026-12-01 00:00:00")
    await shop.advance("2026-12-01 01:00:00")

    latest = (await shop.invoices())[-1]
    assert (lines(latest), latest["status"]) == ([0, 18000, 3752, 4900], "paid")
    assert (latest["period_start"], latest["period_end"]) == (at("2026-11-01"), at("2026-12-01"))


@pytest.mark.parametrize(
    ("mode", "pending", "due"), [("flexible", [20000], 34000), ("classic", [], 14000)], ids=["flexible", "classic"]
)
async def test_metered_price_is_swapped(shop: Shop, mode: str, pending: list[int], due: int) -> None:
    """Scenario 26: flexible mode bills the usage until the swap at the old price, classic mode never."""
    await shop.open("2026-11-01")
    meter = await shop.meter()
    old = await shop.metered(meter, unit_amount_decimal="0.05")
    await shop.subscribe({"price": old}, billing_mode={"type": mode})
    await shop.use(400_000, "2026-11-05")
    await shop.advance("2026-11-11 10:30:00")
    await shop.change(price=await shop.metered(meter, unit_amount_decimal="0.04"))
    assert await shop.pending() == pending
    notes = shop.sdk.simulator.test.store.get("subscription.ledger", f"ledger_{shop.subscription}")
    assert json.loads(json.dumps(notes)) == notes, "a journal would bring back something else"
    await shop.use(350_000, "2026-11-15")
    await shop.advance("2026-12-01 02:00:00")

    assert (await shop.amounts())[-1] == ("paid", due)


@pytest.mark.parametrize("invoice_now", [True, False])
async def test_immediate_cancellation_bills_usage_on_request(shop: Shop, invoice_now: bool) -> None:
    """Otherwise the usage is lost."""
    await shop.open("2026-11-01")
    await shop.subscribe({"price": await shop.metered(await shop.meter(), 2)})
    await shop.use(1_000, "2026-11-05")
    await shop.advance("2026-11-10")
    await shop.sdk("v1.subscriptions.cancel", shop.subscription, {"invoice_now": invoice_now})

    assert [due for _, due in await shop.amounts()] == [0, 2000][: 1 + invoice_now]


async def test_cancellation_at_period_end_bills_usage(shop: Shop) -> None:
    """The final usage is invoiced, and the subscription is canceled at the boundary."""
    await shop.open("2026-11-01")
    await shop.subscribe({"price": await shop.metered(await shop.meter(), 2)}, cancel_at_period_end=True)
    await shop.use(1_000, "2026-11-05")
    await shop.advance("2026-12-01 02:00:00")

    body = await shop.get()
    assert (body["status"], body["ended_at"]) == ("canceled", at("2026-12-01"))
    assert (await shop.amounts())[-1] == ("paid", 2000)
    assert await types_of(shop, "customer.subscription.deleted") == [
        ("customer.subscription.deleted", at("2026-12-01"))
    ]


@pytest.mark.parametrize(
    ("second", "invoices", "balance"),
    [(15_000, [500_000, 500_000, 0], 0), (1, [500_000, 0], -99_960)],
    ids=["reached twice", "cheaper by volume"],
)
async def test_thresholds(shop: Shop, second: int, invoices: list[int], balance: int) -> None:
    """Scenario 3: the tiers go on over threshold invoices, and volume tiers can give back."""
    await shop.open("2026-11-01")
    tiers = [{"up_to": 10_000, "unit_amount": 50}, {"up_to": "inf", "unit_amount": 40}]
    price = await shop.metered(await shop.meter(), billing_scheme="tiered", tiers_mode="volume", tiers=tiers)
    await shop.subscribe({"price": price}, billing_thresholds={"amount_gte": 500_000})
    for day, value in ((5, 10_000), (15, second)):
        await shop.use(value, f"2026-11-{day:02d}")
        await shop.advance(f"2026-11-{day:02d} 03:00:00")
    await shop.advance("2026-12-01 02:00:00")

    assert [due for _, due in await shop.amounts()][1:] == invoices
    assert (await shop.sdk("v1.customers.retrieve", shop.customer))["balance"] == balance


async def test_what_a_threshold_billed_is_billed_once(shop: Shop) -> None:
    """By the preview too, by usage that arrives while the invoice is a draft, and by a cancellation."""
    await shop.open("2026-11-01")
    price = await shop.metered(await shop.meter(), 10)
    await shop.subscribe({"price": price}, billing_thresholds={"amount_gte": 1_000})
    await shop.use(150, "2026-11-05")
    await shop.advance("2026-11-05 03:00:00")
    await shop.use(20, "2026-11-06")
    shop.sdk.clock.advance(60_000)
    preview = await shop.sdk("v1.invoices.create_preview", {"subscription": shop.subscription})
    assert (lines(preview), preview["amount_due"]) == ([1_700, -1_500], 200)
    await shop.advance("2026-12-01 00:30:00")
    await shop.use(5, "2026-11-30 23:59:00")
    await shop.advance("2026-12-01 01:00:00")
    assert lines((await shop.invoices())[-1]) == [1_750, -1_500]
    await shop.use(100, "2026-12-01 00:30:00")
    await shop.advance("2026-12-01 03:00:00")
    await shop.use(1, "2026-12-01 02:59:00")
    shop.sdk.clock.advance(60_000)
    await shop.sdk("v1.subscriptions.cancel", shop.subscription, {"invoice_now": True})

    assert [due for _, due in await shop.amounts()] == [0, 1_500, 250, 1_000, 0]
    assert (await shop.invoices())[-1]["total"] == 10


@pytest.mark.parametrize(
    ("trial_days", "balance"), [(0, -2100), (20, 0)], ids=["unused time is credited", "a trial has no unused time"]
)
async def test_cancellation_inside_a_period(shop: Shop, trial_days: int, balance: int) -> None:
    """`cancel_at` is an instant of its own."""
    await shop.open("2027-02-01")
    params = {"cancel_at": at("2027-02-08"), "billing_mode": {"type": "classic"}}
    trial = {"trial_period_days": trial_days} if trial_days else {}
    await shop.subscribe({"price": await shop.price(2800)}, **params, **trial)
    await shop.advance("2027-02-08 02:00:00")

    assert ((await shop.get())["status"], (await shop.get())["ended_at"]) == ("canceled", at("2027-02-08"))
    assert (await shop.sdk("v1.customers.retrieve", shop.customer))["balance"] == balance


async def test_trial(shop: Shop) -> None:
    """Scenario 15: free for 30 days; announced three days before the end, then billed."""
    await shop.open("2027-01-01")
    body = await shop.subscribe({"price": await shop.price(14900), "quantity": 3}, trial_period_days=30)
    assert (body["status"], await shop.amounts()) == ("trialing", [("paid", 0)])
    await shop.advance("2027-01-31 02:00:00")

    assert await types_of(shop, "customer.subscription.trial_will_end") == [
        ("customer.subscription.trial_will_end", at("2027-01-28"))
    ]
    body = await shop.get()
    assert (body["status"], await shop.amounts()) == ("active", [("paid", 0), ("paid", 44700)])
    assert body["items"]["data"][0]["current_period_end"] == at("2027-02-28")


@pytest.mark.parametrize(
    ("behavior", "status", "due"),
    [("cancel", "canceled", []), ("pause", "paused", []), ("create_invoice", "past_due", [14900])],
    ids=["cancel", "pause", "create_invoice"],
)
async def test_trial_without_a_card(shop: Shop, behavior: str, status: str, due: list[int]) -> None:
    """`trial_settings` decide."""
    await shop.open("2027-01-01", "")
    settings = {"end_behavior": {"missing_payment_method": behavior}}
    await shop.subscribe({"price": await shop.price(14900)}, trial_period_days=10, trial_settings=settings)
    await shop.advance("2027-01-11 02:00:00")

    assert (await shop.get())["status"] == status
    assert [amount for _, amount in await shop.amounts()] == [0, *due]


async def test_trial_settings_keep_what_is_not_given(shop: Shop) -> None:
    """Only the anchor at the trial's end is given: the default for a missing card stays."""
    await shop.open("2027-01-01", "")
    settings = {"end_behavior": {"billing_cycle_anchor": "now"}}
    body = await shop.subscribe({"price": await shop.price(14900)}, trial_period_days=10, trial_settings=settings)

    assert body["trial_settings"] == {"end_behavior": {"missing_payment_method": "create_invoice"}}


@pytest.mark.parametrize("mode", ["flexible", "classic"])
async def test_trial_ends_now(shop: Shop, mode: str) -> None:
    """The first period begins at once, and the unused trial is no credit."""
    await shop.open("2027-01-01")
    await shop.subscribe({"price": await shop.price(14900)}, trial_period_days=30, billing_mode={"type": mode})
    await shop.advance("2027-01-12")
    body = await shop.change(trial_end="now")

    assert (body["status"], body["billing_cycle_anchor"]) == ("active", at("2027-01-12"))
    assert await shop.amounts() == [("paid", 0), ("paid", 14900)]


async def test_pause_and_resume(shop: Shop) -> None:
    """The unused time is credited, no invoices are created, and the resumption is billed."""
    await shop.open("2027-02-01")
    await shop.subscribe({"price": await shop.price(2800)})
    await shop.advance("2027-02-08")
    body = await shop.sdk("v1.subscriptions.pause", shop.subscription, {})
    assert (body["status"], await shop.pending()) == ("paused", [-2100])
    await shop.advance("2027-03-08")
    body = await shop.sdk("v1.subscriptions.resume", shop.subscription, {})
    assert (body["status"], await shop.amounts()) == ("paused", [("paid", 2800), ("open", 700)])
    await shop.sdk("v1.invoices.pay", body["latest_invoice"])

    body = await shop.get()
    assert (body["status"], body["items"]["data"][0]["current_period_end"]) == ("active", at("2027-04-08"))


async def test_a_pause_is_credited_once(shop: Shop) -> None:
    """The cancellation of a paused subscription bills neither time nor usage again."""
    await shop.open("2027-02-01")
    await shop.subscribe({"price": await shop.price(2800)}, {"price": await shop.metered(await shop.meter(), 2)})
    await shop.use(100, "2027-02-01")
    await shop.advance("2027-02-08")
    await shop.sdk("v1.subscriptions.pause", shop.subscription, {})
    await shop.use(30, "2027-02-08")
    await shop.advance("2027-02-15")
    await shop.sdk("v1.subscriptions.cancel", shop.subscription, {"prorate": True, "invoice_now": True})

    assert [lines(invoice) for invoice in await shop.invoices()] == [[2800], [-2100, 200]]
    assert (await shop.sdk("v1.customers.retrieve", shop.customer))["balance"] == -1900


async def test_resumption_that_nobody_pays(shop: Shop) -> None:
    """The invoice is void after 23 hours, the subscription stays paused, and can be resumed again."""
    await shop.open("2027-02-01")
    await shop.subscribe({"price": await shop.price(2800)})
    await shop.advance("2027-02-08")
    await shop.sdk("v1.subscriptions.pause", shop.subscription, {})
    await shop.advance("2027-03-08")
    await shop.sdk("v1.subscriptions.resume", shop.subscription, {})
    await shop.advance("2027-03-09")
    assert ((await shop.get())["status"], (await shop.amounts())[-1][0]) == ("paused", "void")
    params = {"payment_behavior": "resume_on_payment_success"}
    body = await shop.sdk("v1.subscriptions.resume", shop.subscription, params)

    assert (body["status"], body["billing_cycle_anchor"]) == ("active", at("2027-03-09"))
    assert (await shop.amounts())[-1] == ("paid", 2800)


async def test_pending_update(shop: Shop) -> None:
    """The change waits for its payment: dropped after 23 hours, applied when paid."""
    await shop.open("2027-02-01")
    low, high = await shop.price(7900), await shop.price(14900)
    await shop.subscribe({"price": low})
    await shop.advance("2027-02-10")
    await shop.use_card("pm_card_chargeCustomerFail")
    pending = {"proration_behavior": "always_invoice", "payment_behavior": "pending_if_incomplete"}
    body = await shop.change(price=high, **pending)
    assert (body["status"], body["items"]["data"][0]["price"]["id"]) == ("active", low)
    assert body["pending_update"]["expires_at"] == at("2027-02-10 23:00:00")
    await shop.advance("2027-02-11")
    assert (await shop.get())["pending_update"] is None
    body = await shop.change(price=high, **pending)
    await shop.use_card("pm_card_visa")
    await shop.sdk("v1.invoices.pay", body["latest_invoice"])

    body = await shop.get()
    assert (body["pending_update"], body["items"]["data"][0]["price"]["id"]) == (None, high)
    assert await shop.amounts() == [("paid", 7900), ("void", 4750), ("paid", 4500)]
    family = "customer.subscription.pending_update_"
    happened = await types_of(shop, f"{family}applied", f"{family}expired")
    assert [name.removeprefix(family) for name, _ in happened] == ["expired", "applied"]


async def test_change_that_cannot_be_paid_is_undone(shop: Shop) -> None:
    """`error_if_incomplete`: the card's error, and nothing else."""
    await shop.open("2027-02-01")
    low, high = await shop.price(7900), await shop.price(14900)
    item = (await shop.subscribe({"price": low}))["items"]["data"][0]["id"]
    await shop.use_card("pm_card_chargeCustomerFail")
    params = {"proration_behavior": "always_invoice", "payment_behavior": "error_if_incomplete"}
    change = {"items": [{"id": item, "price": high}], **params}
    error = await shop.sdk.error("v1.subscriptions.update", shop.subscription, change)

    assert (error["status"], error["type"], error["decline_code"]) == (402, "card_error", "generic_decline")
    assert (await shop.get())["items"]["data"][0]["price"]["id"] == low
    assert await shop.amounts() == [("paid", 7900)]


async def test_the_latest_final_invoice_decides_on_past_due(shop: Shop) -> None:
    """Neither a newer draft nor the retry of an older invoice counts."""
    await shop.open("2027-02-01")
    await shop.subscribe({"price": await shop.price(2800)})
    await shop.advance("2027-02-28 12:00:00")
    await shop.use_card("pm_card_chargeCustomerFail")
    older = (await shop.change(quantity=80, proration_behavior="always_invoice"))["latest_invoice"]
    assert (await shop.get())["status"] == "past_due"
    await shop.use_card("pm_card_visa")
    await shop.advance("2027-03-01 01:00:00")
    assert ((await shop.get())["status"], [status for status, _ in await shop.amounts()][1:]) == (
        "active", ["open", "paid"],
    )  # fmt: skip
    await shop.use_card("pm_card_chargeCustomerFail")
    await shop.advance("2027-03-01 13:00:00")
    assert ((await shop.get())["status"], [body["attempt_count"] for body in await shop.invoices()][1:]) == (
        "active", [2, 1],
    )  # fmt: skip
    await shop.change(quantity=90, proration_behavior="always_invoice")
    await shop.use_card("pm_card_visa")
    await shop.advance("2027-04-01 00:30:00")
    assert (await shop.get())["status"] == "active"
    assert (await shop.sdk("v1.invoices.retrieve", older))["status"] == "paid"


async def test_dunning_ends_with_cancellation(shop: Shop) -> None:
    """The default policy of the account."""
    await shop.open("2027-02-01")
    await shop.subscribe({"price": await shop.price(14900)})
    await shop.use_card("pm_card_chargeCustomerFail")
    await shop.advance("2027-03-20")

    body = await shop.get()
    assert (body["status"], body["cancellation_details"]["reason"]) == ("canceled", "payment_failed")
    assert await shop.amounts() == [("paid", 14900), ("open", 14900)]


async def test_anchor_in_the_future(shop: Shop) -> None:
    """The first period is short and prorated, and later changes are shares of a whole period."""
    await shop.open("2027-02-15")
    body = await shop.subscribe({"price": await shop.price(2800)}, billing_cycle_anchor=at("2027-03-01"))
    item = body["items"]["data"][0]
    assert (item["current_period_start"], item["current_period_end"]) == (at("2027-02-15"), at("2027-03-01"))
    await shop.advance("2027-02-22")
    await shop.change(quantity=2)
    assert await shop.pending() == [-700, 1400]
    await shop.advance("2027-03-01 02:00:00")

    assert await shop.amounts() == [("paid", 1400), ("paid", 6300)]


async def test_schedule_that_cancels(shop: Shop) -> None:
    """The subscription refuses a cancellation of its own, and ends with the schedule."""
    await shop.open("2027-02-01")
    await shop.subscribe({"price": await shop.price(14900)})
    schedule = await shop.sdk("v1.subscription_schedules.create", {"from_subscription": shop.subscription})
    await shop.sdk("v1.subscription_schedules.update", schedule["id"], {"end_behavior": "cancel"})
    error = await shop.sdk.error("v1.subscriptions.cancel", shop.subscription)
    assert (error["status"], schedule["id"] in error["message"]) == (400, True)
    await shop.advance("2027-03-01 02:00:00")

    assert (await shop.sdk("v1.subscription_schedules.retrieve", schedule["id"]))["status"] == "completed"
    assert ((await shop.get())["status"], await shop.amounts()) == ("canceled", [("paid", 14900)])


async def test_items_have_routes_of_their_own(shop: Shop) -> None:
    """Each change of an item is prorated."""
    await shop.open("2027-02-01")
    await shop.subscribe({"price": await shop.price(2800)})
    await shop.advance("2027-02-08")
    params = {"subscription": shop.subscription, "price": await shop.price(1400), "quantity": 2}
    item = await shop.sdk("v1.subscription_items.create", params)
    await shop.sdk("v1.subscription_items.update", item["id"], {"quantity": 1})
    deleted = await shop.sdk("v1.subscription_items.delete", item["id"])

    assert deleted == {"id": item["id"], "object": "subscription_item", "deleted": True}
    assert await shop.pending() == [2100, -2100, 1050, -1050]
    assert len((await shop.sdk("v1.subscription_items.list", {"subscription": shop.subscription}))["data"]) == 1
    assert (await shop.sdk.error("v1.subscription_items.retrieve", item["id"]))["status"] == 404


@pytest.mark.parametrize(
    ("duration", "change", "renewal"), [("once", [-4000, 10000], 20000), ("forever", [-4000, 8000], 16000)]
)
async def test_discounts(shop: Shop, duration: str, change: list[int], renewal: int) -> None:
    """Scenario 21: prorations have the discount of the subscription, which ends after one invoice if it is `once`."""
    await shop.open("2027-04-01")
    coupon = await shop.sdk("v1.coupons.create", {"percent_off": 20, "duration": duration})
    await shop.subscribe({"price": await shop.price(10000)}, discounts=[{"coupon": coupon["id"]}])
    await shop.advance("2027-04-16")
    await shop.change(price=await shop.price(20000), proration_behavior="always_invoice")
    assert lines((await shop.invoices())[-1]) == change
    await shop.advance("2027-05-01 02:00:00")

    assert [due for _, due in await shop.amounts()] == [8000, sum(change), renewal]


@pytest.mark.parametrize(
    ("params", "status", "code", "param"),
    [
        ({}, 400, "resource_missing", None),
        ({"items": [{"price": "price_none"}]}, 400, "resource_missing", "items[0][price]"),
        ({"items": [{"quantity": 1}]}, 400, "parameter_missing", "items[0][price]"),
        ({"items": [{"price": "x", "tax_rates": ["txr_1"]}]}, 501, None, None),
        ({"trial_end": 1}, 400, None, "trial_end"),
        ({"cancel_at": "max_billed_until"}, 501, None, None),
        ({"billing_cycle_anchor": 1}, 400, None, "billing_cycle_anchor"),
        ({"trial_settings": {"end_behavior": {"billing_cycle_anchor": "unchanged"}}}, 501, None, None),
        ({"collection_method": "send_invoice"}, 400, None, "days_until_due"),
        ({"default_payment_method": "pm_none"}, 400, "resource_missing", "default_payment_method"),
        ({"discounts": [{"coupon": "none"}]}, 400, "resource_missing", "discounts[0][coupon]"),
    ],
    ids=[
        "no card",
        "price",
        "no price",
        "not simulated",
        "past",
        "billed until",
        "past anchor",
        "anchor of a trial",
        "no days",
        "no method",
        "no coupon",
    ],
)
async def test_refused_subscriptions(shop: Shop, params: Any, status: int, code: str | None, param: str | None) -> None:
    """Stripe's status, code and parameter, and nothing is stored."""
    await shop.open("2027-02-01", "")
    items = [{"price": await shop.price(1000)}]
    error = await shop.sdk.error("v1.subscriptions.create", {"customer": shop.customer, "items": items, **params})

    assert (error["status"], error.get("code"), error.get("param")) == (status, code, param)
    assert (await shop.sdk("v1.subscriptions.list", {"customer": shop.customer}))["data"] == []


@pytest.mark.parametrize(
    ("params", "status"),
    [({"payment_behavior": "default_incomplete"}, "incomplete"), ({"days_until_due": 14}, "active")],
    ids=["paid by the client", "paid by bank transfer"],
)
async def test_subscription_without_a_card(shop: Shop, params: dict[str, Any], status: str) -> None:
    """The first invoice stays open."""
    await shop.open("2027-02-01", "")
    method = {"collection_method": "send_invoice"} if "days_until_due" in params else {}
    body = await shop.subscribe({"price": await shop.price(1000)}, **params, **method)

    assert (body["status"], await shop.amounts()) == (status, [("open", 1000)])


async def test_deletion_of_a_customer_cancels_subscriptions(shop: Shop) -> None:
    """And the clock goes on without them."""
    await shop.open("2027-02-01")
    await shop.subscribe({"price": await shop.price(1000)})
    await shop.sdk("v1.customers.delete", shop.customer)
    await shop.advance("2027-03-01 02:00:00")

    assert (await shop.get())["status"] == "canceled"


async def test_clock_advances_by_two_intervals_at_most(shop: Shop) -> None:
    """A clock cannot go back either; it is `advancing`, then `ready`."""
    await shop.open("2027-02-01")
    await shop.subscribe({"price": await shop.price(1000)})
    for moment in ("2027-01-31", "2027-04-01 00:00:01"):
        error = await shop.sdk.error("v1.test_helpers.test_clocks.advance", shop.clock, {"frozen_time": at(moment)})
        assert (error["status"], error["param"]) == (400, "frozen_time")
    await shop.advance("2027-02-02")
    await shop.sdk("v1.test_helpers.test_clocks.delete", shop.clock)

    assert (await shop.sdk.error("v1.test_helpers.test_clocks.retrieve", shop.clock))["status"] == 404
