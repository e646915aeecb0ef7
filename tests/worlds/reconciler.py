"""A whole deployment on fakes for the reconciler's tests; the tests inject faults."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from aggregators.codec import parse_value
from aggregators.partitioning import partition_of
from aggregators.report_records import ReportedIntent, parse_entries
from pipeline.billing.customers import BindingResolver
from pipeline.billing.sender import StripeSender
from pipeline.ingest.archive import ArchiveProcessor
from pipeline.logs.control_records import append_everywhere
from pipeline.rollup.processor import RollupSettings
from pipeline.rollup.relays import ReportRelay
from pipeline.rollup.resolver import Resolver
from pipeline.rollup.restater import Restater
from reconciler.causes import Cause, Pair
from reconciler.report import Report, Row
from reconciler.reports_index import ReportsIndex
from reconciler.run import reconcile
from reconciler.views import ReconcilePolicy, Views
from schemas.clock import DAY_MS, HOUR_MS, MINUTE_MS
from schemas.control import BindingRecord, CloseRecord, Tick
from schemas.log import EVENTS_TOPIC, REPORTS_TOPIC
from schemas.periods import Billing, Binding
from schemas.reports import Attempt, Intent, MeterEvent, OutcomeStatus, ReportOutcome, StripeRejections
from schemas.rollup import Checkpoint, TotalKey
from sinks.clickhouse.fake import FakeClickHouse
from sinks.clickhouse.fake_measured_recount import FakeMeasuredRecount
from sinks.redis.fake import FakeLiveView
from sinks.sql.fake_intents import FakeIntentLedger
from sinks.stripe.fake import FakeStripe
from tests.traffic.generate import rfc3339
from tests.worlds.deployment import SECRET, World, hourly_relay

NOVEMBER_MS: Final = 1_793_491_200_000
DECEMBER_MS: Final = NOVEMBER_MS + 30 * DAY_MS
START_MS: Final = NOVEMBER_MS + 9 * DAY_MS + 10 * HOUR_MS
ACCOUNTS: Final = ("ada", "bob", "cyd", "dora")

METER_SET: Final[dict[str, Any]] = {
    "version": 1,
    "meters": [
        {"slug": "requests", "event_type": "request", "aggregation": "count", "dimensions": {"region": "$.region"},
         "stripe_event_name": "requests"},
        {"slug": "gigabytes", "event_type": "request", "aggregation": "sum", "value_path": "$.gb", "scale": 3,
         "stripe_event_name": "gigabytes"},
        {"slug": "peak", "event_type": "request", "aggregation": "max", "value_path": "$.gb", "scale": 3,
         "stripe_event_name": "peak"},
        {"slug": "users", "event_type": "request", "aggregation": "unique", "value_path": "$.user",
         "stripe_event_name": "users"},
        {"slug": "seats", "event_type": "seats", "aggregation": "latest", "value_path": "$.seats"},
    ],
}  # fmt: skip


INTENT: Final = Intent(
    identifier="tm_one", livemode=False, stripe_account="", log_id="log", meter="requests", event_name="requests",
    account="ada", period_start_ms=NOVEMBER_MS, period_end_ms=DECEMBER_MS, bucket_start_ms=START_MS,
    bucket_end_ms=START_MS + HOUR_MS, delta_minor=3, scale=0,
)  # fmt: skip
ACCEPTED: Final = ReportOutcome(identifier="tm_one", status=OutcomeStatus.ACCEPTED)


class Deployment:
    """Two partitions and four accounts, each with its own customer (`cus_ada` …); tests start every relay."""

    def __init__(self, *, rejections: bool = True) -> None:
        self.store = FakeLiveView()
        self.world = World(START_MS, store=self.store)
        self.clock, self.log = self.world.clock, self.world.log
        self.clickhouse = FakeClickHouse()
        self.stripe = FakeStripe(self.clock, account="")
        rejecting: StripeRejections | None = self.stripe if rejections else None
        self.views = Views(
            self.store, self.clickhouse, self.clickhouse, self.log, self.stripe, rejecting,
            measured=FakeMeasuredRecount(self.clickhouse),
        )  # fmt: skip
        self.policy = ReconcilePolicy(archive_wait_s=1.0, totals_per_read=3)
        payers = BindingResolver(self.store.accounts, self.world.partitions)
        self.ledger, rng = FakeIntentLedger(), random.Random(1)
        self._sender = StripeSender(self.log, self.ledger, self.stripe, payers, self.clock, rng)
        self.rollup_settings = RollupSettings()
        self._reports_read_to: dict[int, int] = {}
        self._events = 0

    async def start(self, meter_set: Mapping[str, Any] | None = None) -> Deployment:
        await self.world.start(meter_set or METER_SET)
        for account in ACCOUNTS:
            self.stripe.add_customer(f"cus_{account}")
            await self.bind(account, stripe_customer=f"cus_{account}")
        await self.prepare_to_send()
        return self

    async def prepare_to_send(self) -> None:
        for partition in range(self.world.partitions):
            self._reports_read_to[partition] = await self._sender.start_offset(partition) or 0

    def partition(self, account: str) -> int:
        return partition_of(account, self.world.partitions)

    async def bind(self, account: str, **fields: Any) -> None:
        content = {"effective_from_ms": NOVEMBER_MS, "billing": Billing.MAPPED, **fields}
        binding = Binding.model_validate(content)
        record = BindingRecord(account=account, revision=self.world.revision(account), binding=binding)
        await self.world.control(self.partition(account), record)

    async def close_period(self, account: str, instant_ms: int) -> None:
        record = CloseRecord(account=account, revision=self.world.revision(account), instant_ms=instant_ms)
        await self.world.control(self.partition(account), record)

    async def emit(
        self, account: str, *, at_ms: int | None = None, type_: str = "request", source: str = "/test", **data: Any
    ) -> str:
        """Emits one event, now or at `at_ms`; returns its id."""
        self._events += 1
        event_id = str(data.pop("id", f"event-{self._events}"))
        instant_ms = self.clock.now_ms() if at_ms is None else at_ms
        body = {
            "specversion": "1.0", "id": event_id, "source": source, "type": type_, "subject": account,
            "time": rfc3339(instant_ms * 1000), "data": data,
        }  # fmt: skip
        await self.log.append(EVENTS_TOPIC, self.partition(account), json.dumps(body).encode())
        return event_id

    async def traffic(self, hours: int = 3) -> None:
        """Some usage of every account and meter in each of the next hours, a duplicate and an unmetered event."""
        for hour in range(hours):
            for number, account in enumerate(ACCOUNTS):
                for step in range(3):
                    gb = f"{number + 1}.{hour}{step}5"
                    await self.emit(account, gb=gb, user=f"user-{step}", region=("eu", "us")[step % 2])
                await self.emit(account, type_="seats", seats=10 * hour + number)
                twice = await self.emit(account, gb="0.5", user="user-9", region="eu")
                await self.emit(account, id=twice, gb="0.5", user="user-9", region="eu")
                await self.emit(account, type_="page.viewed", page="/")
            await self.advance(HOUR_MS)

    async def advance(self, duration_ms: int) -> None:
        """Moves the clock and, by a tick, stream time."""
        self.clock.ms += duration_ms
        await append_everywhere(self.log, SECRET, Tick(log_id=self.world.log_id, partitions=self.world.partitions))

    async def fold(self) -> None:
        await self.world.fold_all(self.world.rollup(self.rollup_settings))

    async def archive(self) -> None:
        processor = ArchiveProcessor(self.log, self.clickhouse, SECRET)
        for partition in range(self.world.partitions):
            offset = await processor.start_offset(partition)
            while records := await self.log.read(EVENTS_TOPIC, partition, offset):
                await processor.step(partition, records)
                offset = records[-1].next_offset

    async def resolve(self) -> int:
        """Appends the decisions of a resolver that has just started."""
        resolver = Resolver(self.log, self.store.deferred, self.store.accounts, self.clickhouse, SECRET)
        return sum([sum(await resolver.resolve(partition)) for partition in range(self.world.partitions)])

    async def restatement(self) -> int:
        """Appends the answers of a restater that has just started."""
        restater = Restater(
            self.log,
            self.store.accounts,
            self.store.deferred,
            self.store.totals,
            self.clickhouse,
            self.clickhouse,
            SECRET,
        )
        return sum([await restater.restatement(partition) for partition in range(self.world.partitions)])

    async def catch_up(self) -> None:
        """Bring what is in the log to the live view and to the archive, with what the resolver and the restater say."""
        await self.fold()
        await self.archive()
        while await self.resolve() + await self.restatement():
            await self.fold()
            await self.archive()

    def live(self) -> dict[tuple[str, str], int]:
        """The live view's totals of all periods that are not 0, by account and meter, in minor units."""
        sums: Counter[tuple[str, str]] = Counter()
        for stored in self.store.server.partitions.values():
            for key, fields in stored.totals.items():
                for meter, text in fields.items():
                    sums[key.account, meter] += parse_value(text).minor
        return {key: total for key, total in sums.items() if total}

    async def relay(self) -> None:
        for partition in range(self.world.partitions):
            await hourly_relay(self.store, self.clickhouse).relay(partition)

    async def publish(self) -> None:
        for partition in range(self.world.partitions):
            await ReportRelay(self.store.reports, self.store.accounts, self.log).relay(partition)

    async def send(self) -> None:
        """Sends the reports until twenty rounds have sent none. The meters exist at Stripe."""
        rounds_left = 20
        while rounds_left:
            rounds_left, sent = rounds_left - 1, len(self.stripe.events)
            for partition in range(self.world.partitions):
                records = await self.log.read(REPORTS_TOPIC, partition, self._reports_read_to[partition])
                for entry in (entry for record in records for entry in parse_entries(record.value)):
                    if isinstance(entry, Intent):
                        self.stripe.add_meter(entry.event_name)
                if records:
                    await self._sender.step(partition, records)
                    self._reports_read_to[partition] = records[-1].next_offset
                else:
                    await self._sender.idle(partition)
            if len(self.stripe.events) > sent:
                rounds_left = 20

    async def settle(self) -> None:
        """Brings everything in the log to every view, and waits until Stripe shows it."""
        await self.advance(HOUR_MS)
        await self.fold()
        await self.archive()
        await self.relay()
        await self.publish()
        await self.send()
        self.clock.ms += 20 * MINUTE_MS

    async def reconcile(self, **options: Any) -> Report:
        options.setdefault("policy", self.policy)
        return await reconcile(self.views, self.clock, **options)

    async def checkpoint(self, account: str) -> Checkpoint:
        checkpoint = await self.store.state.load_checkpoint(self.partition(account))
        assert checkpoint is not None
        return checkpoint

    def totals(self, account: str) -> dict[str, str]:
        """The stored hash of the account's November, for a test to change."""
        return self.store.server.partitions[self.partition(account)].totals[TotalKey(account, NOVEMBER_MS)]

    def sent(self, account: str, event_name: str) -> MeterEvent:
        """A meter event that Stripe has."""
        return next(
            stored.event
            for stored in self.stripe.events
            if (stored.event.stripe_customer, stored.event.event_name) == (f"cus_{account}", event_name)
        )


