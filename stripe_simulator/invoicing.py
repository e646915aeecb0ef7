"""Invoices from the draft to the payment: what subscriptions and the routes of invoices share.

Money is computed by `engine.totals`. An invoice's lines are stored in one object of the kind `invoice_lines`; the
invoice itself shows the first ten.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from stripe_simulator import invoice_lines as form
from stripe_simulator import payments
from stripe_simulator.engine.amounts import charge_min
from stripe_simulator.engine.collection import DAY_S, HARD_DECLINE_CODES, INVOICE_MOVES, InvoiceStatus, after_failure
from stripe_simulator.engine.lines import Line
from stripe_simulator.engine.periods import Period
from stripe_simulator.engine.totals import totals
from stripe_simulator.errors import ApiError
from stripe_simulator.invoice_lines import owner_of
from stripe_simulator.mode import Mode, new_object
from stripe_simulator.resources import coupons, credit, tax
from stripe_simulator.store import Object

# Called with a subscription's invoice that was paid, was voided, or could not be collected; filled by `registry.py`.
LISTENERS: list[Callable[[Mode, Object], None]] = []
LINES_SHOWN: Final = 10
FINALIZE: Final = "invoice.finalize"
COLLECT: Final = "invoice.collect"
_NULL: Final = (
    "automatically_finalizes_at", "default_payment_method", "description", "due_date", "effective_at", "ending_balance",
    "footer", "hosted_invoice_url", "invoice_pdf", "next_payment_attempt", "number",
)  # fmt: skip
_ZERO: Final = (
    "amount_overpaid", "amount_paid", "amount_shipping", "attempt_count", "post_payment_credit_notes_amount",
    "pre_payment_credit_notes_amount",
)  # fmt: skip
_STAMPS: Final = {
    "open": "finalized_at", "uncollectible": "marked_uncollectible_at", "paid": "paid_at", "void": "voided_at",
}  # fmt: skip
# These invoices take the customer's pending items without a subscription too.
_TAKES_ALL: Final = ("subscription_create", "subscription_cycle", "manual")


class Drafted(Exception):
    """Carries the first invoice that is created inside `journal.discarded`, and its lines: a preview."""


def subscription_invoice(
    mode: Mode,
    subscription: Object,
    lines: Sequence[Line],
    reason: str,
    *,
    draft_grace_s: int = 0,
    period: Period | None = None,
    collect_now: bool = True,
) -> Object:
    """Create an invoice of a subscription and return the invoice as stored.

    Pending invoice items come first. Without grace the invoice is final at once and, unless `collect_now` is False,
    collected. An unpaid subscription's invoices stay drafts. `reason` is a `billing_reason`. `period` is now by
    default. Raises `Drafted` inside a preview.
    """
    customer = mode.fetch("customer", subscription["customer"])
    invoice = new(mode, customer, subscription["currency"], reason, subscription)
    if period:
        invoice |= {"period_start": period.start, "period_end": period.end}
    bodies = [form.line_of_item(mode, invoice, item) for item in take_pending(mode, invoice)]
    bodies += [form.new_line(mode, invoice, line) for line in lines]
    set_lines(mode, invoice, bodies)
    if mode.journal.discards:
        raise Drafted(invoice, bodies)
    if reason == "subscription_cycle" and subscription["status"] == "unpaid":
        return mode.store.save({**invoice, "auto_advance": False})
    if draft_grace_s:
        return schedule_finalization(mode, invoice, invoice["created"] + draft_grace_s)
    return advance(mode, mode.store.save(invoice), collect_now=collect_now)


def add_pending(mode: Mode, subscription: Object, lines: Sequence[Line]) -> None:
    """Store lines, such as prorations, as invoice items for the subscription's next invoice."""
    customer = mode.fetch("customer", subscription["customer"])
    for line in lines:
        details = {"subscription": subscription["id"], "subscription_item": line.item or None}
        parent = {"subscription_details": details, "type": "subscription_details"}
        mode.store.save(form.new_item(mode, customer, line, subscription["currency"], parent=parent))


