"""Payment methods: Stripe's test cards (docs.stripe.com/api/payment_methods, docs.stripe.com/testing).

A test card has a number, perhaps a name such as `pm_card_visa`, and a rule for what a charge of the card does.
The routes of payment and setup intents (…/payment_intents, …/setup_intents) are here too. `payments` creates them.
"""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime
from typing import Any, Final, Literal, NamedTuple

from stripe_simulator.errors import ApiError
from stripe_simulator.mode import Call, Mode, Route, new_object, retrieve
from stripe_simulator.resources.conventions import Object, Params, reads, require

INDEXED = {
    "payment_method": ("customer",), "payment_intent": ("customer", "payment_method"),
    "setup_intent": ("payment_method",),
}  # fmt: skip
CREATE: Final = (
    "billing_details", "card[cvc]", "card[exp_month]", "card[exp_year]", "card[number]", "metadata", "type",
)  # fmt: skip
_LABEL: Final = "PaymentMethod"
_YEARS_VALID: Final = 5


class Card(NamedTuple):
    """A test card. `decline_code` empty: charges succeed.

    `attaches`: a customer can have the card although it is declined. `authentication`: the card asks the cardholder at
    every charge, or until the card is set up. `disputes`: each payment is disputed.
    """

    number: str
    decline_code: str = ""
    attaches: bool = False
    authentication: Literal["", "always", "until_set_up"] = ""
    brand: str = "visa"
    disputes: bool = False


CARDS: Final = {
    "pm_card_visa": Card("4242424242424242"),
    "pm_card_mastercard": Card("5555555555554444", brand="mastercard"),
    "pm_card_visa_chargeDeclined": Card("4000000000000002", "generic_decline"),
    "pm_card_visa_chargeDeclinedInsufficientFunds": Card("4000000000009995", "insufficient_funds"),
    "pm_card_visa_chargeDeclinedLostCard": Card("4000000000009987", "lost_card"),
    "pm_card_visa_chargeDeclinedStolenCard": Card("4000000000009979", "stolen_card"),
    "pm_card_chargeDeclinedExpiredCard": Card("4000000000000069", "expired_card"),
    "pm_card_chargeDeclinedIncorrectCvc": Card("4000000000000127", "incorrect_cvc"),
    "pm_card_chargeDeclinedProcessingError": Card("4000000000000119", "processing_error"),
    "pm_card_chargeCustomerFail": Card("4000000000000341", "generic_decline", attaches=True),
    "pm_card_createDispute": Card("4000000000000259", disputes=True),
    "pm_card_authenticationRequired": Card("4000002760003184", authentication="always"),
    "pm_card_authenticationRequiredOnSetup": Card("4000002500003155", authentication="until_set_up"),
}
REQUIRES_ACTION: Final = "requires_action"
# The change of an intent whose card asks the cardholder.
ASK: Final = {
    "status": REQUIRES_ACTION,
    "next_action": {"type": "use_stripe_sdk", "use_stripe_sdk": {"type": "three_d_secure_redirect"}},
}
BY_NUMBER: Final = {card.number: card for card in CARDS.values()}
MESSAGES: Final = {
    "insufficient_funds": "Your card has insufficient funds.",
    "expired_card": "Your card has expired.",
    "incorrect_cvc": "Your card's security code is incorrect.",
    "incorrect_number": "Your card number is incorrect.",
    "invalid_number": "The card number is not a valid credit card number.",
    "invalid_expiry_month": "Your card's expiration month is invalid.",
    "invalid_expiry_year": "Your card's expiration year is invalid.",
    "processing_error": "An error occurred while processing your card. Try again in a little bit.",
    "authentication_required": "Your card was declined. This transaction requires authentication.",
}


def card_error(decline_code: str, param: str | None = None) -> ApiError:
    """402 of a declined card. A decline code that is no error code of its own has the code `card_declined`."""
    code = decline_code if decline_code in MESSAGES and decline_code != "insufficient_funds" else "card_declined"
    message = MESSAGES.get(decline_code, "Your card was declined.")
    fields = {"decline_code": decline_code}
    return ApiError(402, message, kind="card_error", code=code, param=param, fields=fields, kept=True)


