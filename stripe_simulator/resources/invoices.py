"""Invoices (docs.stripe.com/api/invoices)."""

from __future__ import annotations

from stripe_simulator import invoicing
from stripe_simulator.errors import ApiError
from stripe_simulator.invoice_lines import line_of_item
from stripe_simulator.metadata import merged
from stripe_simulator.mode import Call, Mode, Route
from stripe_simulator.pagination import LIST, page, page_of
from stripe_simulator.store import Object

INDEXED = {"invoice": ("customer",), "invoice_payment": ("invoice",)}
JOBS = {invoicing.FINALIZE: invoicing.run_finalize, invoicing.COLLECT: invoicing.run_collect}
FIELDS = ("auto_advance", "collection_method", "default_payment_method", "description", "footer")
UPDATE = (*FIELDS, "days_until_due", "metadata")
CREATE = (*UPDATE, "automatic_tax[enabled]", "currency", "customer", "pending_invoice_items_behavior", "subscription")
FILTERS = ("collection_method", "customer", "status")
ONE_HOUR_S = 3_600


def create(mode: Mode, call: Call) -> Object:
    """`POST /v1/invoices`: a draft. With `auto_advance` the draft becomes final after an hour."""
    params = call.params
    customer = mode.fetch("customer", params.get("customer", ""), param="customer")
    owner = params.get("subscription")
    subscription = mode.fetch("subscription", owner, param="subscription") if owner else None
    currency = params.get("currency") or customer["currency"] or "usd"
    invoice = invoicing.new(mode, customer, currency, "manual", subscription)
    invoice |= {"auto_advance": False, "automatic_tax": invoice["automatic_tax"] | params.get("automatic_tax", {})}
    changed = _changed(invoice, call)
    items = []
    if owner or params.get("pending_invoice_items_behavior") == "include":
        items = invoicing.take_pending(mode, changed, owner or "", "manual")
    if owner and not items:
        raise ApiError(400, "Nothing to invoice for subscription", code="invoice_no_subscription_line_items")
    invoicing.set_lines(mode, changed, [line_of_item(mode, changed, item) for item in items])
    mode.store.save(changed)
    if changed["auto_advance"]:
        return invoicing.schedule_finalization(mode, changed, changed["created"] + ONE_HOUR_S)
    return changed


def retrieve(mode: Mode, call: Call) -> Object:
    """`GET /v1/invoices/{invoice}`."""
    return mode.fetch("invoice", call.id)


def update(mode: Mode, call: Call) -> Object:
    """`POST /v1/invoices/{invoice}`. A final invoice takes metadata only."""
    invoice = mode.fetch("invoice", call.id)
    final = {"auto_advance", "default_payment_method", "metadata"}
    if invoice["status"] != "draft" and (fixed := sorted(call.params.keys() - final)):
        message = f"Finalized invoices can't be updated in this way: {fixed[0]}"
        raise ApiError(400, message, code="invoice_not_editable", param=fixed[0])
    changed = _changed({**invoice}, call)
    if changed["status"] == "draft" and changed["auto_advance"] and not invoice["auto_advance"]:
        now_s = mode.now_s(invoice["test_clock"] or "")
        return invoicing.schedule_finalization(mode, changed, now_s + ONE_HOUR_S)
    return mode.store.save(changed)


def delete(mode: Mode, call: Call) -> Object:
    """`DELETE /v1/invoices/{invoice}`: only a draft without a subscription. Its items are pending again."""
    invoice = mode.fetch("invoice", call.id)
    if invoice["status"] != "draft" or invoice["parent"]:
        raise ApiError(
            400, "You can only delete draft invoices that are not of a subscription.", code="invoice_not_editable"
        )
    for item in mode.store.newest("invoiceitem", "customer", invoice["customer"]):
        if item["invoice"] == invoice["id"]:
            mode.store.put({**item, "invoice": None})
    return mode.store.delete(invoice)


def finalize(mode: Mode, call: Call) -> Object:
    """`POST /v1/invoices/{invoice}/finalize`. With `auto_advance` the invoice is collected at once."""
    invoice = mode.fetch("invoice", call.id)
    if "auto_advance" in call.params:
        invoice["auto_advance"] = call.params["auto_advance"]
    invoicing.advance(mode, invoice, collect_now=invoice["auto_advance"])
    return mode.fetch("invoice", call.id)


