"""Customers (docs.stripe.com/api/customers)."""

from __future__ import annotations

from typing import Any, Final

from stripe_simulator.contract.parameters import Params
from stripe_simulator.errors import ApiError, no_such
from stripe_simulator.metadata import merged
from stripe_simulator.mode import Call, Mode, Route
from stripe_simulator.pagination import LIST, page
from stripe_simulator.resources.subscription_changes import ENDED, end
from stripe_simulator.store import Object, copied

INDEXED = {"customer": ("email",)}
FIELDS: Final = (
    "address", "balance", "business_name", "description", "email", "individual_name", "invoice_prefix", "name",
    "next_invoice_sequence", "phone", "preferred_locales", "shipping", "tax_exempt",
)  # fmt: skip
UPDATE: Final = (*FIELDS, "invoice_settings", "metadata")
CREATE: Final = (*UPDATE, "test_clock")
_ADDRESS: Final = ("city", "country", "line1", "line2", "postal_code", "state")


def create(mode: Mode, call: Call) -> Object:
    """`POST /v1/customers`."""
    clock = call.params.get("test_clock")
    if clock is not None and mode.store.get("test_helpers.test_clock", clock) is None:
        raise no_such("test clock", clock, "test_clock", 400)
    return new(mode, call.params)


def new(mode: Mode, params: Params, identifier: str = "") -> Object:
    """Store a customer with the parameters of a creation, under its own id if one is given."""
    identifier = identifier or mode.store.new_id("cus")
    body: Object = {
        "id": identifier,
        "object": "customer",
        "address": None,
        "balance": 0,
        "created": mode.now_s(params.get("test_clock") or ""),
        "currency": None,
        "default_source": None,
        "delinquent": False,
        "description": None,
        "discount": None,
        "email": None,
        "invoice_prefix": mode.store.new_id("", 8)[1:].upper(),
        "invoice_settings": {
            "custom_fields": None,
            "default_payment_method": None,
            "footer": None,
            "rendering_options": None,
        },
        "livemode": mode.livemode,
        "metadata": {},
        "name": None,
        "next_invoice_sequence": 1,
        "phone": None,
        "preferred_locales": [],
        "shipping": None,
        "tax_exempt": "none",
        "test_clock": params.get("test_clock"),
    }
    return mode.store.save(_changed(mode, body, params))


def retrieve(mode: Mode, call: Call) -> Object:
    """`GET /v1/customers/{customer}`. Stripe answers for a deleted customer too."""
    if mode.store.get("customer", call.id) is None and mode.store.place("customer", call.id) is not None:
        return {"id": call.id, "object": "customer", "deleted": True}
    return mode.fetch("customer", call.id)


def update(mode: Mode, call: Call) -> Object:
    """`POST /v1/customers/{customer}`."""
    return mode.store.save(_changed(mode, mode.fetch("customer", call.id), call.params))


def delete(mode: Mode, call: Call) -> Object:
    """`DELETE /v1/customers/{customer}`: the customer's subscriptions are canceled."""
    body = mode.fetch("customer", call.id)
    for subscription in list(mode.store.newest("subscription", "customer", call.id)):
        if subscription["status"] not in ENDED:
            end(mode, copied(subscription), mode.now_s(subscription["test_clock"] or ""))
    return mode.store.delete(body)


def list_all(mode: Mode, call: Call) -> Object:
    """`GET /v1/customers`. Customers of a test clock are listed only for their clock."""
    clock = call.params.get("test_clock")
    return page(mode, call, "customer", {"email": call.params.get("email")}, lambda body: body["test_clock"] == clock)


def _changed(mode: Mode, body: Object, params: Params) -> Object:
    email = params.get("email")
    if email and "@" not in email:
        raise ApiError(400, f"Invalid email address: {email}", code="email_invalid", param="email")
    body |= {name: params[name] for name in FIELDS if name in params}
    # Cleared fields have these values at Stripe, not null.
    body["tax_exempt"] = body["tax_exempt"] or "none"
    if params.get("address"):
        body["address"] = _address(params["address"])
    if params.get("shipping"):
        shipping = params["shipping"]
        body["shipping"] = {"phone": None, **shipping, "address": _address(shipping["address"])}
    if "metadata" in params:
        body["metadata"] = merged(body["metadata"], params["metadata"])
    if "invoice_settings" in params:
        body["invoice_settings"] |= _invoice_settings(mode, body, params["invoice_settings"])
    return body


def _address(params: Params) -> dict[str, Any]:
    return {name: params.get(name) or None for name in _ADDRESS}


def _invoice_settings(mode: Mode, body: Object, params: Params) -> Params:
    method = params.get("default_payment_method")
    if method is not None:
        stored = mode.store.get("payment_method", method)
        if stored is None:
            raise no_such("PaymentMethod", method, "invoice_settings[default_payment_method]", 400)
        if stored["customer"] != body["id"]:
            message = f"The payment method {method} must be attached to the customer {body['id']}."
            raise ApiError(400, message, param="invoice_settings[default_payment_method]")
    rendering = params.get("rendering_options")
    if rendering:
        params = {**params, "rendering_options": {"amount_tax_display": None, "template": None, **rendering}}
    return params


ROUTES = (
    Route("POST", "/v1/customers", create, CREATE),
    Route("GET", "/v1/customers", list_all, (*LIST, "created", "email", "test_clock")),
    Route("GET", "/v1/customers/{customer}", retrieve),
    Route("POST", "/v1/customers/{customer}", update, UPDATE),
    Route("DELETE", "/v1/customers/{customer}", delete),
)
