"""Credit notes (docs.stripe.com/api/credit_notes). Before the payment a note lowers what is due; afterwards its amount
goes to the customer's balance, back to the card, or outside Stripe."""

from __future__ import annotations

from typing import Final

from stripe_simulator import invoicing
from stripe_simulator.engine.taxes import tax_of
from stripe_simulator.errors import ApiError, missing_parameter, no_such, require_one
from stripe_simulator.mode import Call, Mode, Route, new_object, retrieve
from stripe_simulator.pagination import LIST, listed
from stripe_simulator.resources import balance_transactions, refunds, tax
from stripe_simulator.store import Object

INDEXED = {"credit_note": ("invoice",)}
CREATE: Final = (
    "amount", "credit_amount", "invoice", "lines", "memo", "metadata", "out_of_band_amount", "reason", "refund_amount",
)  # fmt: skip
_DESTINATIONS: Final = ("credit_amount", "refund_amount", "out_of_band_amount")


def create(mode: Mode, call: Call) -> Object:
    """`POST /v1/credit_notes`."""
    params = call.params
    invoice = mode.fetch("invoice", params["invoice"], param="invoice")
    if invoice["status"] not in ("open", "paid"):
        raise ApiError(400, f"You can't create a credit note for a {invoice['status']} invoice.", param="invoice")
    body = new_object(mode, "credit_note", "cn", params, invoice["test_clock"] or "")
    lines = _lines(mode, call, invoice)
    subtotal = sum(line["amount"] for line in lines)
    taxes = [entry for line in lines for entry in line["taxes"]]
    total = subtotal + sum(entry["amount"] for entry in taxes)
    after = invoice["status"] == "paid"
    credited = invoice["post_payment_credit_notes_amount"]
    left = invoice["amount_paid"] - credited if after else invoice["amount_remaining"]
    if not 0 < total <= left:
        message = f"The credit note amount ({total}) must be positive and at most what is left of the invoice ({left})."
        raise ApiError(400, message, param="amount")
    number = sum(1 for _ in mode.store.newest("credit_note", "invoice", invoice["id"])) + 1
    body |= {
        "amount": total,
        "amount_shipping": 0,
        "currency": invoice["currency"],
        "customer": invoice["customer"],
        "customer_balance_transaction": None,
        "discount_amount": 0,
        "discount_amounts": [],
        "effective_at": body["created"],
        "invoice": invoice["id"],
        "lines": {"object": "list", "data": lines, "has_more": False, "url": f"/v1/credit_notes/{body['id']}/lines"},
        "memo": params.get("memo"),
        "number": f"{invoice['number']}-CN-{number:02d}",
        "out_of_band_amount": params.get("out_of_band_amount"),
        "pdf": f"{invoice['invoice_pdf']}/{body['id']}",
        "post_payment_amount": total if after else 0,
        "pre_payment_amount": 0 if after else total,
        "pretax_credit_amounts": [],
        "reason": params.get("reason"),
        "refunds": [],
        "status": "issued",
        "subtotal": subtotal,
        "subtotal_excluding_tax": subtotal,
        "total": total,
        "total_excluding_tax": subtotal,
        "total_taxes": taxes,
        "type": "post_payment" if after else "pre_payment",
    }
    if after:
        body |= _given_back(mode, call, invoice, body)
        mode.store.save({**invoice, "post_payment_credit_notes_amount": credited + total})
        return mode.store.save(body)
    mode.store.save(body)
    for name, sign in (("amount_due", -1), ("amount_remaining", -1), ("pre_payment_credit_notes_amount", 1)):
        invoice[name] += sign * total
    if invoice["amount_remaining"]:
        mode.store.save(invoice)
    else:
        invoicing.settle(mode, invoice)
    return body


def _lines(mode: Mode, call: Call, invoice: Object) -> list[Object]:
    """The note's lines, with the tax of the invoice's rate. A single `amount` contains the tax already."""
    params = call.params
    if require_one(params, "amount", "lines") == "amount":
        return [_line(mode, {"amount": params["amount"], "type": "custom_line_item"}, [])]
    stored = {line["id"]: line for line in invoicing.lines_of(mode, invoice)}
    applied = tax.rate_of(mode, mode.fetch("customer", invoice["customer"])) if invoice["total_taxes"] else None
    lines = []
    for index, wanted in enumerate(params["lines"]):
        source = stored.get(wanted.get("invoice_line_item", ""))
        if wanted["type"] == "invoice_line_item" and source is None:
            param = f"lines[{index}][invoice_line_item]"
            raise no_such("invoice line item", wanted.get("invoice_line_item", ""), param, 400)
        if "amount" not in wanted:
            raise missing_parameter(f"lines[{index}][amount]")
        amount = wanted["amount"]
        taxes = [invoicing.tax_entry(tax_of(amount, applied.rate), amount, applied.id)] if applied else []
        lines.append(_line(mode, {"description": source and source["description"], **wanted}, taxes))
    return lines


def _line(mode: Mode, fields: Object, taxes: list[Object]) -> Object:
    return {
        "id": mode.store.new_id("cnli"),
        "object": "credit_note_line_item",
        "description": None,
        "discount_amount": 0,
        "discount_amounts": [],
        "livemode": mode.livemode,
        "pretax_credit_amounts": [],
        "tax_rates": [],
        "taxes": taxes,
        **fields,
    }


def _given_back(mode: Mode, call: Call, invoice: Object, note: Object) -> Object:
    """Give a paid amount back, and return the note's fields that say how."""
    credit, refund, outside = (call.params.get(name) or 0 for name in _DESTINATIONS)
    if credit + refund + outside != note["total"]:
        message = (
            f"The sum of credit amount, refund amount and out of band amount ({credit + refund + outside}) must equal "
            f"the credit note amount ({note['total']})."
        )
        raise ApiError(400, message)
    fields: Object = {}
    if credit:
        customer, currency = mode.fetch("customer", note["customer"]), note["currency"]
        source = {"credit_note": note["id"], "invoice": invoice["id"]}
        entry = balance_transactions.record(mode, customer, -credit, "credit_note", currency, **source)
        fields["customer_balance_transaction"] = entry["id"]
    if refund:
        payment = next(mode.store.newest("invoice_payment", "invoice", invoice["id"]), None)
        if payment is None:
            raise ApiError(400, "This invoice was not paid by a payment that can be refunded.", param="refund_amount")
        entry = refunds.refund(mode, payment["payment"]["payment_intent"], refund)
        fields["refunds"] = [{"amount_refunded": refund, "refund": entry["id"], "type": "refund"}]
    return fields


ROUTES = (
    Route("POST", "/v1/credit_notes", create, CREATE),
    Route("GET", "/v1/credit_notes", listed("credit_note", "customer", "invoice"), (*LIST, "customer", "invoice")),
    Route("GET", "/v1/credit_notes/{id}", retrieve("credit_note")),
)
