"""The roles in the simulation: the product's processors in a loop that reads, steps and commits."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, NamedTuple, cast

from pipeline.access.renewal import Renewal
from pipeline.billing.customers import BindingResolver
from pipeline.billing.policy import SenderPolicy
from pipeline.billing.sender import StripeSender
from pipeline.ingest.archive import ARCHIVE_GROUP, ArchiveProcessor
from pipeline.ingest.router import ROUTER_GROUP, RouterProcessor
from pipeline.logs.bindings import AccountLog
from pipeline.logs.control_records import tick
from pipeline.rollup.corrector import Corrector
from pipeline.rollup.measurer import Measurer
from pipeline.rollup.processor import ROLLUP_GROUP, RollupProcessor, RollupSettings
from pipeline.rollup.relays import HourlyRelay, ReportRelay
from pipeline.rollup.resolver import Resolver
from pipeline.rollup.restater import Restater
from pipeline.webhooks.binding_outbox import BindingOutbox
from pipeline.webhooks.processor import BILLING_GROUP, BillingEventProcessor
from pipeline.webhooks.recovery import Recovery
from pipeline.webhooks.set_aside import append_set_aside
from pipeline.webhooks.walker import Canary, Walker
from schemas.analytics import ArchiveStore, HourlyStore
from schemas.billing_events import StripeObjects
from schemas.bills import Bills
from schemas.catalog_changes import CatalogStore
from schemas.clock import MINUTE_MS
from schemas.control import Genesis
from schemas.corrections import CorrectionArchive
from schemas.entitlements import Entitlements
from schemas.errors import Transient
from schemas.intent_ledger import IntentLedger
from schemas.live_view import (
    AccountDirectory,
    AnalyticsOutbox,
    CheckpointedState,
    DeferredEvents,
    LiveTotals,
    LiveView,
    MeasuredInstants,
    OutboxDrops,
    ReportOutbox,
)
from schemas.log import EVENTS_TOPIC, Log
from schemas.measures import MeasureArchive
from schemas.processing import Processor
from schemas.rebuild import RowRecounts
from schemas.reports import StripeMeters
from schemas.side_tables import SideTables
from simulation.gateways import Gateways, serve
from simulation.invoicing import TURN_INTERVAL_S, Invoicing, controller_of
from simulation.loop import SimulatedClock
from simulation.processes import Process, Reached
from simulation.renewals import WatchedRenewals
from simulation.services import LosingView, SharedTables, UnsureObjects, WatchedLog
from simulation.traffic import PARTITIONS
from sinks.clickhouse.fake import FakeClickHouse
from sinks.clickhouse.fake_corrections import FakeCorrections
from sinks.clickhouse.fake_measures import FakeMeasures
from sinks.redis.fake import FakeAccounts
from sinks.stripe.fake import FakeStripe

SECRET: Final = b"the secret of a simulated deployment"
SINK_GROUP: Final = "tidemark-sink"
TICK_INTERVAL_S: Final = 2_400.0
RELAY_INTERVAL_S: Final = 450.0
RESTATEMENT_INTERVAL_S: Final = 200.0
BINDINGS_INTERVAL_S: Final = 300.0
# The product does both twice a second, and at once. A first pass looks at all there is.
FIRST_S_MAX: Final = 300.0
MEASURE_INTERVAL_S: Final = 600.0
CORRECT_INTERVAL_S: Final = 700.0
MEASURE_DELAY_MS: Final = 2 * MINUTE_MS
# The product looks twice a second, which would cost a run real time.
RENEWAL_INTERVAL_S: Final = 150.0
# The product looks every five seconds, for what is due after minutes.
RECOVERY_INTERVAL_S: Final = 90.0
CANARY_LOOK_S: Final = 40.0
LINGER_S: Final = 5.0
PATIENCE_S: Final = 1_800.0
SENDER: Final = SenderPolicy(hold_retry_ms=60 * MINUTE_MS)


class Services(NamedTuple):
    """The services of a simulated process. `tables` is the deployment's one SQL store, for whoever keeps rows there.
    `corrected` says up to which offset a corrector has found a partition's records told; None without correctors."""

    log: WatchedLog
    store: LosingView
    clickhouse: FakeClickHouse
    stripe: FakeStripe
    ledger: IntentLedger
    genesis: Genesis
    tables: SharedTables
    objects: UnsureObjects
    canary: str
    invoicing: Invoicing | None
    gateways: Gateways
    renewals: WatchedRenewals
    corrected: dict[int, int] | None