def new(mode: Mode, customer: Object, currency: str, reason: str, subscription: Object | None = None) -> Object:
    """A draft without lines, not yet stored."""
    owner = subscription or {}
    details = {"metadata": owner.get("metadata", {}), "subscription": owner.get("id")}
    parent = {"quote_details": None, "subscription_details": details, "type": "subscription_details"}
    automatic_tax = (owner.get("automatic_tax") or {}).get("enabled", False)
    invoice: Object = {
        **new_object(mode, "invoice", "in", {}, customer["test_clock"] or ""), **dict.fromkeys(_NULL),
        **dict.fromkeys(_ZERO, 0), "attempted": False, "auto_advance": True,
        "automatic_tax": {"enabled": automatic_tax, "liability": None, "provider": None, "status": None},
        "billing_reason": reason, "collection_method": owner.get("collection_method", "charge_automatically"),
        "currency": currency, "customer": customer["id"], "customer_address": customer["address"],
        "customer_email": customer["email"], "customer_name": customer["name"], "default_tax_rates": [],
        "issuer": {"type": "self"}, "parent": parent if subscription else None,
        "payment_settings": {"payment_method_types": None}, "status": "draft",
        "status_transitions": dict.fromkeys(_STAMPS.values()), "test_clock": customer["test_clock"],
    }  # fmt: skip
    invoice["discounts"] = list(coupons.discounts_of(mode, subscription or {"discounts": []}, invoice["created"]))
    if owner.get("days_until_due") is not None:
        invoice["due_date"] = invoice["created"] + owner["days_until_due"] * DAY_S
    return invoice | {"period_end": invoice["created"], "period_start": invoice["created"]}


def waiting_for(mode: Mode, customer: str, *owners: str) -> list[Object]:
    """The pending invoice items of a customer's subscriptions, oldest first; an empty id: of no subscription."""
    items = mode.store.newest("invoiceitem", "customer", customer)
    return [item for item in items if item["invoice"] is None and owner_of(item) in owners][::-1]


def take_pending(mode: Mode, invoice: Object) -> list[Object]:
    """The pending invoice items that the invoice takes, oldest first; they are pending no longer."""
    owners = (owner_of(invoice), *[""] * (invoice["billing_reason"] in _TAKES_ALL))
    items = waiting_for(mode, invoice["customer"], *owners)
    return [
        mode.store.put({**item, "invoice": invoice["id"]}) for item in items if item["currency"] == invoice["currency"]
    ]


def lines_of(mode: Mode, invoice: Object) -> list[Object]:
    """All lines of a stored invoice, as copies."""
    return list(mode.fetch("invoice_lines", f"{invoice['id']}/lines")["data"])


def set_lines(mode: Mode, invoice: Object, bodies: Sequence[Object], *, final: bool = False) -> None:
    """Set a draft's lines and amounts. Only the final amounts contain credit grants."""
    customer = mode.fetch("customer", invoice["customer"])
    discounts = [coupons.discount_of(mode, identifier) for identifier in invoice["discounts"]]
    ids = dict(zip(discounts, invoice["discounts"], strict=True))
    applied = tax.rate_of(mode, customer) if invoice["automatic_tax"]["enabled"] else None
    result = totals(
        [form.engine_line(mode, body) for body in bodies],
        discounts=discounts,
        tax_percentage=applied.percentage if applied else None,
        grants=credit.grants_of(mode, customer["id"], invoice["currency"]) if final else (),
        at=mode.now_of(customer),
        starting_balance=customer["balance"],
        charge_min=charge_min(invoice["currency"]),
    )
    credited = credit.apply(mode, invoice, bodies, result.draws)
    for index, (body, part) in enumerate(zip(bodies, result.lines, strict=True)):
        cuts = [{"amount": cut.amount, "discount": ids[cut.discount]} for cut in part.cuts]
        body["discount_amounts"] = cuts
        body["pretax_credit_amounts"] = [*({**cut, "type": "discount"} for cut in cuts), *credited.get(index, ())]
        body["taxes"] = [tax_entry(part.tax, part.taxable, applied.id)] if applied else []
    mode.store.put({"object": "invoice_lines", "id": f"{invoice['id']}/lines", "data": bodies})
    taxable, url = sum(part.taxable for part in result.lines), f"/v1/invoices/{invoice['id']}/lines"
    shown = {"object": "list", "data": bodies[:LINES_SHOWN], "has_more": len(bodies) > LINES_SHOWN, "url": url}
    names = ("amount_due", "subtotal", "total", "total_excluding_tax")
    invoice |= {name: getattr(result, name) for name in names} | {
        "amount_remaining": result.amount_due,
        "automatic_tax": invoice["automatic_tax"] | ({"status": "complete", "provider": "stripe"} if applied else {}),
        "ending_balance": result.ending_balance if final else None,
        "lines": shown,
        "starting_balance": customer["balance"],
        "subtotal_excluding_tax": result.subtotal,
        "total_discount_amounts": _summed(bodies, "discount_amounts"),
        "total_pretax_credit_amounts": _summed(bodies, "pretax_credit_amounts"),
        "total_taxes": [tax_entry(result.total_tax, taxable, applied.id)] if applied else [],
    }


