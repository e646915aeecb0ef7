"""Invoices, invoice items, credit notes, refunds, grants and the customer's balance, through stripe-python."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any

import pytest

from stripe_simulator import invoicing, payments
from stripe_simulator.engine.collection import RetryPolicy
from stripe_simulator.engine.lines import Line
from stripe_simulator.engine.periods import Period
from tests.services.stripe_sdk import Sdk
from tests.services.stripe_shop import Shop, at
from tests.services.stripe_wire import DAY_S, NOW_S

GRANT = {"amount": {"type": "monetary", "monetary": {"currency": "usd", "value": 1}}, "name": "credit"}
METERED: dict[str, Any] = {"applicability_config": {"scope": {"price_type": "metered"}}}


@pytest.fixture
def shop(sdk: Sdk) -> Shop:
    """A shop without a customer yet."""
    return Shop(sdk)


async def customer_with_card(sdk: Sdk, card: str = "pm_card_visa", **fields: Any) -> str:
    """A customer whose default payment method is a test card."""
    customer = await sdk("v1.customers.create", {"email": "a@b.c", **fields})
    if card:
        method = await sdk("v1.payment_methods.attach", card, {"customer": customer["id"]})
        settings = {"default_payment_method": method["id"]}
        await sdk("v1.customers.update", customer["id"], {"invoice_settings": settings})
    return str(customer["id"])


async def draft_of(sdk: Sdk, customer: str, *amounts: int, **fields: Any) -> str:
    """A draft with one item for each amount."""
    for amount in amounts:
        await sdk("v1.invoice_items.create", {"customer": customer, "amount": amount, "currency": "usd"})
    params = {"customer": customer, "pending_invoice_items_behavior": "include", **fields}
    return str((await sdk("v1.invoices.create", params))["id"])


async def metered_price(sdk: Sdk, cents: int = 1) -> tuple[str, str]:
    """A price of some cents per unit, and the event name of its meter."""
    meter = {"display_name": "Calls", "event_name": "calls", "default_aggregation": {"formula": "sum"}}
    recurring = {
        "interval": "month",
        "usage_type": "metered",
        "meter": (await sdk("v1.billing.meters.create", meter))["id"],
    }
    params = {"currency": "usd", "product_data": {"name": "Calls"}, "unit_amount": cents, "recurring": recurring}
    return str((await sdk("v1.prices.create", params))["id"]), "calls"


async def types_of(sdk: Sdk, beginning: str = "invoice") -> list[str]:
    """The types of the events, oldest first."""
    events = (await sdk("v1.events.list", {"limit": 100}))["data"][::-1]
    return [event["type"] for event in events if event["type"].startswith(beginning)]


async def test_invoice_is_paid_through_its_life(sdk: Sdk) -> None:
    """Item, draft, final, declined, paid with another card: with the events in this order."""
    customer = await customer_with_card(sdk, "pm_card_chargeCustomerFail")
    draft = await draft_of(sdk, customer, 1000, 500)
    good = await sdk("v1.payment_methods.attach", "pm_card_visa", {"customer": customer})

    final = await sdk("v1.invoices.finalize_invoice", draft)
    error = await sdk.error("v1.invoices.pay", draft)
    paid = await sdk("v1.invoices.pay", draft, {"payment_method": good["id"]})

    assert (final["status"], final["number"][-5:], final["amount_due"]) == ("open", "-0001", 1500)
    assert (error["status"], error["code"], error["decline_code"]) == (402, "card_declined", "generic_decline")
    assert (paid["status"], paid["amount_paid"], paid["amount_remaining"], paid["attempt_count"]) == (
        "paid", 1500, 0, 2,
    )  # fmt: skip
    assert await types_of(sdk) == [
        "invoiceitem.created", "invoiceitem.created", "invoice.created", "invoice.finalized", "invoice.payment_failed",
        "invoice_payment.paid", "invoice.paid", "invoice.payment_succeeded",
    ]  # fmt: skip
    (payment,) = (await sdk("v1.invoice_payments.list", {"invoice": draft}))["data"]
    assert (payment["status"], payment["amount_paid"]) == ("paid", 1500)
    assert (await sdk.error("v1.invoices.pay", draft))["message"] == "Invoice is already paid"


async def test_invoice_without_card_is_refused(sdk: Sdk) -> None:
    """The invoice stays open and can be paid outside of Stripe."""
    draft = await draft_of(sdk, await customer_with_card(sdk, ""), 1500)

    error = await sdk.error("v1.invoices.pay", draft)
    assert (error["status"], error["code"]) == (400, "resource_missing")
    assert (await sdk("v1.invoices.pay", draft, {"paid_out_of_band": True}))["status"] == "paid"


async def test_balance_is_used_and_given_back(sdk: Sdk) -> None:
    """A credit of 4749 lowers the invoice of 7900 to 3151 when the invoice becomes final, and voiding gives back."""
    customer = await customer_with_card(sdk)
    entry = await sdk("v1.customers.balance_transactions.create", customer, {"amount": -4749, "currency": "usd"})
    assert (entry["type"], entry["ending_balance"]) == ("adjustment", -4749)
    draft = await draft_of(sdk, customer, 7900)

    final = await sdk("v1.invoices.finalize_invoice", draft)
    assert (final["total"], final["amount_due"], final["starting_balance"], final["ending_balance"]) == (
        7900, 3151, -4749, 0,
    )  # fmt: skip
    await sdk("v1.invoices.void_invoice", draft)

    assert (await sdk("v1.customers.retrieve", customer))["balance"] == -4749
    rows = (await sdk("v1.customers.balance_transactions.list", customer))["data"]
    assert [(row["type"], row["amount"]) for row in rows] == [
        ("unapplied_from_invoice", -4749), ("applied_to_invoice", 4749), ("adjustment", -4749),
    ]  # fmt: skip


async def test_negative_invoice_becomes_credit(sdk: Sdk) -> None:
    """Scenario 9: an invoice of -710 is paid at once and lowers the next one of 6000 to 5290."""
    customer = await customer_with_card(sdk)
    first = await sdk("v1.invoices.finalize_invoice", await draft_of(sdk, customer, -2839, 2129))
    assert (first["status"], first["amount_due"], first["ending_balance"]) == ("paid", 0, -710)

    assert (await sdk("v1.invoices.pay", await draft_of(sdk, customer, 6000)))["amount_paid"] == 5290


async def test_draft_follows_its_items(sdk: Sdk) -> None:
    """Items are added to a draft and removed; a final invoice is not editable; lines have pages."""
    customer = await customer_with_card(sdk)
    draft = await draft_of(sdk, customer, *range(100, 1200, 100))
    item = await sdk(
        "v1.invoice_items.create", {"customer": customer, "amount": 50, "currency": "usd", "invoice": draft}
    )
    body = await sdk("v1.invoices.retrieve", draft)
    assert (body["total"], len(body["lines"]["data"]), body["lines"]["has_more"]) == (6650, 10, True)
    lines = (await sdk("v1.invoices.line_items.list", draft, {"limit": 100}))["data"]
    assert [entry["amount"] for entry in lines] == [*range(100, 1200, 100), 50]

    await sdk("v1.invoice_items.delete", item["id"])
    assert (await sdk("v1.invoices.retrieve", draft))["total"] == 6600
    await sdk("v1.invoices.finalize_invoice", draft)
    late = {"customer": customer, "amount": 50, "currency": "usd", "invoice": draft}
    assert (await sdk.error("v1.invoice_items.create", late))["code"] == "invoice_not_editable"
    assert (await sdk("v1.invoices.update", draft, {"metadata": {"a": "b"}}))["metadata"] == {"a": "b"}


async def test_draft_becomes_final_by_itself(sdk: Sdk) -> None:
    """After an hour, if the draft has `auto_advance`."""
    customer = await customer_with_card(sdk)
    draft = await draft_of(sdk, customer, 250, auto_advance=True)
    assert (await sdk("v1.invoice_items.list", {"customer": customer, "pending": True}))["data"] == []
    assert (await sdk("v1.invoices.retrieve", draft))["automatically_finalizes_at"] == NOW_S + 3_600

    sdk.clock.advance(3_600_000)

    assert (await sdk("v1.invoices.retrieve", draft))["status"] == "paid"


async def test_authentication_ends_the_payment(sdk: Sdk) -> None:
    """The invoice waits for the cardholder, and the answer outside of `pay` settles the invoice."""
    customer = await customer_with_card(sdk, "pm_card_authenticationRequired")
    draft = await draft_of(sdk, customer, 1500)

    error = await sdk.error("v1.invoices.pay", draft)
    assert (error["status"], error["code"]) == (402, "invoice_payment_intent_requires_action")
    assert (await types_of(sdk))[-2:] == ["invoice.payment_failed", "invoice.payment_action_required"]
    mode = sdk.simulator.test
    with sdk.simulator.journal.transaction():
        intent = payments.intent_of(mode, customer, draft)
        assert intent is not None
        payments.authenticate(mode, intent, agrees=True)

    assert (await sdk("v1.invoices.retrieve", draft))["status"] == "paid"


@pytest.mark.parametrize(
    ("params", "code", "param"),
    [
        ({"amount": 1}, "parameter_missing", "currency"),
        ({"currency": "usd"}, "parameter_missing", "amount"),
        ({"amount": 1, "currency": "usd", "invoice": "in_none"}, "resource_missing", "invoice"),
    ],
    ids=["no currency", "no amount", "no invoice"],
)
async def test_wrong_items_are_refused(sdk: Sdk, params: dict[str, Any], code: str, param: str) -> None:
    """400 with Stripe's code and parameter."""
    customer = await customer_with_card(sdk, "")

    error = await sdk.error("v1.invoice_items.create", {"customer": customer, **params})

    assert (error["status"], error["code"], error["param"]) == (400, code, param)


