"""Invoices from the draft to the payment: what subscriptions and the routes of invoices share.

Money is computed by `engine.cycle.totals`. An invoice's lines are stored in one object of the kind `invoice_lines`; the
invoice itself shows the first ten.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from stripe_simulator import payments
from stripe_simulator.engine.amounts import charge_min
from stripe_simulator.engine.collection import INVOICE_MOVES, InvoiceStatus, advances, after_failure
from stripe_simulator.engine.cycle import totals
from stripe_simulator.engine.lines import Line
from stripe_simulator.engine.periods import Period
from stripe_simulator.errors import ApiError
from stripe_simulator.invoice_lines import discounts_of, engine_line, line_of_item, new_item, new_line
from stripe_simulator.mode import Mode
from stripe_simulator.resources import balance_transactions, credit_grants, tax
from stripe_simulator.store import Object

# Modules that follow a subscription's invoices, filled by `registry.py`. Each has functions of (mode, invoice):
# `invoice_paid`, `invoice_failed` (after each failed attempt; `next_payment_attempt` is None after the last),
# `invoice_voided`, and `invoice_lines`: the new lines of a draft that becomes final, or None if none changed.
LISTENERS: list[Any] = []
LINES_SHOWN: Final = 10
DAY_S: Final = 86_400
FINALIZE: Final = "invoice.finalize"
COLLECT: Final = "invoice.collect"


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
    """Create an invoice of a subscription and return it as stored.

    Pending invoice items come first. Without grace the invoice is final at once and, if it charges automatically,
    collected: not with `collect_now=False`, as for `payment_behavior=default_incomplete`. With grace it stays a draft
    until a job of the customer's clock. `reason` is a `billing_reason`. `period` is the invoice's, now by default.
    """
    customer = mode.fetch("customer", subscription["customer"])
    invoice = new(mode, customer, subscription["currency"], reason, subscription, period)
    bodies = [line_of_item(mode, invoice, item) for item in take_pending(mode, invoice, subscription["id"], reason)]
    invoice["discounts"] = subscription["discounts"] or ([customer["discount"]["id"]] if customer["discount"] else [])
    set_lines(mode, invoice, [*bodies, *(new_line(mode, invoice, line) for line in lines)])
    behavior = (subscription.get("pause_collection") or {}).get("behavior")
    if behavior == "keep_as_draft" or (reason == "subscription_cycle" and not advances(subscription["status"])):
        return mode.store.save({**invoice, "auto_advance": False})
    if draft_grace_s:
        return schedule_finalization(mode, invoice, invoice["created"] + draft_grace_s)
    return advance(mode, mode.store.save(invoice), collect_now=collect_now)


def pending_items(mode: Mode, subscription: Object, lines: Sequence[Line]) -> list[Object]:
    """Store lines, such as prorations, as invoice items for the subscription's next invoice."""
    customer = mode.fetch("customer", subscription["customer"])
    items = []
    for line in lines:
        details = {"subscription": subscription["id"], "subscription_item": line.item or None}
        parent = {"subscription_details": details, "type": "subscription_details"}
        items.append(mode.store.save(new_item(mode, customer, line, subscription["currency"], parent=parent)))
    return items


