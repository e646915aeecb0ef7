"""Charges: what a card says to an amount, as a PaymentIntent with its charges.

A charge of an invoice has one PaymentIntent, which every later attempt uses again. The PaymentIntent names the invoice
in `payment_details.order_reference`.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, Literal, NamedTuple

from stripe_simulator.mode import Mode, new_object
from stripe_simulator.resources.payment_methods import card_of
from stripe_simulator.resources.test_cards import card_error, code_of
from stripe_simulator.store import Object

REQUIRES_ACTION: Final = "requires_action"


class Outcome(NamedTuple):
    """The result of one attempt. Without a payment method the attempt is declined with `resource_missing`."""

    status: Literal["succeeded", "declined", "requires_action"]
    code: str
    decline_code: str
    payment_intent: str


# Called with the mode, the invoice's id and the outcome when anything but `charge` settles an invoice's PaymentIntent.
LISTENERS: list[Callable[[Mode, str, Outcome], None]] = []


def charge(
    mode: Mode, customer: str, payment_method: str | None, amount: int, currency: str, *, invoice: str = ""
) -> Outcome:
    """Charge a customer off session: the payment method, or else the customer's default one. `amount` is positive.

    The caller stores what follows for the invoice; `LISTENERS` are not called.
    """
    intent = intent_of(mode, customer, invoice) if invoice else None
    if intent is None:
        intent = new_intent(mode, customer, amount, currency, invoice)
    chosen = payment_method or default_method(mode, customer) or ""
    method = mode.store.get("payment_method", chosen)
    intent |= {"amount": amount}
    return attempt(mode, intent, method if method and method["customer"] == customer else None)


def default_method(mode: Mode, customer: str) -> str | None:
    """The customer's `invoice_settings.default_payment_method`."""
    body = mode.store.get("customer", customer)
    return body["invoice_settings"]["default_payment_method"] if body else None


def intent_of(mode: Mode, customer: str, invoice: str) -> Object | None:
    """A copy of the PaymentIntent of an invoice, if the invoice was charged before."""
    for intent in mode.store.newest("payment_intent", "customer", customer):
        if intent["payment_details"]["order_reference"] == invoice:
            return mode.store.edit("payment_intent", intent["id"])
    return None


def new_intent(mode: Mode, customer: str, amount: int, currency: str, invoice: str) -> Object:
    """Store a PaymentIntent that waits for a payment method."""
    body = new_object(mode, "payment_intent", "pi", {}, mode.clock_of(customer)) | {
        "amount": amount,
        "amount_capturable": 0,
        "amount_received": 0,
        "canceled_at": None,
        "cancellation_reason": None,
        "capture_method": "automatic",
        "confirmation_method": "automatic",
        "currency": currency,
        "customer": customer,
        "last_payment_error": None,
        "latest_charge": None,
        "next_action": None,
        "payment_details": {"customer_reference": None, "order_reference": invoice or None},
        "payment_method": None,
        "payment_method_types": ["card"],
        "setup_future_usage": None,
        "status": "requires_payment_method",
    }
    body["client_secret"] = f"{body['id']}_secret_{mode.store.new_id('', 24)[1:]}"
    return dict(mode.store.save(body))


def cancel(mode: Mode, intent: Object, reason: str) -> Object:
    """Cancel a PaymentIntent that did not succeed, as when its invoice becomes void."""
    now_s = mode.now_s(mode.clock_of(intent["customer"]))
    intent |= {"status": "canceled", "canceled_at": now_s, "cancellation_reason": reason, "next_action": None}
    return mode.store.save(intent, "payment_intent.canceled")


