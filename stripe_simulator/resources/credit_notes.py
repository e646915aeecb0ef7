"""Credit notes of an amount, without lines of the invoice, and refunds, which succeed at once.

Before the payment a note lowers what is due; afterwards its amount goes to the customer's balance or back to the card.
Sources: docs.stripe.com/api/credit_notes, …/refunds.
"""

from __future__ import annotations

from typing import Any, Final

from stripe_simulator import invoicing
from stripe_simulator.mode import Call, Mode, Route, new_object, retrieve
from stripe_simulator.pagination import LIST, listed
from stripe_simulator.resources import credit as ledger
from stripe_simulator.resources.conventions import Object, Params, check, require

INDEXED = {"credit_note": ("invoice",), "refund": ("payment_intent",)}
CREATE: Final = ("amount", "credit_amount", "invoice", "memo", "metadata", "reason", "refund_amount")
_OF: Final = ("customer", "invoice")
_TOTALS: Final = ("amount", "subtotal", "subtotal_excluding_tax", "total", "total_excluding_tax")


def _create(mode: Mode, call: Call) -> Object:
    params = call.params
    require(params, "amount")
    invoice = mode.fetch("invoice", params["invoice"], param="invoice")
    is_open, total = invoice["status"] == "open", params["amount"]
    message = f"You can't create a credit note for a {invoice['status']} invoice."
    check(invoice["status"] in ("open", "paid"), message, "invoice")
    credited = invoice["post_payment_credit_notes_amount"]
    left = invoice["amount_remaining"] if is_open else invoice["amount_paid"] - credited
    check(0 < total <= left, f"The credit note amount ({total}) must be positive and at most {left}.", "amount")
    note = _note(mode, params, invoice, total)
    if is_open:
        mode.store.save(note)
        for name, sign in (("amount_due", -1), ("amount_remaining", -1), ("pre_payment_credit_notes_amount", 1)):
            invoice[name] += sign * total
        if invoice["amount_remaining"]:
            mode.store.save(invoice)
        else:
            invoicing.settle(mode, invoice)
        return note
    _give_back(mode, params, invoice, note)
    mode.store.save({**invoice, "post_payment_credit_notes_amount": credited + total})
    return mode.store.save(note)


def _note(mode: Mode, params: Params, invoice: Object, total: int) -> Object:
    """A note that is not stored yet."""
    number = sum(1 for _ in mode.store.newest("credit_note", "invoice", invoice["id"])) + 1
    line = {
        "id": mode.store.new_id("cnli"), "object": "credit_note_line_item", "amount": total, "description": None,
        "discount_amount": 0, "discount_amounts": [], "livemode": mode.livemode, "pretax_credit_amounts": [],
        "tax_rates": [], "taxes": [], "type": "custom_line_item",
    }  # fmt: skip
    kind = "pre_payment" if invoice["status"] == "open" else "post_payment"
    body = new_object(mode, "credit_note", "cn", params, invoice["test_clock"] or "") | dict.fromkeys(_TOTALS, total)
    return body | {
        "amount_shipping": 0, "currency": invoice["currency"], "customer": invoice["customer"],
        "customer_balance_transaction": None, "discount_amount": 0, "discount_amounts": [],
        "effective_at": body["created"], "invoice": invoice["id"],
        "lines": {"object": "list", "data": [line], "has_more": False, "url": f"/v1/credit_notes/{body['id']}/lines"},
        "memo": params.get("memo"), "number": f"{invoice['number']}-CN-{number:02d}", "out_of_band_amount": None,
        "pdf": f"{invoice['invoice_pdf']}/{body['id']}", "post_payment_amount": 0, "pre_payment_amount": 0,
        "pretax_credit_amounts": [], "reason": params.get("reason"), "refunds": [], "status": "issued",
        "total_taxes": [], "type": kind, f"{kind}_amount": total,
    }  # fmt: skip


def _give_back(mode: Mode, params: Params, invoice: Object, note: Object) -> None:
    """Give a paid amount back; the note says how."""
    credit, refund = (params.get(name) or 0 for name in ("credit_amount", "refund_amount"))
    check(credit + refund == note["total"], f"Credit amount and refund amount must add up to {note['total']}.")
    if credit:
        customer, source = (
            mode.fetch("customer", note["customer"]),
            {"credit_note": note["id"], "invoice": invoice["id"]},
        )
        entry = ledger.change_balance(mode, customer, -credit, "credit_note", note["currency"], **source)
        note["customer_balance_transaction"] = entry["id"]
    if refund:
        payment = next(mode.store.newest("invoice_payment", "invoice", invoice["id"]), None)
        intent: str = payment["payment"]["payment_intent"] if payment else ""
        check(bool(intent), "This invoice was not paid by a payment that can be refunded.", "refund_amount")
        entry = _refund(mode, intent, refund)
        note["refunds"] = [{"amount_refunded": refund, "refund": entry["id"], "type": "refund"}]


def _create_refund(mode: Mode, call: Call) -> Object:
    """Without an amount, of what is left of the payment."""
    params = call.params
    fields = {"metadata": params.get("metadata") or {}, "reason": params.get("reason")}
    return _refund(mode, params.get("payment_intent", ""), params.get("amount"), **fields)


def _refund(mode: Mode, payment_intent: str, amount: int | None, **fields: Any) -> Object:
    intent = mode.fetch("payment_intent", payment_intent, param="payment_intent")
    done = sum(body["amount"] for body in mode.store.newest("refund", "payment_intent", payment_intent))
    left = intent["amount_received"] - done
    amount = left if amount is None else amount
    message = f"Refund amount ({amount}) is greater than what is left ({left})."
    check(0 < amount <= left, message, "amount", None if left else "charge_already_refunded")
    body = new_object(mode, "refund", "re", {}, mode.clock_of(intent["customer"]))
    del body["livemode"]
    body |= {"amount": amount, "currency": intent["currency"], "customer": intent["customer"], "reason": None}
    return mode.store.save(body | {"payment_intent": payment_intent, "status": "succeeded", **fields})


ROUTES = (
    Route("POST", "/v1/credit_notes", _create, CREATE),
    Route("GET", "/v1/credit_notes/{id}", retrieve("credit_note")),
    Route("GET", "/v1/credit_notes", listed("credit_note", *_OF), (*LIST, *_OF, "created")),
    Route("POST", "/v1/refunds", _create_refund, ("amount", "metadata", "payment_intent", "reason")),
    Route("GET", "/v1/refunds/{refund}", retrieve("refund")),
    Route("GET", "/v1/refunds", listed("refund", "payment_intent"), (*LIST, "payment_intent", "created")),
)
