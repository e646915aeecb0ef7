"""The customer's balance (docs.stripe.com/api/customer_balance_transactions). A negative balance is credit."""

from __future__ import annotations

from stripe_simulator.mode import Call, Mode, Route
from stripe_simulator.pagination import LIST, page
from stripe_simulator.store import Object

KIND = "customer_balance_transaction"
PATH = "/v1/customers/{customer}/balance_transactions"
INDEXED = {KIND: ("customer",)}


def create(mode: Mode, call: Call) -> Object:
    """`POST /v1/customers/{customer}/balance_transactions`."""
    customer, params = mode.fetch("customer", call.id), call.params
    given = {"description": params.get("description"), "metadata": params.get("metadata") or {}}
    return record(mode, customer, params["amount"], "adjustment", currency=params["currency"], **given)


def record(mode: Mode, customer: Object, amount: int, kind: str, *, currency: str, **fields: object) -> Object:
    """Change a customer's balance by `amount` and store the transaction, which is returned."""
    balance = customer["balance"] + amount
    mode.store.save({**customer, "balance": balance, "currency": customer["currency"] or currency})
    body: Object = {
        "id": mode.store.new_id("cbtxn"),
        "object": KIND,
        **dict.fromkeys(("checkout_session", "credit_note", "description", "invoice")),
        "amount": amount,
        "created": mode.now_s(customer["test_clock"] or ""),
        "currency": currency,
        "customer": customer["id"],
        "ending_balance": balance,
        "livemode": mode.livemode,
        "metadata": {},
        "type": kind,
    }
    return mode.store.put(body | fields)


def list_all(mode: Mode, call: Call) -> Object:
    """`GET /v1/customers/{customer}/balance_transactions`."""
    return page(mode, call, KIND, {"customer": mode.fetch("customer", call.id)["id"]})


ROUTES = (
    Route("POST", PATH, create, ("amount", "currency", "description", "metadata")),
    Route("GET", PATH, list_all, LIST),
)
