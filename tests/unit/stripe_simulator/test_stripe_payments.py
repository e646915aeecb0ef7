"""Payment methods, charges, payment intents and setup intents, through stripe-python."""

from __future__ import annotations

from typing import Any

import pytest

from stripe_simulator import payments
from stripe_simulator.errors import ApiError
from stripe_simulator.resources.payment_methods import CARDS
from tests.services.stripe_sdk import Sdk
from tests.services.stripe_wire import NOW_S

CARD = {"number": "4242424242424242", "exp_month": 12, "exp_year": 2030, "cvc": "123"}
DECLINES = [
    ("pm_card_visa_chargeDeclined", "card_declined", "generic_decline"),
    ("pm_card_visa_chargeDeclinedInsufficientFunds", "card_declined", "insufficient_funds"),
    ("pm_card_visa_chargeDeclinedLostCard", "card_declined", "lost_card"),
    ("pm_card_visa_chargeDeclinedStolenCard", "card_declined", "stolen_card"),
    ("pm_card_chargeDeclinedExpiredCard", "expired_card", "expired_card"),
    ("pm_card_chargeDeclinedIncorrectCvc", "incorrect_cvc", "incorrect_cvc"),
    ("pm_card_chargeDeclinedProcessingError", "processing_error", "processing_error"),
]


async def customer_with(sdk: Sdk, card: str = "") -> str:
    """A customer whose default payment method is a test card."""
    body = await sdk("v1.customers.create", {})
    if card:
        method = await sdk("v1.payment_methods.attach", card, {"customer": body["id"]})
        settings = {"invoice_settings": {"default_payment_method": method["id"]}}
        await sdk("v1.customers.update", body["id"], settings)
    return str(body["id"])


def charge(sdk: Sdk, customer: str, invoice: str = "in_1", amount: int = 14_900) -> payments.Outcome:
    """One attempt, as an invoice makes it."""
    with sdk.simulator.test.journal.transaction():
        return payments.charge(sdk.simulator.test, customer, None, amount, "usd", invoice=invoice)


async def event_types(sdk: Sdk, *families: str) -> list[str]:
    """The types of the events of some families, oldest first."""
    events = (await sdk("v1.events.list", {"limit": 100}))["data"][::-1]
    return [event["type"] for event in events if event["type"].startswith(families)]


async def test_card_is_kept_for_a_customer(sdk: Sdk) -> None:
    """Created by its number, attached, listed; two of one number have one fingerprint."""
    customer = await customer_with(sdk)
    body = await sdk("v1.payment_methods.create", {"type": "card", "card": CARD, "billing_details": {"name": "Ada"}})
    kept = await sdk("v1.payment_methods.attach", body["id"], {"customer": customer})
    again = await sdk("v1.payment_methods.attach", "pm_card_visa", {"customer": customer})

    assert (body["card"]["last4"], body["card"]["exp_year"], body["customer"]) == ("4242", 2030, None)
    assert kept == {**body, "customer": customer} == await sdk("v1.payment_methods.retrieve", body["id"])
    assert (again["card"]["fingerprint"], again["id"] == "pm_card_visa") == (body["card"]["fingerprint"], False)
    assert (await sdk("v1.payment_methods.list", {"customer": customer, "type": "card"}))["data"] == [again, kept]
    assert await event_types(sdk, "payment_method") == ["payment_method.attached", "payment_method.attached"]


@pytest.mark.parametrize(("card", "code", "decline_code"), DECLINES)
async def test_declined_card_cannot_be_attached(sdk: Sdk, card: str, code: str, decline_code: str) -> None:
    """402 with Stripe's codes."""
    customer = await customer_with(sdk)

    error = await sdk.error("v1.payment_methods.attach", card, {"customer": customer})

    assert (error["status"], error["type"], error["code"]) == (402, "card_error", code)
    assert error["decline_code"] == decline_code
    assert (await sdk("v1.payment_methods.list", {"customer": customer}))["data"] == []


@pytest.mark.parametrize(
    ("changes", "status", "code", "param"),
    [
        ({"number": "4242424242424241"}, 402, "incorrect_number", "number"),
        ({"number": "4242abcd42424242"}, 402, "invalid_number", "number"),
        ({"number": "42"}, 402, "invalid_number", "number"),
        ({"exp_month": 13}, 402, "invalid_expiry_month", "exp_month"),
        ({"exp_year": 2025}, 402, "invalid_expiry_year", "exp_year"),
        ({"number": None}, 400, "parameter_missing", "card[number]"),
    ],
    ids=["check digit", "letters", "too short", "month", "past year", "no number"],
)
async def test_wrong_cards_are_refused(sdk: Sdk, changes: dict[str, Any], status: int, code: str, param: str) -> None:
    """A mistake of the cardholder is a card error."""
    card = {name: value for name, value in {**CARD, **changes}.items() if value is not None}

    error = await sdk.error("v1.payment_methods.create", {"type": "card", "card": card})

    assert (error["status"], error["code"], error["param"]) == (status, code, param)