async def test_tax_is_added(sdk: Sdk) -> None:
    """Scenario 4: 20 % exclusive tax on 4750 is 950, in total 5700."""
    customer = await customer_with_card(sdk, address={"country": "AT"})
    draft = await draft_of(sdk, customer, -5361, 10111, automatic_tax={"enabled": True})

    body = await sdk("v1.invoices.retrieve", draft)

    assert (body["subtotal"], body["total_taxes"][0]["amount"], body["total"]) == (4750, 950, 5700)
    assert body["total_excluding_tax"] == 4750


async def test_credit_note_before_the_payment_lowers_what_is_due(sdk: Sdk) -> None:
    """And the second one, for the rest, pays the invoice."""
    draft = await draft_of(sdk, await customer_with_card(sdk), 1000)
    await sdk("v1.invoices.finalize_invoice", draft)

    note = await sdk("v1.credit_notes.create", {"invoice": draft, "amount": 300})
    body = await sdk("v1.invoices.retrieve", draft)
    assert (note["type"], note["total"], note["number"][-6:]) == ("pre_payment", 300, "-CN-01")
    assert (body["amount_due"], body["amount_remaining"], body["pre_payment_credit_notes_amount"]) == (700, 700, 300)
    assert (await sdk.error("v1.credit_notes.create", {"invoice": draft, "amount": 701}))["param"] == "amount"
    await sdk("v1.credit_notes.create", {"invoice": draft, "amount": 700})

    assert (await sdk("v1.invoices.retrieve", draft))["status"] == "paid"