async def settled(**options: Any) -> Deployment:
    """A deployment in which all views agree."""
    deployment = await Deployment(**options).start()
    await deployment.traffic()
    await deployment.settle()
    return deployment


async def late(deployment: Deployment, at_ms: int, account: str = "ada", **data: Any) -> str:
    """Emits an event that is older than the marks."""
    return await deployment.emit(account, at_ms=at_ms, **{"gb": "7.125", "user": "late", "region": "eu", **data})


def rows_of(report: Report, cause: Cause, pair: Pair | None = None) -> list[Row]:
    """The report's rows of one cause, of one pair of views or of all pairs."""
    return [row for row in report.rows if row.cause is cause and pair in (None, row.pair)]


def attempt(attempted_at_ms: int, replaces_ms: int | None = None) -> Attempt:
    """An attempt for `INTENT`; instants are whole hours."""
    return Attempt(
        identifier="tm_one", stripe_customer="cus_ada", timestamp_s=START_MS // 1_000, value="3",
        attempted_at_ms=attempted_at_ms * HOUR_MS, replaces_ms=None if replaces_ms is None else replaces_ms * HOUR_MS,
    )  # fmt: skip


async def all_reported(deployment: Deployment) -> list[ReportedIntent]:
    """Each intent of billing.reports with its attempt and outcome."""
    index = ReportsIndex(deployment.log, 10**6)
    for partition in range(deployment.world.partitions):
        await index.catch_up(partition)
    return list(index.reported())


Fault = Callable[[Deployment], Awaitable[None] | None]


async def after(fault: Fault) -> Report:
    """The report on a settled deployment after a fault."""
    deployment = await settled()
    done = fault(deployment)
    if done is not None:
        await done
    return await deployment.reconcile()


def causes_by_pair(report: Report) -> set[tuple[Pair, Cause]]:
    """The causes between each pair of views."""
    return set(report.causes)