def pay(mode: Mode, call: Call) -> Object:
    """`POST /v1/invoices/{invoice}/pay`. A declined payment is a 402 whose changes stay."""
    invoice = mode.fetch("invoice", call.id)
    if invoice["status"] == "paid":
        raise ApiError(400, "Invoice is already paid")
    if invoice["status"] == "draft":
        invoice = invoicing.finalize(mode, invoice)
    if invoice["status"] in ("open", "uncollectible"):
        if call.params.get("paid_out_of_band"):
            invoicing.settle(mode, invoice)
        else:
            _charge(mode, invoice, call.params.get("payment_method"))
    else:
        invoicing.check_move(invoice, "paid")
    return mode.fetch("invoice", call.id)


def void(mode: Mode, call: Call) -> Object:
    """`POST /v1/invoices/{invoice}/void`."""
    return invoicing.void(mode, mode.fetch("invoice", call.id))


def mark_uncollectible(mode: Mode, call: Call) -> Object:
    """`POST /v1/invoices/{invoice}/mark_uncollectible`."""
    return invoicing.mark_uncollectible(mode, mode.fetch("invoice", call.id))


def send(mode: Mode, call: Call) -> Object:
    """`POST /v1/invoices/{invoice}/send`: finalizes a draft."""
    invoice = mode.fetch("invoice", call.id)
    if invoice["status"] == "draft":
        invoice = invoicing.finalize(mode, invoice)
    return mode.store.save(invoice, "invoice.sent")


def list_all(mode: Mode, call: Call) -> Object:
    """`GET /v1/invoices`."""
    where = {name: call.params.get(name) for name in FILTERS}
    owner = call.params.get("subscription")
    return page(mode, call, "invoice", where, lambda body: owner in (None, _owner(body)))


def list_lines(mode: Mode, call: Call) -> Object:
    """`GET /v1/invoices/{invoice}/lines`."""
    return page_of(call, invoicing.lines_of(mode, mode.fetch("invoice", call.id)))


def list_payments(mode: Mode, call: Call) -> Object:
    """`GET /v1/invoice_payments`."""
    return page(mode, call, "invoice_payment", {name: call.params.get(name) for name in ("invoice", "status")})


def _owner(invoice: Object) -> str | None:
    return str(invoice["parent"]["subscription_details"]["subscription"]) if invoice["parent"] else None


def _changed(invoice: Object, call: Call) -> Object:
    params = call.params
    invoice |= {name: params[name] for name in FIELDS if name in params}
    if "metadata" in params:
        invoice["metadata"] = merged(invoice["metadata"], params["metadata"])
    if invoice["collection_method"] == "send_invoice" and "days_until_due" in params:
        invoice["due_date"] = invoice["created"] + params["days_until_due"] * invoicing.DAY_S
    return invoice


def _charge(mode: Mode, invoice: Object, payment_method: str | None) -> None:
    outcome = invoicing.collect(mode, invoice, payment_method)
    if outcome.status == "succeeded":
        return
    if outcome.status == "requires_action":
        message = "Payment for this invoice requires additional user action before it can be completed successfully."
        raise ApiError(402, message, kind="card_error", code="invoice_payment_intent_requires_action", kept=True)
    fields = {"decline_code": outcome.decline_code} if outcome.decline_code else {}
    raise ApiError(402, "Your card was declined.", kind="card_error", code=outcome.code, fields=fields, kept=True)


ROUTES = (
    Route("POST", "/v1/invoices", create, CREATE),
    Route("GET", "/v1/invoices", list_all, (*LIST, *FILTERS, "created", "subscription")),
    Route("GET", "/v1/invoices/{invoice}", retrieve),
    Route("POST", "/v1/invoices/{invoice}", update, UPDATE),
    Route("DELETE", "/v1/invoices/{invoice}", delete),
    Route("POST", "/v1/invoices/{invoice}/finalize", finalize, ("auto_advance",)),
    Route("POST", "/v1/invoices/{invoice}/pay", pay, ("off_session", "paid_out_of_band", "payment_method")),
    Route("POST", "/v1/invoices/{invoice}/void", void),
    Route("POST", "/v1/invoices/{invoice}/mark_uncollectible", mark_uncollectible),
    Route("POST", "/v1/invoices/{invoice}/send", send),
    Route("GET", "/v1/invoices/{invoice}/lines", list_lines, LIST),
    Route("GET", "/v1/invoice_payments", list_payments, (*LIST, "created", "invoice", "status")),
)
