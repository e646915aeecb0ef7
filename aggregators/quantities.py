"""Converts a JSON value to an exact quantity in minor units, or finds the reason why that is impossible (I5)."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from typing import Final

from schemas.meters import DIMENSION_CHARACTERS_MAX, QUANTITY_MINOR_MAX
from schemas.reasons import Reason

_DECIMAL_TEXT: Final = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,17})?")
_DECIMAL_CHARACTERS_MAX: Final = 64
POWERS: Final = tuple(10**scale for scale in range(13))


def minor_of(value: object, scale: int, allow_negative: bool) -> int | Reason:
    """`value` × 10^scale as an int, for a number or a decimal text. Booleans are not numbers.

    Otherwise the first reason that applies: missing, bad, too many digits (nothing is rounded), too large, negative.
    """
    if type(value) is int:
        minor = value * POWERS[scale]
    elif value is None:
        return Reason.MISSING_QUANTITY
    else:
        exact = _decimal_of(value)
        if exact is None:
            return Reason.BAD_QUANTITY
        scaled = _scaled(exact, scale)
        if isinstance(scaled, Reason):
            return scaled
        minor = scaled
    if not -QUANTITY_MINOR_MAX <= minor <= QUANTITY_MINOR_MAX:
        return Reason.QUANTITY_TOO_LARGE
    return Reason.NEGATIVE_QUANTITY if minor < 0 and not allow_negative else minor


def at_most(minor: int) -> int:
    """The quantity, or as much of it as one event may have. Who tells differences tells the rest next time."""
    return max(-QUANTITY_MINOR_MAX, min(minor, QUANTITY_MINOR_MAX))


def plain_minor(text: str, scale: int) -> int | None:
    """The minor units of a short decimal text without a sign and an exponent; None for any other text."""
    whole, _, fraction = text.partition(".")
    if (
        len(text) < 18 - scale
        and text.isascii()
        and whole.isdigit()
        and fraction.isdigit()
        and len(fraction) <= scale
        and (whole[0] != "0" or len(whole) == 1)
    ):
        return int(whole + fraction + "0" * (scale - len(fraction)))
    return None


def _decimal_of(value: object) -> Decimal | None:
    if isinstance(value, str):
        if len(value) > _DECIMAL_CHARACTERS_MAX or _DECIMAL_TEXT.fullmatch(value) is None:
            return None
        try:
            value = Decimal(value)
        except InvalidOperation:
            return None
    return value if isinstance(value, Decimal) and value.is_finite() else None


def _scaled(exact: Decimal, scale: int) -> int | Reason:
    if exact.is_zero():
        return 0
    sign, digits, exponent = exact.as_tuple()
    if not isinstance(exponent, int):
        return Reason.BAD_QUANTITY
    written = "".join(map(str, digits))
    mantissa = written.rstrip("0")
    # The exponent is checked before a power of ten is computed: 1e999999 would fill the memory.
    shift = exponent + scale + len(written) - len(mantissa)
    if shift < 0:
        return Reason.TOO_MANY_DIGITS
    if exact.adjusted() + scale > 18:
        return Reason.QUANTITY_TOO_LARGE
    minor = int(mantissa + "0" * shift)
    return -minor if sign else minor


def text_of(value: object) -> str | None:
    """A scalar as text, for dimensions, filters and distinct values; None if the value cannot be one.

    A missing value is the empty text. Fractions are rejected: 1.0 and 1.00 would be two texts for one number.
    """
    if isinstance(value, str):
        return value if len(value) <= DIMENSION_CHARACTERS_MAX else None
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value) if -(10 ** (DIMENSION_CHARACTERS_MAX - 1)) < value < 10**DIMENSION_CHARACTERS_MAX else None
    return None


def decimal_text(minor: int, scale: int) -> str:
    """`minor / 10^scale` as the shortest exact decimal text, never in exponent form."""
    sign = "-" if minor < 0 else ""
    whole, fraction = divmod(abs(minor), 10**scale)
    digits = f"{fraction:0{scale}d}".rstrip("0") if scale else ""
    return f"{sign}{whole}.{digits}" if digits else f"{sign}{whole}"
