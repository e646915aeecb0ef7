"""Exact prices, rounding, currencies, and the division of an amount over lines.

Sources: docs.stripe.com, "currencies" (zero-decimal and special-case currencies, minimum charges, at most 12 digits);
the API's `unit_amount_decimal` ("at most 12 decimal places"); "billing/taxes/tax-rates#rounding" (half is rounded up).
Stripe documents no rounding of a negative half: the engine rounds half away from zero (undocumented).
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Final

DECIMAL_PLACES_MAX: Final = 12
DIGITS_MAX: Final = 12

# Stripe's API keeps two decimals for isk and ugx, which have no coins.
ZERO_DECIMAL: Final = frozenset(
    ["bif", "clp", "djf", "gnf", "jpy", "kmf", "krw", "mga", "pyg", "rwf", "vnd", "vuv", "xaf", "xof", "xpf"]
)
THREE_DECIMAL: Final = frozenset(["bhd", "jod", "kwd", "omr", "tnd"])

# The smallest charge in minor units ("currencies#minimum-and-maximum-charge-amounts").
_CHARGE_MIN: Final = {"usd": 50, "eur": 50, "gbp": 30, "jpy": 50, "chf": 50, "cad": 50, "aud": 50}


def exact_amount(text: str | int | Decimal) -> Fraction:
    """A `unit_amount` or `unit_amount_decimal` in minor units.

    Raises:
        ValueError: no finite number, or more than 12 digits before or after the point.
    """
    try:
        number = Decimal(text)
    except InvalidOperation as error:
        raise ValueError(f"{text!r} is not a number") from error
    # The exponent is checked first: the integer of 1E+999999999 would fill the memory.
    if not number.is_finite() or number.adjusted() >= DIGITS_MAX:
        raise ValueError(f"{text!r} is not a number of at most {DIGITS_MAX} digits before the point")
    if number and (number.adjusted() < -DECIMAL_PLACES_MAX or number != round(number, DECIMAL_PLACES_MAX)):
        raise ValueError(f"{text!r} has more than {DECIMAL_PLACES_MAX} decimal places")
    return Fraction(number) if number else Fraction(0)


def rounded(amount: Fraction | int) -> int:
    """The nearest whole minor unit; half is rounded away from zero."""
    if isinstance(amount, int):
        return amount
    sign = -1 if amount < 0 else 1
    return sign * ((2 * abs(amount.numerator) + amount.denominator) // (2 * amount.denominator))


def exponent(currency: str) -> int:
    """The number of decimals of a currency in Stripe's API."""
    return 0 if currency in ZERO_DECIMAL else 3 if currency in THREE_DECIMAL else 2


def charge_min(currency: str) -> int:
    """The smallest amount that Stripe charges, in minor units; 0 for a currency that the engine does not list."""
    return _CHARGE_MIN.get(currency, 0)


def allocated(total: int, weights: Sequence[int]) -> tuple[int, ...]:
    """Divide `total` in proportion to `weights`, none negative, whose sum is at least `total`.

    "billing/subscriptions/prorations" shows the rule: a coupon of 500 over lines of 1000 and 2000 is 166 and 334. Each
    share is cut, not rounded, and the last part gets the remainder. A part never exceeds its weight: the engine moves
    the excess of the remainder to the parts before the last (undocumented).
    """
    whole = sum(weights)
    shares = [total * weight // whole if whole else 0 for weight in weights]
    remainder = total - sum(shares)
    for index in reversed(range(len(weights))):
        more = min(weights[index] - shares[index], remainder)
        shares[index] += more
        remainder -= more
    return tuple(shares)
