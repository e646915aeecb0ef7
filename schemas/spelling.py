"""How names, amounts and other texts of people are spelled, and what to write instead of a text that is not.

A text that pydantic rejects by its pattern is answered with a remedy in words: `remedy_of` has one for each pattern.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

SLUG: Final = r"^[a-z][a-z0-9_]{0,62}$"
DATA_PATH: Final = r"^\$(\.[A-Za-z_][A-Za-z0-9_-]{0,62}){1,8}$"
CURRENCY: Final = r"^[a-z]{3}$"
AMOUNT: Final = r"^(0|[1-9][0-9]{0,11})(\.[0-9]{1,15})?$"
PERCENT: Final = r"^(100|[1-9]?[0-9](\.[0-9]{1,2})?)$"
PLAN_NAME: Final = r"^[a-z][a-z0-9_]{0,62}@[1-9][0-9]{0,8}$"
TAX_CODE: Final = r"^txcd_[0-9]{8}$"
TIME_OF_DAY: Final = r"^([01][0-9]|2[0-3]):[0-5][0-9]$"


def remedy_of(pattern: str, text: str) -> str:
    """What to write instead of a text that does not match the pattern; "" for a pattern that is not of this module."""
    remedy = _REMEDIES.get(pattern)
    return remedy(text) if remedy else ""


def plain_amount(text: str) -> str:
    """The one spelling of an amount: without needless zeros, but with two decimals where there is one. So `35`, `35.0`
    and `35.00` are the same price."""
    whole, _, decimals = text.partition(".")
    decimals = decimals.rstrip("0")
    return f"{whole}.{decimals.ljust(2, '0')}" if decimals else whole


def _slug(text: str) -> str:
    if re.match(PLAN_NAME, text):
        return f"name it without a version here: {text.partition('@')[0]}"
    better = re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")
    better = better if re.match(SLUG, better) else "api_calls"
    return f"a name has small letters, digits and _, begins with a letter and has up to 63 characters, such as {better}"


def _currency(text: str) -> str:
    better = text.strip().lower()
    return f"a currency is three small letters, such as {better if re.match(CURRENCY, better) else 'usd'}"


def _plan_name(text: str) -> str:
    better = text if re.match(SLUG, text) else "team"
    return f"name the plan and its version, such as {better}@1"


def _amount(text: str) -> str:
    number = re.sub(r"[\s_]", "", text)
    if re.fullmatch(r"-[0-9.,]+", number):
        return "an amount is 0 or more"
    if re.fullmatch(r"[0-9]{1,3}([,'][0-9]{3})+(\.[0-9]+)?", number):
        return f"write an amount without marks between its digits: {re.sub('[,]|' + chr(39), '', number)}"
    if re.fullmatch(r"[0-9]+,[0-9]+", number):
        return f"write a point, not a comma: {number.replace(',', '.')}"
    if re.fullmatch(r"\.[0-9]+", number):
        return f"write a digit before the point: 0{number}"
    if re.fullmatch(r"[0-9]+\.?[0-9]*", number):
        return (
            "an amount has up to 12 digits before the point and up to 15 after it, begins with 0 only before a point, "
            "and has no spaces"
        )
    return 'an amount is digits with a point in major units, such as "35.00"; the currency is its key'


_REMEDIES: Final[Mapping[str, Callable[[str], str]]] = {
    SLUG: _slug,
    DATA_PATH: lambda _: "a path begins with $ and names fields of the event's data, such as $.tokens",
    CURRENCY: _currency,
    AMOUNT: _amount,
    PERCENT: lambda _: "a percentage is a number of 0 to 100 with up to two decimals, such as 12.5",
    PLAN_NAME: _plan_name,
    TIME_OF_DAY: lambda _: "a time of day has hours and minutes, such as 03:30",
    TAX_CODE: lambda _: "a tax code of Stripe is txcd_ and eight digits, such as txcd_10103001",
}