class Slot:
    """A process of a role that a supervisor restarts, with its assigned partitions."""

    def __init__(self, role: str, number: int, wanted: set[int]) -> None:
        self.role = role
        self.number = number
        self.wanted = wanted
        self.incarnation = 0
        self.process: Process | None = None
        self.replays_from_start = False
        self.down_until_s = 0.0
        self._changed = asyncio.Event()

    @property
    def name(self) -> str:
        """The role and the number, such as worker-0."""
        return f"{self.role}-{self.number}"

    def want(self, partition: int, *, given: bool) -> None:
        """Assign or revoke a partition."""
        (self.wanted.add if given else self.wanted.discard)(partition)
        self._changed.set()

    async def changed(self) -> None:
        """Wait until the assigned partitions change."""
        await self._changed.wait()
        self._changed.clear()


async def run_role(
    services: Services, slot: Slot, process: Process, clock: SimulatedClock, chance: random.Random
) -> None:
    """Run one incarnation of a role until it fails. Never returns."""
    roles = {
        "worker": _worker,
        "archive": _archive,
        "router": _router,
        "sink": _sink,
        "mirror": _mirror,
        "gateway": _gateway,
    }
    await roles[slot.role](services, slot, process, clock, chance)


async def _worker(
    services: Services, slot: Slot, process: Process, clock: SimulatedClock, chance: random.Random
) -> None:
    log, view = _log(services, process), _ReachedView(services, process)
    reached = Reached(process, "clickhouse", services.clickhouse)
    hourly, archive = cast("HourlyStore", reached), cast("ArchiveStore", reached)
    resolver = Resolver(log, view.deferred, view.accounts, archive, SECRET)
    restater = Restater(log, view.accounts, view.deferred, view.totals, archive, cast("RowRecounts", reached), SECRET)
    settings = RollupSettings(chance.choice((5, 50, 20_000)), chance.choice((3, 100, 500_000)), slot.replays_from_start)
    rollup = RollupProcessor(log, view.state, clock, SECRET, settings)
    hourly_relay = HourlyRelay(view.outbox, view.drops, view.deferred, hourly, chance.choice((4, 50_000)))
    report_relay = ReportRelay(view.reports, view.accounts, log)
    await _all(
        process,
        _workers(services, slot, process, rollup, ROLLUP_GROUP, log, chance),
        _relaying(rollup.owned, hourly_relay.relay),
        _relaying(rollup.owned, report_relay.relay),
        _relaying(rollup.owned, resolver.resolve),
        _relaying(rollup.owned, restater.restatement, RESTATEMENT_INTERVAL_S),
        *_adjusting(services, process, log, view, archive, rollup, chance),
        _ticking(log, services.genesis),
    )


def _adjusting(
    services: Services,
    process: Process,
    log: WatchedLog,
    view: _ReachedView,
    archive: ArchiveStore,
    rollup: RollupProcessor,
    chance: random.Random,
) -> list[Coroutine[Any, Any, None]]:
    """The measurer and the corrector of a worker. Some workers take all partitions for theirs, like a zombie."""
    corrected = services.corrected
    if corrected is None:
        return []
    samples = cast("MeasureArchive", Reached(process, "clickhouse", FakeMeasures(services.clickhouse)))
    corrections = cast("CorrectionArchive", Reached(process, "clickhouse", FakeCorrections(services.clickhouse)))
    measurer = Measurer(log, view.directory, archive, samples, view.measured, MEASURE_DELAY_MS)
    corrector = Corrector(log, archive, corrections)
    takes_all = chance.random() < 0.25

    def owned() -> set[int]:
        return set(range(PARTITIONS)) if takes_all else rollup.owned()

    async def correct(partition: int) -> None:
        end = services.log.end(EVENTS_TOPIC, partition)
        archived = services.clickhouse.archived.get(partition)
        told = await corrector.correct(partition)
        if not told and archived is not None and archived.next_offset >= end and partition in rollup.owned():
            corrected[partition] = end

    return [
        _relaying(owned, measurer.measure, MEASURE_INTERVAL_S, chance.uniform(0, FIRST_S_MAX)),
        _relaying(owned, correct, CORRECT_INTERVAL_S, chance.uniform(0, FIRST_S_MAX)),
    ]


