"""How an invoice adds up.

Sources: docs.stripe.com, the API's invoice object (`subtotal`, `total`, `amount_due`) and
"billing/taxes/tax-rates#rounding": exclusive tax is added and rounded for each line, half up.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from stripe_simulator.engine.amounts import rounded
from stripe_simulator.engine.credits import Draw, Grant, draw, settled
from stripe_simulator.engine.discounts import Cut, Discount, apply
from stripe_simulator.engine.lines import Line


class LineTotals(NamedTuple):
    """One line's `discount_amounts` and tax; `taxable` is what discounts and credit grants left."""

    cuts: tuple[Cut, ...]
    taxable: int
    tax: int


class Totals(NamedTuple):
    """An invoice's amounts. `ending_balance` and `draws` take effect when the invoice is finalized."""

    lines: tuple[LineTotals, ...]
    draws: tuple[Draw, ...]
    subtotal: int
    total_tax: int
    total_excluding_tax: int
    total: int
    amount_due: int
    starting_balance: int
    ending_balance: int


def totals(
    lines: Sequence[Line],
    *,
    discounts: Sequence[Discount] = (),
    tax_percentage: Fraction | None = None,
    grants: Sequence[Grant] = (),
    at: int = 0,
    starting_balance: int = 0,
    charge_min: int = 0,
) -> Totals:
    """Add up an invoice: discounts, then credit grants, then tax, then the customer's balance.

    `discounts` are those that are active for this invoice. `at` is the instant of finalization.
    """
    cuts = apply(lines, discounts)
    nets = [line.amount - sum(cut.amount for cut in line_cuts) for line, line_cuts in zip(lines, cuts, strict=True)]
    draws = draw(grants, lines, nets, at)
    taxable = list(nets)
    for entry in draws:
        taxable[entry.line] -= entry.amount
    taxes = [rounded(amount * tax_percentage / 100) if tax_percentage else 0 for amount in taxable]
    total = sum(taxable) + sum(taxes)
    amount_due, ending_balance = settled(total, starting_balance, charge_min)
    return Totals(
        lines=tuple(LineTotals(*amounts) for amounts in zip(cuts, taxable, taxes, strict=True)),
        draws=draws,
        subtotal=sum(line.amount for line in lines),
        total_tax=sum(taxes),
        total_excluding_tax=sum(taxable),
        total=total,
        amount_due=amount_due,
        starting_balance=starting_balance,
        ending_balance=ending_balance,
    )
