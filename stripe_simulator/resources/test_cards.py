"""Stripe's test cards (docs.stripe.com/testing): numbers, their `pm_card_…` names, and what a charge of each does."""

from __future__ import annotations

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
    "pm_card_visa_debit": Card("4000056655665556"),
    "pm_card_mastercard": Card("5555555555554444", brand="mastercard"),
    "pm_card_amex": Card("378282246310005", brand="amex"),
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
    "pm_card_threeDSecure2Required": Card("4000000000003220", authentication="always"),
}
BY_NUMBER: Final = {card.number: card for card in CARDS.values()}
MESSAGES: Final = {
    "insufficient_funds": "Your card has insufficient funds.",
    "expired_card": "Your card has expired.",
    "incorrect_cvc": "Your card's security code is incorrect.",
    "incorrect_number": "Your card number is incorrect.",
    "invalid_expiry_month": "Your card's expiration month is invalid.",
    "invalid_expiry_year": "Your card's expiration year is invalid.",
    "processing_error": "An error occurred while processing your card. Try again in a little bit.",
    "authentication_required": "Your card was declined. This transaction requires authentication.",
}


def code_of(decline_code: str) -> str:
    """The error code of a decline. Codes that are no error code of their own are `card_declined`."""
    own = decline_code in MESSAGES and decline_code != "insufficient_funds"
    return decline_code if own else "card_declined"


def card_error(decline_code: str, **fields: object) -> ApiError:
    """402 of a declined card. What the request stored before the error stays."""
    message = MESSAGES.get(decline_code, "Your card was declined.")
    fields = {"decline_code": decline_code, **fields}
    return ApiError(402, message, kind="card_error", code=code_of(decline_code), fields=fields, kept=True)


def passes_luhn(number: str) -> bool:
    """Whether the check digit of a card number is right."""
    digits = [int(digit) * (1 + place % 2) for place, digit in enumerate(reversed(number))]
    return sum(digit - 9 if digit > 9 else digit for digit in digits) % 10 == 0