async def test_charge_succeeds(sdk: Sdk) -> None:
    """A PaymentIntent with the amount, and its events."""
    customer = await customer_with(sdk, "pm_card_visa")

    outcome = charge(sdk, customer)

    intent = await sdk("v1.payment_intents.retrieve", outcome.payment_intent, {"expand": ["payment_method"]})
    assert outcome == ("succeeded", "", "", intent["id"])
    assert (intent["status"], intent["amount"], intent["amount_received"]) == ("succeeded", 14_900, 14_900)
    assert intent["payment_method"]["customer"] == customer
    assert intent["payment_details"]["order_reference"] == "in_1"
    assert await event_types(sdk, "payment_intent") == ["payment_intent.created", "payment_intent.succeeded"]


async def test_attempts_of_an_invoice_share_an_intent(sdk: Sdk) -> None:
    """Declined, then paid with another card: one intent. Another invoice has its own."""
    customer = await customer_with(sdk, "pm_card_chargeCustomerFail")
    first = charge(sdk, customer)
    declined = await sdk("v1.payment_intents.retrieve", first.payment_intent)
    method = await sdk("v1.payment_methods.attach", "pm_card_mastercard", {"customer": customer})
    with sdk.simulator.test.journal.transaction():
        second = payments.charge(sdk.simulator.test, customer, method["id"], 14_900, "usd", invoice="in_1")
    other = charge(sdk, customer, "in_2")

    assert first == ("declined", "card_declined", "generic_decline", second.payment_intent)
    assert (declined["status"], declined["payment_method"]) == ("requires_payment_method", None)
    error = declined["last_payment_error"]
    assert (error["code"], error["decline_code"], error["type"]) == ("card_declined", "generic_decline", "card_error")
    assert error["message"] == "Your card was declined."
    assert (second.status, other.payment_intent != first.payment_intent) == ("succeeded", True)
    paid = await sdk("v1.payment_intents.retrieve", first.payment_intent)
    assert (paid["last_payment_error"], paid["payment_method"]) == (None, method["id"])
    assert len((await sdk("v1.payment_intents.list", {"customer": customer}))["data"]) == 2
    types = await event_types(sdk, "payment_intent")
    assert types[:3] == ["payment_intent.created", "payment_intent.payment_failed", "payment_intent.succeeded"]


async def test_without_a_payment_method_nothing_is_charged(sdk: Sdk) -> None:
    """The intent waits; a foreign payment method is none."""
    customer = await customer_with(sdk)
    await customer_with(sdk, "pm_card_visa")

    outcome = charge(sdk, customer)

    assert outcome[:3] == ("declined", "resource_missing", "")
    assert (await sdk("v1.payment_intents.retrieve", outcome.payment_intent))["status"] == "requires_payment_method"
    assert await event_types(sdk, "payment_intent") == ["payment_intent.created"]


async def test_next_charges_are_declined_when_asked(sdk: Sdk) -> None:
    """Any decline code, as often as asked, of a card that else succeeds."""
    customer = await customer_with(sdk, "pm_card_visa")
    with sdk.simulator.test.journal.transaction():
        payments.decline_next(sdk.simulator.test, customer, "insufficient_funds", 2)
        payments.decline_next(sdk.simulator.test, customer, "expired_card")

    outcomes = [charge(sdk, customer)[:3] for _ in range(4)]

    assert outcomes == [
        ("declined", "card_declined", "insufficient_funds"),
        ("declined", "card_declined", "insufficient_funds"),
        ("declined", "expired_card", "expired_card"),
        ("succeeded", "", ""),
    ]


async def test_card_expires_after_its_month(sdk: Sdk) -> None:
    """It is November 2026: a card until November is charged until the month ends."""
    customer = await customer_with(sdk)
    card = {**CARD, "exp_year": 2026, "exp_month": 11}
    method = await sdk("v1.payment_methods.create", {"type": "card", "card": card})
    await sdk("v1.payment_methods.attach", method["id"], {"customer": customer})
    settings = {"invoice_settings": {"default_payment_method": method["id"]}}
    await sdk("v1.customers.update", customer, settings)
    before = charge(sdk, customer, "in_1")
    sdk.clock.advance(10 * 86_400 * 1_000)
    after = charge(sdk, customer, "in_2")

    assert (before.status, after[:3]) == ("succeeded", ("declined", "expired_card", "expired_card"))


