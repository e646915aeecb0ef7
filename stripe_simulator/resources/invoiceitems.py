"""Invoice items (docs.stripe.com/api/invoiceitems), with an amount of their own or of a price that is paid once."""

from __future__ import annotations

from fractions import Fraction
from typing import Final

from stripe_simulator import invoicing
from stripe_simulator.contract.parameters import Params
from stripe_simulator.engine.lines import Line
from stripe_simulator.engine.periods import Period
from stripe_simulator.invoice_lines import details_of, line_of_item, new_item, one_time_line
from stripe_simulator.metadata import merged
from stripe_simulator.mode import Call, Mode, Route, retrieve
from stripe_simulator.pagination import LIST, page
from stripe_simulator.resources.conventions import check, require
from stripe_simulator.store import Object

INDEXED = {"invoiceitem": ("customer",)}
CREATE: Final = (
    "amount", "currency", "customer", "description", "discountable", "invoice", "metadata", "period",
    "pricing[price]", "quantity", "subscription",
)  # fmt: skip


def create(mode: Mode, call: Call) -> Object:
    """`POST /v1/invoiceitems`: a pending item, or with `invoice` a line of that draft."""
    params = call.params
    customer = mode.fetch("customer", params.get("customer", ""), param="customer")
    draft = _draft(mode, params.get("invoice"))
    priced = "pricing" in params
    if not priced:
        require(params, "amount", "currency")
    now_s = mode.now_of(customer)
    period = Period(**params.get("period", {"start": now_s, "end": now_s}))
    if priced:
        line, currency = _of_price(mode, params, period)
    else:
        discountable = params.get("discountable", params["amount"] >= 0)
        line = Line("", "", "", params["amount"], Fraction(1), period, discountable=discountable)
        currency = params["currency"]
    fields = {"invoice": draft and draft["id"], "metadata": merged({}, params.get("metadata"))}
    if "subscription" in params:
        owner = mode.fetch("subscription", params["subscription"], param="subscription")["id"]
        fields["parent"] = {"subscription_details": {"subscription": owner}, "type": "subscription_details"}
    if "description" in params:
        fields["description"] = params["description"]
    item = mode.store.save(new_item(mode, customer, line, currency, **fields))
    if draft:
        invoicing.set_lines(mode, draft, [*invoicing.lines_of(mode, draft), line_of_item(mode, draft, item)])
        mode.store.save(draft)
    return item


def _of_price(mode: Mode, params: Params, period: Period) -> tuple[Line, str]:
    """The line of a price that is paid once, and its currency."""
    price = mode.fetch("price", params["pricing"]["price"], param="pricing[price]")
    check(not price["recurring"], "The price must be one-time, not recurring.", "pricing[price]")
    return one_time_line(mode, price, params.get("quantity", 1), period), price["currency"]


def delete(mode: Mode, call: Call) -> Object:
    """`DELETE /v1/invoiceitems/{invoiceitem}`: until the item's invoice is final."""
    item = mode.fetch("invoiceitem", call.id)
    draft = _draft(mode, item["invoice"])
    if draft:
        lines = [line for line in invoicing.lines_of(mode, draft) if details_of(line)["invoice_item"] != item["id"]]
        invoicing.set_lines(mode, draft, lines)
        mode.store.save(draft)
    return mode.store.delete(item)


def list_all(mode: Mode, call: Call) -> Object:
    """`GET /v1/invoiceitems`."""
    pending = call.params.get("pending")
    where = {name: call.params.get(name) for name in ("customer", "invoice")}
    return page(mode, call, "invoiceitem", where, lambda item: pending in (None, item["invoice"] is None))


def _draft(mode: Mode, identifier: str | None) -> Object | None:
    """A copy of the draft of an item; None for a pending item."""
    if identifier is None:
        return None
    invoice = mode.fetch("invoice", identifier, param="invoice")
    message = "This invoice is no longer editable: only a draft can get or lose invoice items."
    check(invoice["status"] == "draft", message, "invoice", "invoice_not_editable")
    return invoice


ROUTES = (
    Route("POST", "/v1/invoiceitems", create, CREATE),
    Route("GET", "/v1/invoiceitems", list_all, (*LIST, "customer", "invoice", "pending")),
    Route("GET", "/v1/invoiceitems/{invoiceitem}", retrieve("invoiceitem")),
    Route("DELETE", "/v1/invoiceitems/{invoiceitem}", delete),
)