async def test_credit_note_after_the_payment_gives_back(sdk: Sdk) -> None:
    """To the balance and to the card; the sum must be the note's amount, and the refund is the note's."""
    customer = await customer_with_card(sdk)
    paid = await sdk("v1.invoices.pay", await draft_of(sdk, customer, 1000))
    note = {"invoice": paid["id"], "amount": 300, "credit_amount": 200}
    assert (await sdk.error("v1.credit_notes.create", note))["status"] == 400

    body = await sdk("v1.credit_notes.create", {**note, "refund_amount": 100})

    refund = await sdk("v1.refunds.retrieve", body["refunds"][0]["refund"])
    assert (body["type"], refund["amount"], refund["status"]) == ("post_payment", 100, "succeeded")
    assert (await sdk("v1.customers.retrieve", customer))["balance"] == -200
    assert (await sdk("v1.invoices.retrieve", paid["id"]))["post_payment_credit_notes_amount"] == 300
    rest = await sdk("v1.refunds.create", {"payment_intent": refund["payment_intent"]})
    error = await sdk.error("v1.refunds.create", {"payment_intent": refund["payment_intent"]})
    assert (rest["amount"], error["code"]) == (900, "charge_already_refunded")


async def test_invoice_of_a_cycle_waits_for_its_grace(shop: Shop) -> None:
    """A draft with the pending prorations first; final and paid after the hour."""
    await shop.open("2027-02-01")
    pro = await shop.price(14900)
    await shop.subscribe({"price": await shop.price(7900)})
    await shop.advance("2027-02-10")
    await shop.change(price=pro)
    await shop.advance("2027-03-01")

    draft = (await shop.invoices())[-1]
    assert (draft["status"], draft["automatically_finalizes_at"]) == ("draft", at("2027-03-01 01:00:00"))
    shown = [(row["amount"], row["parent"]["subscription_item_details"]["proration"]) for row in draft["lines"]["data"]]
    assert shown == [(-5361, True), (10111, True), (14900, False)]
    assert await shop.pending() == []
    await shop.advance("2027-03-01 01:00:00")
    assert (await shop.amounts())[-1] == ("paid", 19650)


