"""Billing credits, and the customer's balance.

Sources: docs.stripe.com, "billing/subscriptions/usage-based/billing-credits" (grants apply when an invoice is
finalized, only to lines of metered prices, after discounts and before tax; order: priority, earliest expiry,
promotional before paid, earliest effective date, creation; a voided invoice gives back) and "billing/customer/balance"
(a negative balance is the customer's credit).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple


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


class CreditLine(NamedTuple):
    """A line as grants see it: `amount` is what discounts left. Only a metered line with a positive amount is paid."""

    amount: int
    price: str
    metered: bool


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


def draw(grants: Iterable[Grant], lines: Sequence[CreditLine], at: int) -> tuple[Draw, ...]:
    """What each grant pays of each line. A grant pays the lines in the invoice's order (undocumented)."""
    left = [line.amount if line.metered else 0 for line in lines]
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


def drawn(grants: Sequence[Grant], draws: Iterable[Draw]) -> tuple[Grant, ...]:
    """The grants after `draws`."""
    return _changed(grants, draws, -1)


def reinstated(grants: Sequence[Grant], draws: Iterable[Draw]) -> tuple[Grant, ...]:
    """The grants after the invoice with `draws` was voided. A credit note does not give back."""
    return _changed(grants, draws, 1)


def _changed(grants: Sequence[Grant], draws: Iterable[Draw], sign: int) -> tuple[Grant, ...]:
    amounts: dict[str, int] = {}
    for entry in draws:
        amounts[entry.grant] = amounts.get(entry.grant, 0) + sign * entry.amount
    return tuple(grant._replace(available=grant.available + amounts.get(grant.id, 0)) for grant in grants)


class Settlement(NamedTuple):
    """`amount_due` is to be paid, and `ending_balance` is the customer's balance after the invoice."""

    amount_due: int
    ending_balance: int


def settled(total: int, starting_balance: int, charge_min: int = 0) -> Settlement:
    """Set an invoice's total off against the customer's balance (negative: credit; positive: debt).

    A negative total becomes credit. An amount due below `charge_min` is not charged but becomes debt.
    """
    owed = total + starting_balance
    if total < 0 or owed <= 0 or owed < charge_min:
        return Settlement(0, owed)
    return Settlement(owed, 0)
