"""Invoice lines and invoice items: Stripe's JSON form of the engine's lines, and back."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

from stripe_simulator.engine.amounts import rounded
from stripe_simulator.engine.discounts import Discount
from stripe_simulator.engine.lines import Line
from stripe_simulator.engine.periods import Period
from stripe_simulator.mode import Mode
from stripe_simulator.resources import coupons
from stripe_simulator.store import Object


def new_line(mode: Mode, invoice: Object, line: Line) -> Object:
    """The line of a subscription item. Its discounts are those of the item: the invoice's are not repeated."""
    item = mode.store.get("subscription_item", line.item) or {}
    details = {
        "invoice_item": None,
        "proration": line.proration,
        "proration_details": {"credited_items": None},
        "subscription": invoice["parent"]["subscription_details"]["subscription"],
        "subscription_item": line.item,
    }
    parent = {"invoice_item_details": None, "subscription_item_details": details, "type": "subscription_item_details"}
    shared = _shared(mode, line, invoice["currency"], [] if line.proration else item.get("discounts", []))
    return _line(mode, invoice, {**shared, "metadata": item.get("metadata", {})}, parent)


def line_of_item(mode: Mode, invoice: Object, item: Object) -> Object:
    """The line of an invoice item."""
    details = {
        "invoice_item": item["id"],
        "proration": item["proration"],
        "proration_details": {"credited_items": None},
    }
    source = (item["parent"] or {}).get("subscription_details", {})
    details["subscription"] = source.get("subscription")
    of_subscription = bool(source.get("subscription_item"))
    if of_subscription:
        details["subscription_item"] = source["subscription_item"]
    kind, other = ("subscription_item_details", "invoice_item_details")[:: 1 if of_subscription else -1]
    return _line(mode, invoice, item, {kind: details, other: None, "type": kind})


def new_item(mode: Mode, customer: Object, line: Line, currency: str, **fields: Any) -> Object:
    """An invoice item, not yet stored. `fields` are those that the line does not give."""
    created = mode.now_s(customer["test_clock"] or "")
    return {
        "id": mode.store.new_id("ii"),
        "object": "invoiceitem",
        **_shared(mode, line, currency, []),
        "customer": customer["id"],
        "date": created,
        "invoice": None,
        "livemode": mode.livemode,
        "metadata": {},
        "parent": None,
        "proration": line.proration,
        "tax_rates": [],
        "test_clock": customer["test_clock"],
        **fields,
    }


def engine_line(mode: Mode, body: Object) -> Line:
    """The engine's form of an invoice line."""
    pricing = body["pricing"] or {"price_details": {"price": "", "product": ""}}
    price = mode.store.get("price", pricing["price_details"]["price"])
    details = body["parent"]["subscription_item_details"] or body["parent"]["invoice_item_details"]
    unit_amount = pricing.get("unit_amount_decimal")
    return Line(
        item=details.get("subscription_item") or "",
        price=pricing["price_details"]["price"],
        product=pricing["price_details"]["product"],
        amount=body["amount"],
        quantity=Fraction(body["quantity_decimal"]),
        period=Period(**body["period"]),
        unit_amount=None if unit_amount is None else Fraction(unit_amount),
        proration=details["proration"],
        discountable=body["discountable"],
        metered=bool(price and price["recurring"] and price["recurring"]["usage_type"] == "metered"),
        discounts=discounts_of(mode, body["discounts"]),
    )


def discounts_of(mode: Mode, ids: Sequence[str]) -> tuple[Discount, ...]:
    """The engine's form of stored discounts."""
    return tuple(coupons.discount_of(mode, identifier) for identifier in ids)


def decimal_text(number: Fraction) -> str:
    """A decimal as text. Quantities and unit amounts have at most 12 decimal places."""
    return f"{(Decimal(number.numerator) / Decimal(number.denominator)).normalize():f}"


def _shared(mode: Mode, line: Line, currency: str, discounts: list[str]) -> Object:
    """The fields that lines and invoice items have in common."""
    product = mode.store.get("product", line.product) or {"name": line.product}
    title = f"{rounded(line.quantity)} × {product['name']}"
    if line.proration:
        title = f"{'Unused' if line.amount < 0 else 'Remaining'} time on {title}"
    unit_amount = None if line.unit_amount is None else decimal_text(line.unit_amount)
    pricing = {
        "price_details": {"price": line.price, "product": line.product},
        "type": "price_details",
        "unit_amount_decimal": unit_amount,
    }
    return {
        "amount": line.amount,
        "currency": currency,
        "description": title,
        "discountable": line.discountable,
        "discounts": discounts,
        "period": {"start": line.period.start, "end": line.period.end},
        "pricing": pricing if line.price else None,
        "quantity": rounded(line.quantity),
        "quantity_decimal": decimal_text(line.quantity),
    }


def _line(mode: Mode, invoice: Object, source: Object, parent: Object) -> Object:
    names = ("amount", "currency", "description", "discountable", "discounts", "metadata", "period", "pricing")
    return {
        "id": mode.store.new_id("il"),
        "object": "line_item",
        **{name: source[name] for name in (*names, "quantity", "quantity_decimal")},
        "discount_amounts": [],
        "invoice": invoice["id"],
        "livemode": mode.livemode,
        "parent": parent,
        "pretax_credit_amounts": [],
        "subscription": (parent[parent["type"]] or {}).get("subscription"),
        "subtotal": source["amount"],
        "taxes": [],
    }
