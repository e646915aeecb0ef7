"""Payment methods: cards (docs.stripe.com/api/payment_methods)."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Any, Final

from stripe_simulator.mode import Call, Mode, Route, new_object
from stripe_simulator.resources.conventions import Object, Params, reads, require
from stripe_simulator.resources.test_cards import BY_NUMBER, CARDS, Card, card_error, check_number

INDEXED = {"payment_method": ("customer",)}
CREATE: Final = (
    "billing_details", "card[cvc]", "card[exp_month]", "card[exp_year]", "card[number]", "metadata", "type",
)  # fmt: skip
_LABEL: Final = "PaymentMethod"
_YEARS_VALID: Final = 5


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
)
