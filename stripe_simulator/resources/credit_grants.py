"""Credit grants and their ledger (docs.stripe.com/api/billing/credit-grant)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stripe_simulator.engine.credits import Draw, Grant
from stripe_simulator.errors import ApiError
from stripe_simulator.metadata import merged
from stripe_simulator.mode import Call, Mode, Route
from stripe_simulator.pagination import LIST, page
from stripe_simulator.store import Object

KIND = "billing.credit_grant"
LEDGER = "billing.credit_balance_transaction"
INDEXED = {KIND: ("customer",), LEDGER: ("credit_grant",)}
CREATE = (
    "amount", "applicability_config", "category", "customer", "effective_at", "expires_at", "metadata", "name",
    "priority",
)  # fmt: skip
EXPIRE = "credit_grant.expire"


def create(mode: Mode, call: Call) -> Object:
    """`POST /v1/billing/credit_grants`."""
    params = call.params
    customer = mode.fetch("customer", params.get("customer", ""), param="customer")
    clock = customer["test_clock"]
    now_s = mode.now_s(clock or "")
    body = {
        "id": mode.store.new_id("credgr"),
        "object": KIND,
        "amount": params["amount"],
        "applicability_config": params["applicability_config"],
        "category": params.get("category", "paid"),
        "created": now_s,
        "customer": customer["id"],
        "effective_at": params.get("effective_at", now_s),
        "expires_at": params.get("expires_at"),
        "livemode": mode.livemode,
        "metadata": params.get("metadata") or {},
        "name": params.get("name"),
        "priority": params.get("priority", 50),
        "test_clock": clock,
        "updated": now_s,
        "voided_at": None,
    }
    mode.store.save(body)
    _record(mode, body, "credit", "credits_granted", body["amount"]["monetary"]["value"])
    _schedule_expiry(mode, body)
    return body


def retrieve(mode: Mode, call: Call) -> Object:
    """`GET /v1/billing/credit_grants/{id}`."""
    return mode.fetch(KIND, call.id)


def update(mode: Mode, call: Call) -> Object:
    """`POST /v1/billing/credit_grants/{id}`."""
    body = mode.fetch(KIND, call.id)
    if "metadata" in call.params:
        body["metadata"] = merged(body["metadata"], call.params["metadata"])
    if "expires_at" in call.params:
        body["expires_at"] = call.params["expires_at"]
        _schedule_expiry(mode, body)
    return mode.store.save({**body, "updated": _now_s(mode, body)})


def expire(mode: Mode, call: Call) -> Object:
    """`POST /v1/billing/credit_grants/{id}/expire`."""
    body = mode.fetch(KIND, call.id)
    return _end(mode, {**body, "expires_at": _now_s(mode, body)}, "credits_expired")


def void(mode: Mode, call: Call) -> Object:
    """`POST /v1/billing/credit_grants/{id}/void`: only an unused grant."""
    body = mode.fetch(KIND, call.id)
    if _available(mode, body) != body["amount"]["monetary"]["value"]:
        raise ApiError(400, "You cannot void a credit grant that was applied to an invoice.")
    return _end(mode, {**body, "voided_at": _now_s(mode, body)}, "credits_voided")


def list_all(mode: Mode, call: Call) -> Object:
    """`GET /v1/billing/credit_grants`."""
    return page(mode, call, KIND, {"customer": call.params.get("customer")})


def list_ledger(mode: Mode, call: Call) -> Object:
    """`GET /v1/billing/credit_balance_transactions`."""
    customer, grant = call.params.get("customer"), call.params.get("credit_grant")
    grants = {body["id"] for body in mode.store.newest(KIND, "customer", customer)}
    return page(mode, call, LEDGER, {"credit_grant": grant}, lambda body: body["credit_grant"] in grants)


def summary(mode: Mode, call: Call) -> Object:
    """`GET /v1/billing/credit_balance_summary`: what the ledger has, and what is usable now."""
    customer, wanted = call.params.get("customer", ""), call.params["filter"]
    balances: dict[str, list[int]] = {}
    for body in mode.store.newest(KIND, "customer", customer):
        if wanted["type"] == "credit_grant" and body["id"] != wanted.get("credit_grant"):
            continue
        sums = balances.setdefault(body["amount"]["monetary"]["currency"], [0, 0])
        sums[0] += _available(mode, body)
        sums[1] += _available(mode, body) if _usable(mode, body) else 0
    return {
        "object": "billing.credit_balance_summary",
        "balances": [
            {"available_balance": _money(usable, currency), "ledger_balance": _money(ledger, currency)}
            for currency, (ledger, usable) in balances.items()
        ],
        "customer": customer,
        "livemode": mode.livemode,
    }


def grants_of(mode: Mode, customer: str, currency: str) -> list[Grant]:
    """The engine's form of a customer's grants."""
    return [
        Grant(
            body["id"],
            _available(mode, body),
            body["priority"],
            body["category"],
            body["effective_at"],
            body["expires_at"],
            body["created"],
            frozenset(price["id"] for price in body["applicability_config"]["scope"].get("prices") or ()),
        )
        for body in mode.store.newest(KIND, "customer", customer)
        if body["amount"]["monetary"]["currency"] == currency
    ][::-1]


def apply(mode: Mode, invoice: Object, lines: Sequence[Object], draws: Sequence[Draw]) -> dict[int, list[Object]]:
    """Take from the grants what the invoice draws. Returns the entries of `pretax_credit_amounts` by line."""
    entries: dict[int, list[Object]] = {}
    for draw in draws:
        source = {"invoice": invoice["id"], "invoice_line_item": lines[draw.line]["id"]}
        grant = mode.fetch(KIND, draw.grant)
        entry = _record(mode, grant, "debit", "credits_applied", draw.amount, credits_applied=source)
        credit = {"amount": draw.amount, "credit_balance_transaction": entry["id"]}
        entries.setdefault(draw.line, []).append({**credit, "type": "credit_balance_transaction"})
    return entries


def reinstate(mode: Mode, invoice: Object) -> None:
    """Give back what a voided invoice drew."""
    for credit in invoice["total_pretax_credit_amounts"]:
        entry = mode.store.get(LEDGER, credit.get("credit_balance_transaction") or "")
        if entry is not None:
            grant, source = mode.fetch(KIND, entry["credit_grant"]), entry["debit"]["credits_applied"]
            kind = "credits_application_invoice_voided"
            _record(mode, grant, "credit", kind, credit["amount"], **{kind: source})


def run_expire(mode: Mode, arguments: dict[str, Any]) -> None:
    """The job of a grant's expiry."""
    body = mode.fetch(KIND, arguments["grant"])
    if body["expires_at"] == _now_s(mode, body) and not body["voided_at"]:
        _end(mode, body, "credits_expired")


