"""Customers and the account, as far as meters need them."""

from __future__ import annotations

import json

from stripe_simulator import forms
from stripe_simulator.errors import ApiError, no_such
from stripe_simulator.forms import Params, Spec
from stripe_simulator.simulator import Simulator

CREATE = Spec(plain=("name", "email", "description", "phone"), open_maps=("metadata",))
LIST = Spec(plain=("email", "starting_after", "ending_before"), integers=("limit",))


def create(simulator: Simulator, livemode: bool, params: Params) -> dict[str, object]:
    """`POST /v1/customers`."""
    fields: dict[str, object] = {name: params[name] for name in CREATE.plain if name in params}
    email = forms.text(params, "email")
    if email and "@" not in email:
        raise ApiError(400, f"Invalid email address: {email}", code="email_invalid", param="email")
    fields["metadata"] = forms.mapping(params, "metadata")
    return simulator.create_customer(livemode, fields)


def retrieve(simulator: Simulator, livemode: bool, identifier: str) -> dict[str, object]:
    """`GET /v1/customers/{id}`."""
    customer = simulator.database.row(
        "SELECT body FROM customers WHERE id = ? AND livemode = ?", (identifier, int(livemode))
    )
    if customer is None:
        raise no_such("customer", identifier, "id")
    body: dict[str, object] = json.loads(customer["body"])
    return body


def list_all(simulator: Simulator, livemode: bool, params: Params) -> dict[str, object]:
    """`GET /v1/customers`, newest first."""
    email = forms.text(params, "email")
    rows = simulator.database.rows("SELECT body FROM customers WHERE livemode = ? ORDER BY seq DESC", (int(livemode),))
    bodies = [json.loads(row["body"]) for row in rows]
    return forms.page([body for body in bodies if not email or body["email"] == email], params, "/v1/customers")


def account(simulator: Simulator) -> dict[str, object]:
    """`GET /v1/account`. Stripe's account has no `livemode`: the API key's prefix gives the mode."""
    return {
        "id": simulator.settings.account,
        "object": "account",
        "business_type": "company",
        "charges_enabled": True,
        "country": "US",
        "default_currency": "usd",
        "details_submitted": True,
        "email": None,
        "metadata": {},
        "payouts_enabled": True,
        "type": "standard",
    }
