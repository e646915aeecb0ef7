"""Which parts of a deployment the run of a seed has: some cost as much as the rest of a run."""

from __future__ import annotations

from typing import Final

BILLING_STRIDE: Final = 4
ADJUSTING_STRIDE: Final = 3


def is_billing(seed: int) -> bool:
    """Whether the run has customers at Stripe, whose events come."""
    return seed % BILLING_STRIDE == 0


def is_adjusting(seed: int) -> bool:
    """Whether the run has measurers, correctors and people who correct."""
    return seed % ADJUSTING_STRIDE == 0