def check_number(number: str) -> None:
    """Raises `ApiError` (402) for what is no card number, and for a card number whose check digit is wrong."""
    if not re.fullmatch(r"[0-9]{12,19}", number):
        raise card_error("invalid_number", param="number")
    digits = [int(digit) * (1 + place % 2) for place, digit in enumerate(reversed(number))]
    if sum(digit - 9 if digit > 9 else digit for digit in digits) % 10:
        raise card_error("incorrect_number", param="number")


def card_of(method: Object) -> Card:
    """How the card of a payment method behaves. A number that is no test card's is charged with success."""
    return _BY_FINGERPRINT.get(method["card"]["fingerprint"], CARDS["pm_card_visa"])


def create(mode: Mode, call: Call) -> Object:
    """Stripe has no event for it."""
    card = call.params.get("card") or {}
    require(card, "number", "exp_month", "exp_year", within="card")
    check_number(card["number"])
    return mode.store.put(_new(mode, call.params, card["number"], card["exp_year"], card["exp_month"]))


def attach(mode: Mode, call: Call) -> Object:
    """Give a customer a payment method, also by the name of a test card."""
    require(call.params, "customer")
    mode.fetch("customer", call.params["customer"], param="customer")
    return attached(mode, _resolved(mode, call.id), call.params["customer"])


def attached(mode: Mode, method: Object, customer: str) -> Object:
    """Give a customer a payment method. Raises `ApiError` (402) for a card that declines at once."""
    if method["customer"] == customer:
        return method
    card = card_of(method)
    if card.decline_code and not card.attaches:
        raise card_error(card.decline_code)
    return mode.store.save({**method, "customer": customer}, "payment_method.attached")


def _resolved(mode: Mode, identifier: str) -> Object:
    """A copy of a payment method. The name of a test card, such as `pm_card_visa`, gives a new payment method."""
    if identifier not in CARDS or mode.livemode:
        return mode.fetch("payment_method", identifier, _LABEL)
    year = datetime.fromtimestamp(mode.now_s(), UTC).year + _YEARS_VALID
    return mode.store.put(_new(mode, {}, CARDS[identifier].number, year, 12))


def _new(mode: Mode, params: Params, number: str, year: int, month: int) -> Object:
    now = datetime.fromtimestamp(mode.now_s(), UTC)
    if not 1 <= month <= 12:
        raise card_error("invalid_expiry_month", param="exp_month")
    if (year, month) < (now.year, now.month):
        raise card_error("invalid_expiry_year", param="exp_year")
    details: dict[str, Any] = dict.fromkeys(("address", "email", "name", "phone", "tax_id"))
    return new_object(mode, "payment_method", "pm", params) | {
        "allow_redisplay": "unspecified", "billing_details": details | params.get("billing_details", {}),
        "card": {"brand": BY_NUMBER.get(number, CARDS["pm_card_visa"]).brand, "country": "US", "exp_month": month,
                 "exp_year": year, "fingerprint": _fingerprint(number), "funding": "credit", "last4": number[-4:]},
        "customer": None, "type": "card",
    }  # fmt: skip


def _fingerprint(number: str) -> str:
    """What is equal for two payment methods with one card number."""
    return hashlib.sha256(number.encode()).hexdigest()[:16]


_BY_FINGERPRINT: Final = {_fingerprint(number): card for number, card in BY_NUMBER.items()}
_ITEM: Final = "/v1/payment_methods/{payment_method}"
ROUTES = (
    Route("POST", "/v1/payment_methods", create, CREATE),
    *reads(_ITEM, "payment_method", "customer", "type", label=_LABEL),
    Route("POST", f"{_ITEM}/attach", attach, ("customer",)),
    *reads("/v1/payment_intents/{intent}", "payment_intent", "customer"),
    Route("GET", "/v1/setup_intents/{intent}", retrieve("setup_intent")),
)
