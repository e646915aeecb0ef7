"""Customers (docs.stripe.com/api/customers)."""

from __future__ import annotations

from typing import Final

from stripe_simulator.mode import Call, Mode, Route, new_object
from stripe_simulator.pagination import LIST, page
from stripe_simulator.resources.conventions import Params, changed, check
from stripe_simulator.resources.subscription_changes import ENDED, end
from stripe_simulator.store import Object, copied

INDEXED = {"customer": ("email",)}
FIELDS: Final = ("address", "balance", "description", "email", "name", "phone", "tax_exempt")
_METHOD: Final = "invoice_settings[default_payment_method]"
_UPDATE: Final = (*FIELDS, _METHOD, "metadata")
_NULL: Final = (*FIELDS, "currency", "default_source", "discount", "shipping")
_ADDRESS: Final = ("city", "country", "line1", "line2", "postal_code", "state")


def create(mode: Mode, call: Call) -> Object:
    """A customer of the real clock or of a test clock."""
    if clock := call.params.get("test_clock"):
        mode.fetch("test_helpers.test_clock", clock, "test clock", "test_clock")
    return new(mode, call.params)


def new(mode: Mode, params: Params, identifier: str = "") -> Object:
    """Store a customer with the parameters of a creation, under its own id if one is given."""
    clock = params.get("test_clock")
    body: Object = dict.fromkeys(_NULL) | new_object(mode, "customer", "cus", {"id": identifier}, clock or "")
    body |= {
        "balance": 0, "delinquent": False, "invoice_prefix": mode.store.new_id("", 8)[1:].upper(),
        "invoice_settings": dict.fromkeys(("custom_fields", "default_payment_method", "footer", "rendering_options")),
        "next_invoice_sequence": 1, "preferred_locales": [], "tax_exempt": "none", "test_clock": clock,
    }  # fmt: skip
    return mode.store.save(_changed(mode, body, params))


def update(mode: Mode, call: Call) -> Object:
    """Change the given fields."""
    return mode.store.save(_changed(mode, mode.fetch("customer", call.id), call.params))


def delete(mode: Mode, call: Call) -> Object:
    """The customer's subscriptions are canceled."""
    body = mode.fetch("customer", call.id)
    for subscription in list(mode.store.newest("subscription", "customer", call.id)):
        if subscription["status"] not in ENDED:
            end(mode, copied(subscription), mode.now_of(subscription))
    return mode.store.delete(body)


def _retrieve(mode: Mode, call: Call) -> Object:
    """Stripe answers for a deleted customer too."""
    if mode.store.get("customer", call.id) is None and mode.store.place("customer", call.id) is not None:
        return {"id": call.id, "object": "customer", "deleted": True}
    return mode.fetch("customer", call.id)


def _list(mode: Mode, call: Call) -> Object:
    """Customers of a test clock are listed only for their clock."""
    clock = call.params.get("test_clock")
    return page(mode, call, "customer", {"email": call.params.get("email")}, lambda body: body["test_clock"] == clock)


def _changed(mode: Mode, body: Object, params: Params) -> Object:
    email = params.get("email")
    check(not email or "@" in email, f"Invalid email address: {email}", "email", "email_invalid")
    body = changed(body, params, FIELDS)
    # A cleared field has this value at Stripe, not null.
    body["tax_exempt"] = body["tax_exempt"] or "none"
    if params.get("address"):
        body["address"] = {name: params["address"].get(name) or None for name in _ADDRESS}
    settings = params.get("invoice_settings", {})
    if method := settings.get("default_payment_method"):
        owner = mode.fetch("payment_method", method, "PaymentMethod", _METHOD)["customer"]
        message = f"The payment method {method} must be attached to the customer {body['id']}."
        check(owner == body["id"], message, _METHOD)
    return body | {"invoice_settings": body["invoice_settings"] | settings}


ROUTES = (
    Route("POST", "/v1/customers", create, (*_UPDATE, "test_clock")),
    Route("GET", "/v1/customers", _list, (*LIST, "created", "email", "test_clock")),
    Route("GET", "/v1/customers/{customer}", _retrieve),
    Route("POST", "/v1/customers/{customer}", update, _UPDATE),
    Route("DELETE", "/v1/customers/{customer}", delete),
)
