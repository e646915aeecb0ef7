"""Charges, as payment intents, and cards for later charges, as setup intents.

The first charge of an invoice creates a PaymentIntent, and each later attempt uses it again. The PaymentIntent names
the invoice in `payment_details.order_reference`.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, Literal, NamedTuple

from stripe_simulator.mode import Mode, new_object
from stripe_simulator.resources.conventions import Object
from stripe_simulator.resources.payment_methods import ASK, REQUIRES_ACTION, attached, card_error, card_of

_NULL: Final = ("canceled_at", "cancellation_reason", "last_payment_error", "next_action", "payment_method")


class Outcome(NamedTuple):
    """The result of one attempt. Without a payment method the attempt is declined with `resource_missing`."""

    status: Literal["succeeded", "declined", "requires_action"]
    code: str
    decline_code: str
    payment_intent: str


# Called by `authenticate` with the mode, the invoice's id and the outcome.
LISTENERS: list[Callable[[Mode, str, Outcome], None]] = []


def charge(
    mode: Mode, customer: str, payment_method: str | None, amount: int, currency: str, *, invoice: str = ""
) -> Outcome:
    """Charge a customer: the payment method, or else the customer's default one. `amount` is positive.

    Another customer's payment method is none. `LISTENERS` are not called: the caller has the outcome.
    """
    intent = intent_of(mode, customer, invoice) or _new(mode, customer, currency, invoice)
    intent["amount"] = amount
    method = mode.store.get("payment_method", payment_method or default_method(mode, customer) or "")
    if method is None or method["customer"] != customer:
        return Outcome("declined", "resource_missing", "", mode.store.save(intent)["id"])
    return _attempt(mode, intent, method, _refusal(mode, customer, method))


def default_method(mode: Mode, customer: str) -> str | None:
    """The payment method of a customer's invoices, if the customer has one."""
    settings: Object = mode.fetch("customer", customer, param="customer")["invoice_settings"]
    return settings["default_payment_method"] or None


def authenticate(mode: Mode, intent: Object, *, agrees: bool) -> Outcome:
    """The cardholder's answer when a PaymentIntent has the status `requires_action`."""
    method = mode.fetch("payment_method", intent["payment_method"])
    outcome = _attempt(mode, intent, method, "" if agrees else "authentication_required")
    for listener in LISTENERS:
        listener(mode, intent["payment_details"]["order_reference"], outcome)
    return outcome


def confirmed(mode: Mode, outcome: Outcome, *, agreed: bool) -> Outcome:
    """The outcome of a charge on a hosted page, where the cardholder has `agreed` or was not asked yet."""
    if outcome.status == REQUIRES_ACTION and agreed:
        return authenticate(mode, mode.fetch("payment_intent", outcome.payment_intent), agrees=True)
    return outcome


def intent_of(mode: Mode, customer: str, invoice: str) -> Object | None:
    """A copy of the PaymentIntent of an invoice, or None if the invoice was never charged."""
    for intent in mode.store.newest("payment_intent", "customer", customer) if invoice else ():
        if intent["payment_details"]["order_reference"] == invoice:
            return mode.store.edit("payment_intent", intent["id"])
    return None


def cancel(mode: Mode, intent: Object, reason: str) -> Object:
    """Cancel a PaymentIntent that did not succeed. `reason` is `void_invoice` or `failed_invoice`."""
    now_s = mode.now_s(mode.clock_of(intent["customer"]))
    intent |= {"status": "canceled", "canceled_at": now_s, "cancellation_reason": reason, "next_action": None}
    return mode.store.save(intent, "payment_intent.canceled")


def decline_next(mode: Mode, customer: str, decline_code: str, count: int = 1) -> None:
    """Decline the customer's next charges with a decline code, or ask the cardholder if it is `requires_action`."""
    identifier = f"declines_{customer}"
    waiting = (mode.store.get("simulator.declines", identifier) or {"codes": []})["codes"]
    mode.store.put({"object": "simulator.declines", "id": identifier, "codes": [*waiting, *[decline_code] * count]})