def _schedule_expiry(mode: Mode, body: Object) -> None:
    if body["expires_at"] is not None:
        mode.clockwork.schedule(body["expires_at"] * 1_000, EXPIRE, {"grant": body["id"]}, body["test_clock"] or "")


def _end(mode: Mode, body: Object, kind: str) -> Object:
    left = _available(mode, body)
    if left:
        _record(mode, body, "debit", kind, left)
    return mode.store.save({**body, "updated": _now_s(mode, body)})


def _now_s(mode: Mode, body: Object) -> int:
    return mode.now_s(body["test_clock"] or "")


def _usable(mode: Mode, body: Object) -> bool:
    return bool(body["effective_at"] <= _now_s(mode, body) and not body["voided_at"])


def _available(mode: Mode, body: Object) -> int:
    entries = mode.store.newest(LEDGER, "credit_grant", body["id"])
    sums = {"credit": 0, "debit": 0}
    for entry in entries:
        sums[entry["type"]] += entry[entry["type"]]["amount"]["monetary"]["value"]
    return sums["credit"] - sums["debit"]


def _money(value: int, currency: str) -> Object:
    return {"monetary": {"currency": currency, "value": value}, "type": "monetary"}


def _record(mode: Mode, grant: Object, side: str, kind: str, amount: int, **source: Object) -> Object:
    defaults = ("credits_applied",) if side == "debit" else ("credits_application_invoice_voided",)
    currency = grant["amount"]["monetary"]["currency"]
    details = {**dict.fromkeys(defaults), **source, "amount": _money(amount, currency), "type": kind}
    now_s = _now_s(mode, grant)
    body = {
        "id": mode.store.new_id("cbtxn"),
        "object": LEDGER,
        "credit": None,
        "debit": None,
        side: details,
        "created": now_s,
        "credit_grant": grant["id"],
        "effective_at": now_s,
        "livemode": mode.livemode,
        "test_clock": grant["test_clock"],
        "type": side,
    }
    return mode.store.save(body)


ROUTES = (
    Route("POST", "/v1/billing/credit_grants", create, CREATE),
    Route("GET", "/v1/billing/credit_grants", list_all, (*LIST, "customer")),
    Route("GET", "/v1/billing/credit_grants/{id}", retrieve),
    Route("POST", "/v1/billing/credit_grants/{id}", update, ("expires_at", "metadata")),
    Route("POST", "/v1/billing/credit_grants/{id}/expire", expire),
    Route("POST", "/v1/billing/credit_grants/{id}/void", void),
    Route("GET", "/v1/billing/credit_balance_transactions", list_ledger, (*LIST, "credit_grant", "customer")),
    Route("GET", "/v1/billing/credit_balance_summary", summary, ("customer", "filter")),
)
JOBS = {EXPIRE: run_expire}