async def test_usage_of_the_grace_period_counts(shop: Shop) -> None:
    """Scenario 25: 1000 calls, and 7 more that arrive at 00:20 with a timestamp inside the period, at 2 cents: 2014."""
    sdk, start = shop.sdk, datetime.fromtimestamp(NOW_S - 30 * DAY_S, UTC)
    await shop.open(start.isoformat(" ")[:19])
    price, event_name = await metered_price(sdk, 2)
    item = (await shop.subscribe({"price": price}))["items"]["data"][0]
    end = datetime.fromtimestamp(item["current_period_end"], UTC)
    inside = min(NOW_S, item["current_period_end"]) - 3_600
    for value, minutes in ((1000, 0), (7, 20)):
        await shop.advance((end + timedelta(minutes=minutes)).isoformat(" ")[:19])
        payload = {"stripe_customer_id": shop.customer, "value": str(value)}
        await sdk("v1.billing.meter_events.create", {"event_name": event_name, "payload": payload, "timestamp": inside})
        sdk.clock.advance(60_000)

    await shop.advance((end + timedelta(hours=2)).isoformat(" ")[:19])

    assert (await shop.amounts())[-1] == ("paid", 2014)


async def test_failed_collection_is_retried_with_the_new_card(shop: Shop) -> None:
    """Scenario 18: two attempts fail, the card is replaced on day 4, the third attempt charges 14900 once."""
    await shop.open("2027-02-01")
    await shop.subscribe({"price": await shop.price(14900)})
    await shop.use_card("pm_card_chargeCustomerFail")
    await shop.advance("2027-03-03")
    invoice = (await shop.invoices())[-1]
    assert (invoice["status"], invoice["attempt_count"]) == ("open", 2)
    assert invoice["next_payment_attempt"] == at("2027-03-04 01:00:00")

    await shop.use_card("pm_card_visa")
    await shop.advance("2027-03-05")

    invoice = (await shop.invoices())[-1]
    assert (invoice["status"], invoice["attempt_count"], invoice["next_payment_attempt"]) == ("paid", 3, None)
    assert len(await types_of(shop.sdk, "payment_intent.succeeded")) == 2


async def test_hard_decline_is_not_charged_again(shop: Shop) -> None:
    """Scenario 20: a lost card is asked once; the retries go on without a charge until there is a new card."""
    await shop.open("2027-02-01")
    await shop.subscribe({"price": await shop.price(14900)})
    with shop.sdk.simulator.journal.transaction():
        payments.decline_next(shop.sdk.simulator.test, shop.customer, "lost_card")
    await shop.advance("2027-03-08 02:00:00")

    assert len(await types_of(shop.sdk, "payment_intent.payment_failed")) == 1
    assert (await shop.invoices())[-1]["attempt_count"] == 5
    await shop.use_card("pm_card_mastercard")
    await shop.advance("2027-03-11")
    assert (await shop.amounts())[-1] == ("paid", 14900)


