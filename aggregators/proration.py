"""What a change inside a billing period credits and charges.

Sources: docs.stripe.com, "billing/subscriptions/prorations". Stripe credits the time that is left of the whole old
configuration of an item and charges the same time of the whole new one, to the second. Each line is rounded by itself,
half away from zero. Discounts and taxes are not in the amounts. The credits assume that what an item costs now was
billed from the period's start on, or from the last change on.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import NamedTuple

from aggregators.rating import rounded
from schemas.clock import SECOND_MS


class Licensed(NamedTuple):
    """An item of a subscription that is paid ahead. `amount`: the exact minor units of its whole period,
    `[start_ms, end_ms)`, which begins and ends at whole seconds."""

    price: str
    quantity: int
    amount: Fraction
    start_ms: int
    end_ms: int


class Line(NamedTuple):
    """A line of the invoice that follows from a change; a negative amount is a credit."""

    amount_minor: int
    start_ms: int
    end_ms: int


def prorated(before: Mapping[str, Licensed], after: Mapping[str, Licensed], at_ms: int) -> tuple[Line, ...]:
    """The lines of a change at an instant, which Stripe cuts to its second. Items have the same name before and after.

    `before` without items is a new subscription. An item that is equal before and after gets no line. An item whose
    period begins at the instant is charged as a whole.
    """
    at_ms -= at_ms % SECOND_MS
    lines = []
    for name in {**before, **after}:
        was, will_be = before.get(name), after.get(name)
        if was != will_be:
            lines += [_line(item, at_ms, sign) for item, sign in ((was, -1), (will_be, 1)) if item]
    return tuple(line for line in lines if line.start_ms < line.end_ms)


def _line(item: Licensed, at_ms: int, sign: int) -> Line:
    start_ms = max(at_ms, item.start_ms)
    whole = item.amount.denominator * (item.end_ms - item.start_ms)
    left = Fraction(item.amount.numerator * (item.end_ms - start_ms), whole)
    return Line(sign * rounded(left), start_ms, item.end_ms)
