"""Payment intents, which charges of invoices create (docs.stripe.com/api/payment_intents)."""

from __future__ import annotations

from stripe_simulator import payments
from stripe_simulator.errors import ApiError, missing_parameter
from stripe_simulator.mode import Call, Mode, Route, retrieve
from stripe_simulator.pagination import LIST, listed
from stripe_simulator.resources.payment_methods import resolved
from stripe_simulator.resources.test_cards import card_error
from stripe_simulator.store import Object

INDEXED = {"payment_intent": ("customer", "payment_method")}


def confirm(mode: Mode, call: Call) -> Object:
    """`POST /v1/payment_intents/{intent}/confirm`: one attempt with a payment method, for an invoice too."""
    intent = mode.fetch("payment_intent", call.id, "payment_intent")
    if intent["status"] in ("succeeded", "canceled"):
        message = f"You cannot confirm this PaymentIntent because it has a status of {intent['status']}."
        code = "payment_intent_unexpected_state"
        raise ApiError(400, message, code=code, fields={"payment_intent": intent})
    chosen = call.params.get("payment_method") or intent["payment_method"]
    if chosen is None:
        raise missing_parameter("payment_method")
    method = resolved(mode, chosen, "payment_method")
    outcome = payments.settle(mode, intent, method)
    intent = mode.fetch("payment_intent", call.id)
    if outcome.status == "declined":
        raise card_error(outcome.decline_code, charge=intent["latest_charge"], payment_intent=intent)
    return intent


ROUTES = (
    Route("GET", "/v1/payment_intents", listed("payment_intent", "customer"), (*LIST, "created", "customer")),
    Route("GET", "/v1/payment_intents/{intent}", retrieve("payment_intent")),
    Route("POST", "/v1/payment_intents/{intent}/confirm", confirm, ("payment_method",)),
)
