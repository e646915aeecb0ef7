"""Payment and setup intents (docs.stripe.com/api/payment_intents, …/setup_intents). `payments` creates them."""

from __future__ import annotations

from stripe_simulator.mode import Route, retrieve
from stripe_simulator.resources.conventions import reads

INDEXED = {"payment_intent": ("customer", "payment_method"), "setup_intent": ("payment_method",)}
ROUTES = (
    *reads("/v1/payment_intents/{intent}", "payment_intent", "customer"),
    Route("GET", "/v1/setup_intents/{intent}", retrieve("setup_intent")),
)
