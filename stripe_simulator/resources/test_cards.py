"""Stripe's test cards (docs.stripe.com/testing): numbers, their `pm_card_…` names, and what a charge of each does."""

from __future__ import annotations

import re
from typing import Final, Literal, NamedTuple

from stripe_simulator.errors import ApiError


class Card(NamedTuple):
    """A test card. `decline_code` empty: charges succeed.

    `attaches`: a customer can have the card although it is declined. `authentication`: the card asks the cardholder at
    every charge, or until the card is set up.
    """

    number: str
    decline_code: str = ""
    attaches: bool = False
    authentication: Literal["", "always", "until_set_up"] = ""
    brand: str = "visa"


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
