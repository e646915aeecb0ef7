"""Billing credits, and the customer's balance.

Sources: docs.stripe.com, "billing/subscriptions/usage-based/billing-credits" (grants apply when an invoice is
finalized, only to lines of metered prices, after discounts and before tax; order: priority, earliest expiry,
promotional before paid, earliest effective date, creation; a voided invoice gives back) and "billing/customer/balance"
(a negative balance is the customer's credit).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

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
    """What each grant pays of each line. A grant pays the lines in the invoice's order (undocumented).

    `nets` are the amounts that discounts left. Only a metered line with a positive one is paid.
    """
    left = [max(0, net) if line.metered else 0 for line, net in zip(lines, nets, strict=True)]
    draws = []
    for grant in in_order(grants, at):
        available = grant.available
        for index, line in enumerate(lines):
            amount = min(available, left[index]) if not grant.prices or line.price in grant.prices else 0
            if amount:
                draws.append(Draw(grant.id, index, amount))
                available -= amount
                left[index] -= amount
    return tuple(draws)


def settled(total: int, starting_balance: int, charge_min: int = 0) -> tuple[int, int]:
    """Set an invoice's total off against the customer's balance (negative: credit; positive: debt).

    A negative total becomes credit. An amount due below `charge_min` is not charged but becomes debt. Returns the
    amount due and the balance after the invoice.
    """
    owed = total + starting_balance
    if total < 0 or owed <= 0 or owed < charge_min:
        return 0, owed
    return owed, 0
