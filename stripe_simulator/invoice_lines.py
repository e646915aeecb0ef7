"""Invoice lines and invoice items: Stripe's JSON form of the engine's lines, and back."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

from stripe_simulator.engine.amounts import rounded
from stripe_simulator.engine.discounts import Discount
from stripe_simulator.engine.lines import Line
from stripe_simulator.engine.periods import Period
from stripe_simulator.mode import Mode
from stripe_simulator.resources import coupons
from stripe_simulator.store import Object

_SHARED: Final = (
    "amount", "currency", "description", "discountable", "discounts", "livemode", "metadata", "period", "pricing",
    "quantity", "quantity_decimal",
)  # fmt: skip


def new_line(mode: Mode, invoice: Object, line: Line) -> Object:
    """The line of a subscription item, with the discounts and the metadata of the item."""
    item = mode.store.get("subscription_item", line.item) or {"discounts": [], "metadata": {}}
    shared = _shared(mode, line, invoice["currency"]) | {"metadata": item["metadata"]}
    if not line.proration:
        shared["discounts"] = item["discounts"]
    return _line(mode, invoice, shared, owner_of(invoice) or None, line.item, None)


def line_of_item(mode: Mode, invoice: Object, item: Object) -> Object:
    """The line of an invoice item."""
    owner = (item["parent"] or {"subscription_details": {}})["subscription_details"]
    return _line(mode, invoice, item, owner.get("subscription"), owner.get("subscription_item"), item["id"])


def new_item(mode: Mode, customer: Object, line: Line, currency: str, **fields: Any) -> Object:
    """An invoice item, not yet stored. `fields` are those that the line does not give."""
    return {
        "id": mode.store.new_id("ii"), "object": "invoiceitem", **_shared(mode, line, currency),
        "customer": customer["id"], "date": mode.now_s(customer["test_clock"] or ""), "invoice": None, "parent": None,
        "tax_rates": [], "test_clock": customer["test_clock"], **fields,
    }  # fmt: skip


def engine_line(mode: Mode, body: Object) -> Line:
    """The engine's form of an invoice line."""
    pricing = body["pricing"] or {"price_details": {"price": "", "product": ""}, "unit_amount_decimal": None}
    price = mode.store.get("price", pricing["price_details"]["price"])
    details, unit_amount = details_of(body), pricing["unit_amount_decimal"]
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
        metered=price is not None and (price["recurring"] or {}).get("usage_type") == "metered",
        discounts=discounts_of(mode, body["discounts"]),
    )


def details_of(line: Object) -> Object:
    """The details of a line's parent: a subscription item or an invoice item."""
    details: Object = line["parent"][line["parent"]["type"]]
    return details


def owner_of(invoice: Object) -> str:
    """The id of an invoice's subscription, or nothing."""
    return str(invoice["parent"]["subscription_details"]["subscription"]) if invoice["parent"] else ""


def discounts_of(mode: Mode, ids: Sequence[str]) -> tuple[Discount, ...]:
    """The engine's form of stored discounts."""
    return tuple(coupons.discount_of(mode, identifier) for identifier in ids)


def _decimal_text(number: Fraction) -> str:
    """A decimal as text. Quantities and unit amounts have at most 12 decimal places."""
    return f"{(Decimal(number.numerator) / number.denominator).normalize():f}"


def _shared(mode: Mode, line: Line, currency: str) -> Object:
    """The fields that lines and invoice items have in common."""
    product = mode.store.get("product", line.product)
    title = f"{rounded(line.quantity)} × {product['name']}" if product else None
    if line.proration:
        title = f"{'Unused' if line.amount < 0 else 'Remaining'} time on {title}"
    unit_amount = None if line.unit_amount is None else _decimal_text(line.unit_amount)
    details = {"price": line.price, "product": line.product}
    pricing = {"price_details": details, "type": "price_details", "unit_amount_decimal": unit_amount}
    return {
        "amount": line.amount, "currency": currency, "description": title, "discountable": line.discountable,
        "discounts": [], "livemode": mode.livemode, "metadata": {}, "period": line.period._asdict(),
        "pricing": pricing if line.price else None, "proration": line.proration, "quantity": rounded(line.quantity),
        "quantity_decimal": _decimal_text(line.quantity),
    }  # fmt: skip


def _line(
    mode: Mode, invoice: Object, source: Object, owner: str | None, item: str | None, invoice_item: str | None
) -> Object:
    details = {
        "invoice_item": invoice_item, "proration": source["proration"], "proration_details": {"credited_items": None},
        "subscription": owner, **({"subscription_item": item} if item else {}),
    }  # fmt: skip
    kinds = ("subscription_item_details", "invoice_item_details")[:: 1 if item else -1]
    return {
        "id": mode.store.new_id("il"), "object": "line_item", **{name: source[name] for name in _SHARED},
        "discount_amounts": [], "invoice": invoice["id"], "pretax_credit_amounts": [], "subscription": owner,
        "parent": {kinds[0]: details, kinds[1]: None, "type": kinds[0]}, "subtotal": source["amount"], "taxes": [],
    }  # fmt: skip
