"""The parts of a price in words: how a quantity becomes an amount. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from decimal import Decimal
from fractions import Fraction

from aggregators.late_usage import text_of
from aggregators.rating import Rating, parts_of, rounded
from portal.words import number_text, signed_money
from schemas.explained import Priced
from schemas.side_tables import Row
from schemas.upgrades import Money


def priced_parts(rating: Rating, quantity: Decimal, amount: Money) -> Iterator[Priced]:
    """The parts of a quantity by price, in words. Parts of nothing are left out."""
    below, parts = Fraction(0), [part for part in parts_of(rating, quantity) if part.quantity]
    for part in parts:
        each = exact_money(part.unit_amount, amount)
        units = text_of(_quotient(part.quantity))
        shown = number_text(Decimal(units))
        due = rounded(part.exact)
        if part.is_flat:
            if part.unit_amount:
                yield Priced(f"once {each}", Decimal(0), due)
            continue
        if rating.divide_by > 1:
            text = f"{shown} packages of {rating.divide_by:,} at {each} each"
            each += f" a package of {rating.divide_by:,}"
        elif rating.is_volume:
            text = f"all {shown} at {each} each, the price of this volume"
        elif not rating.tiers:
            text = f"{shown} at {each} each"
        else:
            text = f"{'the first' if not below else 'the next'} {shown} at {each} each"
        below += part.quantity
        yield Priced(text, Decimal(units), due, each=each)


def marked(parts: Iterable[Priced], row: Row) -> Iterator[Priced]:
    """The parts of a price, of which the first one with the quantity and amount of an invoice's line is that line."""
    quantity, amount, is_found = Decimal(str(row["quantity"] or 0)), int(row["amount_minor"] or 0), False
    for part in parts:
        is_line = not is_found and (part.units, part.amount_minor) == (quantity, amount)
        is_found = is_found or is_line
        yield part._replace(is_line=is_line)


def exact_money(minor: Fraction, like: Money) -> str:
    """An amount with all its decimals, such as `$0.002`."""
    places = like.exponent
    while (minor * 10 ** (places - like.exponent)).denominator != 1 and places < like.exponent + 12:
        places += 1
    return signed_money(Money(rounded(minor * 10 ** (places - like.exponent)), like.currency, places))


def quotient_text(number: Fraction) -> str:
    """A number with its decimals; of one without an end, the first ones."""
    return number_text(_quotient(number))


def _quotient(number: Fraction) -> Decimal:
    return Decimal(number.numerator) / Decimal(number.denominator)
