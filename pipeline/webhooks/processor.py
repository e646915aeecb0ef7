"""The processor of `billing.events`: fetches what the events name at Stripe, and commits rows and position together.

The steps of a read, and what a crash behind each step leaves:
1. The events were read, the unreadable ones are in the quarantine, and the known ids dropped: the records are read
   again, and written to the quarantine again, under the same position.
2. The objects were fetched: nothing.
3. The events with an object that could not be fetched or read are in the quarantine: as after the first step.
4. The transaction committed rows, audit, bindings to send and the position: reading starts behind the events.

One object never stops the others. An event whose object is missing is set aside: its other objects are written, and the
event is read again later (`pipeline/webhooks/set_aside.py`). If Stripe answers for nothing, the process ends instead.

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
from pipeline.logs.tasks import all_or_first_error
from pipeline.webhooks.walker import set_back
from schemas.billing_events import VIA_HEADER, ObjectKind, ObjectName, StripeEvent, StripeObjects, Via
from schemas.clock import SECOND_MS, Clock
from schemas.errors import InvalidInput, OperatorNeeded, Refused, Transient
from schemas.log import BILLING_EVENTS_TOPIC, Log, Record, position
from schemas.reasons import Reason
from schemas.side_tables import Arrived, Fetched, Outcome, SideTables, Stale, Step, Unstorable

BILLING_GROUP: Final = "tidemark-billing"
# Stripe takes 25 requests a second of each kind by default (docs.stripe.com/rate-limits), and answers in a few tenths
# of a second: eight at once stay near that rate.
FETCHES_AT_ONCE_MAX: Final = 8
# The tries take about a quarter of a minute if Stripe fails at once, and two minutes if Stripe keeps silent.
FETCH_TRIES_MAX: Final = 6
# An object without an answer gets one try the next time. The names are forgotten together when there are so many.
SILENT_NAMES_MAX: Final = 1_000
WAIT_S_MIN: Final = 0.5
WAIT_S_MAX: Final = 16.0
# Somebody else has to win each time, so more than a few are a defect and not a race.
STALE_MAX: Final = 10

_LOG: Final = logging.getLogger(__name__)


class ProcessorStatus(NamedTuple):
    """Values of the metrics: events by outcome and fetches by result, since the process started.

    `delay_s` is how long after its creation at Stripe the last event was committed, in seconds; None before the first.
    `waiting_ms` is when the oldest record that is being processed came into the log; None if there is none. `gaps`
    counts the partitions that this process found with events deleted by the log before they were read.
    """

    outcomes: Mapping[str, int]
    fetches: Mapping[str, int]
    delay_s: float | None
    waiting_ms: int | None
    gaps: int


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
        self._silent: set[ObjectName] = set()
        self._waiting_ms: dict[int, int] = {}
        self._gaps = 0

    async def start_offset(self, partition: int) -> int:
        """The position in SQL, or the first record of the log if SQL has none.

        Raises `OperatorNeeded` if the log ends before the position.
        """
        # In this order: another process may go on meanwhile, and the log's end only grows.
        stored = await self._tables.position(partition)
        bounds = await self._log.bounds(BILLING_EVENTS_TOPIC, partition)
        if stored is not None and stored > bounds.next:
            raise OperatorNeeded(
                f"{BILLING_EVENTS_TOPIC}-{partition} ends at {bounds.next}, and the side tables have read up to "
                f"{stored}: point TIDEMARK_SQL_URL or TIDEMARK_LOG_URL at the pair that belongs together"
            )
        if stored is not None and stored < bounds.first:
            self._gaps += 1
            _LOG.error(
                "%s-%d: the events from %d to %d are gone and were not read: Stripe's list is read from its start; for "
                "older events, run `tidemark billing resync`", BILLING_EVENTS_TOPIC, partition, stored, bounds.first,
            )  # fmt: skip
            await set_back(self._tables, self._clock)
        self._next_offsets[partition] = stored or 0
        return max(stored or 0, bounds.first)

    async def step(self, partition: int, records: Sequence[Record]) -> None:
        """Fetch what the records name, and commit them."""
        left = [record for record in records if record.offset >= self._next_offsets[partition]]
        if left:
            self._waiting_ms[partition] = left[0].timestamp_ms
            await self._process(partition, left)
            self._waiting_ms.pop(partition, None)

    async def _process(self, partition: int, records: Sequence[Record]) -> None:
        """Commit records. If the database refuses a row, the records are halved until the event of the row is alone."""
        try:
            await self._commit(partition, records)
        except Unstorable as error:
            if len(records) > 1:
                half = len(records) // 2
                await self._process(partition, records[:half])
                await self._process(partition, records[half:])
            else:
                await self._commit(partition, records, refused=f"the database refuses the event's objects: {error}")

    async def _commit(self, partition: int, records: Sequence[Record], refused: str = "") -> None:
        """Commit records. With `refused`, which says why, without their objects."""
        believed_offset, next_offset = self._next_offsets[partition], records[-1].next_offset
        arrived, unreadable = self._read(records)
        by_offset = {record.offset: record for record in records}
        for offset, detail in unreadable.items():
            await self._quarantine(by_offset[offset], Reason.BAD_STRIPE_EVENT, detail)
        # An event may be set aside anew while objects are fetched again.
        kept: set[str] = set()
        for _ in range(STALE_MAX):
            new = await self._tables.unknown([each.event.id for each in arrived])
            claimed = [each for each in arrived if each.event.id in new]
            # What a held event names was fetched after the event, and is in the mirror.
            held = await self._tables.held_among(sorted(new)) if new and not refused else set[str]()
            fresh = [each for each in claimed if each.event.id not in held]
            objects = await self._rows([] if refused else fresh)
            missing = {each.event.id: _missing(each.event, objects, refused) for each in fresh}
            aside = {event_id: why for event_id, why in missing.items() if why is not None}
            kept |= set(await self._tables.seen(sorted(aside.keys() - kept)))
            for each in claimed:
                if (why := aside.get(each.event.id)) and each.event.id not in kept:
                    await self._quarantine(by_offset[each.offset], *why)
                    kept.add(each.event.id)
            fetched = [Fetched(name, objects.seqs[name], objects.found[name]) for name in sorted(objects.found)]
            step = Step(
                partition, believed_offset, next_offset, self._clock.now_ms(), claimed, fetched, frozenset(aside)
            )
            try:
                outcomes = await self._tables.commit(step)
            except Stale:
                continue
            self._next_offsets[partition] = next_offset
            self._count(claimed, outcomes, len(unreadable), len(records) - len(unreadable) - len(claimed))
            return
        raise Transient(f"{BILLING_EVENTS_TOPIC}-{partition}: objects changed during each of {STALE_MAX} commits")

    async def revoked(self, partition: int) -> None:
        """Forget the partition. Its next owner starts at the position in SQL."""
        self._next_offsets.pop(partition, None)
        self._waiting_ms.pop(partition, None)

    async def idle(self, partition: int) -> None:
        """Does nothing."""

    def status(self) -> ProcessorStatus:
        """The current values."""
        waiting_ms = min(self._waiting_ms.values(), default=None)
        return ProcessorStatus(dict(self._outcomes), dict(self._fetches), self._delay_s, waiting_ms, self._gaps)

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

    async def _quarantine(self, record: Record, reason: Reason, detail: str) -> None:
        _LOG.error("%s-%d: an event is in the quarantine: %s", BILLING_EVENTS_TOPIC, record.partition, detail)
        entry = Quarantined(position(record.offset), record.timestamp_ms, reason, detail, record.value or b"")
        await quarantine(self._log, BILLING_EVENTS_TOPIC, record.partition, [entry])

    async def _rows(self, claimed: Sequence[Arrived]) -> _Objects:
        """One fetch of each object that the events name, `FETCHES_AT_ONCE_MAX` at once.

        Raises `Transient` if Stripe does not answer for an object, nor for the list of the object's kind.
        """
        names = sorted({name for each in claimed for name in each.event.objects})
        objects = _Objects(await self._tables.fetch_seqs(names) if names else {}, {}, {})
        silent = await self._fetch_into(objects, names, FETCH_TRIES_MAX)
        for kind in sorted({name.kind for name in silent}):
            await self._check_answers(kind)
        # Stripe may have been away until now.
        for name, error in (await self._fetch_into(objects, sorted(silent), 1)).items():
            objects.missing[name] = Reason.STRIPE_OBJECT_MISSING, f"{name.kind} {name.id}: {error}"
        return objects

    async def _fetch_into(
        self, objects: _Objects, names: Sequence[ObjectName], tries_max: int
    ) -> dict[ObjectName, Transient]:
        """Fetch objects. Returns the last error for each object without an answer."""
        silent: dict[ObjectName, Transient] = {}

        async def fetch(name: ObjectName) -> None:
            async with self._slots:
                try:
                    body = await self._fetched(name, 1 if name in self._silent else tries_max)
                    objects.found[name] = mirror_rows(name, body)
                except InvalidInput as error:
                    self._fetches["unreadable"] += 1
                    objects.missing[name] = Reason.BAD_STRIPE_EVENT, str(error)
                except Transient as error:
                    silent[name] = error

        await all_or_first_error(fetch(name) for name in names)
        if len(self._silent) + len(silent) > SILENT_NAMES_MAX:
            self._silent.clear()
        self._silent = self._silent - set(names) | silent.keys()
        return silent

    async def _check_answers(self, kind: ObjectKind) -> None:
        """Raise `Transient` if Stripe does not answer for a list of the kind either."""
        try:
            await self._objects.names(kind)
        except Refused as error:
            raise _key_refused(error) from error
        except InvalidInput as error:
            _LOG.warning("Stripe refuses to list objects of the kind %s: %s", kind, error)

    async def _fetched(self, name: ObjectName, tries_max: int) -> dict[str, object] | None:
        wait_s = WAIT_S_MIN
        for left in reversed(range(tries_max)):
            try:
                body = await self._objects.fetch(name)
            except Refused as error:
                raise _key_refused(error) from error
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

    def _count(self, claimed: Sequence[Arrived], outcomes: Mapping[str, Outcome], unreadable: int, known: int) -> None:
        self._outcomes.update(str(outcome) for outcome in outcomes.values())
        self._outcomes["quarantined"] += unreadable
        self._outcomes["repeated"] += known
        created = [each.event.created_s for each in claimed if each.via is not Via.RESYNC]
        if created:
            self._delay_s = max(0.0, self._clock.now_ms() / SECOND_MS - max(created))


class _Objects(NamedTuple):
    """The `fetch_seq` of each object before its fetch, and after the fetch the rows, or why there are none."""

    seqs: Mapping[ObjectName, int]
    found: dict[ObjectName, Rows]
    missing: dict[ObjectName, tuple[Reason, str]]


def _missing(event: StripeEvent, objects: _Objects, refused: str) -> tuple[Reason, str] | None:
    """Why an event must be set aside, or None."""
    if refused:
        return Reason.STRIPE_OBJECT_MISSING, refused
    return next((objects.missing[name] for name in event.objects if name in objects.missing), None)


def _key_refused(error: Refused) -> OperatorNeeded:
    return OperatorNeeded(
        f"Stripe refuses the key, so no event can be processed; nothing is lost, the log keeps the events: {error}. "
        "Set TIDEMARK_STRIPE_API_KEY to a key that may read customers, subscriptions, schedules and invoices"
    )


def _check_storable(event: StripeEvent) -> None:
    """Raise `InvalidInput` for a text that PostgreSQL does not store: it would stop the partition."""
    for text in (event.id, event.type, event.customer, *(name.id for name in event.objects)):
        if "\0" in text:
            raise InvalidInput("event", "has a zero character in an id")