async def test_collection_ends_after_the_last_retry(shop: Shop) -> None:
    """Nine attempts within 14 days; the invoice stays open by default, and can be written off and voided."""
    await shop.open("2027-02-01")
    await shop.subscribe({"price": await shop.price(14900)})
    await shop.use_card("pm_card_chargeCustomerFail")
    await shop.advance("2027-03-20")

    invoice = (await shop.invoices())[-1]
    assert (invoice["status"], invoice["attempt_count"], invoice["next_payment_attempt"]) == ("open", 9, None)
    assert (await shop.sdk("v1.invoices.mark_uncollectible", invoice["id"]))["status"] == "uncollectible"
    assert (await shop.sdk("v1.invoices.void_invoice", invoice["id"]))["status"] == "void"
    assert (await shop.sdk.error("v1.invoices.void_invoice", invoice["id"]))["status"] == 400


@pytest.mark.parametrize(
    ("coupon", "country", "due"),
    [("", "", 2000), ("TEN", "", 800), ("TEN", "AT", 960)],
    ids=["plain", "10 % off", "10 % off and 20 % tax"],
)
async def test_grants_pay_metered_lines(shop: Shop, coupon: str, country: str, due: int) -> None:
    """Scenario 22: 12000 of usage; C 3000 with priority 10, A 2000 promotional that expires, B 5000. Voiding gives
    back."""
    sdk, moment = shop.sdk, datetime.fromtimestamp(NOW_S, UTC)
    await shop.open(moment.isoformat(" ")[:19])
    await shop.use_card("pm_card_chargeCustomerFail")
    params: dict[str, Any] = {}
    if country:
        await sdk("v1.customers.update", shop.customer, {"address": {"country": country}})
        params["automatic_tax"] = {"enabled": True}
    if coupon:
        await sdk("v1.coupons.create", {"id": coupon, "percent_off": 10, "duration": "forever"})
        params["discounts"] = [{"coupon": coupon}]
    price, event_name = await metered_price(sdk)
    await shop.subscribe({"price": price}, **params)
    payload = {"stripe_customer_id": shop.customer, "value": "12000"}
    await sdk("v1.billing.meter_events.create", {"event_name": event_name, "payload": payload, "timestamp": NOW_S + 60})
    sdk.clock.advance(60_000)
    promotional = {"category": "promotional", "expires_at": NOW_S + 99 * DAY_S}
    grants: list[tuple[int, dict[str, Any]]] = [(2000, promotional), (5000, {}), (3000, {"priority": 10})]
    ids = []
    for value, fields in grants:
        amount = {"type": "monetary", "monetary": {"currency": "usd", "value": value}}
        grant = {"customer": shop.customer, "category": "paid", **METERED, "amount": amount, **fields}
        ids.append((await sdk("v1.billing.credit_grants.create", grant))["id"])

    await shop.advance((moment + timedelta(days=32)).isoformat(" ")[:19])

    body = (await shop.invoices())[-1]
    assert (body["amount_due"], body["status"]) == (due, "open")
    drawn = [entry["amount"] for entry in body["total_pretax_credit_amounts"] if entry["type"] != "discount"]
    assert drawn == [3000, 2000, 5000]
    scope = METERED["applicability_config"]["scope"]
    summary = {"customer": shop.customer, "filter": {"type": "applicability_scope", "applicability_scope": scope}}
    for expected in (0, 10000):
        (balance,) = (await sdk("v1.billing.credit_balance_summary.retrieve", summary))["balances"]
        assert balance["available_balance"]["monetary"]["value"] == expected
        if not expected:
            await sdk("v1.invoices.void_invoice", body["id"])
    wanted = {"customer": shop.customer, "credit_grant": ids[2]}
    entries = await sdk("v1.billing.credit_balance_transactions.list", wanted)
    assert [entry["type"] for entry in entries["data"]] == ["credit", "debit", "credit"]


async def test_grants_end(sdk: Sdk) -> None:
    """By expiry, by a request, and by voiding an unused one: the ledger is 0."""
    customer = await customer_with_card(sdk, "")
    grant = {**GRANT, **METERED, "customer": customer, "category": "paid"}
    expiring = await sdk("v1.billing.credit_grants.create", {**grant, "expires_at": NOW_S + 60})
    other = await sdk("v1.billing.credit_grants.create", grant)
    third = await sdk("v1.billing.credit_grants.create", grant)

    assert (await sdk("v1.billing.credit_grants.expire", other["id"]))["expires_at"] == NOW_S
    assert (await sdk("v1.billing.credit_grants.void_grant", third["id"]))["voided_at"] == NOW_S
    sdk.clock.advance(60_000)

    for body, kind in ((expiring, "credits_expired"), (other, "credits_expired"), (third, "credits_voided")):
        rows = await sdk(
            "v1.billing.credit_balance_transactions.list", {"customer": customer, "credit_grant": body["id"]}
        )
        assert rows["data"][0]["debit"]["type"] == kind


