"""What the operator's page asks (`portal.operator_facts.Board`), answered from the gateway's stores.

Each part has a second to answer; one that does not is left out, and says so in its box.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from decimal import Decimal
from typing import Final, NamedTuple, TypeVar

from pipeline.access.dunning import month_starts
from pipeline.explaining.events import explained_event
from pipeline.explaining.reading import explained_invoice
from pipeline.http.dependencies import GatewayDependencies
from pipeline.http.operator_stores import OperatorStores, OperatorTables
from pipeline.http.redrives import BulkRedrives
from pipeline.http.timeline import TimelineStores, read_timeline
from pipeline.logs.rejected import quarantine_entry
from portal.operator_facts import (
    AccountFacts,
    Away,
    BoughtFacts,
    ChangeFacts,
    DriftFacts,
    DunningFacts,
    FlowFacts,
    MigrationFacts,
    OperatorFacts,
    QuarantineFacts,
    RedriveLook,
    SinkFacts,
    UnmappedFacts,
    WebhookFacts,
)
from portal.timeline import Timeline
from schemas.clock import DAY_MS, HOUR_MS, MINUTE_MS, SECOND_MS
from schemas.duplicates import DuplicateState
from schemas.errors import InvalidInput, TidemarkError
from schemas.explained import EventExplanation, InvoiceExplanation
from schemas.intent_ledger import IntentState, LedgerIntent
from schemas.log import BILLING_EVENTS_TOPIC, EVENTS_TOPIC, REJECTED_TOPIC, REPORTS_TOPIC
from schemas.redrives import RedriveState, Selection
from schemas.rollup import Counters
from schemas.side_tables import Row

PART_TIMEOUT_S: Final = 1.0
# The page of several operators is read once.
FACTS_AGE_MS_MAX: Final = 2 * SECOND_MS
COUNT_MAX: Final = 10_000
LISTED_MAX: Final = 50
QUARANTINE_MAX: Final = 500
ENTRIES_MAX: Final = 50
MONTHS: Final = 3
CASE_STATES: Final = (DuplicateState.FOUND, DuplicateState.REFUND_PROPOSED, DuplicateState.FOREIGN)
_OPEN_INTENTS: Final = (IntentState.PENDING, IntentState.DEAD, IntentState.LATE)

Found = TypeVar("Found")
_log: Final = logging.getLogger(__name__)


class _Sample(NamedTuple):
    """The counters at an instant."""

    at_ms: int
    counters: Counters


class GatewayBoard:
    """Implements `portal.operator_facts.Board`. The facts of two seconds are read once, whoever asks."""

    def __init__(self, dependencies: GatewayDependencies) -> None:
        self._given = dependencies
        self._bulk = BulkRedrives(dependencies)
        self._samples: deque[_Sample] = deque(maxlen=60)
        self._reading: asyncio.Task[OperatorFacts] | None = None
        self._read_ms = 0

    async def facts(self) -> OperatorFacts:
        """See `Board`."""
        now_ms, reading = self._given.clock.now_ms(), self._reading
        is_old = not 0 <= now_ms - self._read_ms < FACTS_AGE_MS_MAX
        if reading is None or (reading.done() and (is_old or reading.exception() is not None)):
            self._reading = reading = asyncio.create_task(self._read(now_ms))
            self._read_ms = now_ms
        return await asyncio.shield(reading)

    async def _read(self, now_ms: int) -> OperatorFacts:
        grace_ms = round(self._given.settings.stripe_invoice_grace_h * HOUR_MS)
        # All ten are read at once.
        first = asyncio.gather(
            _part("flow", self._flow(now_ms)),
            _part("drift", self._drift()),
            _part("webhooks", self._webhooks()),
            _part("sink", self._sink(now_ms)),
            _part("changes", self._changes(now_ms)),
        )
        second = asyncio.gather(
            _part("dunning", self._dunning(now_ms)),
            _part("bought", self._bought()),
            _part("unmapped", self._unmapped()),
            _part("migrations", self._migrations()),
            _part("quarantine", self._quarantine()),
        )
        flow, drift, webhooks, sink, changes = await first
        dunning, bought, unmapped, migrations, quarantine = await second
        return OperatorFacts(
            now_ms, grace_ms, flow, drift, webhooks, sink, changes, dunning, bought, unmapped, migrations, quarantine
        )

    async def account(self, account: str, before: int | None) -> AccountFacts:
        """See `Board`."""
        timeline, invoices, intents = await asyncio.gather(
            _part("timeline", self._timeline(account, before)),
            _part("invoices", self._invoices(account)),
            _part("reports", self._intents(account)),
        )
        return AccountFacts(account, self._given.clock.now_ms(), timeline, invoices, intents)

    async def owners(self, invoice: str) -> Sequence[str]:
        """See `Board`."""
        return await (await self._tables()).account_records.accounts_of_invoice(invoice)

    async def invoice(self, account: str, invoice: str) -> InvoiceExplanation | None:
        """See `Board`."""
        if self._given.explain is None:
            raise InvalidInput("TIDEMARK_SQL_URL", "is not set; explain needs PostgreSQL")
        return await explained_invoice(await self._given.explain(), account, invoice)

    async def event(self, account: str, event: str) -> EventExplanation:
        """See `Board`."""
        if self._given.explain is None:
            raise InvalidInput("TIDEMARK_SQL_URL", "is not set; explain needs PostgreSQL")
        return await explained_event(await self._given.explain(), account, event)

    async def report(self, identifier: str) -> LedgerIntent | None:
        """See `Board`."""
        found = await (await self._tables()).intents.found([identifier])
        return found[0] if found else None

    async def redrive(self, identifier: str, by: str, reason: str) -> str:
        """See `Board`."""
        return await self._stores().redrive(identifier, by, reason)

    async def acknowledge(self, account: str, what: str, by: str, reason: str) -> str:
        """See `Board`."""
        tables = await self._tables()
        noted = await tables.acknowledgements.acknowledge(account, what, by, reason, self._given.clock.now_ms())
        return f"{what} of {account} is left as it is: {noted.reason} ({noted.actor})"

    async def quarantined(self, cause: str) -> RedriveLook:
        """See `Board`."""
        found = await self._bulk.look(Selection(cause))
        failing = [(now, number, found.details[now]) for (_, now), number in found.failing.most_common()]
        counts = found.counts
        return RedriveLook(
            cause, counts.sent, failing, counts.cut, found.arrived or 0, found.old, found.unmetered, found.is_whole
        )

    async def redrive_events(self, cause: str, by: str, reason: str) -> str:
        """See `Board`."""
        self._stores()
        done = await self._bulk.send(Selection(cause), by, reason)
        is_done = done.state is RedriveState.DONE
        more = "" if is_done else " It is not done: open the page of the reason again, and send its form."
        return f"{done.counts.sent} events that were refused as {cause} are sent again.{more}"

    def _stores(self) -> OperatorStores:
        if self._given.operator is None:
            raise InvalidInput("TIDEMARK_SQL_URL", "or TIDEMARK_STRIPE_API_KEY is not set")
        return self._given.operator

    async def _tables(self) -> OperatorTables:
        return await self._stores().tables()

    async def _flow(self, now_ms: int) -> FlowFacts:
        live, log, partitions = self._given.live, self._given.log, range(self._given.genesis.partitions)
        if live is None:
            raise InvalidInput("TIDEMARK_REDIS_URL", "is not set")
        answers = await asyncio.gather(*(live.totals.account_totals(partition, []) for partition in partitions))
        checkpoints = [checkpoint for checkpoint, _ in answers]
        known = [each for each in checkpoints if each is not None]
        counters = Counters(*(sum(each.counters[place] for each in known) for place in range(len(Counters._fields))))
        bounds = await asyncio.gather(*(log.bounds(EVENTS_TOPIC, partition) for partition in partitions))
        behind = sum(
            each.next - max(each.first, checkpoint.next_offset if checkpoint else 0)
            for each, checkpoint in zip(bounds, checkpoints, strict=True)
        )
        counted_ms = min(each.stream_time_ms for each in known) if len(known) == len(checkpoints) else None
        hourly = self._given.hourly
        relayed = list((await hourly.load_relayed()).values()) if hourly else []
        complete_ms = min(each.stream_time_ms for each in relayed) if len(relayed) == len(partitions) else None
        return FlowFacts(counters, self._rates(_Sample(now_ms, counters)), behind, counted_ms, complete_ms)

    def _rates(self, now: _Sample) -> Mapping[str, Decimal] | None:
        """Events a second by outcome over the last minute."""
        while self._samples and not 0 <= now.at_ms - self._samples[0].at_ms <= MINUTE_MS:
            self._samples.popleft()
        first = self._samples[0] if self._samples else None
        self._samples.append(now)
        if first is None or first.at_ms == now.at_ms:
            return None
        seconds = Decimal(now.at_ms - first.at_ms) / SECOND_MS
        return {
            name: max(Decimal(0), (getattr(now.counters, name) - getattr(first.counters, name)) / seconds)
            for name in ("received", "counted", "duplicate", "late", "rejected")
        }

    async def _drift(self) -> DriftFacts:
        records = self._stores().reconciliations
        run = await records.last_run()
        return DriftFacts(run, await records.causes(run.run, LISTED_MAX) if run else ())

    async def _webhooks(self) -> WebhookFacts:
        tables, canary = await self._tables(), self._given.settings.canary_customer
        behind = await self._behind(BILLING_EVENTS_TOPIC, tables.side.position)
        cursor = await tables.side.cursor(self._stores().walker)
        return WebhookFacts(
            behind,
            None if cursor is None else cursor.until_s * SECOND_MS,
            canary,
            await tables.side.heard_ms(canary, 0) if canary else None,
            len(await tables.side.held(limit=COUNT_MAX)),
            len(await tables.side.set_aside(COUNT_MAX)),
            (await tables.side.due()).bindings,
        )

    async def _behind(self, topic: str, position: Callable[[int], Awaitable[int | None]]) -> int:
        """How many records of a topic were not read up to the positions of its partitions."""
        behind = 0
        for partition in range(self._given.genesis.partitions):
            bounds = await self._given.log.bounds(topic, partition)
            behind += max(0, bounds.next - max(await position(partition) or 0, bounds.first))
        return behind

    async def _sink(self, now_ms: int) -> SinkFacts:
        tables = await self._tables()
        waiting: dict[str, tuple[int, int]] = {}
        for partition in range(self._given.genesis.partitions):
            for each in await tables.intents.waiting(partition):
                count, end_ms = waiting.get(each.hold, (0, each.period_end_ms))
                waiting[each.hold] = count + each.intents, min(end_ms, each.period_end_ms)
        dead = await tables.intents.listed([IntentState.DEAD], limit=LISTED_MAX)
        left = await tables.acknowledgements.acknowledged({known.intent.account for known in dead})
        unread = await self._behind(REPORTS_TOPIC, tables.intents.position)
        drafts = await tables.bills.drafts(now_ms, now_ms + DAY_MS, COUNT_MAX)
        return SinkFacts(waiting, dead, left, unread, await tables.bills.states(), len(drafts))

    async def _changes(self, now_ms: int) -> ChangeFacts:
        changes = (await self._tables()).plan_changes
        open_ = await changes.open_before(now_ms + 1, LISTED_MAX)
        return ChangeFacts(open_, await changes.differing(now_ms - 30 * DAY_MS))

    async def _dunning(self, now_ms: int) -> DunningFacts:
        dunning = (await self._tables()).dunning
        return DunningFacts(await dunning.counts(), await dunning.recoveries(month_starts(now_ms, MONTHS)))

    async def _bought(self) -> BoughtFacts:
        tables = await self._tables()
        duplicates = await tables.duplicates.listed(CASE_STATES, LISTED_MAX)
        unfinalized = await tables.unfinalized.listed(LISTED_MAX)
        names = {each.account for each in duplicates} | {each.account for each in unfinalized if each.account}
        left = await tables.acknowledgements.acknowledged(names)
        return BoughtFacts(await tables.trials.counts(), await tables.trials.flagged(), duplicates, unfinalized, left)

    async def _unmapped(self) -> UnmappedFacts:
        tables = await self._tables()
        page = await tables.intents.listed([IntentState.PENDING], limit=1_000)
        counted = Counter(known.intent.account for known in page if known.hold == "unmapped")
        return UnmappedFacts(await tables.side.held_customers(LISTED_MAX), counted.most_common(LISTED_MAX))

    async def _migrations(self) -> MigrationFacts:
        migrations = (await self._tables()).migrations
        listed = list(await migrations.listed())[:10]
        return MigrationFacts([(each, await migrations.items(each.name)) for each in listed])

    async def _quarantine(self) -> QuarantineFacts:
        log, reasons, looked, newest_ms = self._given.log, Counter[str](), 0, None
        for partition in range(await log.partition_count(REJECTED_TOPIC)):
            bounds = await log.bounds(REJECTED_TOPIC, partition)
            first = max(bounds.first, bounds.next - QUARANTINE_MAX)
            for record in await log.read(REJECTED_TOPIC, partition, first, QUARANTINE_MAX):
                entry = quarantine_entry(record)
                reasons[entry.reason] += 1
                looked += 1
                newest_ms = max(newest_ms or 0, entry.stream_time_ms)
        return QuarantineFacts(reasons.most_common(), looked, newest_ms)

    async def _timeline(self, account: str, before: int | None) -> Timeline:
        tables = await self._tables()
        stores = TimelineStores(
            self._given.clock,
            tables.catalog,
            tables.account_records,
            tables.entitlements,
            tables.dunning,
            tables.notices,
            tables.seats,
        )
        return await read_timeline(stores, account, ENTRIES_MAX, before)

    async def _invoices(self, account: str) -> Sequence[Row]:
        return await (await self._tables()).account_records.invoices(account, LISTED_MAX)

    async def _intents(self, account: str) -> Sequence[LedgerIntent]:
        return await (await self._tables()).intents.listed(_OPEN_INTENTS, account, LISTED_MAX)


async def _part(name: str, answer: Awaitable[Found]) -> Found | Away:
    """A part of the page, or why it did not come in time."""
    try:
        async with asyncio.timeout(PART_TIMEOUT_S):
            return await answer
    except TimeoutError:
        return Away(f"no answer in {PART_TIMEOUT_S:g} s")
    except (TidemarkError, OSError) as error:
        return Away(str(error)[:300])
    except Exception:  # noqa: BLE001  # one part must not take the page down
        _log.exception("the part %s of the operator's page failed", name)
        return Away("it failed; the gateway's log says why")
