"""What a quantity of metered usage costs at a Stripe price, in minor units.

Sources: docs.stripe.com, products-prices/pricing-models (per unit, package, graduated and volume tiers, flat amounts),
and the API's `transform_quantity`, which no price with tiers has. Each line of an invoice is rounded by itself, half
away from zero.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from functools import lru_cache
from typing import Any, Final, NamedTuple

from schemas.errors import InvalidInput
from schemas.prices import PriceTerms

# Stripe's amounts have at most twelve digits before and after the point.
_EXPONENT_MAX: Final = 12


class Tier(NamedTuple):
    """Units up to and including `up_to` (None: all further ones) cost `unit_amount` each, and the tier `flat_amount`
    once."""

    up_to: int | None
    unit_amount: Fraction
    flat_amount: Fraction


class Rating(NamedTuple):
    """The terms of a price. Without tiers a unit, or a package of `divide_by` units, costs `unit_amount`."""

    currency: str
    unit_amount: Fraction
    tiers: tuple[Tier, ...] = ()
    is_volume: bool = False
    divide_by: int = 1
    rounds_up: bool = False


class Part(NamedTuple):
    """A part of an amount that is rounded by itself: `quantity` units, or packages, at `unit_amount` each; of a flat
    amount, one."""

    quantity: Fraction
    unit_amount: Fraction
    is_flat: bool = False

    @property
    def exact(self) -> Fraction:
        """Its minor units before rounding."""
        return self.quantity * self.unit_amount


def rating_of(terms: str) -> Rating:
    """The terms of a price, from the fields of Stripe's object as JSON. Raises `InvalidInput` with the field."""
    try:
        return _rating(json.loads(terms))
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise InvalidInput("price", f"does not have the form that Stripe documents: {error}") from error


@lru_cache(maxsize=4_096)
def rating_of_terms(terms: PriceTerms) -> Rating:
    """The terms of a price of the catalog, whose packages are rounded up."""
    tiers = tuple(Tier(tier.up_to, Fraction(tier.unit_minor), Fraction(tier.flat_minor)) for tier in terms.tiers)
    unit = Fraction(terms.unit_minor or 0)
    return Rating(terms.currency, unit, tiers, terms.mode == "volume", terms.package, rounds_up=True)


def _rating(price: Any) -> Rating:
    package = price.get("transform_quantity") or {"divide_by": 1, "round": "down"}
    divide_by, rounds = package.get("divide_by"), package.get("round")
    if type(divide_by) is not int or divide_by < 1 or rounds not in ("up", "down"):
        raise InvalidInput("transform_quantity", "is not that of a price")
    if price.get("billing_scheme") != "tiered":
        amount = _amount(price, "unit_amount")
        return Rating(price["currency"], amount, divide_by=divide_by, rounds_up=rounds == "up")
    tiers = tuple(
        Tier(tier.get("up_to"), _amount(tier, "unit_amount", 0), _amount(tier, "flat_amount", 0))
        for tier in price.get("tiers") or ()
    )
    if not tiers or tiers[-1].up_to is not None or price.get("tiers_mode") not in ("graduated", "volume"):
        raise InvalidInput("tiers", "are not those of a price, the last one up to infinity")
    return Rating(price["currency"], Fraction(0), tiers, price["tiers_mode"] == "volume")


def amount_of(rating: Rating, quantity: Decimal) -> int:
    """What a quantity of one period costs. A negative quantity costs as much as none: Stripe bills no less.

    A fraction of a unit belongs to the tier of the unit that it begins. No usage is in the first tier, so the tier's
    flat amount is due.
    """
    return sum(rounded(part.exact) for part in parts_of(rating, quantity))


@lru_cache(maxsize=16_384)
def exact_amount(rating: Rating, quantity: int) -> Fraction:
    """What a quantity that is paid ahead costs for a whole period, before rounding: Stripe prorates this amount."""
    return sum((part.exact for part in parts_of(rating, Decimal(quantity))), Fraction(0))


def parts_of(rating: Rating, quantity: Decimal) -> Iterator[Part]:
    """The parts of an amount, the first tier first."""
    units = max(Fraction(quantity), Fraction(0))
    if not rating.tiers:
        packages = units / rating.divide_by
        if rating.divide_by > 1:
            packages = Fraction(-(-packages // 1) if rating.rounds_up else packages // 1)
        yield Part(packages, rating.unit_amount)
    below = Fraction(0)
    for tier in rating.tiers:
        is_last = tier.up_to is None or units <= tier.up_to
        if is_last or not rating.is_volume:
            upper = units if is_last else Fraction(tier.up_to or 0)
            yield Part(upper - below, tier.unit_amount)
            yield Part(Fraction(1), tier.flat_amount, is_flat=True)
            below = upper
        if is_last:
            break


def billed_quantity(rating: Rating, quantity: Decimal, amount_minor: int) -> Decimal | None:
    """The units that an invoice bills by lines of this quantity and amount; None if the price does not explain them.

    A line of a price per package has the number of packages; their units are then paid for.
    """
    for units in (quantity, quantity * rating.divide_by):
        if amount_of(rating, units) == amount_minor:
            return units
    return None


def rounded(amount: Fraction) -> int:
    """The nearest whole minor unit; half is rounded away from zero."""
    # In whole numbers: a sum of fractions looks for common divisors each time.
    whole = (2 * abs(amount.numerator) + amount.denominator) // (2 * amount.denominator)
    return whole if amount.numerator >= 0 else -whole


def _amount(fields: Mapping[str, object], name: str, missing: int | None = None) -> Fraction:
    """An amount in minor units: the decimal field, which Stripe fills always, or the whole one."""
    value = fields.get(f"{name}_decimal")
    value = fields.get(name, missing) if value is None else value
    value = missing if value is None else value
    try:
        number = Decimal(value) if isinstance(value, str | int) else Decimal("nan")
    except InvalidOperation:
        number = Decimal("nan")
    # The exponent is checked first: the digits of 1E+999999999 would fill the memory.
    if not number.is_finite() or (number and abs(number.adjusted()) > _EXPONENT_MAX):
        raise InvalidInput(name, "is not an amount of a price")
    return Fraction(number)