async def test_voiding_gives_an_expired_grant_nothing(shop: Shop) -> None:
    """The ledger has the credit, and its expiry."""
    sdk = shop.sdk
    await shop.open("2027-02-01")
    await shop.use_card("pm_card_chargeCustomerFail")
    mode, end = sdk.simulator.test, at("2027-03-01")
    price, _ = await metered_price(sdk)
    await shop.subscribe({"price": price})
    grant = {**GRANT, **METERED, "customer": shop.customer, "category": "paid", "expires_at": end + DAY_S}
    await sdk("v1.billing.credit_grants.create", grant)
    line = Line("si_1", price, "", 100, Fraction(100), Period(end - 60, end), Fraction(1), metered=True)
    with sdk.simulator.journal.transaction():
        subscription = mode.fetch("subscription", shop.subscription)
        invoice = invoicing.subscription_invoice(mode, subscription, [line], "subscription_update")
    assert (invoice["status"], invoice["amount_due"]) == ("open", 99)
    await shop.advance("2027-03-03")

    await sdk("v1.invoices.void_invoice", invoice["id"])

    rows = (await sdk("v1.billing.credit_balance_transactions.list", {"customer": shop.customer}))["data"]
    kinds = [row["credit"]["type"] if row["type"] == "credit" else row["debit"]["type"] for row in rows]
    assert kinds == ["credits_expired", "credits_application_invoice_voided", "credits_applied", "credits_granted"]


async def test_account_policy_writes_the_invoice_off(shop: Shop) -> None:
    """Scenario 19: four attempts fail within 14 days, the invoice is uncollectible, and it can be paid later."""
    policy = RetryPolicy(days=(3, 7, 14), subscription_end="past_due", invoice_end="uncollectible")
    shop.sdk.simulator.test.settings = replace(shop.sdk.simulator.test.settings, retry_policy=policy)
    await shop.open("2027-02-01")
    await shop.subscribe({"price": await shop.price(14900)})
    await shop.use_card("pm_card_chargeCustomerFail")
    await shop.advance("2027-03-16")

    invoice = (await shop.invoices())[-1]
    assert (invoice["status"], invoice["attempt_count"]) == ("uncollectible", 4)
    assert invoice["status_details"]["uncollectible"]["reason"] == "max_payment_attempts"
    assert (await shop.get())["status"] == "past_due"
    assert (await types_of(shop.sdk))[-2:] == ["invoice.marked_uncollectible", "invoice.payment_failed"]
    card = await shop.use_card("pm_card_visa")
    paid = await shop.sdk("v1.invoices.pay", invoice["id"], {"payment_method": card})
    assert (paid["status"], paid["amount_paid"], (await shop.get())["status"]) == ("paid", 14900, "active")


async def test_small_amount_becomes_debt(sdk: Sdk) -> None:
    """30 cents are below the smallest charge of 50: they are paid with the next invoice."""
    customer = await customer_with_card(sdk)

    first = await sdk("v1.invoices.pay", await draft_of(sdk, customer, 30))
    second = await sdk("v1.invoices.pay", await draft_of(sdk, customer, 70))

    assert (first["status"], first["amount_paid"], first["ending_balance"]) == ("paid", 0, 30)
    assert (second["total"], second["amount_paid"], second["ending_balance"]) == (70, 100, 0)


async def test_deleted_customer_is_not_charged(shop: Shop) -> None:
    """The retries of the open invoice end without an error."""
    await shop.open("2027-02-01")
    await shop.subscribe({"price": await shop.price(14900)})
    await shop.use_card("pm_card_chargeCustomerFail")
    await shop.advance("2027-03-01 12:00:00")
    await shop.change(cancel_at_period_end=True)
    invoice = (await shop.invoices())[-1]
    await shop.sdk("v1.customers.delete", shop.customer)

    await shop.advance("2027-03-04")

    assert (await shop.sdk("v1.invoices.retrieve", invoice["id"]))["attempt_count"] == 1
