"""What a quantity costs: per unit, graduated or volume tiers, packages.

Source: docs.stripe.com, "products-prices/pricing-models" (tiered pricing, usage-based pricing) and the API's
`transform_quantity` (not possible with tiers).
"""

from __future__ import annotations

from fractions import Fraction
from typing import Literal, NamedTuple

from stripe_simulator.engine.amounts import rounded
from stripe_simulator.engine.periods import Recurrence


class Tier(NamedTuple):
    """One tier. `up_to` is the last unit of the tier, and None means `inf`."""

    up_to: int | None
    unit_amount: Fraction = Fraction(0)
    flat_amount: Fraction = Fraction(0)


class TransformQuantity(NamedTuple):
    """Units are sold in packages of `divide_by`."""

    divide_by: int
    round: Literal["up", "down"]


class Price(NamedTuple):
    """A price with a `unit_amount` and perhaps `transform_quantity`, or with a `tiers_mode` and `tiers` to infinity."""

    id: str
    recurrence: Recurrence
    unit_amount: Fraction = Fraction(0)
    product: str = ""
    metered: bool = False
    tiers: tuple[Tier, ...] = ()
    tiers_mode: Literal["graduated", "volume"] | None = None
    transform_quantity: TransformQuantity | None = None


class Charge(NamedTuple):
    """A part of a price that becomes an invoice line of its own.

    A flat amount has the quantity 0. With `transform_quantity`, the quantity counts packages.
    """

    quantity: Fraction
    unit_amount: Fraction
    flat_amount: Fraction = Fraction(0)

    @property
    def exact(self) -> Fraction:
        """The amount before rounding."""
        return self.quantity * self.unit_amount + self.flat_amount


def charges(price: Price, quantity: Fraction | int) -> tuple[Charge, ...]:
    """The parts of `quantity`, which is not negative: one for each tier that the quantity enters.

    A flat amount is a part of its own. The quantity 0 enters the first tier, so its flat amount is due ("fixed fee and
    overage"). A fraction of a unit belongs to the tier of the unit that the fraction begins.
    """
    units = Fraction(quantity)
    if price.transform_quantity:
        packages = units / price.transform_quantity.divide_by
        units = Fraction(-(-packages // 1) if price.transform_quantity.round == "up" else packages // 1)
    if not price.tiers:
        return (Charge(units, price.unit_amount),)
    parts, below, is_volume = [], Fraction(0), price.tiers_mode == "volume"
    for tier in price.tiers:
        top = units if tier.up_to is None else min(units, Fraction(tier.up_to))
        if not is_volume or top == units:
            parts.append(Charge(top - below, tier.unit_amount))
            if tier.flat_amount:
                parts.append(Charge(Fraction(0), Fraction(0), tier.flat_amount))
        if top == units:
            break
        below = below if is_volume else top
    return tuple(parts)


def exact_total(price: Price, quantity: Fraction | int) -> Fraction:
    """The amount of `quantity` before rounding. Prorations start from this amount."""
    return sum((charge.exact for charge in charges(price, quantity)), Fraction(0))


def total(price: Price, quantity: Fraction | int) -> int:
    """The amount of `quantity`: the sum of the lines, each rounded by itself."""
    return sum(rounded(charge.exact) for charge in charges(price, quantity))
