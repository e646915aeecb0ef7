"""The lines and the totals of a subscription's invoice.

Sources: docs.stripe.com, "billing/invoices/subscription" (licensed items in advance, metered items in arrears, pending
invoice items included), "usage-based/thresholds",
"usage-based/configure-grace-period", and the API's invoice object (`subtotal`, `total`,
`amount_due`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from stripe_simulator.engine.credits import CreditLine, Draw, Grant, draw, settled
from stripe_simulator.engine.discounts import Cut, Discount, Part, apply
from stripe_simulator.engine.lines import Item, Line, licensed_line
from stripe_simulator.engine.periods import Period
from stripe_simulator.engine.taxes import TaxRate, tax_of
from stripe_simulator.engine.usage import Usage, usage_lines

GRACE_S_MAX: Final = 72 * 3600


def cycle_lines(items: Sequence[Item], usages: Mapping[str, Usage], pending: Sequence[Line] = ()) -> tuple[Line, ...]:
    """The lines of the invoice at a period's boundary.

    Args:
        items: the items that renew, and the metered items that end. A licensed item has its new period, and is billed
            in advance.
        usages: by item id, the ended period's usage of metered items, which are billed in arrears. An item without an
            entry has no usage line. Usage 0 has a line.
        pending: invoice items that wait for the next invoice, prorations among them.
    """
    metered = [line for item in items if item.id in usages for line in usage_lines(item, usages[item.id])]
    licensed = [licensed_line(item) for item in items if not item.price.metered]
    return (*pending, *metered, *licensed)


def threshold_reached(
    usages: Sequence[tuple[Item, Usage]],
    *,
    amount_gte: int | None = None,
    usage_gte: Mapping[str, int] | None = None,
    pending: Sequence[Line] = (),
    discounts: Sequence[Discount] = (),
) -> bool:
    """True when a threshold invoice is due.

    `amount_gte` compares what the invoice would be without tax: the usage beyond earlier threshold invoices, pending
    prorations, discounts. `usage_gte` (by item id) compares the units since the last threshold invoice (undocumented:
    or since the period's start).
    """
    if amount_gte is not None:
        lines = [*pending, *(line for item, usage in usages for line in usage_lines(item, usage))]
        if totals(lines, discounts=discounts).total_excluding_tax >= amount_gte:
            return True
    limits = usage_gte or {}
    return any(usage.value - usage.billed_value >= limits[item.id] for item, usage in usages if item.id in limits)


def automatically_finalizes_at(created: int, period: Period, grace_s: int) -> int:
    """When a cycle's draft becomes final. Every other subscription invoice is final at once.

    Raises:
        ValueError: the grace is longer than 72 hours, or not shorter than the billing period.
    """
    if not 0 <= grace_s <= GRACE_S_MAX or grace_s >= period.end - period.start:
        raise ValueError(f"a grace of {grace_s} s is not possible for a period of {period.end - period.start} s")
    return created + grace_s


class LineTotals(NamedTuple):
    """One line's `discount_amounts`, credit grants and tax; `taxable` is what is left before tax."""

    cuts: tuple[Cut, ...]
    credited: int
    taxable: int
    tax: int


class Totals(NamedTuple):
    """An invoice's amounts. `ending_balance` and `draws` take effect when the invoice is finalized."""

    lines: tuple[LineTotals, ...]
    draws: tuple[Draw, ...]
    subtotal: int
    total_discount: int
    total_credits: int
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
    tax_rate: TaxRate | None = None,
    grants: Sequence[Grant] = (),
    at: int = 0,
    starting_balance: int = 0,
    charge_min: int = 0,
) -> Totals:
    """Add up an invoice: discounts, then credit grants, then tax, then the customer's balance.

    `discounts` are those of the subscription and the customer that are active for this invoice. `subtotal` contains
    item discounts and no invoice discounts, as the API says. `at` is the instant of finalization.
    """
    parts = [Part(line.amount, line.product, line.discounts, line.discountable) for line in lines]
    cuts = apply(parts, discounts)
    nets = [line.amount - sum(cut.amount for cut in line_cuts) for line, line_cuts in zip(lines, cuts, strict=True)]
    draws = draw(grants, _credit_lines(lines, nets), at)
    credited = [0] * len(lines)
    for entry in draws:
        credited[entry.line] += entry.amount
    taxable = [net - credit for net, credit in zip(nets, credited, strict=True)]
    taxes = [tax_of(amount, tax_rate) if tax_rate else 0 for amount in taxable]
    exclusive = 0 if tax_rate and tax_rate.inclusive else sum(taxes)
    item_discounts = sum(cut.amount for line_cuts in cuts for cut in line_cuts if cut.item_level)
    settlement = settled(sum(taxable) + exclusive, starting_balance, charge_min)
    return Totals(
        lines=tuple(LineTotals(*amounts) for amounts in zip(cuts, credited, taxable, taxes, strict=True)),
        draws=draws,
        subtotal=sum(line.amount for line in lines) - item_discounts,
        total_discount=sum(line.amount for line in lines) - sum(nets),
        total_credits=sum(credited),
        total_tax=sum(taxes),
        total_excluding_tax=sum(taxable) + exclusive - sum(taxes),
        total=sum(taxable) + exclusive,
        amount_due=settlement.amount_due,
        starting_balance=starting_balance,
        ending_balance=settlement.ending_balance,
    )


def _credit_lines(lines: Sequence[Line], nets: Sequence[int]) -> list[CreditLine]:
    """The lines for credit grants: "amount previously billed" lowers what a grant can pay of the same item."""
    previous: dict[str, int] = {}
    for line, net in zip(lines, nets, strict=True):
        if line.metered and net < 0:
            previous[line.item] = previous.get(line.item, 0) - net
    credit_lines = []
    for line, net in zip(lines, nets, strict=True):
        paid = min(max(0, net), previous.get(line.item, 0)) if line.metered else 0
        previous[line.item] = previous.get(line.item, 0) - paid
        credit_lines.append(CreditLine(net - paid, line.price, line.metered))
    return credit_lines
