"""Corrections of events: what the corrector and its callers read from the archive (S16)."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Final, NamedTuple, Protocol

from schemas.control import CorrectionRecord
from schemas.measures import ArchivedAdjustment
from schemas.meters import MeterSet
from schemas.periods import Period
from schemas.usage_evidence import ArchivedEvent

# An event with so many corrections takes no more of them.
CORRECTIONS_OF_EVENT_MAX: Final = 1_000


class ArchivedCorrection(NamedTuple):
    """A correction record as the archive has it. `stream_time_ms` is the stream time of its arrival."""

    position: int
    stream_time_ms: int
    record: CorrectionRecord


class CorrectionArchive(Protocol):
    """What corrections read. Every call may raise `Transient`."""

    async def event(self, account: str, identifier: str) -> ArchivedEvent | None:
        """One event of the archive, if it is there."""
        ...

    async def meter_set_at(self, partition: int, position: int) -> MeterSet | None:
        """The meter set in force at a position of a partition."""
        ...

    async def corrections(self, partition: int, since: int, before: int, rows_max: int) -> Sequence[ArchivedCorrection]:
        """The records of a partition at positions in `[since, before)`, in order, at most `rows_max`."""
        ...

    async def corrections_of(self, account: str, event: str | None, rows_max: int) -> Sequence[ArchivedCorrection]:
        """The records of an account in order, or only those of one event; the last `rows_max`."""
        ...

    async def deciding(self, account: str, event: str, before: int) -> Sequence[ArchivedCorrection]:
        """The records of one event at positions below `before`, in order, without those whose name an earlier record of
        the account has. `CORRECTIONS_OF_EVENT_MAX` bounds them."""
        ...

    async def named(self, account: str, correction: str) -> ArchivedCorrection | None:
        """The first record of an account with a name."""
        ...

    async def told(
        self, partition: int, accounts: Sequence[str], prefix: str, before: int, from_us: int = 0
    ) -> Sequence[ArchivedAdjustment]:
        """See `MeasureArchive`."""
        ...


class Settlement(NamedTuple):
    """What a correction changes of what was billed of a meter for a closed span; to be settled outside of the usage.

    `span`: what the invoice bills; while no invoice is known, the period of the event. Quantities are in units of the
    meter, of all accounts of the customer. Amounts are minor units of `currency`, before discounts and taxes, except
    for `discount_minor`: by how much the discounts of the invoice change. `billed_minor`: what the invoice and our
    invoice items bill. `settled_minor`: what the credit notes of earlier corrections change of that. `unknown`: why the
    amounts cannot be known, "" if they are.
    """

    meter: str
    span: Period
    invoice: str = ""
    billed: Decimal = Decimal(0)
    corrected: Decimal = Decimal(0)
    billed_minor: int = 0
    settled_minor: int = 0
    corrected_minor: int = 0
    discount_minor: int = 0
    currency: str = ""
    exponent: int = 0
    unknown: str = ""

    @property
    def difference_minor(self) -> int:
        """What is still to be settled, after discounts and before taxes; negative: a credit."""
        return self.corrected_minor - self.billed_minor - self.settled_minor - self.discount_minor
