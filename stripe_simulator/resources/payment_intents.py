"""Payment intents, which only charges of invoices create (docs.stripe.com/api/payment_intents)."""

from __future__ import annotations

from stripe_simulator.mode import Route, retrieve
from stripe_simulator.pagination import LIST, listed

INDEXED = {"payment_intent": ("customer", "payment_method")}
ROUTES = (
    Route("GET", "/v1/payment_intents", listed("payment_intent", "customer"), (*LIST, "created", "customer")),
    Route("GET", "/v1/payment_intents/{intent}", retrieve("payment_intent")),
)
