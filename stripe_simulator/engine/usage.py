"""The metered quantity of a period, and its lines.

Sources: docs.stripe.com, "billing/subscriptions/usage-based/recording-usage" (formulas, negative values),
"usage-based/manage-billing-setup" and "billing-mode/compare" (a metered price changes inside a period), and
"usage-based/thresholds" (tiers continue over threshold invoices).
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from typing import Literal, NamedTuple

from stripe_simulator.engine.amounts import rounded
from stripe_simulator.engine.lines import Item, Line
from stripe_simulator.engine.periods import Period
from stripe_simulator.engine.proration import BillingMode
from stripe_simulator.engine.tiers import charges, total

Formula = Literal["sum", "count", "last"]


class UsageSum(NamedTuple):
    """The meter events of one customer within `period`, usually one hour. `last` is the value of the latest event."""

    period: Period
    events: int
    sum: Fraction
    last: Fraction


def aggregated_value(formula: Formula, sums: Iterable[UsageSum], period: Period) -> Fraction:
    """The meter's value over `period`; 0 without events, also for `last`. The value may be negative.

    Raises:
        ValueError: a sum lies only partly within the period. The caller splits the hour in which a period ends.
    """
    within = []
    for usage_sum in sums:
        covered = usage_sum.period
        if covered.end <= period.start or covered.start >= period.end or not usage_sum.events:
            continue
        if covered.start < period.start or covered.end > period.end:
            raise ValueError(f"the usage of {covered} lies only partly within {period}")
        within.append(usage_sum)
    if formula == "last":
        return max(within, key=lambda usage_sum: usage_sum.period).last if within else Fraction(0)
    if formula == "count":
        return Fraction(sum(usage_sum.events for usage_sum in within))
    return sum((usage_sum.sum for usage_sum in within), Fraction(0))


class Usage(NamedTuple):
    """An item's usage in `period`: the aggregated value, and what threshold invoices of the period already billed."""

    value: Fraction
    period: Period
    billed_value: Fraction = Fraction(0)
    billed_amount: int = 0

    @property
    def quantity(self) -> Fraction:
        """What is billed: a negative total bills 0."""
        return max(Fraction(0), self.value)


def usage_lines(item: Item, usage: Usage) -> tuple[Line, ...]:
    """One line for each tier, from the first unit of the period; then "amount previously billed" as a negative line."""
    lines = [
        Line(
            item=item.id,
            price=item.price.id,
            product=item.price.product,
            amount=rounded(charge.exact),
            quantity=charge.quantity,
            period=usage.period,
            unit_amount=None if charge.flat_amount else charge.unit_amount,
            metered=True,
            discounts=item.discounts,
        )
        for charge in charges(item.price, usage.quantity)
    ]
    if usage.billed_amount:
        lines.append(lines[0]._replace(amount=-usage.billed_amount, quantity=Fraction(0), unit_amount=None))
    return tuple(lines)


def billed_by_threshold(item: Item, usage: Usage) -> Usage:
    """The usage after a threshold invoice. A restarted period begins with a new `Usage` instead."""
    return usage._replace(billed_value=usage.value, billed_amount=total(item.price, usage.quantity))


def swap_lines(mode: BillingMode, item: Item, usage: Usage) -> tuple[Line, ...]:
    """The pending invoice items for a metered item's usage when its price is changed or the item is removed.

    Flexible mode bills the usage until the change at the old price, and the resource counts from the change on at the
    new price. Classic mode never bills the earlier usage. With `proration_behavior=none`, neither mode does.
    """
    return usage_lines(item, usage) if mode == "flexible" and usage.quantity else ()
