"""Has every object that the side tables mirror fetched again, whatever was delivered before."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Final

from aggregators.billing_events import resync_record
from pipeline.webhooks.appending import append_events
from pipeline.webhooks.backlog import log_ends, unprocessed
from schemas.billing_events import ObjectKind, ObjectName, StripeObjects, Via, cursor_of
from schemas.clock import MINUTE_MS, Clock
from schemas.errors import Transient
from schemas.log import Log
from schemas.side_tables import SideTables

# A customer comes after its subscriptions: the timeline plans nothing for a customer without a row, and would take a
# customer whose subscriptions are not read yet for one without any.
ORDER: Final = (
    ObjectKind.SUBSCRIPTION, ObjectKind.SCHEDULE, ObjectKind.INVOICE, ObjectKind.CREDIT_NOTE, ObjectKind.REFUND,
    ObjectKind.DISPUTE, ObjectKind.CREDIT_GRANT, ObjectKind.CUSTOMER,
)  # fmt: skip
# An event that Stripe delivers meanwhile waits for two batches: for two hundred fetches, which take some seconds. One
# batch alone would leave the role `mirror` without work while the next one is appended.
BATCH_RECORDS: Final = 100
# A step of the role `mirror` may take 15 minutes.
STALLED_MS: Final = 16 * MINUTE_MS

Feed = Callable[[Sequence[bytes]], Awaitable[object]]


async def resync(
    feed: Feed, objects: StripeObjects, tables: SideTables, run: str, now_s: int, customer: str = ""
) -> dict[ObjectKind, int]:
    """Feed a resync record for each object that the mirror has or Stripe lists; returns how many, by kind.

    `feed` appends up to `BATCH_RECORDS` records. `run` names the resync: a second run of the
    same name changes nothing that the first one did. With `customer`, only the customer's objects, and
    of refunds and disputes those that the mirror has. Stripe lists no
    deleted objects, so those of the mirror are asked for by their ids. Costs a call per 100 objects now, and one per
    object when the records are processed. Raises `Transient` and `Refused`; afterwards repeat it with the same `run`.
    """
    counts, batch = dict.fromkeys(ORDER, 0), []
    for kind in ORDER:
        async for name, owner in _names(objects, tables, kind, customer):
            batch.append(resync_record(run, name, owner, now_s))
            counts[kind] += 1
            if len(batch) == BATCH_RECORDS:
                await feed(batch)
                batch = []
    if batch:
        await feed(batch)
    return counts


class PatientFeed:
    """Appends a batch of records while one other waits at most, so that live events do not wait behind all."""

    def __init__(self, log: Log, tables: SideTables, clock: Clock, told: Callable[[int], None]) -> None:
        """`clock` measures the wait. `told` gets the number of records appended so far, after each batch."""
        self._log = log
        self._tables = tables
        self._clock = clock
        self._told = told
        # Where the log ended after the last batch, and after the one before.
        self._ends: dict[int, int] = {}
        self._ends_before: dict[int, int] = {}
        self._appended = 0

    async def append(self, values: Sequence[bytes]) -> int:
        """Append a batch; returns its size. Raises `Transient` if nothing is processed for `STALLED_MS`, and the log's
        errors."""
        if left := await unprocessed(self._tables, self._ends_before, self._clock, STALLED_MS):
            raise Transient(
                f"{left} events wait, and none was processed for {STALLED_MS // MINUTE_MS} minutes: look at the "
                f"role mirror, then repeat the command with its --run"
            )
        count = await append_events(self._log, values, Via.RESYNC)
        self._ends_before, self._ends = self._ends, await log_ends(self._log)
        self._appended += count
        self._told(self._appended)
        return count


async def _names(
    objects: StripeObjects, tables: SideTables, kind: ObjectKind, customer: str
) -> AsyncIterator[tuple[ObjectName, str]]:
    """The objects of the mirror, then those at Stripe that the mirror does not have, each with its customer."""
    after = ""
    while known := await tables.known(kind, after, customer):
        for pair in known:
            yield pair
        after = known[-1][0].id
    after = ""
    while listed := await objects.names(kind, after, customer):
        seqs = await tables.fetch_seqs([name for name, _ in listed])
        for name, owner in listed:
            if not seqs[name]:
                yield name, owner
        after = cursor_of([name.id for name, _ in listed])
