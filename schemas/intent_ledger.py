"""The ledger of intents in SQL: a view of `billing.reports` that keeps its position in the same transaction.

The topic stays the record: a ledger that is lost is read again from the topic's first record. The sink, the commands,
the reconciler and the period-close controller read the ledger.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from enum import StrEnum
from typing import NamedTuple, Protocol

from schemas.reports import Attempt, Intent, ReportEntry


class IntentState(StrEnum):
    """Where an intent stands. `PENDING`: no outcome yet, held or not. The others are outcomes, except `REDRIVEN`: its
    next revision stands for it."""

    PENDING = "pending"
    ACCEPTED = "accepted"
    CREDITED = "credited"
    FREE = "free"
    REPLACED = "replaced"
    LATE = "late"
    DEAD = "dead"
    REDRIVEN = "redriven"


class LedgerIntent(NamedTuple):
    """An intent with all that the ledger knows of it.

    `stripe_customer` is the payer, "" while nobody was named. `hold` and `detail` say why a pending intent waits or how
    an intent ended. `in_doubt`: Stripe may have the event although it did not say so; of every pending intent with an
    attempt. `not_before_ms`, `failures`, `absent_at_ms`: the sender's progress, which only the sender writes.
    `drawn_minor`: what credits pay of the intent's delta; None without an allocation.
    """

    partition: int
    offset: int
    intent: Intent
    state: IntentState = IntentState.PENDING
    attempt: Attempt | None = None
    stripe_customer: str = ""
    hold: str = ""
    detail: str = ""
    settled_at_ms: int | None = None
    in_doubt: bool = False
    not_before_ms: int = 0
    failures: int = 0
    absent_at_ms: int | None = None
    drawn_minor: int | None = None

    @property
    def billed_minor(self) -> int:
        """What is left for Stripe of the intent's delta."""
        return self.intent.delta_minor - (self.drawn_minor or 0)


class Waiting(NamedTuple):
    """The number of a partition's pending intents with one `hold`, the first end of their periods, and the offset of
    the oldest one."""

    hold: str
    intents: int
    period_end_ms: int
    offset: int


class IntentTotals(NamedTuple):
    """The change that the intents of one meter and customer report for a span, in units of the meter, without what
    credits pay of them.

    `accepted`: Stripe took the event. `late`: the event was not sent, because the invoice was finalized. `dead`: dead
    letters that were not redriven. `pending`: intents whose payer is known and whose outcome is not.
    """

    accepted: Decimal
    late: Decimal
    dead: Decimal
    pending: Decimal


class IntentLedger(Protocol):
    """The store of the ledger. Every call may raise `Transient`; no call holds a lock when it returns."""

    async def position(self, partition: int) -> int | None:
        """The next offset of `billing.reports` to read, or None."""
        ...

    async def apply(
        self, partition: int, believed_offset: int | None, next_offset: int, entries: Sequence[tuple[int, ReportEntry]]
    ) -> Sequence[LedgerIntent]:
        """Apply entries, each with its record's offset, in the log's order, and move the position, in one transaction.

        Returns the intents that changed. Their attempts are the objects that were given.
        Entries that come again change nothing. Raises `Fenced` if the stored position is not the believed one; None
        stands for no position.
        """
        ...

    async def due(self, partition: int, now_ms: int, limit: int) -> Sequence[LedgerIntent]:
        """The pending intents whose `not_before_ms` has passed: those that waited longest first."""
        ...

    async def waits(self, partition: int, intents: Sequence[LedgerIntent]) -> None:
        """Write the sender's progress of pending intents: payer, hold, detail, `not_before_ms` and so on.

        Changes nothing of an intent that is settled, or has another attempt in force by now.
        """
        ...

    async def end_waits(self, partition: int, after_ms: int) -> None:
        """Make the pending intents due that wait until after `after_ms`, because the clock was put back."""
        ...

    async def waiting(self, partition: int) -> Sequence[Waiting]:
        """How many intents are pending, by hold. Takes time in proportion to them."""
        ...

    async def totals(self, event_name: str, stripe_customer: str, start_ms: int, end_ms: int) -> IntentTotals:
        """The totals of the intents whose event's timestamp, or instant if nothing was sent, is in the span."""
        ...

    async def drawn(self, event_name: str, stripe_customer: str, start_ms: int, end_ms: int) -> Decimal:
        """What credits pay of the intents of the span, without those for which another one stands, in units of the
        meter."""
        ...

    async def listed(
        self, states: Sequence[IntentState], account: str = "", limit: int = 1_000, *, after: str = ""
    ) -> Sequence[LedgerIntent]:
        """One page of the intents in these states, in the store's order of identifiers, behind `after`."""
        ...

    async def found(self, identifiers: Sequence[str]) -> Sequence[LedgerIntent]:
        """Those of the intents that the ledger has."""
        ...