def schedule_finalization(mode: Mode, invoice: Object, due_s: int) -> Object:
    """Store a draft that becomes final by itself."""
    mode.clockwork.schedule(due_s * 1_000, FINALIZE, {"invoice": invoice["id"]}, invoice["test_clock"] or "")
    return mode.store.save({**invoice, "automatically_finalizes_at": due_s})


def advance(mode: Mode, draft: Object, *, collect_now: bool = True) -> Object:
    """Finalize a draft and, if it charges automatically, collect it. Returns the stored invoice."""
    invoice = finalize(mode, draft)
    if invoice["status"] == "open" and invoice["collection_method"] == "charge_automatically" and collect_now:
        collect(mode, invoice)
    return mode.fetch("invoice", invoice["id"])


def finalize(mode: Mode, draft: Object) -> Object:
    """Give a draft its final lines, amounts and number. An invoice without an amount due is paid at once."""
    check_move(draft, "open")
    if draft["automatic_tax"]["enabled"]:
        tax.check_location(mode.fetch("customer", draft["customer"]))
    invoice, bodies = {**draft}, lines_of(mode, draft)
    if invoice["billing_reason"] == "subscription_cycle":
        bodies = form.with_late_usage(mode, invoice, bodies)
    set_lines(mode, invoice, bodies, final=True)
    _use_balance(mode, invoice, "applied_to_invoice", invoice["ending_balance"] - invoice["starting_balance"])
    customer = mode.fetch("customer", invoice["customer"])
    number = customer["next_invoice_sequence"]
    mode.store.save({**customer, "currency": invoice["currency"], "next_invoice_sequence": number + 1})
    page = f"{mode.settings.pages_url}/_simulator/invoice/{invoice['id']}"
    invoice |= {
        "automatically_finalizes_at": None, "effective_at": mode.now_of(invoice),
        "hosted_invoice_url": page, "invoice_pdf": f"{page}/pdf",
        "number": f"{customer['invoice_prefix']}-{number:04d}",
    }  # fmt: skip
    invoice = _moved(mode, invoice, "open", "invoice.finalized")
    return invoice if invoice["amount_due"] else settle(mode, invoice)


def settle(mode: Mode, invoice: Object) -> Object:
    """Mark an invoice as paid."""
    fields = {"amount_paid": invoice["amount_paid"] + invoice["amount_remaining"], "attempted": True}
    return _moved(mode, invoice, "paid", "invoice.paid", "invoice.payment_succeeded", amount_remaining=0, **fields)


def collect(mode: Mode, invoice: Object, payment_method: str | None = None) -> payments.Outcome:
    """Charge an open invoice once. A declined automatic collection is tried again by the account's retry policy."""
    amount, method = invoice["amount_remaining"], payment_method or _payment_method(mode, invoice)
    outcome = payments.charge(mode, invoice["customer"], method, amount, invoice["currency"], invoice=invoice["id"])
    _collected(mode, invoice, outcome)
    return outcome