@pytest.mark.parametrize("agrees", [True, False], ids=["agrees", "refuses"])
async def test_cardholder_is_asked(sdk: Sdk, monkeypatch: pytest.MonkeyPatch, agrees: bool) -> None:
    """The intent waits for the answer, which the invoice gets."""
    told: list[Any] = []
    monkeypatch.setattr(payments, "LISTENERS", [lambda _mode, invoice, outcome: told.append((invoice, *outcome[:3]))])
    customer = await customer_with(sdk, "pm_card_authenticationRequired")
    outcome = charge(sdk, customer)
    waiting = await sdk("v1.payment_intents.retrieve", outcome.payment_intent)
    mode = sdk.simulator.test
    with mode.journal.transaction():
        intent = mode.fetch("payment_intent", outcome.payment_intent)
        payments.authenticate(mode, intent, agrees=agrees)

    assert (outcome.status, waiting["status"]) == ("requires_action", "requires_action")
    assert waiting["next_action"]["type"] == "use_stripe_sdk"
    after = await sdk("v1.payment_intents.retrieve", outcome.payment_intent)
    if agrees:
        assert (after["status"], told) == ("succeeded", [("in_1", "succeeded", "", "")])
    else:
        assert after["status"] == "requires_payment_method"
        assert told == [("in_1", "declined", "authentication_required", "authentication_required")]
    assert charge(sdk, customer, "in_2").status == "requires_action"


async def test_intent_of_a_void_invoice_is_canceled(sdk: Sdk) -> None:
    """Nobody can pay it any more."""
    customer = await customer_with(sdk)
    intent = charge(sdk, customer).payment_intent
    mode = sdk.simulator.test
    with mode.journal.transaction():
        payments.cancel(mode, mode.fetch("payment_intent", intent), "void_invoice")

    body = await sdk("v1.payment_intents.retrieve", intent)
    assert (body["status"], body["cancellation_reason"], body["canceled_at"]) == ("canceled", "void_invoice", NOW_S)


async def _set_up(sdk: Sdk, customer: str, name: str, *, agreed: bool) -> dict[str, Any]:
    """Give a customer a card by its number, as a hosted page does."""
    card = {**CARD, "number": CARDS[name].number}
    method = await sdk("v1.payment_methods.create", {"type": "card", "card": card})
    mode = sdk.simulator.test
    with mode.journal.transaction():
        intent = payments.set_up(mode, mode.fetch("payment_method", method["id"]), customer, agreed=agreed)
    done: dict[str, Any] = await sdk("v1.setup_intents.retrieve", intent["id"], {"expand": ["payment_method"]})
    return done


async def test_setup_makes_a_card_ready(sdk: Sdk) -> None:
    """A card that asks until it is set up must be confirmed; it asks no more, and the customer has the card."""
    customer, name = await customer_with(sdk), "pm_card_authenticationRequiredOnSetup"
    with pytest.raises(ApiError) as refused:
        await _set_up(sdk, customer, name, agreed=False)
    done = await _set_up(sdk, customer, name, agreed=True)

    assert refused.value.code == "authentication_required"
    assert (done["status"], done["payment_method"]["customer"], done["next_action"]) == ("succeeded", customer, None)
    mode, method = sdk.simulator.test, done["payment_method"]["id"]
    with mode.journal.transaction():
        assert payments.charge(mode, customer, method, 100, "usd").status == "succeeded"


async def test_setup_with_a_plain_card_succeeds_at_once(sdk: Sdk) -> None:
    """And a declined one is 402."""
    customer = await customer_with(sdk)

    with pytest.raises(ApiError) as declined:
        await _set_up(sdk, customer, "pm_card_visa_chargeDeclined", agreed=False)
    done = await _set_up(sdk, customer, "pm_card_visa", agreed=False)

    assert (declined.value.status, declined.value.code, done["status"]) == (402, "card_declined", "succeeded")
    assert await event_types(sdk, "setup_intent") == ["setup_intent.created", "setup_intent.succeeded"]


async def test_test_cards_do_not_exist_in_live_mode(sdk: Sdk) -> None:
    """Their names are ids of nothing."""
    live = Sdk(sdk.simulator, sdk.clock, key="sk_live_one")
    body = await live("v1.customers.create", {})

    error = await live.error("v1.payment_methods.attach", "pm_card_visa", {"customer": body["id"]})

    assert (error["status"], error["code"]) == (404, "resource_missing")
    await live.close()
