"""Refunds of payments by card (docs.stripe.com/api/refunds). They succeed at once."""

from __future__ import annotations

from stripe_simulator.errors import ApiError
from stripe_simulator.mode import Call, Mode, Route, new_object, retrieve
from stripe_simulator.pagination import LIST, listed
from stripe_simulator.store import Object

INDEXED = {"refund": ("payment_intent",)}


def create(mode: Mode, call: Call) -> Object:
    """`POST /v1/refunds` of a PaymentIntent: without an amount, of what is left."""
    params = call.params
    fields = {"metadata": params.get("metadata") or {}, "reason": params.get("reason")}
    return refund(mode, params.get("payment_intent", ""), params.get("amount"), **fields)


def refund(mode: Mode, payment_intent: str, amount: int | None, **fields: object) -> Object:
    """Refund a payment and return the stored refund. Raises `ApiError` for more than what is left of the payment."""
    intent = mode.fetch("payment_intent", payment_intent, param="payment_intent")
    done = sum(body["amount"] for body in mode.store.newest("refund", "payment_intent", payment_intent))
    left = intent["amount_received"] - done
    amount = left if amount is None else amount
    if not 0 < amount <= left:
        code = "charge_already_refunded" if left == 0 else None
        raise ApiError(
            400, f"Refund amount ({amount}) is greater than what is left ({left}).", code=code, param="amount"
        )
    body = new_object(mode, "refund", "re", {}, mode.clock_of(intent["customer"]))
    del body["livemode"]
    body |= {
        "amount": amount, "currency": intent["currency"], "customer": intent["customer"], "reason": None,
        "payment_intent": payment_intent, "status": "succeeded", **fields,
    }  # fmt: skip
    return mode.store.save(body)


ROUTES = (
    Route("POST", "/v1/refunds", create, ("amount", "metadata", "payment_intent", "reason")),
    Route("GET", "/v1/refunds", listed("refund", "payment_intent"), (*LIST, "payment_intent")),
    Route("GET", "/v1/refunds/{refund}", retrieve("refund")),
)