def new(
    mode: Mode,
    customer: Object,
    currency: str,
    reason: str,
    subscription: Object | None = None,
    period: Period | None = None,
) -> Object:
    """A draft without lines, not yet stored."""
    created = mode.now_s(customer["test_clock"] or "")
    owner = subscription or {}
    details = {"metadata": owner.get("metadata", {}), "subscription": owner.get("id")}
    parent = {"quote_details": None, "subscription_details": details, "type": "subscription_details"}
    automatic_tax = (owner.get("automatic_tax") or {}).get("enabled", False)
    days = owner.get("days_until_due")
    zeros = (
        "amount_overpaid", "amount_paid", "amount_shipping", "attempt_count", "post_payment_credit_notes_amount",
        "pre_payment_credit_notes_amount",
    )  # fmt: skip
    nulls = (
        "automatically_finalizes_at", "description", "effective_at", "ending_balance", "footer", "hosted_invoice_url",
        "invoice_pdf", "next_payment_attempt", "number",
    )  # fmt: skip
    return {
        "id": mode.store.new_id("in"),
        "object": "invoice",
        **dict.fromkeys(zeros, 0),
        **dict.fromkeys(nulls),
        "attempted": False,
        "auto_advance": True,
        "automatic_tax": {"enabled": automatic_tax, "liability": None, "provider": None, "status": None},
        "billing_reason": reason,
        "collection_method": owner.get("collection_method", "charge_automatically"),
        "created": created,
        "currency": currency,
        "customer": customer["id"],
        "customer_address": customer["address"],
        "customer_email": customer["email"],
        "customer_name": customer["name"],
        "default_payment_method": None,
        "default_tax_rates": [],
        "discounts": [],
        "due_date": None if days is None else created + days * DAY_S,
        "issuer": {"type": "self"},
        "livemode": mode.livemode,
        "metadata": {},
        "parent": parent if subscription else None,
        "payment_settings": {"default_mandate": None, "payment_method_options": None, "payment_method_types": None},
        "period_end": period.end if period else created,
        "period_start": period.start if period else created,
        "status": "draft",
        "status_transitions": dict.fromkeys(("finalized_at", "marked_uncollectible_at", "paid_at", "voided_at")),
        "test_clock": customer["test_clock"],
    }


def take_pending(mode: Mode, invoice: Object, subscription: str, reason: str) -> list[Object]:
    """The pending invoice items that the invoice takes, oldest first; they are pending no longer.

    Items without a subscription go to the next scheduled or manual invoice, not to one for a change.
    """
    owners = {subscription, ""} if reason in ("subscription_create", "subscription_cycle", "manual") else {subscription}
    items = [
        item
        for item in mode.store.newest("invoiceitem", "customer", invoice["customer"])
        if item["invoice"] is None
        and item["currency"] == invoice["currency"]
        and (item["parent"] or {}).get("subscription_details", {}).get("subscription", "") in owners
    ][::-1]
    for item in items:
        mode.store.put({**item, "invoice": invoice["id"]})
    return items


def lines_of(mode: Mode, invoice: Object) -> list[Object]:
    """All lines of a stored invoice, as copies."""
    return list(mode.fetch("invoice_lines", f"{invoice['id']}/lines")["data"])


def set_lines(mode: Mode, invoice: Object, bodies: Sequence[Object], *, final: bool = False) -> None:
    """Set a draft's lines and amounts. Credit grants and the customer's balance are used only by the final amounts."""
    customer = mode.fetch("customer", invoice["customer"])
    lines = [engine_line(mode, body) for body in bodies]
    discounts = discounts_of(mode, invoice["discounts"])
    ids = dict(zip(discounts, invoice["discounts"], strict=True))
    for line, body in zip(lines, bodies, strict=True):
        ids.update(zip(line.discounts, body["discounts"], strict=True))
    applied = tax.rate_of(mode, customer) if invoice["automatic_tax"]["enabled"] else None
    rate = applied and applied.rate
    result = totals(
        lines,
        discounts=discounts,
        tax_rate=rate,
        grants=credit_grants.grants_of(mode, customer["id"], invoice["currency"]) if final else (),
        at=mode.now_s(customer["test_clock"] or ""),
        starting_balance=customer["balance"],
        charge_min=charge_min(invoice["currency"]),
    )
    draws = credit_grants.apply(mode, invoice, bodies, result.draws)
    for index, (body, part) in enumerate(zip(bodies, result.lines, strict=True)):
        cuts = [{"amount": cut.amount, "discount": ids[cut.discount]} for cut in part.cuts]
        body["discount_amounts"] = cuts
        body["pretax_credit_amounts"] = [*({**cut, "type": "discount"} for cut in cuts), *draws.get(index, ())]
        body["taxes"] = [_tax(part.tax, part.taxable, inclusive=rate.inclusive)] if rate else []
    discount_amounts = _summed([cut for body in bodies for cut in body["discount_amounts"]], "discount")
    pretax = [credit for body in bodies for credit in body["pretax_credit_amounts"]]
    taxable = sum(part.taxable for part in result.lines)
    due = {"status": "complete", "provider": "stripe"} if rate else {}
    mode.store.put({"object": "invoice_lines", "id": f"{invoice['id']}/lines", "data": bodies})
    invoice |= {
        "amount_due": result.amount_due,
        "amount_remaining": result.amount_due,
        "automatic_tax": invoice["automatic_tax"] | due,
        "lines": {
            "object": "list",
            "data": bodies[:LINES_SHOWN],
            "has_more": len(bodies) > LINES_SHOWN,
            "url": f"/v1/invoices/{invoice['id']}/lines",
        },
        "ending_balance": result.ending_balance if final else None,
        "starting_balance": result.starting_balance,
        "subtotal": result.subtotal,
        "subtotal_excluding_tax": result.subtotal - (result.total_tax if rate and rate.inclusive else 0),
        "total": result.total,
        "total_discount_amounts": discount_amounts,
        "total_excluding_tax": result.total_excluding_tax,
        "total_pretax_credit_amounts": _summed(pretax, "discount", "credit_balance_transaction"),
        "total_taxes": [_tax(result.total_tax, taxable, inclusive=rate.inclusive)] if rate else [],
    }


