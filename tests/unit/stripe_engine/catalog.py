"""Prices, items and instants for the engine's tests. Amounts are in cents, as in Stripe's dashboard."""

from __future__ import annotations

import calendar
from datetime import datetime
from fractions import Fraction
from typing import Final, Literal

from stripe_simulator.engine.amounts import exact_amount
from stripe_simulator.engine.discounts import Coupon, Discount
from stripe_simulator.engine.lines import Item, Line, Usage
from stripe_simulator.engine.periods import Period, Recurrence
from stripe_simulator.engine.tiers import Price, Tier

MONTH: Final = Recurrence("month")
YEAR: Final = Recurrence("year")


def at(text: str) -> int:
    """UTC seconds of an ISO date, or of a date with a time."""
    return calendar.timegm(datetime.fromisoformat(text).timetuple())


def between(start: str, end: str) -> Period:
    """The period between two dates."""
    return Period(at(start), at(end))


def flat(name: str, unit_amount: int | str, recurrence: Recurrence = MONTH) -> Price:
    """A licensed price per unit."""
    return Price(name, recurrence, exact_amount(unit_amount), product=name)


def metered(name: str, unit_amount: int | str) -> Price:
    """A metered price per unit."""
    return Price(name, MONTH, exact_amount(unit_amount), product=name, metered=True)


def tiered(
    mode: Literal["graduated", "volume"],
    *tiers: tuple[int | None, int | str],
    metered: bool = True,
    name: str = "calls",
) -> Price:
    """A price with tiers of (up_to, unit_amount)."""
    rows = tuple(Tier(up_to, exact_amount(unit_amount)) for up_to, unit_amount in tiers)
    return Price(name, MONTH, product=name, metered=metered, tiers=rows, tiers_mode=mode)


def used(value: int | str, start: str, end: str) -> Usage:
    """Usage of a period."""
    return Usage(Fraction(value), between(start, end))


def percent(percent_off: int, *products: str) -> Discount:
    """A percentage that never ends."""
    return Discount(Coupon("percent", Fraction(percent_off), duration="forever", applies_to=frozenset(products)), 0)


def amount(amount_off: int, *products: str) -> Discount:
    """An amount that never ends."""
    return Discount(Coupon("amount", amount_off=amount_off, duration="forever", applies_to=frozenset(products)), 0)


def cents(lines: tuple[Line, ...]) -> list[int]:
    """The amounts of lines."""
    return [line.amount for line in lines]


def seats(price: Price, quantity: int, period: Period, name: str = "si_1") -> Item:
    """A licensed subscription item."""
    return Item(name, price, period, quantity)


ESSENTIAL: Final = flat("essential", 7900)
PRO: Final = flat("pro", 14900)
PRO_YEAR: Final = flat("pro_year", 154800, YEAR)
API_FEE: Final = flat("api_fee", 4900)
API_CALLS: Final = tiered("graduated", (10_000, 0), (100_000, "0.2"), (None, "0.1"))
