"""A customer's credit: the balance, where a negative amount is credit, and credit grants with their ledger.

Sources: docs.stripe.com/api/customer_balance_transactions, docs.stripe.com/api/billing/credit-grant.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

from stripe_simulator.engine.totals import Draw, Grant
from stripe_simulator.errors import require_positive
from stripe_simulator.mode import Call, Mode, Route, new_object
from stripe_simulator.pagination import LIST, page
from stripe_simulator.resources.conventions import Object, check, reads, require

GRANT: Final = "billing.credit_grant"
ENTRY: Final = "billing.credit_balance_transaction"
BALANCE: Final = "customer_balance_transaction"
INDEXED = {BALANCE: ("customer",), GRANT: ("customer",), ENTRY: ("credit_grant",)}
CREATE: Final = (
    "amount", "applicability_config", "category", "customer", "effective_at", "expires_at", "metadata", "name",
    "priority",
)  # fmt: skip
EXPIRE: Final = "credit_grant.expire"
_VOIDED: Final = "credits_application_invoice_voided"


def change_balance(mode: Mode, customer: Object, amount: int, kind: str, currency: str, **fields: object) -> Object:
    """Change a customer's balance by `amount`. Returns the stored transaction."""
    balance = customer["balance"] + amount
    mode.store.save({**customer, "balance": balance, "currency": customer["currency"] or currency})
    nulls = dict.fromkeys(("checkout_session", "credit_note", "description", "invoice"))
    body = new_object(mode, BALANCE, "cbtxn", {}, customer["test_clock"] or "") | nulls
    body |= {"amount": amount, "currency": currency, "customer": customer["id"], "ending_balance": balance}
    return mode.store.put(body | {"type": kind, **fields})


def _create_adjustment(mode: Mode, call: Call) -> Object:
    customer, params = mode.fetch("customer", call.id), call.params
    given = {"description": params.get("description"), "metadata": params.get("metadata") or {}}
    return change_balance(mode, customer, params["amount"], "adjustment", params["currency"], **given)


def _create(mode: Mode, call: Call) -> Object:
    params = call.params
    customer, money = mode.fetch("customer", params.get("customer", ""), param="customer"), params["amount"]
    require(money, "monetary", within="amount")
    require_positive(money["monetary"], "value", within="amount[monetary]")
    clock = customer["test_clock"]
    body = new_object(mode, GRANT, "credgr", params, clock or "")
    defaults = {"category": "paid", "effective_at": body["created"], "expires_at": None, "name": None, "priority": 50}
    given = {name: params[name] for name in CREATE if name in params}
    body = defaults | given | body | {"test_clock": clock, "updated": body["created"], "voided_at": None}
    mode.store.save(body)
    _record(mode, body, "credit", "credits_granted", money["monetary"]["value"])
    if body["expires_at"] is not None:
        mode.clockwork.schedule(body["expires_at"] * 1_000, EXPIRE, {"grant": body["id"]}, clock or "")
    return body


def _expire(mode: Mode, call: Call) -> Object:
    body = mode.fetch(GRANT, call.id)
    return _end(mode, {**body, "expires_at": mode.now_of(body)}, "credits_expired")


def _void(mode: Mode, call: Call) -> Object:
    """Only an unused grant."""
    body = mode.fetch(GRANT, call.id)
    is_unused = _available(mode, body) == body["amount"]["monetary"]["value"]
    check(is_unused, "You cannot void a credit grant that was applied to an invoice.")
    return _end(mode, {**body, "voided_at": mode.now_of(body)}, "credits_voided")


def _list_entries(mode: Mode, call: Call) -> Object:
    customer, where = call.params.get("customer"), {"credit_grant": call.params.get("credit_grant")}
    grants = {body["id"] for body in mode.store.newest(GRANT, "customer" if customer else "", customer)}
    return page(mode, call, ENTRY, where, lambda body: body["credit_grant"] in grants)


def _summary(mode: Mode, call: Call) -> Object:
    """For each currency, what the ledger has, and what of that can be used now."""
    customer, wanted = mode.fetch("customer", call.params.get("customer", ""), param="customer"), call.params["filter"]
    totals, usable = Counter[str](), Counter[str]()
    for body in mode.store.newest(GRANT, "customer", customer["id"]):
        if wanted["type"] == "applicability_scope" or body["id"] == wanted.get("credit_grant"):
            currency, available = body["amount"]["monetary"]["currency"], _available(mode, body)
            totals[currency] += available
            usable[currency] += available if body["effective_at"] <= mode.now_of(body) else 0
    balances = [
        {"available_balance": _money(usable[currency], currency), "ledger_balance": _money(total, currency)}
        for currency, total in totals.items()
    ]
    kind = "billing.credit_balance_summary"
    return {"object": kind, "balances": balances, "customer": customer["id"], "livemode": mode.livemode}