def _tax(amount: int, taxable: int, *, inclusive: bool) -> Object:
    return {
        "amount": amount,
        "tax_behavior": "inclusive" if inclusive else "exclusive",
        "tax_rate_details": None,
        "taxability_reason": "standard_rated",
        "taxable_amount": taxable,
        "type": "tax_rate_details",
    }


def _summed(entries: Sequence[Object], *keys: str) -> list[Object]:
    """The entries with the amounts of the same discount or credit added up."""
    sums: dict[tuple[Any, ...], Object] = {}
    for entry in entries:
        key = tuple(entry.get(name) for name in keys)
        sums[key] = {**entry, "amount": entry["amount"] + sums.get(key, {"amount": 0})["amount"]}
    return list(sums.values())


def schedule_finalization(mode: Mode, invoice: Object, due_s: int) -> Object:
    """Store a draft that becomes final by itself."""
    invoice["automatically_finalizes_at"] = due_s
    mode.clockwork.schedule(due_s * 1_000, FINALIZE, {"invoice": invoice["id"]}, invoice["test_clock"] or "")
    return mode.store.save(invoice)


def advance(mode: Mode, draft: Object, *, collect_now: bool = True) -> Object:
    """Finalize a draft and, if it charges automatically, collect it. Returns the stored invoice."""
    invoice = finalize(mode, draft)
    behavior = (_subscription(mode, invoice).get("pause_collection") or {}).get("behavior")
    if invoice["status"] == "open" and behavior == "void":
        return void(mode, invoice)
    if invoice["status"] == "open" and behavior == "mark_uncollectible":
        return mark_uncollectible(mode, invoice, "subscription_paused")
    if invoice["status"] == "open" and invoice["collection_method"] == "charge_automatically" and collect_now:
        collect(mode, invoice)
    return mode.fetch("invoice", invoice["id"])


