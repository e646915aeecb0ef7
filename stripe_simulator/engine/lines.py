"""Subscription items and the invoice lines that result from them."""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

from stripe_simulator.engine.amounts import rounded
from stripe_simulator.engine.discounts import Discount
from stripe_simulator.engine.periods import Period
from stripe_simulator.engine.tiers import Price, exact_total


class Item(NamedTuple):
    """A subscription item. `period` is the item's `current_period_start` and `_end`; a metered item has no quantity."""

    id: str
    price: Price
    period: Period
    quantity: int = 1
    discounts: tuple[Discount, ...] = ()


class Line(NamedTuple):
    """An invoice line or a pending invoice item; `amount` is before discounts and exclusive tax.

    `item` is empty for a one-off invoice item. A proration is already discounted and not discountable.
    `unit_amount` is None when no single unit amount explains the line.
    """

    item: str
    price: str
    product: str
    amount: int
    quantity: Fraction
    period: Period
    unit_amount: Fraction | None = None
    proration: bool = False
    discountable: bool = True
    metered: bool = False
    discounts: tuple[Discount, ...] = ()


def licensed_line(item: Item) -> Line:
    """The line of a licensed item for its whole period, before discounts."""
    exact = exact_total(item.price, item.quantity)
    return Line(
        item=item.id,
        price=item.price.id,
        product=item.price.product,
        amount=rounded(exact),
        quantity=Fraction(item.quantity),
        period=item.period,
        unit_amount=None if item.price.tiers else item.price.unit_amount,
        discounts=item.discounts,
    )
