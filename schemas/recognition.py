"""Recognized and deferred revenue: when what an invoice bills is earned. docs/revenue.md has the rules.

A day is a number: the days in UTC since 1970. Amounts are minor units, net of taxes, discounts and drawn credits.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple, Protocol

from schemas.side_tables import Row


class Effect(StrEnum):
    """Why recognized revenue changed. The list is closed.

    `earned`: days of the line passed, usage happened, or credits were drawn. `breakage`: credits expired undrawn.
    `credit_note` and `void`: what was recognized before is taken back.
    """

    EARNED = "earned"
    BREAKAGE = "breakage"
    CREDIT_NOTE = "credit_note"
    VOID = "void"


class ChangeKind(StrEnum):
    """What changes a line after its invoice became final.

    `credit_note` lowers it, `note_voided` takes that back, `void` ends it, and after `uncollectible` only the part that
    was paid goes on. `ended`: nothing more is earned, because the credits that were left are gone.
    """

    CREDIT_NOTE = "credit_note"
    NOTE_VOIDED = "note_voided"
    VOID = "void"
    UNCOLLECTIBLE = "uncollectible"
    ENDED = "ended"


class LineChange(NamedTuple):
    """A change of a line. `minor`: by how much, with the line's sign; of `uncollectible`, what was paid of the invoice,
    whose whole amount was `whole`."""

    at_ms: int
    kind: ChangeKind
    minor: int = 0
    whole: int = 0


class Pace(NamedTuple):
    """How fast a line is earned that is not earned by days.

    `by_day`: the quantity of each day, ascending, out of `whole`. What is left is earned on `last_day`; None: never.
    `is_usage`: usage, which is earned before the invoice is final; without, credits, whose rest expires on `last_day`.
    """

    by_day: tuple[tuple[int, int], ...]
    whole: int
    last_day: int | None
    is_usage: bool


class FinalLine(NamedTuple):
    """A line of a final invoice. `pace` None: earned in equal parts over the days of `[start_ms, end_ms)`."""

    line: str
    invoice: str
    customer: str
    currency: str
    amount_minor: int
    start_ms: int
    end_ms: int
    finalized_ms: int
    pace: Pace | None = None
    changes: tuple[LineChange, ...] = ()


class Segment(NamedTuple):
    """A revision of a line from `day` on.

    `amount` is earned at the line's pace. `kept` was earned before by a part that is not earned any more, because
    nobody pays or its credits are gone; `bad_debt` is how much of that nobody paid. `released` is what gone credits
    will never earn: a credit note takes that first.
    """

    day: int
    effect: Effect
    amount: int
    kept: int = 0
    bad_debt: int = 0
    released: int = 0


class Schedule(NamedTuple):
    """A line and its revisions, in their order. The first one is the invoice itself."""

    line: FinalLine
    segments: tuple[Segment, ...]


class Recognized(NamedTuple):
    """What happened to the revenue of one currency in the days `[start_day, end_day)`.

    `effects` add up to what was recognized. `bad_debt` is an expense, and no part of them. `billed`: the lines that
    became final; `taken_back`: what credit notes, voids and write-offs took off what was billed, never positive unless
    a credit was. `deferred_*` is billed and not earned, `unbilled_*` is earned and not final, at both ends.
    """

    currency: str
    start_day: int
    end_day: int
    effects: Mapping[Effect, int]
    bad_debt: int
    billed: int
    taken_back: int
    deferred_start: int
    deferred_end: int
    unbilled_start: int
    unbilled_end: int

    @property
    def recognized(self) -> int:
        """The revenue of these days."""
        return sum(self.effects.values())


class CreditUse(NamedTuple):
    """What became of bought credits: of `whole`, so many were drawn on each day, ascending; a day on which more came
    back has a negative number. What is left expires at `expires_ms`, or was taken away at `voided_ms`."""

    whole: int
    by_day: Sequence[tuple[int, int]] = ()
    expires_ms: int | None = None
    voided_ms: int | None = None


class InvoiceBook(NamedTuple):
    """A final invoice with its parts, as the mirror has them. `metered`: the ids of lines of usage, each with the
    quantities that were reported, by day. `credits`: those of packs of credits, each with what became of the credits.
    """

    invoice: Row
    lines: Sequence[Row]
    notes: Sequence[Row]
    note_lines: Sequence[Row]
    metered: Mapping[str, Sequence[tuple[int, int]]]
    credits: Mapping[str, CreditUse]


class InvoiceBooks(Protocol):
    """Reads final invoices for revenue. May raise `Transient`."""

    def books(self) -> AsyncIterator[Sequence[InvoiceBook]]:
        """All final invoices, in pages."""
        ...
