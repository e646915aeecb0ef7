"""A simulated deployment: services, supervised processes, producers, an operator and all faults."""

from __future__ import annotations

import asyncio
import random
import traceback
from collections import Counter, deque
from collections.abc import Collection
from typing import Any, Final

from aggregators.binding_timeline import overlaps, timeline
from aggregators.partitioning import partition_of
from pipeline.logs.batching import batches
from pipeline.logs.control_records import append_control, append_everywhere
from schemas.clock import DAY_MS, HOUR_MS, MINUTE_MS
from schemas.control import (
    CONTROL_HEADER,
    REPLAYED_KINDS,
    BindingRecord,
    CloseRecord,
    Control,
    ControlKind,
    FlushRecord,
    Genesis,
    MeterSetRecord,
    Tick,
)
from schemas.errors import Fenced, OperatorNeeded, Transient
from schemas.intent_ledger import IntentLedger
from schemas.log import BILLING_EVENTS_TOPIC, EVENTS_TOPIC, INBOX_TOPIC, REJECTED_TOPIC, REPORTS_TOPIC, TopicSpec
from schemas.meters import MeterSet
from schemas.periods import Billing, Binding, Interval
from simulation.adjusting import adjust
from simulation.commerce import Commerce
from simulation.correcting import Correcting
from simulation.deliveries import Deliveries
from simulation.devices import come_back
from simulation.faults import Failure, Fault, Faults, Rates
from simulation.gateways import GATEWAYS, Gateways
from simulation.invoicing import GRACES_S, SCOPE, Invoicing, UnsureItems, billed_stripe
from simulation.loop import SimulatedClock, SimulatedLoop
from simulation.people import People
from simulation.processes import Killed, Process, Trace
from simulation.renewals import WatchedRenewals
from simulation.roles import SECRET, Services, Slot, run_role
from simulation.seeds import is_adjusting, is_billing
from simulation.services import LosingView, SharedTables, StripeFaults, UnsureObjects, WatchedLog, is_whole
from simulation.stripe_account import StripeAccount
from simulation.subscribers import Subscribers
from simulation.traffic import (
    ACCOUNTS,
    FREE,
    LINKED,
    METER_SET_VERSIONS,
    ORIGIN_MS,
    PARTITIONS,
    REPEATABLE_MAX,
    REPORT_INTERVALS_MS,
    Sent,
    Traffic,
    account_of,
    customers,
    encoded,
    meter_set,
)
from sinks.clickhouse.fake import FakeClickHouse
from sinks.sql.fake_intents import FakeIntentLedger

# Longer than any reader lags. Records that a reader needs are never removed.
RETENTION_MS: Final = 4 * HOUR_MS
SPAN_S: Final = 6 * 3600.0
SKEW_MS_MAX: Final = 2 * MINUTE_MS
RESTART_S_MAX: Final = 30.0
OUTAGE_S_MAX: Final = 1_500.0
SECOND_S: Final = 1.0
BROKEN_RECORDS: Final = (b"{", b"\xff\xfe", b"[1,", b"", b"[]")
REPEATED_KINDS: Final = (*REPLAYED_KINDS, ControlKind.DEDUP_DECISION, ControlKind.CORRECTION)
OF_ACCOUNTS: Final = (ControlKind.BINDING, ControlKind.CLOSE, ControlKind.FLUSH)
FAILOVER_S_MAX: Final = 1_800.0