def grants_of(mode: Mode, customer: str, currency: str) -> list[Grant]:
    """The engine's form of a customer's grants, oldest first."""
    names = ("id", "priority", "category", "effective_at", "expires_at", "created")
    return [
        Grant(
            available=_available(mode, body),
            prices=frozenset(price["id"] for price in body["applicability_config"]["scope"].get("prices") or ()),
            **{name: body[name] for name in names},
        )
        for body in mode.store.newest(GRANT, "customer", customer)
        if body["amount"]["monetary"]["currency"] == currency
    ][::-1]


def apply(mode: Mode, invoice: Object, lines: Sequence[Object], draws: Sequence[Draw]) -> dict[int, list[Object]]:
    """Take from the grants what an invoice draws. Returns the entries of `pretax_credit_amounts` by line number."""
    entries: dict[int, list[Object]] = {}
    for draw in draws:
        source = {"invoice": invoice["id"], "invoice_line_item": lines[draw.line]["id"]}
        grant = mode.fetch(GRANT, draw.grant)
        entry = _record(mode, grant, "debit", "credits_applied", draw.amount, credits_applied=source)
        credit = {"amount": draw.amount, "credit_balance_transaction": entry["id"]}
        entries.setdefault(draw.line, []).append({**credit, "type": "credit_balance_transaction"})
    return entries


def reinstate(mode: Mode, invoice: Object) -> None:
    """Give back what a voided invoice drew. What a grant that has expired gets back expires at once."""
    for credit in invoice["total_pretax_credit_amounts"]:
        entry = mode.store.get(ENTRY, credit.get("credit_balance_transaction", ""))
        if entry:
            grant, source = mode.fetch(GRANT, entry["credit_grant"]), entry["debit"]["credits_applied"]
            _record(mode, grant, "credit", _VOIDED, credit["amount"], **{_VOIDED: source})
            if grant["expires_at"] is not None and grant["expires_at"] <= mode.now_of(grant):
                _end(mode, grant, "credits_expired")


def _end(mode: Mode, body: Object, kind: str) -> Object:
    left = _available(mode, body)
    if not left:
        return body
    _record(mode, body, "debit", kind, left)
    return mode.store.save({**body, "updated": mode.now_of(body)})


def _available(mode: Mode, body: Object) -> int:
    sums = {"credit": 0, "debit": 0}
    for entry in mode.store.newest(ENTRY, "credit_grant", body["id"]):
        sums[entry["type"]] += entry[entry["type"]]["amount"]["monetary"]["value"]
    return sums["credit"] - sums["debit"]


def _money(value: int, currency: str) -> Object:
    return {"monetary": {"currency": currency, "value": value}, "type": "monetary"}


def _record(mode: Mode, grant: Object, side: str, kind: str, amount: int, **source: Object) -> Object:
    """Store an entry of the ledger: a credit or a debit."""
    now_s = mode.now_of(grant)
    body = {
        "id": mode.store.new_id("cbtxn"), "object": ENTRY, "created": now_s, "credit": None, "debit": None,
        "credit_grant": grant["id"], "effective_at": now_s, "livemode": mode.livemode,
        "test_clock": grant["test_clock"], "type": side,
    }  # fmt: skip
    body[side] = {**source, "amount": _money(amount, grant["amount"]["monetary"]["currency"]), "type": kind}
    return mode.store.save(body)


_BALANCE: Final = "/v1/customers/{customer}/balance_transactions"
_PATH: Final = "/v1/billing/credit_grants"
JOBS = {EXPIRE: lambda mode, arguments: _end(mode, mode.fetch(GRANT, arguments["grant"]), "credits_expired")}
ROUTES = (
    Route("POST", _BALANCE, _create_adjustment, ("amount", "currency", "description", "metadata")),
    Route("GET", _BALANCE, lambda mode, call: page(mode, call, BALANCE, {"customer": call.id}), LIST),
    Route("POST", _PATH, _create, CREATE),
    *reads(f"{_PATH}/{{id}}", GRANT, "customer", label="credit grant"),
    Route("POST", f"{_PATH}/{{id}}/expire", _expire),
    Route("POST", f"{_PATH}/{{id}}/void", _void),
    Route("GET", "/v1/billing/credit_balance_transactions", _list_entries, (*LIST, "credit_grant", "customer")),
    Route("GET", "/v1/billing/credit_balance_summary", _summary, ("customer", "filter")),
)
