"""Invoices without a subscription, through stripe-python."""

from __future__ import annotations

from tests.services.stripe_sdk import Sdk


async def test_invoice_is_paid_through_its_life(sdk: Sdk) -> None:
    """Item, draft, finalized, declined, paid: with the events in this order."""
    customer = await sdk("v1.customers.create", {"email": "a@b.c"})
    await sdk("v1.invoice_items.create", {"customer": customer["id"], "amount": 1500, "currency": "usd"})
    draft = await sdk("v1.invoices.create", {"customer": customer["id"], "pending_invoice_items_behavior": "include"})
    assert (draft["status"], draft["total"], draft["amount_due"]) == ("draft", 1500, 1500)

    final = await sdk("v1.invoices.finalize_invoice", draft["id"])
    assert (final["status"], final["number"][-5:]) == ("open", "-0001")
    error = await sdk.error("v1.invoices.pay", draft["id"], {"payment_method": "pm_card_chargeDeclined"})
    assert (error["status"], error["code"], error["decline_code"]) == (402, "card_declined", "insufficient_funds")
    paid = await sdk("v1.invoices.pay", draft["id"], {"payment_method": "pm_card_visa"})

    assert (paid["status"], paid["amount_paid"], paid["amount_remaining"], paid["attempt_count"]) == (
        "paid",
        1500,
        0,
        2,
    )
    events = (await sdk("v1.events.list", {"limit": 100}))["data"][::-1]
    assert [event["type"] for event in events if event["type"].startswith("invoice")] == [
        "invoiceitem.created",
        "invoice.created",
        "invoice.finalized",
        "invoice.payment_failed",
        "invoice_payment.paid",
        "invoice.paid",
        "invoice.payment_succeeded",
    ]
