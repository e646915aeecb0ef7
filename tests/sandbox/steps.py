"""The steps that the product's use of Stripe consists of, on one customer and one test clock.

The clock starts 32 days before the run, so that a monthly period has ended before the run's instant: the usage of the
period is neither too old nor in the future.
"""

from __future__ import annotations

from typing import Any, Final

from tests.sandbox.stage import Stage

MINUTE_S: Final = 60
HOUR_S: Final = 3_600
DAY_S: Final = 86_400
METER_ERRORS: Final = "v1.billing.meter.error_report_triggered"


def start_s(stage: Stage) -> int:
    """The first second of the clock, at midnight."""
    return stage.now_s // DAY_S * DAY_S - 32 * DAY_S


async def a_clock(stage: Stage, at_s: int) -> str:
    """A test clock, which is deleted at the end with its customers."""
    clock = await stage.ask("v1.test_helpers.test_clocks.create", {"frozen_time": at_s})
    stage.afterwards("v1.test_helpers.test_clocks.delete", clock["id"])
    return str(clock["id"])


async def a_customer(stage: Stage, clock: str = "", card: str = "pm_card_visa") -> str:
    """A customer with a card, on a clock or, without one, deleted at the end."""
    customer = await stage.ask("v1.customers.create", {"test_clock": clock} if clock else {})
    if not clock:
        stage.afterwards("v1.customers.delete", customer["id"])
    method = await stage.ask("v1.payment_methods.attach", card, {"customer": customer["id"]})
    settings = {"invoice_settings": {"default_payment_method": method["id"]}}
    await stage.ask("v1.customers.update", customer["id"], settings)
    return str(customer["id"])


async def a_meter(stage: Stage, name: str) -> tuple[str, str]:
    """A meter of this run that adds up, and its event name. It is deactivated at the end."""
    event_name = f"tidemark_{name}_{stage.run}"
    params = {"display_name": f"Tidemark {name}", "event_name": event_name, "default_aggregation": {"formula": "sum"}}
    meter = await stage.ask("v1.billing.meters.create", params)
    stage.afterwards("v1.billing.meters.deactivate", meter["id"])
    return str(meter["id"]), event_name


async def a_price(stage: Stage, cents: str, meter: str = "", **fields: Any) -> str:
    """A monthly price of a new product. Both are deactivated at the end."""
    recurring = {"interval": "month"} | ({"usage_type": "metered", "meter": meter} if meter else {})
    amount = {} if "tiers" in fields else {"unit_amount_decimal": cents}
    params = {"currency": "usd", "product_data": {"name": "Tidemark"}, "recurring": recurring, **amount, **fields}
    price = await stage.ask("v1.prices.create", params)
    stage.afterwards("v1.products.update", price["product"], {"active": False})
    stage.afterwards("v1.prices.update", price["id"], {"active": False})
    return str(price["id"])


async def advance(stage: Stage, clock: str, to_s: int) -> None:
    """Advance a clock, and wait until it is ready. Does nothing if the clock is there."""
    if (await stage.ask("v1.test_helpers.test_clocks.retrieve", clock))["frozen_time"] == to_s:
        return
    await stage.ask("v1.test_helpers.test_clocks.advance", clock, {"frozen_time": to_s})
    ready = await stage.until(
        lambda: stage.ask("v1.test_helpers.test_clocks.retrieve", clock), lambda it: it["status"] != "advancing"
    )
    if ready["status"] != "ready":
        stage.found("the clock", ready["status"])


def usage(event_name: str, customer: str, value: str, at_s: int, identifier: str = "") -> dict[str, Any]:
    """The parameters of a meter event."""
    event = {"event_name": event_name, "payload": {"stripe_customer_id": customer, "value": value}, "timestamp": at_s}
    return event | ({"identifier": identifier} if identifier else {})


async def counted(stage: Stage, meter: str, customer: str, start: int, end: int) -> float:
    """The sum of a customer's usage as summaries show it."""
    query = {"customer": customer, "start_time": start, "end_time": end, "limit": 100}
    page = await stage.ask("v1.billing.meters.event_summaries.list", meter, query)
    return sum(float(row["aggregated_value"]) for row in page["data"])


async def customer(stage: Stage) -> None:
    """A customer on a test clock, with a card."""
    clock = await stage.say("clock", "v1.test_helpers.test_clocks.create", {"frozen_time": start_s(stage)})
    stage.keep("clock", clock["id"])
    stage.afterwards("v1.test_helpers.test_clocks.delete", clock["id"])
    created = await stage.say("new", "v1.customers.create", {"test_clock": clock["id"], "name": "Tidemark"})
    customer = stage.keep("customer", created["id"])
    method = await stage.say("card", "v1.payment_methods.attach", "pm_card_visa", {"customer": customer})
    settings = {"invoice_settings": {"default_payment_method": method["id"]}}
    await stage.say("with a default card", "v1.customers.update", customer, settings)


