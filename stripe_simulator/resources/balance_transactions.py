"""The customer's balance (docs.stripe.com/api/customer_balance_transactions). A negative balance is credit."""

from __future__ import annotations

from typing import Final

from stripe_simulator.mode import Call, Mode, Route, new_object
from stripe_simulator.pagination import LIST, page
from stripe_simulator.resources.conventions import Object

KIND: Final = "customer_balance_transaction"
PATH: Final = "/v1/customers/{customer}/balance_transactions"
INDEXED = {KIND: ("customer",)}


def record(mode: Mode, customer: Object, amount: int, kind: str, currency: str, **fields: object) -> Object:
    """Change a customer's balance by `amount`. Returns the stored transaction."""
    balance = customer["balance"] + amount
    mode.store.save({**customer, "balance": balance, "currency": customer["currency"] or currency})
    nulls = dict.fromkeys(("checkout_session", "credit_note", "description", "invoice"))
    body = new_object(mode, KIND, "cbtxn", {}, customer["test_clock"] or "") | nulls
    body |= {"amount": amount, "currency": currency, "customer": customer["id"], "ending_balance": balance}
    return mode.store.put(body | {"type": kind, **fields})


def _create(mode: Mode, call: Call) -> Object:
    customer, params = mode.fetch("customer", call.id), call.params
    given = {"description": params.get("description"), "metadata": params.get("metadata") or {}}
    return record(mode, customer, params["amount"], "adjustment", params["currency"], **given)


ROUTES = (
    Route("POST", PATH, _create, ("amount", "currency", "description", "metadata")),
    Route("GET", PATH, lambda mode, call: page(mode, call, KIND, {"customer": call.id}), LIST),
)
