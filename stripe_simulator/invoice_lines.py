"""Invoice lines and invoice items: Stripe's JSON form of the engine's lines, and back."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

from stripe_simulator.engine.amounts import rounded
from stripe_simulator.engine.lines import Item, Line, Usage, usage_lines
from stripe_simulator.engine.periods import Period
from stripe_simulator.engine.tiers import total
from stripe_simulator.mode import Mode
from stripe_simulator.resources.prices import engine_price
from stripe_simulator.store import Object
from stripe_simulator.usage import DECIMAL_PLACES_MAX

_SHARED: Final = (
    "amount", "currency", "description", "discountable", "discounts", "livemode", "metadata", "period", "pricing",
    "quantity", "quantity_decimal",
)  # fmt: skip


def new_line(mode: Mode, invoice: Object, line: Line) -> Object:
    """The line of a subscription item, with the metadata of the item."""
    item = mode.store.get("subscription_item", line.item) or {"metadata": {}}
    shared = _shared(mode, line, invoice["currency"]) | {"metadata": item["metadata"]}
    return _line(mode, invoice, shared, owner_of(invoice) or None, line.item, None)


def line_of_item(mode: Mode, invoice: Object, item: Object) -> Object:
    """The line of an invoice item."""
    details = (item["parent"] or {"subscription_details": {}})["subscription_details"]
    return _line(mode, invoice, item, owner_of(item) or None, details.get("subscription_item"), item["id"])


def new_item(mode: Mode, customer: Object, line: Line, currency: str, **fields: Any) -> Object:
    """An invoice item, not yet stored. `fields` are those that the line does not give."""
    return {
        "id": mode.store.new_id("ii"), "object": "invoiceitem", **_shared(mode, line, currency),
        "customer": customer["id"], "date": mode.now_of(customer), "invoice": None, "parent": None,
        "tax_rates": [], "test_clock": customer["test_clock"], **fields,
    }  # fmt: skip


def one_time_line(mode: Mode, price: Object, quantity: int, period: Period) -> Line:
    """The line of a price that is paid once."""
    product = mode.fetch("product", price["product"])["id"]
    return Line("", price["id"], product, total(engine_price(price), quantity), Fraction(quantity), period)


def engine_line(mode: Mode, body: Object) -> Line:
    """The engine's form of an invoice line, as `totals` needs it: with a rounded quantity and without a unit amount."""
    sold = body["pricing"]["price_details"] if body["pricing"] else {"price": "", "product": ""}
    return Line(
        item=details_of(body).get("subscription_item") or "",
        **sold,
        amount=body["amount"],
        quantity=Fraction(body["quantity"]),
        period=Period(**body["period"]),
        discountable=body["discountable"],
        metered=_is_metered(mode, body),
    )


def _is_metered(mode: Mode, body: Object) -> bool:
    price = mode.store.get("price", body["pricing"]["price_details"]["price"]) if body["pricing"] else None
    return price is not None and (price["recurring"] or {}).get("usage_type") == "metered"


def details_of(line: Object) -> Object:
    """The details of a line's parent: a subscription item or an invoice item."""
    details: Object = line["parent"][line["parent"]["type"]]
    return details


def owner_of(body: Object) -> str:
    """The id of the subscription of an invoice or an invoice item, or nothing."""
    return str(body["parent"]["subscription_details"]["subscription"]) if body["parent"] else ""


def usage_of(mode: Mode, customer: str, price: Object, period: Period, billed: int = 0) -> Usage:
    """A customer's usage of a metered price, known by minute: a minute belongs to the period in which it begins."""
    total = mode.usage.total(price["recurring"]["meter"], customer, period.start, period.end)
    return Usage(Fraction(total, 10**DECIMAL_PLACES_MAX), period, billed)


def with_late_usage(mode: Mode, invoice: Object, bodies: Sequence[Object]) -> list[Object]:
    """The lines of a cycle's draft with the usage that arrived in its grace period."""
    result: list[Object] = []
    renewed = set()
    for body in bodies:
        # A negative line is what threshold invoices billed.
        if not _is_metered(mode, body) or details_of(body)["invoice_item"] or body["amount"] < 0:
            result.append(body)
            continue
        line = engine_line(mode, body)
        if (line.item, line.price, line.period) not in renewed:
            # One line for each tier: the first of them stands for all.
            renewed.add((line.item, line.price, line.period))
            price = mode.fetch("price", line.price)
            usage = usage_of(mode, invoice["customer"], price, line.period)
            item = Item(line.item, engine_price(price), line.period)
            result += [new_line(mode, invoice, fresh) for fresh in usage_lines(item, usage)]
    return result


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