def finalize(mode: Mode, draft: Object) -> Object:
    """Give a draft its final lines, amounts and number. An invoice without an amount due is paid at once."""
    check_move(draft, "open")
    invoice, bodies = {**draft}, lines_of(mode, draft)
    for listener in LISTENERS if invoice["parent"] else ():
        fresh = listener.invoice_lines(mode, invoice)
        if fresh is not None:
            kept = [body for body in bodies if body["parent"][body["parent"]["type"]]["invoice_item"]]
            bodies = [*kept, *(new_line(mode, invoice, line) for line in fresh)]
    set_lines(mode, invoice, bodies, final=True)
    customer = mode.fetch("customer", invoice["customer"])
    now_s = mode.now_s(customer["test_clock"] or "")
    used = invoice["ending_balance"] - customer["balance"]
    if used:
        source = {"currency": invoice["currency"], "invoice": invoice["id"]}
        balance_transactions.record(mode, customer, used, "applied_to_invoice", **source)
        customer = mode.fetch("customer", customer["id"])
    number = customer["next_invoice_sequence"]
    mode.store.save({**customer, "currency": invoice["currency"], "next_invoice_sequence": number + 1})
    page = f"https://invoice.stripe.com/i/{mode.settings.account}/{invoice['id']}"
    invoice |= {
        "automatically_finalizes_at": None,
        "effective_at": now_s,
        "hosted_invoice_url": page,
        "invoice_pdf": f"{page}/pdf",
        "number": f"{customer['invoice_prefix']}-{number:04d}",
        "status": "open",
        "status_transitions": invoice["status_transitions"] | {"finalized_at": now_s},
    }
    mode.store.save(invoice, "invoice.finalized")
    return invoice if invoice["amount_due"] else settle(mode, invoice)


def settle(mode: Mode, invoice: Object) -> Object:
    """Mark an invoice as paid, and tell the listeners."""
    check_move(invoice, "paid")
    paid_at = mode.now_s(invoice["test_clock"] or "")
    invoice = {
        **invoice,
        "amount_paid": invoice["amount_paid"] + invoice["amount_remaining"],
        "amount_remaining": 0,
        "attempted": True,
        "auto_advance": False,
        "next_payment_attempt": None,
        "status": "paid",
        "status_transitions": invoice["status_transitions"] | {"paid_at": paid_at},
    }
    mode.store.save(invoice, "invoice.paid", "invoice.payment_succeeded")
    return _told(mode, invoice, "invoice_paid")


def collect(mode: Mode, invoice: Object, payment_method: str | None = None) -> payments.Outcome:
    """Charge an open invoice once. A declined automatic collection is tried again by the account's retry policy."""
    method = payment_method or _payment_method(mode, invoice)
    amount, currency = invoice["amount_remaining"], invoice["currency"]
    outcome = payments.charge(mode, invoice["customer"], method, amount, currency, invoice=invoice["id"])
    now_s = mode.now_s(invoice["test_clock"] or "")
    if outcome.payment_intent:
        _record_payment(mode, invoice, outcome, now_s)
    invoice = {**invoice, "attempted": True, "attempt_count": invoice["attempt_count"] + 1}
    if outcome.status == "succeeded":
        settle(mode, invoice)
        return outcome
    _set_next_attempt(mode, invoice)
    types = ["invoice.payment_failed"] + ["invoice.payment_action_required"] * (outcome.status == "requires_action")
    mode.store.save(invoice, *types)
    _told(mode, invoice, "invoice_failed")
    return outcome


def void(mode: Mode, invoice: Object) -> Object:
    """Void an open or uncollectible invoice. Balance and credit grants get back what the invoice used."""
    check_move(invoice, "void")
    now_s = mode.now_s(invoice["test_clock"] or "")
    credit_grants.reinstate(mode, invoice)
    used = (invoice["ending_balance"] or 0) - invoice["starting_balance"]
    if used:
        customer = mode.fetch("customer", invoice["customer"])
        source = {"currency": invoice["currency"], "invoice": invoice["id"]}
        balance_transactions.record(mode, customer, -used, "unapplied_from_invoice", **source)
    moved = {"status": "void", "auto_advance": False, "next_payment_attempt": None, "amount_remaining": 0}
    transitions = invoice["status_transitions"] | {"voided_at": now_s}
    invoice = {**invoice, **moved, "status_transitions": transitions}
    mode.store.save(invoice, "invoice.voided")
    return _told(mode, invoice, "invoice_voided")