def set_up(mode: Mode, method: Object, customer: str, *, agreed: bool) -> Object:
    """Give a customer a card on a hosted page, with a SetupIntent. Raises `ApiError` if the cardholder must agree and
    has not."""
    body: Object = dict.fromkeys(("last_setup_error", "next_action")) | new_object(mode, "setup_intent", "seti", {})
    intent = mode.store.save(body | {
        "client_secret": _secret(mode, body), "customer": customer, "payment_method": method["id"],
        "payment_method_types": ["card"], "status": "requires_confirmation", "usage": "off_session",
    })  # fmt: skip
    if card_of(method).authentication:
        mode.store.save(intent | ASK, "setup_intent.requires_action")
        if not agreed:
            raise card_error("authentication_required")
    attached(mode, method, customer)
    return mode.store.save({**intent, "status": "succeeded"}, "setup_intent.succeeded")


def _new(mode: Mode, customer: str, currency: str, invoice: str) -> Object:
    body = dict.fromkeys(_NULL) | new_object(mode, "payment_intent", "pi", {}, mode.clock_of(customer))
    return body | {
        "amount": 0, "amount_capturable": 0, "amount_received": 0, "capture_method": "automatic",
        "client_secret": _secret(mode, body), "confirmation_method": "automatic", "currency": currency,
        "customer": customer, "payment_details": {"customer_reference": None, "order_reference": invoice or None},
        "payment_method_types": ["card"], "status": "requires_payment_method",
    }  # fmt: skip


def _secret(mode: Mode, intent: Object) -> str:
    return f"{intent['id']}_secret_{mode.store.new_id('')[1:]}"


def _attempt(mode: Mode, intent: Object, method: Object, refusal: str) -> Outcome:
    """Store the card's answer: a decline code, `requires_action`, or empty for success."""
    if mode.store.get("payment_intent", intent["id"]) is None:
        mode.store.save(dict(intent))
    intent |= {"last_payment_error": None, "next_action": None, "payment_method": method["id"]}
    if refusal == REQUIRES_ACTION:
        mode.store.save(intent | ASK, "payment_intent.requires_action")
        return Outcome(REQUIRES_ACTION, "", "", intent["id"])
    if not refusal:
        intent |= {"status": "succeeded", "amount_received": intent["amount"]}
        mode.store.save(intent, "payment_intent.succeeded")
        return Outcome("succeeded", "", "", intent["id"])
    error = card_error(refusal)
    intent |= {"status": "requires_payment_method", "payment_method": None}
    intent["last_payment_error"] = {**error.details(), "payment_method": method}
    mode.store.save(intent, "payment_intent.payment_failed")
    return Outcome("declined", error.code or "", refusal, intent["id"])


def _refusal(mode: Mode, customer: str, method: Object) -> str:
    waiting = mode.store.get("simulator.declines", f"declines_{customer}")
    if waiting and waiting["codes"]:
        mode.store.put({**waiting, "codes": waiting["codes"][1:]})
        return str(waiting["codes"][0])
    now = datetime.fromtimestamp(mode.now_s(mode.clock_of(customer)), UTC)
    if (method["card"]["exp_year"], method["card"]["exp_month"]) < (now.year, now.month):
        return "expired_card"
    card = card_of(method)
    asks = card.authentication == "always" or (card.authentication and not _is_set_up(mode, method))
    return card.decline_code or (REQUIRES_ACTION if asks else "")


def _is_set_up(mode: Mode, method: Object) -> bool:
    """Whether the cardholder agreed to later charges, in a SetupIntent or at an earlier charge."""
    intents = [*mode.store.newest("setup_intent", "payment_method", method["id"])]
    intents += mode.store.newest("payment_intent", "payment_method", method["id"])
    return any(intent["status"] == "succeeded" for intent in intents)