async def prices(stage: Stage) -> None:
    """A meter, a licensed price, and a metered price in graduated tiers with fractions of a cent."""
    meter, event_name = await a_meter(stage, "calls")
    stage.keep("meter", meter)
    stage.keep("event name", event_name)
    await stage.say("meter", "v1.billing.meters.retrieve", meter)
    stage.keep("seat", await a_price(stage, "1500", lookup_key=f"seat_{stage.run}"))
    await stage.say("licensed", "v1.prices.retrieve", stage["seat"])
    tiers = [{"up_to": 100, "unit_amount_decimal": "0"}, {"up_to": "inf", "unit_amount_decimal": "0.35"}]
    tiered = {"billing_scheme": "tiered", "tiers_mode": "graduated", "tiers": tiers}
    stage.keep("call", await a_price(stage, "", meter, **tiered))
    await stage.say("metered in tiers", "v1.prices.retrieve", stage["call"], {"expand": ["tiers"]})
    await stage.say("by lookup key", "v1.prices.list", {"lookup_keys": [f"seat_{stage.run}"]})


async def subscribe(stage: Stage) -> None:
    """Two seats and metered calls, paid at once."""
    items = [{"price": stage["seat"], "quantity": 2}, {"price": stage["call"]}]
    body = {"customer": stage["customer"], "items": items}
    subscription = await stage.say("subscription", "v1.subscriptions.create", body)
    stage.keep("subscription", subscription["id"])
    stage.keep("seats", subscription["items"]["data"][0]["id"])
    await stage.say("first invoice", "v1.invoices.retrieve", subscription["latest_invoice"])


async def send_usage(stage: Stage) -> None:
    """Two events of the period, a repeated identifier, and the summary."""
    at_s = start_s(stage) + 2 * DAY_S
    first = usage(stage["event name"], stage["customer"], "250", at_s, f"a_{stage.run}")
    await stage.say("event", "v1.billing.meter_events.create", first)
    await stage.outcome("identifier again", "v1.billing.meter_events.create", first)
    second = usage(stage["event name"], stage["customer"], "50.5", at_s + HOUR_S, f"b_{stage.run}")
    await stage.ask("v1.billing.meter_events.create", second)
    await stage.outcome(
        "unknown event name", "v1.billing.meter_events.create", {**second, "event_name": "no_such_name"}
    )
    meter, customer = stage["meter"], stage["customer"]
    day = (at_s, at_s + DAY_S)
    total = await stage.until(lambda: counted(stage, meter, customer, *day), lambda it: it >= 300.5)
    stage.found("sum", total)
    query = {"customer": customer, "start_time": day[0], "end_time": day[1], "value_grouping_window": "hour"}
    await stage.say("by hour", "v1.billing.meters.event_summaries.list", meter, query)


async def seats(stage: Stage) -> None:
    """A change of seats with proration: the preview, the change, and its invoice."""
    at_s = start_s(stage) + 10 * DAY_S
    await advance(stage, stage["clock"], at_s)
    items = [{"id": stage["seats"], "quantity": 5}]
    change = {"items": items, "proration_date": at_s, "proration_behavior": "always_invoice"}
    body = {"subscription": stage["subscription"], "subscription_details": change}
    await stage.say("preview", "v1.invoices.create_preview", body)
    changed = await stage.say("change", "v1.subscriptions.update", stage["subscription"], change)
    await stage.say("invoice", "v1.invoices.retrieve", changed["latest_invoice"])


async def schedule(stage: Stage) -> None:
    """Fewer seats from the next period on, and the schedule given up."""
    made = await stage.say("new", "v1.subscription_schedules.create", {"from_subscription": stage["subscription"]})
    (now,) = made["phases"]
    first = {name: now[name] for name in ("start_date", "end_date")}
    kept = [
        {"price": item["price"]} | ({"quantity": item["quantity"]} if item.get("quantity") else {})
        for item in now["items"]
    ]
    phases = [{**first, "items": kept}, {"items": [{"price": stage["seat"], "quantity": 1}, {"price": stage["call"]}]}]
    body = {"phases": phases, "end_behavior": "release"}
    await stage.say("two phases", "v1.subscription_schedules.update", made["id"], body)
    await stage.say("released", "v1.subscription_schedules.release", made["id"])


async def coupon(stage: Stage) -> None:
    """A third off the subscription, by a promotion code."""
    body = {"id": f"tidemark-{stage.run}", "percent_off": 33.3, "duration": "forever", "name": "Third"}
    made = await stage.say("coupon", "v1.coupons.create", body)
    stage.afterwards("v1.coupons.delete", made["id"])
    body = {"promotion": {"type": "coupon", "coupon": made["id"]}, "code": f"THIRD{stage.run.upper()}"}
    code = await stage.say("promotion code", "v1.promotion_codes.create", body)
    discounts = {"discounts": [{"promotion_code": code["id"]}]}
    await stage.say("redeemed", "v1.subscriptions.update", stage["subscription"], discounts)
    await stage.say("preview", "v1.invoices.create_preview", {"subscription": stage["subscription"]})