def mark_uncollectible(mode: Mode, invoice: Object, reason: str = "user_marked_uncollectible") -> Object:
    """Write an open invoice off. It can still be paid or voided."""
    check_move(invoice, "uncollectible")
    now_s = mode.now_s(invoice["test_clock"] or "")
    moved = {"status": "uncollectible", "auto_advance": False, "next_payment_attempt": None}
    transitions = invoice["status_transitions"] | {"marked_uncollectible_at": now_s}
    details = {"uncollectible": {"reason": reason}}
    body = {**invoice, **moved, "status_transitions": transitions, "status_details": details}
    return mode.store.save(body, "invoice.marked_uncollectible")


def check_move(invoice: Object, status: InvoiceStatus) -> None:
    """Raise Stripe's error if an invoice cannot get this status."""
    if status not in INVOICE_MOVES[invoice["status"]]:
        raise ApiError(400, f"This invoice is {invoice['status']} and cannot become {status}.", code="invoice_not_open")


def _told(mode: Mode, invoice: Object, what: str) -> Object:
    for listener in LISTENERS if invoice["parent"] else ():
        getattr(listener, what)(mode, invoice)
    return invoice


def _subscription(mode: Mode, invoice: Object) -> Object:
    if not invoice["parent"]:
        return {}
    return mode.store.get("subscription", invoice["parent"]["subscription_details"]["subscription"]) or {}


def _payment_method(mode: Mode, invoice: Object) -> str | None:
    """The payment method of the next attempt: the invoice's own, the subscription's, or the customer's."""
    customer = mode.fetch("customer", invoice["customer"])
    chosen: str | None = (
        invoice["default_payment_method"]
        or _subscription(mode, invoice).get("default_payment_method")
        or customer["invoice_settings"]["default_payment_method"]
    )
    return chosen


def _set_next_attempt(mode: Mode, invoice: Object) -> None:
    if not invoice["auto_advance"] or invoice["collection_method"] != "charge_automatically":
        return
    status = _subscription(mode, invoice).get("status", "active")
    first_s = invoice["status_transitions"]["finalized_at"]
    after = after_failure(mode.settings.retry_policy, status, first_s, invoice["attempt_count"])
    invoice["next_payment_attempt"] = after.next_payment_attempt
    if after.next_payment_attempt is not None:
        due_ms, clock = after.next_payment_attempt * 1_000, invoice["test_clock"] or ""
        mode.clockwork.schedule(due_ms, COLLECT, {"invoice": invoice["id"]}, clock)
    elif after.invoice == "uncollectible":
        invoice |= {"status": "uncollectible", "auto_advance": False}


def _record_payment(mode: Mode, invoice: Object, outcome: payments.Outcome, now_s: int) -> None:
    paid = outcome.status == "succeeded"
    payment = {"type": "payment_intent", "payment_intent": outcome.payment_intent}
    body = {
        "id": mode.store.new_id("inpay"),
        "object": "invoice_payment",
        "amount_paid": invoice["amount_remaining"] if paid else None,
        "amount_requested": invoice["amount_remaining"],
        "created": now_s,
        "currency": invoice["currency"],
        "invoice": invoice["id"],
        "is_default": True,
        "livemode": mode.livemode,
        "payment": payment,
        "status": "paid" if paid else "open",
        "status_transitions": {"canceled_at": None, "paid_at": now_s if paid else None},
    }
    if paid:
        mode.store.save(body, "invoice_payment.paid")
    else:
        mode.store.put(body)


def run_finalize(mode: Mode, arguments: dict[str, Any]) -> None:
    """The job that ends a draft's grace period."""
    invoice = mode.store.edit("invoice", arguments["invoice"])
    if invoice and invoice["status"] == "draft" and invoice["auto_advance"]:
        advance(mode, invoice)


def run_collect(mode: Mode, arguments: dict[str, Any]) -> None:
    """The job of a retry. After a hard decline nothing is charged without a new payment method."""
    invoice = mode.store.edit("invoice", arguments["invoice"])
    if invoice is None or invoice["status"] != "open" or not invoice["auto_advance"]:
        return
    if invoice["next_payment_attempt"] == mode.now_s(invoice["test_clock"] or ""):
        collect(mode, invoice)