async def _archive(
    services: Services, slot: Slot, process: Process, _clock: SimulatedClock, chance: random.Random
) -> None:
    log = _log(services, process)
    store = cast("ArchiveStore", Reached(process, "clickhouse", services.clickhouse))
    archive = ArchiveProcessor(log, store, SECRET, events_max=chance.choice((3, 20_000)))
    await _workers(services, slot, process, archive, ARCHIVE_GROUP, log, chance)


async def _router(
    services: Services, slot: Slot, process: Process, _clock: SimulatedClock, chance: random.Random
) -> None:
    log = _log(services, process)
    await _workers(services, slot, process, RouterProcessor(log), ROUTER_GROUP, log, chance)


async def _sink(services: Services, slot: Slot, process: Process, clock: SimulatedClock, chance: random.Random) -> None:
    log = _log(services, process)
    meters = cast("StripeMeters", Reached(process, "stripe", services.stripe))
    resolver = BindingResolver(_ReachedView(services, process).accounts, PARTITIONS)
    ledger = cast("IntentLedger", Reached(process, "sql", services.ledger))
    invoicing = services.invoicing
    bills = cast("Bills", Reached(process, "sql", invoicing.bills)) if invoicing else None
    sender = StripeSender(log, ledger, meters, resolver, clock, random.Random(chance.random()), SENDER, bills)
    works = [_workers(services, slot, process, sender, SINK_GROUP, log, chance)]
    if invoicing:
        accounts = AccountLog(log, PARTITIONS, SECRET, clock)
        view = _ReachedView(services, process)
        controller = controller_of(invoicing, lambda *service: Reached(process, *service), accounts, view, meters)
        works.append(_relaying(lambda: {0} & slot.wanted, lambda _: controller.turn(), TURN_INTERVAL_S))
    await _all(process, *works)


async def _mirror(
    services: Services, slot: Slot, process: Process, clock: SimulatedClock, chance: random.Random
) -> None:
    log, tables = _log(services, process), cast("SideTables", Reached(process, "sql", services.tables))
    objects = cast("StripeObjects", Reached(process, "stripe", services.objects))
    processor = BillingEventProcessor(log, tables, objects, clock, services.canary)
    accounts = AccountLog(log, PARTITIONS, SECRET, clock)
    outbox = BindingOutbox(tables, accounts, cast("LiveView", _ReachedView(services, process)))
    recovery = Recovery(
        Walker(log, objects, tables, clock),
        Canary(services.canary, objects, tables, clock.unhurried(CANARY_LOOK_S)),
        clock,
        lambda: 0 in slot.wanted,
        lambda: append_set_aside(log, tables),
    )

    catalog = cast("CatalogStore", Reached(process, "sql", services.tables.catalog))
    renewal = Renewal(catalog, cast("Entitlements", Reached(process, "sql", services.renewals)), clock)

    async def recovering() -> None:
        while True:
            if recovery.is_owner:
                await recovery.turn()
            await asyncio.sleep(RECOVERY_INTERVAL_S)

    await _all(
        process,
        _workers(services, slot, process, processor, BILLING_GROUP, log, chance, LINGER_S),
        _relaying(lambda: {0} & slot.wanted, lambda _: outbox.relay(), BINDINGS_INTERVAL_S),
        _relaying(lambda: {0} & slot.wanted, lambda _: renewal.turn(), RENEWAL_INTERVAL_S),
        recovering(),
    )


