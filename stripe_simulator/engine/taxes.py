"""Tax by one rate.

Source: docs.stripe.com, "billing/taxes/tax-rates": an exclusive rate is added to the amount, an inclusive rate is
contained in the amount. "#rounding": tax is rounded for each line, half up. The account setting that rounds after
subtotaling is not modelled.
"""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

from stripe_simulator.engine.amounts import rounded


class TaxRate(NamedTuple):
    """A tax rate; `percentage` has at most 4 decimal places."""

    percentage: Fraction
    inclusive: bool = False


def tax_of(taxable_amount: int, rate: TaxRate) -> int:
    """The tax of one line. For an inclusive rate, `taxable_amount` contains the tax. A credit line has negative tax."""
    base = 100 + rate.percentage if rate.inclusive else Fraction(100)
    return rounded(taxable_amount * rate.percentage / base)
