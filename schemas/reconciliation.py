"""Reconciliations as rows: what was found, what was read, and when (`ReconciliationRecords`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol


class RunRow(NamedTuple):
    """A reconciliation. Instants in ms UTC; `from_ms` and `to_ms` are None without a limit.

    `*_due` are the sums and the customers' invoices at Stripe that were to be read, `*_read` those that were;
    `oldest_unread_ms` is the end of the oldest period among the others. `stripe_reads` counts all calls to Stripe.
    `role` is `auditor`, or `command`.
    """

    run: str
    role: str
    started_ms: int
    ended_ms: int
    from_ms: int | None
    to_ms: int | None
    verdict: str
    differences: int
    sums_due: int
    sums_read: int
    invoices_due: int
    invoices_read: int
    oldest_unread_ms: int | None
    stripe_reads: int


class FindingRow(NamedTuple):
    """One row of a reconciliation's report, also of values that are confirmed. `number` counts the rows of a run.

    Quantities are decimal texts in the meter's unit, "" if there is none. `period_*_ms` and `hour_ms` are None if the
    row is of no period or hour.
    """

    run: str
    number: int
    read_at_ms: int
    pair: str
    cause: str
    partition: int | None
    account: str
    meter: str
    event_name: str
    stripe_customer: str
    period_start_ms: int | None
    period_end_ms: int | None
    hour_ms: int | None
    dimensions: str
    expected: str
    found: str
    items: str
    invoices: str
    detail: str


class PastRead(NamedTuple):
    """The last time that a value at Stripe was read, and with which result. Causes as in the report; without those of
    values that were not read."""

    pair: str
    event_name: str
    stripe_customer: str
    period_start_ms: int
    period_end_ms: int
    read_at_ms: int
    cause: str


class RepairRow(NamedTuple):
    """What a person had repaired: `step` names it, so that it is done once. `result` is `begun` before it is done."""

    step: str
    kind: str
    identifier: str
    event_name: str
    stripe_customer: str
    quantity: str
    actor: str
    reason: str
    at_ms: int
    result: str


class ReconciliationRecords(Protocol):
    """Where reconciliations are kept. Every call may raise `Transient` and may be repeated."""

    async def insert(self, run: RunRow, findings: Sequence[FindingRow]) -> None:
        """Store a run with its rows; the same again changes nothing. A run that is interrupted here has a part of its
        rows, each of which is right."""
        ...

    async def past_reads(self) -> Sequence[PastRead]:
        """The last reads of the sums, invoices and customers' features that are in the rows."""
        ...

    async def stripe_reads(self, from_ms: int) -> int:
        """The calls to Stripe of the runs that began at `from_ms` or later."""
        ...

    async def last_run(self, role: str = "") -> RunRow | None:
        """The run that began last, of one role if named."""
        ...

    async def causes(self, run: str, limit: int) -> Sequence[tuple[str, str, int]]:
        """How many rows of a run there are by pair and cause, without those that are right; the most first."""
        ...

    async def note_repair(self, row: RepairRow) -> None:
        """Store a step of a repair; a later row of the same step replaces it."""
        ...

    async def repair(self, step: str) -> RepairRow | None:
        """The last row of a step, or None."""
        ...
