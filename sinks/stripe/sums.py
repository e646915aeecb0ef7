"""What a sum that Stripe gives can tell: it is a sum of doubles."""

from __future__ import annotations

from collections.abc import Collection
from decimal import Decimal
from typing import Final

from schemas.reports import MeterSummary

# A double keeps 53 bits: each amount and each addition may be off by half of the last one. So many more stand for what
# Stripe rounds besides (groups that it adds up first, the answer's own text).
DOUBLE_UNIT: Final = Decimal(2) ** -53
ROUNDED_BESIDES: Final = 8


def tolerance(amounts: Collection[Decimal]) -> Decimal:
    """How far a sum may be off where doubles added up some or all of `amounts`."""
    return sum(map(abs, amounts), Decimal(0)) * (len(amounts) + ROUNDED_BESIDES) * DOUBLE_UNIT


def agrees(expected: Decimal, summary: MeterSummary, off_by: Decimal) -> bool:
    """Whether Stripe's sum is the expected one, where it may be `off_by` so much."""
    return abs(Decimal(summary.value) - expected) <= off_by
