"""Setup intents: a card for later charges (docs.stripe.com/api/setup_intents)."""

from __future__ import annotations

from stripe_simulator.errors import ApiError, missing_parameter
from stripe_simulator.mode import Call, Mode, Route, new_object, retrieve
from stripe_simulator.resources.payment_methods import attached, card_of, resolved
from stripe_simulator.resources.test_cards import ASK, card_error
from stripe_simulator.store import Object

INDEXED = {"setup_intent": ("payment_method",)}


def create(mode: Mode, call: Call) -> Object:
    """`POST /v1/setup_intents`."""
    params = call.params
    if params.get("customer"):
        mode.fetch("customer", params["customer"], param="customer")
    body = new_object(mode, "setup_intent", "seti", params) | {
        "customer": params.get("customer"),
        "last_setup_error": None,
        "next_action": None,
        "payment_method": None,
        "payment_method_types": ["card"],
        "status": "requires_payment_method",
        "usage": params.get("usage", "off_session"),
    }
    return mode.store.save(body | {"client_secret": f"{body['id']}_secret_{mode.store.new_id('')[1:]}"})


def confirm(mode: Mode, call: Call) -> Object:
    """`POST /v1/setup_intents/{intent}/confirm`. The customer gets the payment method."""
    intent = mode.fetch("setup_intent", call.id)
    if intent["status"] == "succeeded":
        message = "You cannot confirm this SetupIntent because it has already succeeded."
        raise ApiError(400, message, code="setup_intent_unexpected_state", fields={"setup_intent": intent})
    if "payment_method" not in call.params:
        raise missing_parameter("payment_method")
    method = resolved(mode, call.params["payment_method"], "payment_method")
    intent |= {"payment_method": method["id"]}
    if card_of(method).authentication:
        return mode.store.save(intent | ASK, "setup_intent.requires_action")
    return succeeded(mode, intent)


def succeeded(mode: Mode, intent: Object) -> Object:
    """Finish a setup intent, as when the cardholder agreed."""
    if intent["customer"]:
        attached(mode, mode.fetch("payment_method", intent["payment_method"]), intent["customer"])
    return mode.store.save({**intent, "status": "succeeded", "next_action": None}, "setup_intent.succeeded")


def set_up(mode: Mode, method: Object, customer: str, *, agreed: bool) -> Object:
    """Give a customer a card on a hosted page. Raises `ApiError` if the cardholder must agree and has not."""
    intent = create(mode, Call("", {"customer": customer}))
    intent = confirm(mode, Call("", {"payment_method": method["id"]}, (intent["id"],)))
    if intent["status"] == "succeeded":
        return intent
    if not agreed:
        raise card_error("authentication_required")
    return succeeded(mode, mode.fetch("setup_intent", intent["id"]))


ROUTES = (
    Route("POST", "/v1/setup_intents", create, ("customer", "metadata", "usage")),
    Route("GET", "/v1/setup_intents/{intent}", retrieve("setup_intent")),
    Route("POST", "/v1/setup_intents/{intent}/confirm", confirm, ("payment_method",)),
)
