"""Monthly recurring revenue (MRR): what subscriptions bring in a month, and why that changed. docs/revenue.md."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from enum import StrEnum
from typing import Any, NamedTuple, Protocol

from schemas.catalog_changes import CatalogStore
from schemas.recognition import InvoiceBooks
from schemas.side_tables import Row


class MovementKind(StrEnum):
    """Why the MRR of an account changed. The list is closed.

    `new`: from nothing, for the first time. `reactivation`: from nothing, again. `expansion` and `contraction`: up and
    down. `churn`: to nothing, because the customer ended. `involuntary_churn`: to nothing, because payments failed.
    """

    NEW = "new"
    REACTIVATION = "reactivation"
    EXPANSION = "expansion"
    CONTRACTION = "contraction"
    CHURN = "churn"
    INVOLUNTARY_CHURN = "involuntary_churn"


class AuditChange(NamedTuple):
    """An audit row about subscriptions or a dunning case of an account. `at_ms`: when Stripe's event happened, or else
    when the row was written. `before` and `after`: what differed, in the form of the audit."""

    account: str
    at_ms: int
    entity: str
    entity_id: str
    before: Mapping[str, Any]
    after: Mapping[str, Any]


class Movement(NamedTuple):
    """A change of the MRR of an account in one currency, in minor units for a month. Nobody adds two currencies."""

    account: str
    currency: str
    at_ms: int
    kind: MovementKind
    before_minor: int
    after_minor: int

    @property
    def change_minor(self) -> int:
        """How much more; negative if less."""
        return self.after_minor - self.before_minor


class AccountRevenue(NamedTuple):
    """The movements of an account, oldest first, and how many of its items no catalog has a price for."""

    account: str
    movements: tuple[Movement, ...]
    unpriced_items: int


class MonthRevenue(NamedTuple):
    """One month of one currency, in minor units.

    `start_minor` + the sum of `changes` = `end_minor`. `retained_minor`: what the accounts that had MRR at the start
    have at the end; `kept_minor`: the same, of each at most what it had at the start.
    """

    start_ms: int
    end_ms: int
    currency: str
    start_minor: int
    end_minor: int
    changes: Mapping[MovementKind, int]
    retained_minor: int
    kept_minor: int
    accounts: int


class Cohort(NamedTuple):
    """The accounts whose first MRR in a currency was in the month of `start_ms`. `minor`: what they bring at the end of
    that month and of each later one; `accounts`: how many of them bring anything then."""

    start_ms: int
    currency: str
    minor: tuple[int, ...]
    accounts: tuple[int, ...]


class AccountStanding(NamedTuple):
    """What the mirror has of an account now. `downgrades`: from when on a subscription gives only the fallback plan."""

    account: str
    subscriptions: Sequence[Row]
    items: Sequence[Row]
    downgrades: Mapping[str, int]


class RevenueStore(Protocol):
    """Reads the audit for revenue. May raise `Transient`."""

    def changes(self) -> AsyncIterator[list[AuditChange]]:
        """All rows about subscriptions and dunning cases: those of one account together and in their order."""
        ...

    def changes_of(self, accounts: Sequence[str]) -> AsyncIterator[list[AuditChange]]:
        """The same of some accounts."""
        ...

    async def standings(self, after: str = "", limit: int = 200) -> Sequence[AccountStanding]:
        """The next accounts behind `after` that were linked once, to a customer of no other account; none at the end.
        The audit of other accounts does not say all that happened to their customers."""
        ...


class RevenueStores(NamedTuple):
    """What all figures of revenue are computed from."""

    catalog: CatalogStore
    changes: RevenueStore
    books: InvoiceBooks
