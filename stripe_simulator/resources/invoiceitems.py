"""Invoice items (docs.stripe.com/api/invoiceitems)."""

from __future__ import annotations

from fractions import Fraction

from stripe_simulator import invoicing
from stripe_simulator.engine.amounts import rounded
from stripe_simulator.engine.lines import Line
from stripe_simulator.engine.periods import Period
from stripe_simulator.engine.tiers import exact_total
from stripe_simulator.errors import ApiError, missing_parameter
from stripe_simulator.invoice_lines import line_of_item, new_item
from stripe_simulator.metadata import merged
from stripe_simulator.mode import Call, Mode, Route
from stripe_simulator.pagination import LIST, matches, page_of
from stripe_simulator.resources import prices
from stripe_simulator.store import Object

INDEXED = {"invoiceitem": ("customer",)}
CREATE = (
    "amount", "currency", "customer", "description", "discountable", "invoice", "metadata", "period", "pricing[price]",
    "quantity", "subscription", "unit_amount_decimal",
)  # fmt: skip
UPDATE = ("amount", "description", "discountable", "metadata", "period")


def create(mode: Mode, call: Call) -> Object:
    """`POST /v1/invoiceitems`: a pending item, or with `invoice` a line of that draft."""
    params = call.params
    customer = mode.fetch("customer", params.get("customer", ""), param="customer")
    draft = _draft(mode, params["invoice"]) if "invoice" in params else None
    parent = None
    if "subscription" in params:
        owner = mode.fetch("subscription", params["subscription"], param="subscription")["id"]
        details = {"subscription": owner, "subscription_item": None}
        parent = {"subscription_details": details, "type": "subscription_details"}
    line, currency = _line(mode, call, mode.now_s(customer["test_clock"] or ""))
    fields = {"invoice": draft and draft["id"], "parent": parent, "metadata": merged({}, params.get("metadata"))}
    if "description" in params or not line.price:
        fields["description"] = params.get("description")
    item = mode.store.save(new_item(mode, customer, line, currency, **fields))
    if draft:
        invoicing.set_lines(mode, draft, [*invoicing.lines_of(mode, draft), line_of_item(mode, draft, item)])
        mode.store.save(draft)
    return item


def retrieve(mode: Mode, call: Call) -> Object:
    """`GET /v1/invoiceitems/{invoiceitem}`."""
    return mode.fetch("invoiceitem", call.id)


def update(mode: Mode, call: Call) -> Object:
    """`POST /v1/invoiceitems/{invoiceitem}`: until the item's invoice is final."""
    item, params = mode.fetch("invoiceitem", call.id), call.params
    draft = _draft(mode, item["invoice"]) if item["invoice"] else None
    names = ("amount", "description", "discountable", "period")
    item |= {name: params[name] for name in names if name in params}
    if "metadata" in params:
        item["metadata"] = merged(item["metadata"], params["metadata"])
    mode.store.put(item)
    _replace(mode, draft, item, keep=True)
    return item


def delete(mode: Mode, call: Call) -> Object:
    """`DELETE /v1/invoiceitems/{invoiceitem}`: until the item's invoice is final."""
    item = mode.fetch("invoiceitem", call.id)
    _replace(mode, _draft(mode, item["invoice"]) if item["invoice"] else None, item, keep=False)
    return mode.store.delete(item)


def list_all(mode: Mode, call: Call) -> Object:
    """`GET /v1/invoiceitems`."""
    params = call.params
    where = {name: params.get(name) for name in ("customer", "invoice")}
    rows = [
        body
        for body in mode.store.newest("invoiceitem", "customer" if where["customer"] else "", where["customer"])
        if where["invoice"] in (None, body["invoice"])
        and params.get("pending", body["invoice"] is None) == (body["invoice"] is None)
        and matches(body["date"], params.get("created"))
    ]
    return page_of(call, rows)


def _line(mode: Mode, call: Call, now_s: int) -> tuple[Line, str]:
    """The engine's line of an item with a price, a unit amount or an amount, and its currency."""
    params = call.params
    period = Period(**{"start": now_s, "end": now_s, **params.get("period", {})})
    quantity = Fraction(params.get("quantity", 1))
    if "pricing" in params:
        price = mode.fetch("price", params["pricing"].get("price", ""), param="pricing[price]")
        if price["recurring"]:
            message = "This field only accepts prices with `type=one_time`."
            raise ApiError(400, message, param="pricing[price]")
        form = prices.engine_price(price)
        amount, unit_amount, currency = exact_total(form, quantity), form.unit_amount, price["currency"]
        line = Line("", form.id, form.product, rounded(amount), quantity, period, unit_amount)
    elif "unit_amount_decimal" in params:
        line = Line("", "", "", rounded(quantity * Fraction(params["unit_amount_decimal"])), quantity, period)
    elif "amount" in params:
        line = Line("", "", "", params["amount"], Fraction(1), period)
    else:
        raise missing_parameter("amount")
    if not line.price and "currency" not in params:
        raise missing_parameter("currency")
    discountable = params.get("discountable", line.amount >= 0)
    return line._replace(discountable=discountable), params.get("currency") or currency


def _draft(mode: Mode, identifier: str) -> Object:
    invoice = mode.fetch("invoice", identifier, param="invoice")
    if invoice["status"] != "draft":
        message = "This invoice is no longer editable: only a draft can get, change or lose invoice items."
        raise ApiError(400, message, code="invoice_not_editable", param="invoice")
    return invoice


def _replace(mode: Mode, draft: Object | None, item: Object, *, keep: bool) -> None:
    """Compute a draft again after one of its items was changed or deleted."""
    if draft is None:
        return
    bodies = []
    for body in invoicing.lines_of(mode, draft):
        if body["parent"][body["parent"]["type"]]["invoice_item"] != item["id"]:
            bodies.append(body)
        elif keep:
            bodies.append({**line_of_item(mode, draft, item), "id": body["id"]})
    invoicing.set_lines(mode, draft, bodies)
    mode.store.save(draft)


ROUTES = (
    Route("POST", "/v1/invoiceitems", create, CREATE),
    Route("GET", "/v1/invoiceitems", list_all, (*LIST, "created", "customer", "invoice", "pending")),
    Route("GET", "/v1/invoiceitems/{invoiceitem}", retrieve),
    Route("POST", "/v1/invoiceitems/{invoiceitem}", update, UPDATE),
    Route("DELETE", "/v1/invoiceitems/{invoiceitem}", delete),
)
