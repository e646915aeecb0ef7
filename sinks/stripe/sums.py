"""What a sum that Stripe gives can tell: it is a double."""

from __future__ import annotations

from decimal import Decimal
from typing import Final

from schemas.reports import MeterSummary

# A double keeps 53 bits; Stripe adds up in doubles or rounds to one, so the last three bits prove nothing.
DOUBLE_TOLERANCE: Final = Decimal(2) ** -50


def agrees(expected: Decimal, summary: MeterSummary) -> bool:
    """Whether Stripe's sum is the expected one, as far as a double can tell."""
    return abs(Decimal(summary.value) - expected) <= abs(expected) * DOUBLE_TOLERANCE
