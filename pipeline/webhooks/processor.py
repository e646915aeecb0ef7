"""The processor of `billing.events`: fetches what the events name at Stripe, and commits rows and position together.

The steps of a read, and what a crash behind each step leaves:
1. The events were read and the known ids dropped: nothing, and the records are read again.
2. Unreadable events are in the quarantine: they are written there again, under the same position.
3. The objects were fetched: nothing.
4. The transaction committed rows, audit, bindings to send and the position: reading starts behind the events.

An object is fetched after its `fetch_seq` was read. If another process wrote the object in between, the commit fails
with `Stale` and the object is fetched again, so a slow answer never replaces a newer one.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from aggregators.billing_events import read_event
from aggregators.mirror import Rows, mirror_rows
from aggregators.steps import Quarantined
from pipeline.logs.quarantine import quarantine
from pipeline.tasks import all_or_first_error
from schemas.billing_events import VIA_HEADER, ObjectName, StripeEvent, StripeObjects, Via
from schemas.clock import SECOND_MS, Clock
from schemas.errors import InvalidInput, OperatorNeeded, Refused, Transient
from schemas.log import BILLING_EVENTS_TOPIC, Log, Record, position
from schemas.reasons import Reason
from schemas.side_tables import Arrived, Fetched, Outcome, SideTables, Stale, Step

BILLING_GROUP: Final = "tidemark-billing"
# Stripe takes 25 requests a second of each kind by default (docs.stripe.com/rate-limits), and answers in a few tenths
# of a second: eight at once stay near that rate.
FETCHES_AT_ONCE_MAX: Final = 8
# Without an answer after so many tries, which take about half a minute, the process restarts.
FETCH_TRIES_MAX: Final = 6
WAIT_S_MIN: Final = 0.5
WAIT_S_MAX: Final = 16.0
# Somebody else has to win each time, so more than a few are a defect and not a race.
STALE_MAX: Final = 10

_LOG: Final = logging.getLogger(__name__)


class ProcessorStatus(NamedTuple):
    """Values of the metrics: events by outcome and fetches by result, since the process started.

    `delay_s` is how long after its creation at Stripe the last event was committed, in seconds; None before the first.
    """

    outcomes: Mapping[str, int]
    fetches: Mapping[str, int]
    delay_s: float | None


class BillingEventProcessor:
    """The processor of `billing.events`.

    Raises `OperatorNeeded` if Stripe refuses the key, `Transient` if Stripe, the log or SQL does not answer, and
    `Fenced` if another process has moved the position. The restart begins at the position in SQL.
    """

    topic: Final = BILLING_EVENTS_TOPIC

    def __init__(
        self, log: Log, tables: SideTables, objects: StripeObjects, clock: Clock, canary_customer: str = ""
    ) -> None:
        """The events of `canary_customer` show that webhooks arrive. The customer is nobody's, so nothing is fetched,
        and the events do not wait for an account."""
        self._log = log
        self._tables = tables
        self._objects = objects
        self._clock = clock
        self._canary_customer = canary_customer
        self._slots = asyncio.Semaphore(FETCHES_AT_ONCE_MAX)
        self._next_offsets: dict[int, int] = {}
        self._outcomes: Counter[str] = Counter()
        self._fetches: Counter[str] = Counter()
        self._delay_s: float | None = None

    async def start_offset(self, partition: int) -> int:
        """The position in SQL, or the first record of the log if SQL has none.

        Raises `OperatorNeeded` if the log ends before the position.
        """
        bounds = await self._log.bounds(BILLING_EVENTS_TOPIC, partition)
        stored = await self._tables.position(partition)
        if stored is not None and stored > bounds.next:
            raise OperatorNeeded(
                f"{BILLING_EVENTS_TOPIC}-{partition} ends at {bounds.next}, and the side tables have read up to "
                f"{stored}: point TIDEMARK_SQL_URL or TIDEMARK_LOG_URL at the pair that belongs together"
            )
        if stored is not None and stored < bounds.first:
            _LOG.error(
                "%s-%d: the events from %d to %d are gone and were not read: run `tidemark billing resync`",
                BILLING_EVENTS_TOPIC, partition, stored, bounds.first,
            )  # fmt: skip
        self._next_offsets[partition] = stored or 0
        return max(stored or 0, bounds.first)

    async def step(self, partition: int, records: Sequence[Record]) -> None:
        """Fetch what the records name, and commit them."""
        believed_offset = self._next_offsets[partition]
        left = [record for record in records if record.offset >= believed_offset]
        if not left:
            return
        next_offset = left[-1].next_offset
        arrived, poisoned = self._read(left)
        # An event may be poisoned anew while its objects are fetched again.
        kept: set[int] = set()
        for _ in range(STALE_MAX):
            new = await self._tables.unknown([each.event.id for each in arrived])
            claimed = [each for each in arrived if each.event.id in new]
            rows = await self._rows(claimed)
            good = []
            for each in claimed:
                wrong = next((error for error in map(rows.errors.get, each.event.objects) if error), None)
                if wrong is None:
                    good.append(each)
                else:
                    poisoned[each.offset] = str(wrong)
            await self._quarantine(partition, left, {at: why for at, why in poisoned.items() if at not in kept})
            kept.update(poisoned)
            wanted = {name for each in good for name in each.event.objects}
            fetched = [Fetched(name, rows.seqs[name], rows.found[name]) for name in sorted(wanted)]
            step = Step(partition, believed_offset, next_offset, self._clock.now_ms(), good, fetched)
            try:
                outcomes = await self._tables.commit(step)
            except Stale:
                continue
            self._next_offsets[partition] = next_offset
            self._count(good, outcomes, len(poisoned), len(left) - len(poisoned) - len(good))
            return
        raise Transient(f"{BILLING_EVENTS_TOPIC}-{partition}: objects changed during each of {STALE_MAX} commits")

    async def revoked(self, partition: int) -> None:
        """Forget the partition. Its next owner starts at the position in SQL."""
        self._next_offsets.pop(partition, None)

    async def idle(self, partition: int) -> None:
        """Does nothing."""

    def status(self) -> ProcessorStatus:
        """The current values."""
        return ProcessorStatus(dict(self._outcomes), dict(self._fetches), self._delay_s)

    def _read(self, records: Sequence[Record]) -> tuple[list[Arrived], dict[int, str]]:
        """The first record of each event, and why records are no event, by offset."""
        arrived: dict[str, Arrived] = {}
        poisoned: dict[int, str] = {}
        for record in records:
            try:
                event = read_event(record.value or b"")
                _check_storable(event)
                if event.customer and event.customer == self._canary_customer:
                    event = event._replace(objects=())
                via = Via(dict(record.headers).get(VIA_HEADER, Via.WEBHOOK.value.encode()).decode("utf-8", "replace"))
            except InvalidInput as error:
                poisoned[record.offset] = str(error)
            except ValueError:
                poisoned[record.offset] = f"{VIA_HEADER}: is none of {', '.join(Via)}"
            else:
                arrived.setdefault(event.id, Arrived(event, via, record.offset))
        return list(arrived.values()), poisoned

    async def _quarantine(self, partition: int, records: Sequence[Record], poisoned: Mapping[int, str]) -> None:
        if not poisoned:
            return
        entries = [
            Quarantined(
                position(record.offset), record.timestamp_ms, Reason.BAD_STRIPE_EVENT, poisoned[record.offset],
                record.value or b"",
            )
            for record in records
            if record.offset in poisoned
        ]  # fmt: skip
        for entry in entries:
            _LOG.error("%s-%d: an event is in the quarantine: %s", BILLING_EVENTS_TOPIC, partition, entry.detail)
        await quarantine(self._log, BILLING_EVENTS_TOPIC, partition, entries)

    async def _rows(self, claimed: Sequence[Arrived]) -> _Objects:
        """One fetch of each object that the events name, `FETCHES_AT_ONCE_MAX` at once."""
        names = sorted({name for each in claimed for name in each.event.objects})
        seqs = await self._tables.fetch_seqs(names) if names else {}
        objects = _Objects(seqs, {}, {})

        async def fetch(name: ObjectName) -> None:
            async with self._slots:
                try:
                    objects.found[name] = mirror_rows(name, await self._fetched(name))
                except InvalidInput as error:
                    self._fetches["unreadable"] += 1
                    objects.errors[name] = error

        await all_or_first_error(fetch(name) for name in names)
        return objects

    async def _fetched(self, name: ObjectName) -> dict[str, object] | None:
        wait_s = WAIT_S_MIN
        for left in reversed(range(FETCH_TRIES_MAX)):
            try:
                body = await self._objects.fetch(name)
            except Refused as error:
                raise OperatorNeeded(
                    f"Stripe refuses the key, so no event can be processed; nothing is lost, the log keeps the events: "
                    f"{error}. Set TIDEMARK_STRIPE_API_KEY to a key that may read customers, subscriptions, schedules "
                    "and invoices"
                ) from error
            except Transient as error:
                self._fetches["unanswered"] += 1
                if not left:
                    raise
                await self._clock.sleep(min(max(wait_s, error.retry_after_s), WAIT_S_MAX))
                wait_s *= 2
            else:
                self._fetches["absent" if body is None else "found"] += 1
                return body
        raise AssertionError("the last try returns or raises")

    def _count(self, good: Sequence[Arrived], outcomes: Mapping[str, Outcome], poisoned: int, repeated: int) -> None:
        self._outcomes.update(str(outcome) for outcome in outcomes.values())
        self._outcomes["quarantined"] += poisoned
        self._outcomes["repeated"] += repeated
        created = [each.event.created_s for each in good if each.via is not Via.RESYNC]
        if created:
            self._delay_s = max(0.0, self._clock.now_ms() / SECOND_MS - max(created))


class _Objects(NamedTuple):
    """The `fetch_seq` of each object before its fetch, and the rows or the error after the fetch."""

    seqs: Mapping[ObjectName, int]
    found: dict[ObjectName, Rows]
    errors: dict[ObjectName, InvalidInput]


def _check_storable(event: StripeEvent) -> None:
    """Raise `InvalidInput` for a text that PostgreSQL does not store: it would stop the partition."""
    for text in (event.id, event.type, event.customer, *(name.id for name in event.objects)):
        if "\0" in text:
            raise InvalidInput("event", "has a zero character in an id")