async def _gateway(
    services: Services, slot: Slot, process: Process, clock: SimulatedClock, chance: random.Random
) -> None:
    await serve(services.gateways, services.tables, services.store, slot.name, process, clock, chance)


def _log(services: Services, process: Process) -> WatchedLog:
    return cast("WatchedLog", Reached(process, "log", services.log))


class _ReachedView:
    """The live view through the proxies of one process."""

    def __init__(self, services: Services, process: Process) -> None:
        def reached(store: object) -> Any:
            return Reached(process, "redis", store)

        view = services.store
        self.state: CheckpointedState = reached(view.state)
        self.outbox: AnalyticsOutbox = reached(view.outbox)
        self.drops: OutboxDrops = reached(view.drops)
        self.reports: ReportOutbox = reached(view.reports)
        self.deferred: DeferredEvents = reached(view.deferred)
        self.accounts: AccountDirectory = reached(view.accounts)
        self.totals: LiveTotals = reached(view.totals)
        self.measured: MeasuredInstants = reached(view.measured)
        # Unwatched: only what relays and sinks read says who may pay.
        self.directory: AccountDirectory = reached(FakeAccounts(view.server))


async def _all(process: Process, *works: Any) -> None:
    tasks = [process.run(work) for work in works]
    await asyncio.gather(*tasks)


async def _workers(
    services: Services,
    slot: Slot,
    process: Process,
    processor: Processor,
    group: str,
    log: WatchedLog,
    chance: random.Random,
    linger_s: float = 0.0,
) -> None:
    """Run a worker per assigned partition. A worker ends between two steps after its partition is revoked."""
    workers: dict[int, asyncio.Task[None]] = {}
    while True:
        for partition in sorted(slot.wanted):
            if partition not in workers:
                workers[partition] = process.run(
                    _partition_worker(services, slot, processor, group, log, partition, chance, linger_s)
                )
        change = process.run(slot.changed())
        await asyncio.wait([change, *workers.values()], return_when=asyncio.FIRST_COMPLETED)
        change.cancel()
        for partition in [partition for partition, worker in workers.items() if worker.done()]:
            workers.pop(partition).result()


async def _partition_worker(
    services: Services,
    slot: Slot,
    processor: Processor,
    group: str,
    log: WatchedLog,
    partition: int,
    chance: random.Random,
    linger_s: float,
) -> None:
    """Read, step, then commit the offset, as Faust does in the product. Records that come within `linger_s` are read
    together."""
    topic = processor.topic
    start = await processor.start_offset(partition)
    offset = (await log.committed(group, topic, partition) or 0) if start is None else start
    while partition in slot.wanted:
        records = await log.read(topic, partition, offset, chance.choice((1, 5, 20, 100)))
        if records:
            await processor.step(partition, records)
            await log.commit(group, {(topic, partition): records[-1].next_offset})
            offset = records[-1].next_offset
            continue
        await processor.idle(partition)
        await services.log.grown(topic, partition, offset, PATIENCE_S)
        if linger_s:
            await asyncio.sleep(linger_s)
    await processor.revoked(partition)


async def _relaying(
    owned: Callable[[], set[int]],
    relay: Callable[[int], Awaitable[object]],
    interval_s: float = RELAY_INTERVAL_S,
    after_s: float = 0.0,
) -> None:
    """Relay the owned partitions for ever. The next round repeats after a `Transient` error."""
    await asyncio.sleep(after_s)
    while True:
        for partition in sorted(owned()):
            try:
                await relay(partition)
            except Transient:
                break
        await asyncio.sleep(interval_s)


async def _ticking(log: Log, genesis: Genesis) -> None:
    while True:
        try:
            await tick(log, SECRET, genesis)
        except Transient:
            await asyncio.sleep(1)
            continue
        await asyncio.sleep(TICK_INTERVAL_S)
