"""What a change inside a service period credits and charges.

Sources: docs.stripe.com, "billing/subscriptions/prorations" and "billing/subscriptions/billing-mode/compare".
Prorations are computed to the second and on the discounted price, apply only to licensed items, and assume that earlier
invoices will be paid. The whole new configuration of a changed item is charged, and the whole old one is credited.
The modes differ in the credit: `classic` credits the item's current price, `flexible` credits what was billed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Literal, NamedTuple

from stripe_simulator.engine.amounts import rounded
from stripe_simulator.engine.discounts import Discount, apply
from stripe_simulator.engine.lines import Item, Line, licensed_line
from stripe_simulator.engine.periods import Period
from stripe_simulator.engine.tiers import exact_total

BillingMode = Literal["classic", "flexible"]


class Debit(NamedTuple):
    """What a licensed item was billed, so that flexible mode can credit exactly that.

    `net` is the exact discounted amount of the item's whole period; `billed` is the part of the period that is billed
    and not yet credited. The exact amount is kept, because a credit of a rounded proration would be a cent off.
    """

    item: Item
    net: Fraction
    billed: Period


class Prorated(NamedTuple):
    """The lines of a change, and the debits that a later change in the same period needs."""

    lines: tuple[Line, ...]
    debits: tuple[Debit, ...]


def net_amounts(items: Sequence[Item], discounts: Sequence[Discount], mode: BillingMode) -> dict[str, Fraction]:
    """The exact amount of each licensed item for its whole period, after discounts, by item id.

    Flexible mode divides a discount over the items that are billed for the same period. Classic mode takes the whole
    discount off each item: "−0.5 × (10 USD price − 5 USD coupon)" in "Credit prorations".
    """
    together: dict[object, list[Item]] = {}
    for item in items:
        if not item.price.metered:
            together.setdefault(item.period if mode == "flexible" else item.id, []).append(item)
    nets = {}
    for group in together.values():
        for item, cuts in zip(group, apply([licensed_line(item) for item in group], discounts), strict=True):
            nets[item.id] = exact_total(item.price, item.quantity) - sum(cut.amount for cut in cuts)
    return nets


def debits_of(items: Iterable[Item], discounted: Mapping[str, int]) -> tuple[Debit, ...]:
    """The debits of items that an invoice bills for their whole period: at the start and at a renewal.

    `discounted` has what the invoice's discounts took off each item, by item id.
    """
    return tuple(
        Debit(item, exact_total(item.price, item.quantity) - discounted.get(item.id, 0), item.period)
        for item in items
        if not item.price.metered
    )


def restarts_period(mode: BillingMode, before: Sequence[Item], after: Sequence[Item]) -> bool:
    """True when a change resets the billing cycle anchor to now although the request did not ask for that.

    Classic mode does so for another interval and for the step from free to paid. Flexible mode resets the anchor only
    on request ("Reset the billing cycle anchor" in "billing-mode/compare", "Change the billing period on existing
    subscriptions" in "billing/subscriptions/billing-cycle").
    """
    if mode == "flexible" or not before or not after:
        return False
    if {item.price.recurrence for item in before} != {item.price.recurrence for item in after}:
        return True
    return all(_is_free(item) for item in before) and not all(_is_free(item) for item in after)


def _is_free(item: Item) -> bool:
    """Zero-amount prices and zero quantities are free. A metered price is free if no usage costs anything."""
    if not item.price.metered:
        return not exact_total(item.price, item.quantity)
    return not item.price.unit_amount and not any(tier.unit_amount or tier.flat_amount for tier in item.price.tiers)


def prorate(
    mode: BillingMode,
    before: Sequence[Item],
    after: Sequence[Item],
    at: int,
    *,
    discounts: Sequence[Discount] = (),
    debits: Sequence[Debit] = (),
    prorations: bool = True,
) -> Prorated:
    """Credit the unused time and charge the remaining time of every licensed item that differs.

    Args:
        before: the items until `at`; empty for a new subscription. An item keeps its id when its price or quantity
            changes.
        after: the items from `at` on; empty for an immediate cancellation. An item whose new period begins at `at` was
            restarted: the item gets a full line, which the invoice discounts, instead of a proration.
        at: `proration_date`, in UTC seconds.
        discounts: the subscription's discounts after the request.
        debits: the ledger of flexible mode. Classic mode credits each item's current price instead.
        prorations: False for `proration_behavior=none`: only restarted items get lines, and nothing is credited.
    """
    old = {item.id: item for item in before}
    new = {item.id: item for item in after}
    nets = net_amounts(after, discounts, mode)
    if mode == "classic":
        debits = [Debit(old[key], net, old[key].period) for key, net in net_amounts(before, discounts, mode).items()]
    ledger = [debit for debit in debits if prorations or debit.item.id in new]
    lines: list[Line] = []
    for item_id in {**old, **new}:
        was, will_be = old.get(item_id), new.get(item_id)
        if was == will_be:
            # A new discount alone creates no proration ("Discount changes and prorations").
            continue
        restarted = will_be is not None and will_be.period.start == at and (was is None or was.period != will_be.period)
        if not prorations and not restarted:
            continue
        own = [debit for debit in ledger if debit.item.id == item_id]
        if prorations:
            lines += [_proration(debit, at, -1) for debit in own if debit.billed.end > at]
        ledger = [debit for debit in ledger if debit.item.id != item_id]
        # Until `at`, the item stays billed.
        ledger += [
            debit._replace(billed=Period(debit.billed.start, min(debit.billed.end, at)))
            for debit in own
            if debit.billed.start < at
        ]
        if will_be is not None and item_id in nets and will_be.period.end > at:
            debit = Debit(will_be, nets[item_id], Period(max(at, will_be.period.start), will_be.period.end))
            lines.append(licensed_line(will_be) if restarted else _proration(debit, at, 1))
            ledger.append(debit)
    return Prorated(tuple(lines), tuple(ledger))


def _proration(debit: Debit, at: int, sign: int) -> Line:
    """The billed time from `at` on: with `sign` -1 Stripe's line "Unused time on …", with 1 "Remaining time on …"."""
    part = Period(max(at, debit.billed.start), debit.billed.end)
    amount = sign * rounded(debit.net * debit.item.period.share(part))
    line = licensed_line(debit.item)
    return line._replace(amount=amount, period=part, unit_amount=None, proration=True, discountable=False)