async def credit_grant(stage: Stage) -> None:
    """Credit of 50 cents for metered prices."""
    amount = {"type": "monetary", "monetary": {"currency": "usd", "value": 50}}
    scope = {"applicability_config": {"scope": {"price_type": "metered"}}}
    body = {"customer": stage["customer"], "name": "Tidemark", "amount": amount, "category": "paid", **scope}
    await stage.say("grant", "v1.billing.credit_grants.create", body)
    by = {"type": "applicability_scope", "applicability_scope": {"price_type": "metered"}}
    query = {"customer": stage["customer"], "filter": by}
    await stage.say("balance", "v1.billing.credit_balance_summary.retrieve", query)


async def renewal(stage: Stage) -> None:
    """The invoice of the period: seats, usage, discount and credit."""
    subscription = await stage.ask("v1.subscriptions.retrieve", stage["subscription"])
    end_s = subscription["items"]["data"][0]["current_period_end"]
    await advance(stage, stage["clock"], end_s + 1)
    renewed = await stage.say("subscription", "v1.subscriptions.retrieve", stage["subscription"])
    await stage.say("draft", "v1.invoices.retrieve", renewed["latest_invoice"])
    await advance(stage, stage["clock"], end_s + 3 * HOUR_S)
    await stage.say("invoice", "v1.invoices.retrieve", renewed["latest_invoice"])
    await stage.say("ledger", "v1.billing.credit_balance_transactions.list", {"customer": stage["customer"]})


async def decline(stage: Stage) -> None:
    """A customer whose card is declined when it is charged."""
    clock = await a_clock(stage, start_s(stage))
    declined = await a_customer(stage, clock, "pm_card_chargeCustomerFail")
    body: dict[str, Any] = {"customer": declined, "items": [{"price": stage["seat"]}]}
    await stage.outcome(
        "error_if_incomplete", "v1.subscriptions.create", {**body, "payment_behavior": "error_if_incomplete"}
    )
    subscription = await stage.say("allow_incomplete", "v1.subscriptions.create", body)
    await stage.say("invoice", "v1.invoices.retrieve", subscription["latest_invoice"])
    await stage.outcome("pay", "v1.invoices.pay", subscription["latest_invoice"])
    await advance(stage, clock, start_s(stage) + 23 * HOUR_S + MINUTE_S)
    await stage.say("23 hours later", "v1.subscriptions.retrieve", subscription["id"])


async def entitlements(stage: Stage) -> None:
    """A feature of a product, and what its subscriber is entitled to."""
    body = {"lookup_key": f"reports_{stage.run}", "name": "Reports"}
    feature = await stage.say("feature", "v1.entitlements.features.create", body)
    stage.afterwards("v1.entitlements.features.update", feature["id"], {"active": False})
    price = await a_price(stage, "900")
    product = (await stage.ask("v1.prices.retrieve", price))["product"]
    await stage.say("of a product", "v1.products.features.create", product, {"entitlement_feature": feature["id"]})
    customer = await a_customer(stage, await a_clock(stage, start_s(stage)))
    await stage.ask("v1.subscriptions.create", {"customer": customer, "items": [{"price": price}]})
    look = {"customer": customer}
    await stage.until(
        lambda: stage.ask("v1.entitlements.active_entitlements.list", look), lambda page: len(page["data"]) > 0
    )
    await stage.say("active", "v1.entitlements.active_entitlements.list", look)


async def webhooks(stage: Stage) -> None:
    """An endpoint, and the list of events that a receiver reads after an outage."""
    body = {"url": "https://example.com/tidemark", "enabled_events": ["invoice.paid", "customer.subscription.updated"]}
    endpoint = await stage.say("endpoint", "v1.webhook_endpoints.create", body)
    stage.afterwards("v1.webhook_endpoints.delete", endpoint["id"])
    types = ["customer.subscription.created", "customer.subscription.updated", "invoice.paid", "invoice.finalized"]
    page = await stage.ask("v1.events.list", {"types": types, "limit": 100})
    ours = [event for event in page["data"] if event["data"]["object"]["customer"] == stage["customer"]]
    # Stripe promises no order among events of one second.
    stage.found("types", sorted(event["type"] for event in ours))
    updates = [event for event in ours if event["type"] == "customer.subscription.updated"]
    changes = [sorted(event["data"].get("previous_attributes") or {}) for event in updates]
    stage.found("what changed", sorted(changes))


STEPS: Final = {
    step.__name__: step
    for step in (
        customer, prices, subscribe, send_usage, seats, schedule, coupon, credit_grant, renewal, decline, entitlements,
        webhooks,
    )
}  # fmt: skip
