"""Subscription items, their metered usage, and the invoice lines that result from both.

Sources: docs.stripe.com, "billing/invoices/subscription" (licensed items in advance, metered items in arrears) and
"billing/subscriptions/usage-based/recording-usage" (negative values) and "usage-based/thresholds" (tiers continue over
threshold invoices).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple

from stripe_simulator.engine.amounts import rounded
from stripe_simulator.engine.periods import Period
from stripe_simulator.engine.tiers import Price, charges, exact_total, total


class Item(NamedTuple):
    """A subscription item. `period` is the item's `current_period_start` and `_end`; a metered item has no quantity."""

    id: str
    price: Price
    period: Period
    quantity: int = 1


class Usage(NamedTuple):
    """The aggregated value of a metered item in `period`, and the amount that threshold invoices billed of it.

    A negative value bills 0.
    """

    value: Fraction
    period: Period
    billed: int = 0

    @property
    def quantity(self) -> Fraction:
        """What is billed."""
        return max(Fraction(0), self.value)


class Line(NamedTuple):
    """An invoice line or a pending invoice item; `amount` is before discounts and tax.

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


def licensed_line(item: Item) -> Line:
    """The line of a licensed item for its whole period."""
    price = item.price
    amount = rounded(exact_total(price, item.quantity))
    unit_amount = None if price.tiers else price.unit_amount
    return Line(item.id, price.id, price.product, amount, Fraction(item.quantity), item.period, unit_amount)


def usage_lines(item: Item, usage: Usage) -> tuple[Line, ...]:
    """One line for each tier, from the first unit of the period; then a negative line of what is billed already."""
    lines = [
        Line(
            item=item.id,
            price=item.price.id,
            product=item.price.product,
            amount=rounded(charge.exact),
            quantity=charge.quantity,
            period=usage.period,
            unit_amount=None if charge.flat_amount else charge.unit_amount,
            metered=True,
        )
        for charge in charges(item.price, usage.quantity)
    ]
    if usage.billed:
        lines.append(lines[0]._replace(amount=-usage.billed, quantity=Fraction(0), unit_amount=None))
    return tuple(lines)


def billed_by_threshold(item: Item, usage: Usage) -> Usage:
    """The usage after a threshold invoice."""
    return usage._replace(billed=total(item.price, usage.quantity))


def cycle_lines(items: Sequence[Item], usages: Mapping[str, Usage]) -> tuple[Line, ...]:
    """The lines at a period's boundary: `items` with their new period, and by item id the usage of the ended one."""
    metered = [line for item in items if item.id in usages for line in usage_lines(item, usages[item.id])]
    return (*metered, *(licensed_line(item) for item in items if not item.price.metered))