def attempt(mode: Mode, intent: Object, method: Object | None, *, authenticated: bool | None = None) -> Outcome:
    """Charge a PaymentIntent's amount once. `authenticated` is the cardholder's answer, None before the question."""
    if method is None:
        return Outcome("declined", "resource_missing", "", mode.store.save(intent)["id"])
    refusal = _refusal(mode, intent["customer"], method, authenticated)
    intent |= {"last_payment_error": None, "next_action": None, "payment_method": method["id"]}
    if refusal == REQUIRES_ACTION:
        action = {"type": "use_stripe_sdk", "use_stripe_sdk": {"type": "three_d_secure_redirect"}}
        mode.store.save({**intent, "status": REQUIRES_ACTION, "next_action": action}, "payment_intent.requires_action")
        return Outcome(REQUIRES_ACTION, "", "", intent["id"])
    if not refusal:
        paid = {"status": "succeeded", "amount_received": intent["amount"]}
        mode.store.save({**intent, **paid, "latest_charge": _charged(mode, intent, "")}, "payment_intent.succeeded")
        return Outcome("succeeded", "", "", intent["id"])
    error = card_error(refusal).details()
    intent |= {"status": "requires_payment_method", "latest_charge": _charged(mode, intent, refusal)}
    intent["last_payment_error"] = {**error, "charge": intent["latest_charge"], "payment_method": method}
    mode.store.save({**intent, "payment_method": None}, "payment_intent.payment_failed")
    return Outcome("declined", code_of(refusal), refusal, intent["id"])


def authenticate(mode: Mode, intent: Object, *, succeeds: bool) -> Outcome:
    """The cardholder's answer to `requires_action`. Calls `LISTENERS`."""
    return settle(mode, intent, mode.store.get("payment_method", intent["payment_method"]), authenticated=succeeds)


def settle(mode: Mode, intent: Object, method: Object | None, *, authenticated: bool | None = None) -> Outcome:
    """`attempt`, and tell the invoice of the PaymentIntent."""
    outcome = attempt(mode, intent, method, authenticated=authenticated)
    if invoice := intent["payment_details"]["order_reference"]:
        for listener in LISTENERS:
            listener(mode, invoice, outcome)
    return outcome


def decline_next(mode: Mode, customer: str, decline_code: str, count: int = 1) -> None:
    """Decline the customer's next charges with a decline code, or ask the cardholder if it is `requires_action`."""
    identifier = f"declines_{customer}"
    waiting = (mode.store.get("simulator.declines", identifier) or {"codes": []})["codes"]
    mode.store.put({"object": "simulator.declines", "id": identifier, "codes": [*waiting, *[decline_code] * count]})


def _refusal(mode: Mode, customer: str, method: Object, authenticated: bool | None) -> str:
    """Why the card refuses: a decline code, `requires_action`, or empty."""
    if authenticated is False:
        return "authentication_required"
    waiting = mode.store.get("simulator.declines", f"declines_{customer}")
    if waiting and waiting["codes"]:
        mode.store.put({**waiting, "codes": waiting["codes"][1:]})
        return str(waiting["codes"][0])
    now = datetime.fromtimestamp(mode.now_s(mode.clock_of(customer)), UTC)
    if (method["card"]["exp_year"], method["card"]["exp_month"]) < (now.year, now.month):
        return "expired_card"
    card = card_of(method)
    asks = card.authentication == "always" or (card.authentication and not _is_set_up(mode, method))
    return card.decline_code or (REQUIRES_ACTION if asks and not authenticated else "")


def _is_set_up(mode: Mode, method: Object) -> bool:
    """Whether the cardholder agreed to later charges, in a SetupIntent or at an earlier charge."""
    intents = [*mode.store.newest("setup_intent", "payment_method", method["id"])]
    intents += mode.store.newest("payment_intent", "payment_method", method["id"])
    return any(intent["status"] == "succeeded" for intent in intents)


def _charged(mode: Mode, intent: Object, refusal: str) -> str:
    """Store the charge of an attempt and return the charge's id."""
    paid = not refusal
    body = new_object(mode, "charge", "ch", {}, mode.clock_of(intent["customer"])) | {
        "amount": intent["amount"],
        "amount_captured": intent["amount"] if paid else 0,
        "amount_refunded": 0,
        "billing_details": {},
        "captured": paid,
        "currency": intent["currency"],
        "customer": intent["customer"],
        "disputed": False,
        "failure_code": code_of(refusal) if refusal else None,
        "failure_message": card_error(refusal).message if refusal else None,
        "outcome": {"type": "authorized" if paid else "issuer_declined", "reason": refusal or None},
        "paid": paid,
        "payment_intent": intent["id"],
        "payment_method": intent["payment_method"],
        "refunded": False,
        "status": "succeeded" if paid else "failed",
    }
    return str(mode.store.save(body, f"charge.{body['status']}")["id"])
