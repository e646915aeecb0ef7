"""Invoices (docs.stripe.com/api/invoices)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from stripe_simulator import invoicing, payments
from stripe_simulator.contract.parameters import Params
from stripe_simulator.errors import ApiError
from stripe_simulator.invoice_lines import line_of_item, owner_of
from stripe_simulator.mode import Call, Mode, Route, retrieve
from stripe_simulator.pagination import LIST, page, page_of
from stripe_simulator.resources.conventions import changed, check
from stripe_simulator.resources.payment_methods import card_error
from stripe_simulator.store import Object

INDEXED = {"invoice": ("customer",), "invoice_payment": ("invoice",)}
FIELDS: Final = ("auto_advance", "default_payment_method")
FILTERS: Final = ("collection_method", "customer", "status")
UPDATE: Final = (*FIELDS, "metadata")
CREATE: Final = (*UPDATE, "automatic_tax[enabled]", "currency", "customer", "pending_invoice_items_behavior")
# A manual invoice with `auto_advance` becomes final after an hour.
WAIT_S: Final = 3_600
_ITEM: Final = "/v1/invoices/{invoice}"


def create(mode: Mode, call: Call) -> Object:
    """`POST /v1/invoices`: a draft."""
    params = call.params
    customer = mode.fetch("customer", params.get("customer", ""), param="customer")
    currency = params.get("currency") or customer["currency"] or "usd"
    invoice = invoicing.new(mode, customer, currency, "manual")
    invoice |= {"auto_advance": False, "automatic_tax": invoice["automatic_tax"] | params.get("automatic_tax", {})}
    takes = params.get("pending_invoice_items_behavior") == "include"
    items = invoicing.take_pending(mode, invoice) if takes else []
    invoicing.set_lines(mode, invoice, [line_of_item(mode, invoice, item) for item in items])
    return _changed(mode, invoice, params)


def update(mode: Mode, call: Call) -> Object:
    """`POST /v1/invoices/{invoice}`."""
    return _changed(mode, mode.fetch("invoice", call.id), call.params)


def finalize(mode: Mode, call: Call) -> Object:
    """`POST /v1/invoices/{invoice}/finalize`. With `auto_advance` the invoice is collected at once."""
    invoice = mode.fetch("invoice", call.id)
    invoice["auto_advance"] = call.params.get("auto_advance", invoice["auto_advance"])
    return invoicing.advance(mode, invoice, collect_now=invoice["auto_advance"])


def pay(mode: Mode, call: Call) -> Object:
    """`POST /v1/invoices/{invoice}/pay`. After a declined payment, the changes stay."""
    invoice = mode.fetch("invoice", call.id)
    check(invoice["status"] != "paid", "Invoice is already paid")
    if invoice["status"] == "draft":
        invoice = invoicing.finalize(mode, invoice)
    if call.params.get("paid_out_of_band"):
        invoicing.settle(mode, invoice)
    elif invoice["status"] != "paid":
        invoicing.check_move(invoice, "paid")
        outcome = invoicing.collect(mode, invoice, call.params.get("payment_method"))
        if outcome.status != "succeeded":
            raise _error(outcome)
    return mode.fetch("invoice", call.id)


def closed(run: Callable[[Mode, Object], Object]) -> Callable[[Mode, Call], Object]:
    """The `run` of a route that closes an invoice without a payment."""
    return lambda mode, call: run(mode, mode.fetch("invoice", call.id))


def list_all(mode: Mode, call: Call) -> Object:
    """`GET /v1/invoices`."""
    owner = call.params.get("subscription")
    where = {name: call.params.get(name) for name in FILTERS}
    return page(mode, call, "invoice", where, lambda body: owner in (None, owner_of(body)))


def list_lines(mode: Mode, call: Call) -> Object:
    """`GET /v1/invoices/{invoice}/lines`."""
    return page_of(call, invoicing.lines_of(mode, mode.fetch("invoice", call.id)))


def list_payments(mode: Mode, call: Call) -> Object:
    """`GET /v1/invoice_payments`."""
    where = {name: call.params.get(name) for name in ("invoice", "status")}
    wanted = (call.params.get("payment") or {}).get("payment_intent")
    return page(mode, call, "invoice_payment", where, lambda body: wanted in (None, body["payment"]["payment_intent"]))


def _changed(mode: Mode, invoice: Object, params: Params) -> Object:
    """Save an invoice with the parameters of a request."""
    invoice = changed(invoice, params, FIELDS)
    if params.get("auto_advance") and invoice["status"] == "draft" and not invoice["automatically_finalizes_at"]:
        due_s = mode.now_of(invoice) + WAIT_S
        return invoicing.schedule_finalization(mode, invoice, due_s)
    return mode.store.save(invoice)


def _error(outcome: payments.Outcome) -> ApiError:
    if outcome.status == "requires_action":
        message = "Payment for this invoice requires additional user action before it can be completed successfully."
        return ApiError(402, message, kind="card_error", code="invoice_payment_intent_requires_action", kept=True)
    if not outcome.decline_code:
        message = "This customer has no attached payment source or default payment method."
        return ApiError(400, message, code=outcome.code, kept=True)
    return card_error(outcome.decline_code)


JOBS = {invoicing.FINALIZE: invoicing.run_finalize, invoicing.COLLECT: invoicing.run_collect}
ROUTES = (
    Route("POST", "/v1/invoices", create, CREATE),
    Route("GET", "/v1/invoices", list_all, (*LIST, *FILTERS, "created", "subscription")),
    Route("GET", _ITEM, retrieve("invoice")),
    Route("POST", _ITEM, update, UPDATE),
    Route("POST", f"{_ITEM}/finalize", finalize, ("auto_advance",)),
    Route("POST", f"{_ITEM}/pay", pay, ("off_session", "paid_out_of_band", "payment_method")),
    Route("POST", f"{_ITEM}/void", closed(invoicing.void)),
    Route("POST", f"{_ITEM}/mark_uncollectible", closed(invoicing.mark_uncollectible)),
    Route("GET", f"{_ITEM}/lines", list_lines, LIST),
    Route(
        "GET",
        "/v1/invoice_payments",
        list_payments,
        (*LIST, "invoice", "payment[payment_intent]", "payment[type]", "status"),
    ),
)
