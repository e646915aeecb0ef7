"""Migrations from a flat price to a price for usage: what is kept of one, and the states that its subscriptions pass.

A *shadow* price costs nothing and bills the same meter as the future price: the real invoices show the real quantity,
and the customer pays the flat price as before. Nobody is moved before the quantity was right on an invoice.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from decimal import Decimal
from enum import StrEnum
from typing import NamedTuple, Protocol

from schemas.catalog import PlanId
from schemas.periods import Period
from schemas.plan_moves import SubscribedItem


class ItemState(StrEnum):
    """Where one subscription of a migration is. `RETURNING`: it was promoted, and has its flat price again from the end
    of its period. `LEFT`: it ended, or has another plan."""

    PLANNED = "planned"
    SHADOW = "shadow"
    COMPARED = "compared"
    APPROVED = "approved"
    SCHEDULED = "scheduled"
    PROMOTED = "promoted"
    SETTLED = "settled"
    RETURNING = "returning"
    REVERTED = "reverted"
    LEFT = "left"


class WaveRule(StrEnum):
    """How far the wave before must be when a wave is approved."""

    SCHEDULED = "scheduled"
    PROMOTED = "promoted"
    SETTLED = "settled"


class Migration(NamedTuple):
    """A migration by its name. `halted` says why no wave goes on, "" if they may. `notice_days`: how long before the
    first metered period a customer must have been told."""

    name: str
    source: PlanId
    shadow: PlanId
    target: PlanId
    notice_days: int
    rule: WaveRule
    made_ms: int
    made_by: str
    reason: str
    halted: str = ""


class Rated(NamedTuple):
    """What the future price bills a quantity of the running period: Stripe's preview, and our rating of the same."""

    quantity: str
    ours_minor: int
    stripe_minor: int
    at_ms: int


class Checked(NamedTuple):
    """A finalized invoice beside our totals of its period. `counted`: by the worker; `reported`: to Stripe;
    `recounted`: by the reconciler; `billed`: by the invoice's lines. `charged_minor` is what the lines bill, and
    `ours_minor` what the future price bills of `counted`."""

    invoice: str
    start_ms: int
    end_ms: int
    counted: str
    reported: str
    recounted: str
    billed: str
    charged_minor: int
    ours_minor: int


class Figures(NamedTuple):
    """What is known of one subscription in money. `flat_minor`: what a period costs at the flat price, which `had` are
    the items of; `fees_minor`: what is paid ahead for a period in future. `past_minor`: what the usage of the last
    period would have cost by the archive, None if that is not known. `credit_minor`: what a person should credit after
    a return."""

    currency: str
    exponent: int
    flat_minor: int
    had: tuple[SubscribedItem, ...]
    fees_minor: int = 0
    past_minor: int | None = None
    rated: Rated | None = None
    compared: Checked | None = None
    settled: Checked | None = None
    promoted_ms: int | None = None
    credit_minor: int = 0

    @property
    def future_minor(self) -> int | None:
        """What a period costs at the future price, by the newest figure that there is."""
        newest = self.settled or self.compared
        usage = self.past_minor if newest is None else newest.ours_minor
        return None if usage is None else usage + self.fees_minor

    @property
    def gap_minor(self) -> int:
        """What is not charged when the metered period begins, and was before."""
        return max(0, self.flat_minor - self.fees_minor)


class Item(NamedTuple):
    """One subscription of a migration. `wish`: the state that Stripe is being called for, None if none is. `tries`: how
    many wishes have ended. `problem`: a difference, which halts all waves; `note`: what only this
    subscription waits for. `renews_ms`: when its running period ends. `notified_ms`: when its customer was told."""

    migration: str
    subscription: str
    account: str
    customer: str
    wave: int
    state: ItemState
    figures: Figures
    touched_ms: int
    wish: ItemState | None = None
    tries: int = 0
    problem: str = ""
    note: str = ""
    renews_ms: int = 0
    notified_ms: int | None = None


class Who(NamedTuple):
    """Who asked for a step, and why: for the audit."""

    by: str
    why: str


class Counted(NamedTuple):
    """Our two totals of an account, meter and period, in units of the meter."""

    counted: Decimal
    recounted: Decimal


TotalKey = tuple[str, str, Period]


class UsageTotals(Protocol):
    """Reads what was counted, and counts it a second time."""

    async def totals(self, accounts: Collection[str], meters: Sequence[str]) -> Mapping[TotalKey, Counted]:
        """The totals by account, meter's slug and period. What is not complete yet is absent. May raise `Transient`."""
        ...


class Migrations(Protocol):
    """Migrations in SQL. Every call may raise `Transient`; no call holds a lock when it returns."""

    async def add(self, migration: Migration, items: Sequence[Item]) -> Migration:
        """Keep a new migration and its subscriptions, with an audit row for each account. The same again is returned as
        it is now, with subscriptions that are new. Raises `InvalidInput` for another one of the same name."""
        ...

    async def migration(self, name: str) -> Migration | None:
        """A migration."""
        ...

    async def listed(self) -> Sequence[Migration]:
        """All migrations, the newest first."""
        ...

    async def items(self, name: str) -> Sequence[Item]:
        """The subscriptions of a migration, by wave and id."""
        ...

    async def change(self, before: Item, after: Item, who: Who, now_ms: int) -> Item:
        """Write a subscription, under its account's lock, with an audit row if its state, wish or problem changed. If
        it is no longer as `before`, nothing is written and it is returned as it is."""
        ...

    async def halt(self, name: str, why: str, who: Who, now_ms: int) -> Migration:
        """Stop all waves, or with an empty `why` let them go on, with an audit row. The same again changes nothing."""
        ...