def payment_settled(mode: Mode, invoice: str, outcome: payments.Outcome) -> None:
    """What a payment outside `collect` means for its invoice: the listener of `payments`."""
    body = mode.store.edit("invoice", invoice)
    if body and "paid" in INVOICE_MOVES[body["status"]]:
        _collected(mode, body, outcome)


def void(mode: Mode, invoice: Object) -> Object:
    """Void an open or uncollectible invoice. Balance and credit grants get back what the invoice used."""
    check_move(invoice, "void")
    credit.reinstate(mode, invoice)
    _use_balance(mode, invoice, "unapplied_from_invoice", invoice["starting_balance"] - invoice["ending_balance"])
    if intent := payments.intent_of(mode, invoice["customer"], invoice["id"]):
        payments.cancel(mode, intent, "void_invoice")
    return _moved(mode, invoice, "void", "invoice.voided", amount_remaining=0)


def mark_uncollectible(mode: Mode, invoice: Object, reason: str = "user_forgiven") -> Object:
    """Write an open invoice off. The invoice can still be paid or voided."""
    details = {"uncollectible": {"reason": reason}}
    return _moved(mode, invoice, "uncollectible", "invoice.marked_uncollectible", status_details=details)


def check_move(invoice: Object, status: InvoiceStatus) -> None:
    """Raise Stripe's error if an invoice cannot get this status."""
    if status not in INVOICE_MOVES[invoice["status"]]:
        raise ApiError(400, f"This invoice is {invoice['status']} and cannot become {status}.", code="invoice_not_open")


def run_finalize(mode: Mode, arguments: dict[str, Any]) -> None:
    """The job that ends a draft's grace period. A draft that cannot become final stays, and nobody tries again."""
    if invoice := _waiting(mode, arguments["invoice"], "draft"):
        try:
            if invoice["automatic_tax"]["enabled"]:
                tax.check_location(mode.fetch("customer", invoice["customer"]))
        except ApiError as error:
            why = {"code": error.code, "message": error.message, "type": error.kind}
            automatic_tax = {**invoice["automatic_tax"], "status": "requires_location_inputs"}
            stuck = {"last_finalization_error": why, "automatic_tax": automatic_tax, "automatically_finalizes_at": None}
            mode.store.save({**invoice, **stuck}, "invoice.finalization_failed")
            return
        advance(mode, invoice)


def run_collect(mode: Mode, arguments: dict[str, Any]) -> None:
    """The job of a retry. After a hard decline nothing is charged without a new payment method."""
    invoice = _waiting(mode, arguments["invoice"], "open")
    if invoice is None or invoice["next_payment_attempt"] != mode.now_of(invoice):
        return
    intent = payments.intent_of(mode, invoice["customer"], invoice["id"]) or {}
    error = intent.get("last_payment_error") or {}
    is_same = (error.get("payment_method") or {}).get("id") == _payment_method(mode, invoice)
    if is_same and error.get("decline_code") in HARD_DECLINE_CODES:
        _failed(mode, {**invoice, "attempt_count": invoice["attempt_count"] + 1})
    else:
        collect(mode, invoice)


def _collected(mode: Mode, invoice: Object, outcome: payments.Outcome) -> None:
    invoice = {**invoice, "attempted": True, "attempt_count": invoice["attempt_count"] + 1}
    _record_payment(mode, invoice, outcome)
    if outcome.status == "succeeded":
        settle(mode, invoice)
    else:
        asks = outcome.status == "requires_action"
        _failed(mode, invoice, "invoice.payment_failed", *["invoice.payment_action_required"] * asks)


def _failed(mode: Mode, invoice: Object, *types: str) -> None:
    """Plan the next attempt, or end the collection by the account's policy."""
    if invoice["auto_advance"] and invoice["status"] == "open":
        status = _subscription(mode, invoice).get("status", "active")
        first_s = invoice["status_transitions"]["finalized_at"]
        after = after_failure(mode.settings.retry_policy, status, first_s, invoice["attempt_count"])
        due_s = invoice["next_payment_attempt"] = after.next_payment_attempt
        if due_s is not None:
            mode.clockwork.schedule(due_s * 1_000, COLLECT, {"invoice": invoice["id"]}, invoice["test_clock"] or "")
        elif after.invoice == "uncollectible":
            invoice = mark_uncollectible(mode, invoice, "max_payment_attempts")
    _tell(mode, mode.store.save(invoice, *types))