class World:
    """The state of one run. `seed` decides the run; `only` names the allowed faults."""

    def __init__(self, loop: SimulatedLoop, seed: int, steps: int, only: Collection[str] | None = None) -> None:
        self.loop = loop
        self.seed = seed
        self.steps = steps
        self.faults = Faults(only)
        self.rates = Rates.drawn(self.chance("rates"))
        self.bills, self.adjusts = is_billing(seed), is_adjusting(seed)
        if self.adjusts and self.chance("long lives").random() < 0.5:
            self.rates = self.rates.with_long_lives()
        self.forgets = self.chance("retention").random() < 0.5
        self.report_interval_ms = self.chance("reports").choice(REPORT_INTERVALS_MS)
        self.trace = Trace()
        self.clock = SimulatedClock(loop, ORIGIN_MS)
        self.log = WatchedLog(self.clock, self.chance("log"))
        self.store = LosingView(self.clock)
        self.clickhouse = FakeClickHouse()
        self.stripe_clock = SimulatedClock(loop, ORIGIN_MS)
        self.account = StripeAccount(self.stripe_clock, seed, grace_s=self.chance("grace").choice(GRACES_S))
        self.stripe = billed_stripe(self.clock, self.account if self.bills else None)
        for meter in meter_set(METER_SET_VERSIONS, self.report_interval_ms)["meters"]:
            self.stripe.add_meter(str(meter.get("stripe_event_name")))
        self.stripe.fault = StripeFaults(self.chance("stripe"), self.faults, self.rates.stripe)
        self.objects = UnsureObjects(self.account, self.chance("reads"), self.faults, self.rates.stripe / 3)
        self.tables = SharedTables(timeline, overlaps)
        # In SQL where the period-close controller reads it. Elsewhere SQL would cost as much as the rest of a run.
        self.ledger: IntentLedger = self.tables.intents if self.bills else FakeIntentLedger()
        items = UnsureItems(self.account, self.chance("items"), self.faults, self.rates.stripe)
        self.invoicing = Invoicing.drawn(self.tables.watched_bills(self.clock), self.ledger, items, self.chance("late"))
        self.deliveries = Deliveries(self)
        self.commerce = Commerce(self.account)
        self.subscribers = Subscribers(self, self.commerce)
        self.people = People(self, self.commerce)
        self.correcting = Correcting(self, ACCOUNTS + LINKED if self.bills else ACCOUNTS)
        self.corrected: dict[int, int] = {}
        self.gateways = Gateways(self.fail)
        self.canary = ""
        self.genesis = Genesis(log_id=f"log-{seed}", partitions=PARTITIONS, stripe_account="acct_simulated")
        self.meter_set_version = 0
        self._revisions: Counter[str] = Counter()
        self.failures: list[Failure] = []
        self.acknowledged: list[bytes] = []
        self._sent: deque[Sent] = deque(maxlen=REPEATABLE_MAX)
        self.forged: set[bytes] = set()
        self.foreign: set[bytes] = set()
        self._skews: dict[str, int] = {}
        everything = set(range(PARTITIONS))
        self.slots = [
            Slot("worker", 0, {0}), Slot("worker", 1, everything - {0}),
            Slot("archive", 0, set(everything)), Slot("archive", 1, set()),
            Slot("sink", 0, set(everything)), Slot("sink", 1, set()),
            Slot("router", 0, set(everything)),
        ]  # fmt: skip
        if self.bills:
            self.slots += [Slot("mirror", 0, set(everything)), Slot("mirror", 1, set())]
            self.slots += [Slot("gateway", number, set()) for number in range(GATEWAYS)]
        self._tasks: list[asyncio.Task[None]] = []

    def chance(self, name: str) -> random.Random:
        """A random stream of its own for each name, the same in every process."""
        return random.Random(f"{self.seed}/{name}")

    def process_clock(self, name: str) -> SimulatedClock:
        """The clock of a process, possibly skewed."""
        if self.rates.skews and name not in self._skews:
            skew_ms = self.chance(f"skew {name}").randrange(-SKEW_MS_MAX, SKEW_MS_MAX)
            self._skews[name] = skew_ms if self.faults.strike(Fault.CLOCK_SKEW, name) else 0
        return SimulatedClock(self.loop, ORIGIN_MS, self._skews.get(name, 0))

    def fail(self, where: str, what: str) -> None:
        """Record an error."""
        self.failures.append(Failure(where, what))

    async def start(self) -> None:
        """Create topics, genesis records, the meter set and accounts; then start the processes."""
        kept_ms = RETENTION_MS if self.forgets else -1
        await self.log.create_topics(
            [
                TopicSpec(EVENTS_TOPIC, PARTITIONS, kept_ms),
                TopicSpec(INBOX_TOPIC, PARTITIONS, kept_ms),
                TopicSpec(REJECTED_TOPIC, PARTITIONS, -1),
                TopicSpec(REPORTS_TOPIC, PARTITIONS, -1),
                TopicSpec(BILLING_EVENTS_TOPIC, PARTITIONS, -1),
            ]
        )
        await append_everywhere(self.log, SECRET, self.genesis)
        await self.change_meter_set()
        for account in ACCOUNTS:
            for customer in customers(account):
                self.stripe.add_customer(customer)
        for account in ACCOUNTS[:2]:
            await self.bind(account, anchor_ms=0)
        if self.bills:
            await self.tables.migrate(SCOPE, self.genesis.log_id)
            self.canary = self.account.customer("")
            self.subscribers.begin()
            self._tasks.append(asyncio.ensure_future(self.subscribers.pass_time()))
        self._tasks += [asyncio.ensure_future(self._supervise(slot)) for slot in self.slots]

    async def change_meter_set(self) -> None:
        """Append the next version of the meter set to every partition."""
        self.meter_set_version += 1
        record = MeterSetRecord(
            meter_set=MeterSet.model_validate(meter_set(self.meter_set_version, self.report_interval_ms))
        )
        await append_everywhere(self.log, SECRET, record)

    async def bind(self, account: str, **fields: Any) -> None:
        """Bind an account to its customer, or mark it free."""
        binding = {
            "effective_from_ms": ORIGIN_MS - 40 * DAY_MS,
            "billing": Billing.FREE if account == FREE else Billing.MAPPED,
            "stripe_customer": "" if account == FREE else customers(account)[0],
            **fields,
        }
        bound = Binding.model_validate(binding)
        await self.control(account, BindingRecord(account=account, revision=self._revision(account), binding=bound))

    def _revision(self, account: str) -> int:
        self._revisions[account] += 1
        return self._revisions[account]

    async def control(self, account: str, record: Control) -> None:
        """Append a control record to the account's partition."""
        await append_control(self.log, SECRET, partition_of(account, PARTITIONS), record)

    async def _repeated(self) -> None:
        """Append control records again, at once or after later ones, like an outbox that delivers twice."""
        chance = self.chance("repeated")
        while True:
            await asyncio.sleep(chance.expovariate(12 / SPAN_S))
            partition = chance.randrange(PARTITIONS)
            kinds = chance.choice((REPEATED_KINDS, OF_ACCOUNTS))
            again = [
                record
                for record in self.log.appended[EVENTS_TOPIC, partition]
                if dict(record.headers).get(CONTROL_HEADER, b"").decode() in kinds
            ]
            if again and self.faults.strike(Fault.CONTROL_REPEATED, f"{self.clock.now_ms()}"):
                record = chance.choice(again[-chance.choice((1, 5, 20)) :])
                await self.log.append(EVENTS_TOPIC, partition, record.value or b"", headers=record.headers)

    async def safety(self) -> None:
        """The safety phase: traffic and all faults."""
        producers = [self._produce(f"producer-{number}", self.steps // 3 + 1) for number in range(3)]
        befalling = [
            self._crashes(), self._rebalances(), self._operator(), self._flushes(), self._repeated(),
            self._lost_seconds(), self._fail_over(), self._emptied(), self._ledger_emptied(),
            adjust(self.log, self.clock, self.chance("adjustments"), SPAN_S / 30),
        ]  # fmt: skip
        if self.bills:
            befalling += [self.subscribers.live(SPAN_S), self.subscribers.operate(), self.people.live(SPAN_S)]
        if self.adjusts:
            befalling += [self.correcting.live(SPAN_S), come_back(self, SPAN_S)]
        tasks = [asyncio.ensure_future(work) for work in befalling]
        await asyncio.gather(*(asyncio.ensure_future(work) for work in producers))
        for task in tasks:
            task.cancel()
        # No timeout of a test reaches into this loop.
        for task in (await asyncio.wait(tasks, timeout=SPAN_S))[1]:
            self.fail("scheduler", f"does not end: {getattr(task.get_coro(), '__qualname__', task)}")

    async def calm(self) -> None:
        """End all faults: start stopped processes and bind every account to a customer."""
        self.faults.active = False
        for account in ACCOUNTS:
            await self.bind(account, interval=Interval.MONTH, anchor_ms=0)
        for slot in self.slots:
            slot.down_until_s = 0.0
        if self.bills:
            await self.subscribers.settle()
            await self.people.settle()
        if self.adjusts:
            await self.correcting.settle()

    def stop(self) -> None:
        """Stop all processes."""
        for task in self._tasks:
            task.cancel()
        for slot in self.slots:
            if slot.process is not None:
                slot.process.kill()

    async def _supervise(self, slot: Slot) -> None:
        """Restart the process of a slot whenever it ends, like an init system."""
        chance = self.chance(f"supervisor {slot.name}")
        services = Services(
            self.log, self.store, self.clickhouse, self.stripe, self.ledger, self.genesis, self.tables, self.objects,
            self.canary, self.invoicing if self.bills else None, self.gateways,
            WatchedRenewals(self.tables, self.commerce, self.fail), self.corrected if self.adjusts else None,
        )  # fmt: skip
        while True:
            if self.loop.time() < slot.down_until_s:
                await asyncio.sleep(min(60.0, slot.down_until_s - self.loop.time()))
                continue
            slot.incarnation += 1
            name = f"{slot.name}.{slot.incarnation}"
            process = Process(name, self.chance(name), self.faults, self.rates, self.trace)
            process.stalled = lambda slot=slot: self._replace(slot)  # type: ignore[misc]  # mypy cannot infer a lambda's default
            slot.process = process
            clock = self.process_clock(slot.name)
            work = process.run(run_role(services, slot, process, clock, self.chance(f"{name} settings")))
            await asyncio.wait([work])
            self._judge(slot, name, work)
            process.kill()
            slot.process = None
            await asyncio.sleep(chance.uniform(0.1, RESTART_S_MAX))
            if chance.random() < 0.05 and self.faults.strike(Fault.OUTAGE, name):
                slot.down_until_s = self.loop.time() + chance.uniform(60, OUTAGE_S_MAX)

    def _judge(self, slot: Slot, name: str, work: asyncio.Task[None]) -> None:
        """Accept the end of a process, act as the operator, or record an error."""
        try:
            work.result()
        except (Killed, asyncio.CancelledError, Transient, Fenced):
            return
        except OperatorNeeded as error:
            self._remedy(slot, error)
        except Exception:  # noqa: BLE001  any other error is a failure of the run
            self.fail(name, traceback.format_exc())

    def _remedy(self, slot: Slot, error: OperatorNeeded) -> None:
        """Do what the error message tells the operator. A message without a cause is an error of the run."""
        if "--replay-from-start" in str(error) and self.faults.counts[Fault.REDIS_EMPTIED] and slot.role == "worker":
            slot.replays_from_start = True
        elif "the store was emptied or replaced" in str(error) and self.faults.counts[Fault.REDIS_EMPTIED]:
            return
        elif len(self.failures) < 20:
            self.fail(slot.name, f"an operator was called for without need: {error}")

    def _replace(self, slot: Slot) -> None:
        """Move the partitions of a suspended process to another process of the role. The process may learn late."""
        others = [other for other in self.slots if other.role == slot.role and other is not slot]
        if others and slot.process is not None:
            for partition in sorted(slot.wanted):
                self._move(slot, others[0], partition, f"stall {slot.process.name}/{partition}", late=True)

    def _move(self, slot: Slot, other: Slot, partition: int, key: str, *, late: bool) -> None:
        if not self.faults.strike(Fault.REBALANCE, key):
            return
        other.want(partition, given=True)
        if late and self.faults.strike(Fault.ZOMBIE, key):
            self.loop.call_later(self.chance(key).uniform(0, 300), lambda: self._take(slot, other, partition))
        else:
            self._take(slot, other, partition)

    @staticmethod
    def _take(slot: Slot, other: Slot, partition: int) -> None:
        # The last owner of a partition keeps it.
        if partition in other.wanted:
            slot.want(partition, given=False)

    async def _produce(self, name: str, steps: int) -> None:
        """Run a producer: like the emitter or the gateway (keyed, batched), or a foreign producer to the inbox."""
        chance = self.chance(name)
        accounts = ACCOUNTS + LINKED if self.bills else ACCOUNTS
        traffic = Traffic(name, chance, self.faults, self._sent, accounts)
        skew_ms = chance.randrange(-SKEW_MS_MAX, SKEW_MS_MAX) if self.rates.skews else 0
        for step in range(steps):
            await asyncio.sleep(chance.expovariate(steps / SPAN_S))
            events = traffic.batch(self.clock.now_ms() + skew_ms)
            for append in self._appends(chance, events):
                await self._append(chance, f"{name}.{step}", *append)

    def _appends(self, chance: random.Random, events: list[Any]) -> list[tuple[str, int, bytes]]:
        draw = chance.random()
        if draw < 0.02:
            self.faults.note(Fault.BROKEN_RECORD)
            return [(EVENTS_TOPIC, chance.randrange(PARTITIONS), chance.choice(BROKEN_RECORDS))]
        if draw < 0.05:
            self.faults.note(Fault.WRONG_PARTITION)
            return [(EVENTS_TOPIC, chance.randrange(PARTITIONS), encoded(events))]
        if draw < 0.25:
            return [(INBOX_TOPIC, chance.randrange(PARTITIONS), encoded([event])[1:-1]) for event in events]
        placed = [(partition_of(account_of(event), PARTITIONS), encoded([event])[1:-1]) for event in events]
        return [(EVENTS_TOPIC, *batch) for batch in batches(placed)]

    async def _append(self, chance: random.Random, key: str, topic: str, partition: int, value: bytes) -> None:
        """Append until the log acknowledges, like the emitter, or until the producer dies."""
        while True:
            draw = chance.random()
            if draw < self.rates.refused and self.faults.strike(Fault.LOG_REFUSED, key):
                await asyncio.sleep(chance.random() * 10)
                continue
            await self.log.append(topic, partition, value)
            if draw > 1 - self.rates.crash and self.faults.strike(Fault.PRODUCER_CRASH, key):
                return
            if draw < self.rates.answer_lost and self.faults.strike(Fault.LOG_ANSWER_LOST, key):
                await asyncio.sleep(chance.random() * 10)
                continue
            self.acknowledged.append(value)
            return

    async def _operator(self) -> None:
        """Bind accounts, close periods, change the meter set, and forge records."""
        chance = self.chance("operator")
        while True:
            await asyncio.sleep(chance.expovariate(8 / SPAN_S))
            account, now_ms = chance.choice(ACCOUNTS), self.clock.now_ms()
            draw = chance.random()
            if draw < 0.45 and self.faults.strike(Fault.BINDING_CHANGED, f"{now_ms}"):
                interval = chance.choice((Interval.DAY, Interval.MONTH, Interval.WEEK))
                anchor_ms = ORIGIN_MS // MINUTE_MS * MINUTE_MS + chance.randrange(0, 600) * MINUTE_MS
                fields = {"interval": interval, "anchor_ms": anchor_ms, **self._effective(chance, now_ms)}
                change = chance.random()
                if change < 0.4 and account != FREE and self.faults.strike(Fault.CUSTOMER_CHANGED, f"{now_ms}"):
                    fields["stripe_customer"] = customers(account)[1]
                elif change < 0.7 and account != FREE and self.faults.strike(Fault.PAYER_CHANGED, f"{now_ms}"):
                    fields |= {"billing": Billing.FREE, "stripe_customer": ""}
                if chance.random() < 0.5:
                    # Only the payer changes.
                    fields |= {"interval": Interval.MONTH, "anchor_ms": 0}
                await self.bind(account, **fields)
            elif draw < 0.6 and self.faults.strike(Fault.PERIOD_CLOSED, f"{now_ms}"):
                instant_ms = now_ms - chance.choice((0, 0, 1)) * DAY_MS
                closed = CloseRecord(account=account, revision=self._revision(account), instant_ms=instant_ms)
                await self.control(account, closed)
            elif (
                draw < 0.75
                and self.meter_set_version < METER_SET_VERSIONS
                and self.faults.strike(Fault.METER_SET_CHANGED, f"{now_ms}")
            ):
                await self.change_meter_set()
            elif draw < 0.85 and self.faults.strike(Fault.FORGED_CONTROL, f"{now_ms}"):
                await self._forge(chance, b"forged by nobody with the secret", self.genesis)
            elif self.faults.strike(Fault.FOREIGN_TICK, f"{now_ms}"):
                await self._forge(chance, SECRET, Genesis(log_id="another log", partitions=PARTITIONS))

    async def _flushes(self) -> None:
        """Flush accounts, sometimes more than once within a bucket, or within a millisecond."""
        chance = self.chance("flushes")
        while True:
            await asyncio.sleep(chance.expovariate(10 / SPAN_S))
            account = chance.choice(ACCOUNTS)
            for number in range(chance.choice((1, 1, 1, 2, 3))):
                if self.faults.strike(Fault.ACCOUNT_FLUSHED, f"{self.clock.now_ms()}.{number}"):
                    await self.control(account, FlushRecord(account=account, revision=self._revision(account)))
                await asyncio.sleep(chance.choice((0, 1, 600)))

    @staticmethod
    def _effective(chance: random.Random, now_ms: int) -> dict[str, int]:
        # Half of the bindings take effect soon: changes within the open report bucket test the payer on both sides.
        around = (-600, 200) if chance.random() < 0.5 else (-10, 30)
        return {"effective_from_ms": (now_ms // MINUTE_MS + chance.randrange(*around)) * MINUTE_MS}

    async def _forge(self, chance: random.Random, secret: bytes, genesis: Genesis) -> None:
        partition = chance.randrange(PARTITIONS)
        await append_control(self.log, secret, partition, Tick(**genesis.model_dump()))
        record = self.log.appended[EVENTS_TOPIC, partition][-1]
        (self.foreign if secret == SECRET else self.forged).add(record.headers[1][1])

    async def _crashes(self) -> None:
        chance = self.chance("crashes")
        for number in range(self.rates.crashes_at_random):
            await asyncio.sleep(chance.expovariate(self.rates.crashes_at_random / SPAN_S))
            slot = chance.choice(self.slots)
            if slot.process is not None and self.faults.strike(Fault.CRASH_AT_RANDOM, f"{number} {slot.name}"):
                slot.process.kill()

    async def _rebalances(self) -> None:
        chance = self.chance("rebalances")
        for number in range(self.rates.rebalances):
            await asyncio.sleep(chance.expovariate(self.rates.rebalances / SPAN_S))
            slot = chance.choice([slot for slot in self.slots if slot.role != "router" and slot.wanted])
            other = next(other for other in self.slots if other.role == slot.role and other is not slot)
            self._move(slot, other, chance.choice(sorted(slot.wanted)), f"{number}", late=chance.random() < 0.6)

    async def _lost_seconds(self) -> None:
        """Kill Redis and lose up to a second of writes without fsync, from some commit on."""
        chance = self.chance("lost seconds")
        for number in range(self.rates.lost_seconds):
            state = await self._state_before_commit(chance.randrange(1, 2 * self.steps + 2))
            await asyncio.sleep(chance.uniform(0, SECOND_S))
            if is_whole(state) and self.faults.strike(Fault.REDIS_LOST_SECOND, f"{number}"):
                self._restore(state)

    async def _fail_over(self) -> None:
        """Fail over to a Redis replica that lagged for long."""
        if not self.rates.fails_over:
            return
        chance = self.chance("fail over")
        state = await self._state_before_commit(chance.randrange(1, 2 * self.steps + 2))
        await asyncio.sleep(chance.uniform(1, FAILOVER_S_MAX))
        if is_whole(state) and self.faults.strike(Fault.REDIS_FAILED_OVER, ""):
            self._restore(state)

    async def _state_before_commit(self, number: int) -> dict[int, Any]:
        waiting: asyncio.Future[dict[int, Any]] = self.loop.create_future()
        self.store.state.before_commit.setdefault(self.store.state.commits + number, []).append(waiting)
        return await waiting

    def _restore(self, state: dict[int, Any]) -> None:
        self.trace.note("redis goes back")
        self.store.restore(state)

    async def _emptied(self) -> None:
        """Empty Redis, but only if the log has its first records: otherwise there is no remedy."""
        if not self.rates.empties or self.forgets:
            return
        await asyncio.sleep(self.chance("emptied").uniform(600, SPAN_S))
        if self.faults.strike(Fault.REDIS_EMPTIED, ""):
            self.trace.note("redis emptied")
            self.store.server.empty()

    async def _ledger_emptied(self) -> None:
        if self.rates.empties_ledger:
            await asyncio.sleep(self.chance("ledger emptied").uniform(600, SPAN_S))
            if self.faults.strike(Fault.LEDGER_EMPTIED, ""):
                self.trace.note("ledger emptied")
                self._empty_ledger()

    def _empty_ledger(self) -> None:
        if isinstance(self.ledger, FakeIntentLedger):
            self.ledger.empty()
        else:
            self.tables.empty_ledger()
