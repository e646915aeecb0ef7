"""Credit notes (docs.stripe.com/api/credit_notes) of an amount, without lines of the invoice.

Before the payment a note lowers what is due; afterwards its amount goes to the customer's balance, back to the card, or
outside Stripe.
"""

from __future__ import annotations

from typing import Final

from stripe_simulator import invoicing
from stripe_simulator.errors import ApiError, missing_parameter
from stripe_simulator.mode import Call, Mode, Route, new_object, retrieve
from stripe_simulator.pagination import LIST, listed
from stripe_simulator.resources import balance_transactions, refunds
from stripe_simulator.store import Object

INDEXED = {"credit_note": ("invoice",)}
CREATE: Final = (
    "amount", "credit_amount", "invoice", "memo", "metadata", "out_of_band_amount", "reason", "refund_amount",
)  # fmt: skip
_DESTINATIONS: Final = ("credit_amount", "refund_amount", "out_of_band_amount")


def create(mode: Mode, call: Call) -> Object:
    """`POST /v1/credit_notes`."""
    params = call.params
    invoice = mode.fetch("invoice", params["invoice"], param="invoice")
    if invoice["status"] not in ("open", "paid"):
        raise ApiError(400, f"You can't create a credit note for a {invoice['status']} invoice.", param="invoice")
    body = new_object(mode, "credit_note", "cn", params, invoice["test_clock"] or "")
    if "amount" not in params:
        raise missing_parameter("amount")
    total = params["amount"]
    after = invoice["status"] == "paid"
    credited = invoice["post_payment_credit_notes_amount"]
    left = invoice["amount_paid"] - credited if after else invoice["amount_remaining"]
    if not 0 < total <= left:
        message = f"The credit note amount ({total}) must be positive and at most what is left of the invoice ({left})."
        raise ApiError(400, message, param="amount")
    number = sum(1 for _ in mode.store.newest("credit_note", "invoice", invoice["id"])) + 1
    line = {
        "id": mode.store.new_id("cnli"), "object": "credit_note_line_item", "amount": total, "description": None,
        "discount_amount": 0, "discount_amounts": [], "livemode": mode.livemode, "pretax_credit_amounts": [],
        "tax_rates": [], "taxes": [], "type": "custom_line_item",
    }  # fmt: skip
    sums = ("amount", "subtotal", "subtotal_excluding_tax", "total", "total_excluding_tax")
    body |= dict.fromkeys(sums, total) | {
        "amount_shipping": 0, "currency": invoice["currency"], "customer": invoice["customer"],
        "customer_balance_transaction": None, "discount_amount": 0, "discount_amounts": [],
        "effective_at": body["created"], "invoice": invoice["id"],
        "lines": {"object": "list", "data": [line], "has_more": False, "url": f"/v1/credit_notes/{body['id']}/lines"},
        "memo": params.get("memo"), "number": f"{invoice['number']}-CN-{number:02d}",
        "out_of_band_amount": params.get("out_of_band_amount"), "pdf": f"{invoice['invoice_pdf']}/{body['id']}",
        "post_payment_amount": total if after else 0, "pre_payment_amount": 0 if after else total,
        "pretax_credit_amounts": [], "reason": params.get("reason"), "refunds": [], "status": "issued",
        "total_taxes": [], "type": "post_payment" if after else "pre_payment",
    }  # fmt: skip
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