def _record_payment(mode: Mode, invoice: Object, outcome: payments.Outcome) -> None:
    """Store the invoice's InvoicePayment: one for all attempts with the same PaymentIntent."""
    paid = outcome.status == "succeeded"
    clock, stored = (
        invoice["test_clock"] or "",
        next(mode.store.newest("invoice_payment", "invoice", invoice["id"]), None),
    )
    body = {**(stored or new_object(mode, "invoice_payment", "inpay", {}, clock))}
    body.pop("metadata", None)
    body |= {
        "amount_paid": invoice["amount_remaining"] if paid else None, "amount_requested": invoice["amount_remaining"],
        "currency": invoice["currency"], "invoice": invoice["id"], "is_default": True,
        "payment": {"type": "payment_intent", "payment_intent": outcome.payment_intent},
        "status": "paid" if paid else "open",
        "status_transitions": {"canceled_at": None, "paid_at": mode.now_s(clock) if paid else None},
    }  # fmt: skip
    if paid:
        mode.store.save(body, "invoice_payment.paid")
    else:
        mode.store.put(body)


def _use_balance(mode: Mode, invoice: Object, kind: str, amount: int) -> None:
    # A deleted customer has no balance any more.
    customer = mode.store.get("customer", invoice["customer"]) if amount else None
    if customer and not customer.get("deleted"):
        credit.change_balance(mode, customer, amount, kind, invoice["currency"], invoice=invoice["id"])


def _moved(mode: Mode, invoice: Object, status: InvoiceStatus, *types: str, **fields: Any) -> Object:
    """Save an invoice with another status, and tell the listeners. A closed invoice is not collected any more."""
    check_move(invoice, status)
    stamp = {_STAMPS[status]: mode.now_of(invoice)}
    fields |= {"status": status, "status_transitions": invoice["status_transitions"] | stamp}
    if status != "open":
        fields |= {"auto_advance": False, "next_payment_attempt": None}
    invoice = mode.store.save({**invoice, **fields}, *types)
    if status in ("paid", "void"):
        _tell(mode, invoice)
    return invoice


def _tell(mode: Mode, invoice: Object) -> None:
    for listener in LISTENERS if invoice["parent"] else ():
        listener(mode, invoice)


def _waiting(mode: Mode, identifier: str, status: InvoiceStatus) -> Object | None:
    """The invoice of a job, if the invoice still waits for the job and its customer was not deleted."""
    invoice = mode.store.edit("invoice", identifier)
    if invoice is None or mode.store.get("customer", invoice["customer"]) is None:
        return None
    return invoice if invoice["status"] == status and invoice["auto_advance"] else None


def _subscription(mode: Mode, invoice: Object) -> Object:
    return mode.store.get("subscription", owner_of(invoice)) or {}


def _payment_method(mode: Mode, invoice: Object) -> Any:
    """The payment method of the next attempt: the invoice's own, the subscription's, or the customer's."""
    own = invoice["default_payment_method"] or _subscription(mode, invoice).get("default_payment_method")
    return own or payments.default_method(mode, invoice["customer"])


def tax_entry(amount: int, taxable: int, rate: str) -> Object:
    """An entry of `taxes`: what a tax rate takes of an amount."""
    return {
        "amount": amount, "tax_behavior": "exclusive", "tax_rate_details": {"tax_rate": rate},
        "taxability_reason": "standard_rated", "taxable_amount": taxable, "type": "tax_rate_details",
    }  # fmt: skip


def _summed(bodies: Sequence[Object], name: str) -> list[Object]:
    """The entries of a field of all lines, with the amounts of the same discount or credit added up."""
    sums: dict[object, Object] = {}
    for entry in (entry for body in bodies for entry in body[name]):
        key = entry.get("discount") or entry["credit_balance_transaction"]
        sums[key] = {**entry, "amount": entry["amount"] + sums.get(key, {"amount": 0})["amount"]}
    return list(sums.values())
