"""How an invoice adds up: discounts, then credit grants, then tax, then the customer's balance.

Sources: docs.stripe.com, the API's invoice object (`subtotal`, `total`, `amount_due`),
"billing/subscriptions/usage-based/billing-credits" (grants apply when an invoice is finalized, only to lines of metered
prices; order: priority, earliest expiry, promotional before paid, earliest effective date, creation),
"billing/taxes/tax-rates#rounding" (exclusive tax is added and rounded for each line, half up) and
"billing/customer/balance" (a negative balance is the customer's credit).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Literal, NamedTuple

from stripe_simulator.engine.amounts import rounded
from stripe_simulator.engine.discounts import Cut, Discount, apply
from stripe_simulator.engine.lines import Line


class Grant(NamedTuple):
    """A credit grant with what is left of it. `prices` empty means: all metered prices. `expires_at` None: never."""

    id: str
    available: int
    priority: int = 50
    category: Literal["paid", "promotional"] = "paid"
    effective_at: int = 0
    expires_at: int | None = None
    created: int = 0
    prices: frozenset[str] = frozenset()


class Draw(NamedTuple):
    """What a grant pays of the line number `line`."""

    grant: str
    line: int
    amount: int


def in_order(grants: Iterable[Grant], at: int) -> list[Grant]:
    """The usable grants at the instant `at`, in the order in which Stripe applies them."""
    usable = (
        grant
        for grant in grants
        if grant.available > 0 and grant.effective_at <= at and (grant.expires_at is None or at < grant.expires_at)
    )
    return sorted(
        usable,
        key=lambda grant: (
            grant.priority,
            grant.expires_at is None,
            grant.expires_at or 0,
            grant.category != "promotional",
            grant.effective_at,
            grant.created,
        ),
    )


def draw(grants: Iterable[Grant], lines: Sequence[Line], nets: Sequence[int], at: int) -> tuple[Draw, ...]:
    """What each grant pays of the metered lines, in the invoice's order (undocumented). Discounts left `nets`.

    What threshold invoices billed, a negative line, lowers what a grant can pay of the same item.
    """
    left = [net if line.metered else 0 for line, net in zip(lines, nets, strict=True)]
    for index, line in enumerate(lines):
        for other in range(index):
            if lines[other].item == line.item and left[index] < 0 < left[other]:
                billed = min(-left[index], left[other])
                left[index] += billed
                left[other] -= billed
    draws = []
    for grant in in_order(grants, at):
        available = grant.available
        for index, line in enumerate(lines):
            amount = min(available, max(0, left[index])) if not grant.prices or line.price in grant.prices else 0
            if amount:
                draws.append(Draw(grant.id, index, amount))
                available -= amount
                left[index] -= amount
    return tuple(draws)


def settled(total: int, starting_balance: int, charge_min: int = 0) -> tuple[int, int]:
    """The amount due and the customer's balance after an invoice (negative: credit; positive: debt).

    A negative total becomes credit. An amount due below `charge_min` is not charged but becomes debt.
    """
    owed = total + starting_balance
    if total < 0 or owed <= 0 or owed < charge_min:
        return 0, owed
    return owed, 0


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
    """Add up an invoice. `discounts` are those that are active for this invoice, `at` the instant of finalization."""
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
        ending_balance=ending_balance,
    )
