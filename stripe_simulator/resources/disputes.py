"""Disputes: a customer's bank takes a payment back (docs.stripe.com/api/disputes).

The test card `pm_card_createDispute` pays, and each of its payments is disputed at once.
"""

from __future__ import annotations

from stripe_simulator.mode import Mode, Route, new_object, retrieve
from stripe_simulator.pagination import LIST, listed
from stripe_simulator.resources.conventions import Object
from stripe_simulator.resources.payment_methods import card_of

INDEXED = {"dispute": ("payment_intent",)}


def _follow(mode: Mode, event: Object) -> None:
    """Dispute the payment that an event says has succeeded, if its card asks for that."""
    intent = event["data"]["object"]
    if event["type"] == "payment_intent.succeeded":
        method = mode.store.get("payment_method", intent["payment_method"] or "")
        if method is not None and card_of(method).disputes:
            dispute(mode, intent)


def dispute(mode: Mode, intent: Object, reason: str = "fraudulent") -> Object:
    """Dispute the whole amount of a payment."""
    body = new_object(mode, "dispute", "du", {}, mode.clock_of(intent["customer"]))
    return mode.store.save(body | {
        "amount": intent["amount_received"], "balance_transactions": [], "charge": mode.store.new_id("ch"),
        "currency": intent["currency"], "enhanced_eligibility_types": [], "evidence": {"enhanced_evidence": {}},
        "evidence_details": {
            "due_by": None, "enhanced_eligibility": {}, "has_evidence": False, "past_due": False, "submission_count": 0,
            "submission_method": "not_submitted",
        },
        "is_charge_refundable": False, "payment_intent": intent["id"], "reason": reason, "status": "needs_response",
    })  # fmt: skip


SUBSCRIBERS = (_follow,)
ROUTES = (
    Route("GET", "/v1/disputes/{dispute}", retrieve("dispute")),
    Route("GET", "/v1/disputes", listed("dispute", "payment_intent"), (*LIST, "payment_intent", "created")),
)
