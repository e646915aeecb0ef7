"""Customers who are moved to a price for usage, whose usage goes through the product: log, worker, archive, sink."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

from pipeline.audit.usage_totals import RecountedTotals
from pipeline.billing.customers import BindingResolver
from pipeline.billing.sender import StripeSender
from pipeline.changes.migrating import Stores
from pipeline.ingest.archive import ArchiveProcessor
from pipeline.logs.control_records import append_everywhere, ensure_deployment
from pipeline.rollup.relays import ReportRelay
from pipeline.settings import Settings
from pipeline.webhooks.binding_outbox import BindingOutbox
from reconciler.views import Views
from schemas.aggregations import Aggregation
from schemas.backtest import PeriodTotal
from schemas.control import Tick
from schemas.log import EVENTS_TOPIC, REPORTS_TOPIC
from schemas.periods import Period
from sinks.clickhouse.fake import FakeClickHouse
from sinks.stripe.client import StripeClientMeters
from tests.services.stripe import TEST_KEY
from tests.traffic.generate import rfc3339
from tests.worlds.billing import SCOPE
from tests.worlds.changing import in_this_process
from tests.worlds.deployment import SECRET, hourly_relay
from tests.worlds.migrating import Migrating

METER_SET: Final[dict[str, Any]] = {
    "version": 1,
    "meters": [
        {"slug": "calls", "event_type": "calls", "aggregation": "sum", "value_path": "$.calls", "unit": "calls",
         "stripe_event_name": "calls"},
    ],
}  # fmt: skip


class HourlyTotals:
    """`PeriodTotals` over the rows that the relay wrote."""

    def __init__(self, clickhouse: FakeClickHouse) -> None:
        self._clickhouse = clickhouse

    async def totals(
        self, accounts: Sequence[str], meters: Mapping[str, Aggregation], from_ms: int, to_ms: int
    ) -> Sequence[PeriodTotal]:
        found: dict[tuple[str, str, Period], int] = defaultdict(int)
        wanted = set(accounts)
        for row in self._clickhouse.cells.values():
            if row.account in wanted and row.meter in meters and from_ms < row.period_end_ms:
                found[row.account, row.meter, Period(row.period_start_ms, row.period_end_ms)] += row.value_minor
        return [PeriodTotal(*key, Decimal(value)) for key, value in found.items() if key[2].start_ms < to_ms]

    async def first_usage_ms(self, meters: Sequence[str]) -> Mapping[str, int]:
        return dict.fromkeys(meters, 0)

    async def complete_up_to_ms(self, partitions: int) -> int:
        return min(self._clickhouse.relayed[each].stream_time_ms for each in range(partitions))


class Counting(Migrating):
    """The customers with everything between an event and Stripe."""

    def __init__(self, now: str) -> None:
        super().__init__(now)
        self.clickhouse = FakeClickHouse()
        self.hourly = HourlyTotals(self.clickhouse)
        self._meters = StripeClientMeters(TEST_KEY, "http://stripe.test", nonce="test")
        in_this_process(self._meters, self.stripe.simulator)
        self._sender: StripeSender | None = None
        self._reports_read_to: dict[int, int] = {}
        self._events = 0

    async def open(self) -> None:
        """Make the log with the meter, and the tables."""
        _, account = await self._meters.identity()
        topics = Settings(partitions=self.partitions, retention_days=3650).topics()
        await ensure_deployment(self.log, SECRET, topics, stripe_account=account)
        await self.start(METER_SET)
        await self.tables.migrate(SCOPE, self.log_id)
        payers = BindingResolver(self.store.accounts, self.partitions)
        sql = self.sql
        self._sender = StripeSender(
            self.log, sql.intents, self._meters, payers, self.clock, random.Random(1), closings=sql.bills
        )

    def stores(self, countdown: list[int] | None = None, *, after: bool = False) -> Stores:
        """The stores of one process, with the product's own totals."""
        found = super().stores(countdown, after=after)
        views = Views(self.store, self.clickhouse, self.clickhouse, self.log)
        totals = RecountedTotals(views, self.hourly, self.clock, self.partitions)
        return found._replace(totals=totals, intents=self.sql.intents)

    async def use(self, account: str, calls: int, billed: int | None = None) -> None:
        """One event of so many calls now. `billed` is not known here: Stripe gets to know what the sink reports."""
        assert billed is None
        self._events += 1
        body = {
            "specversion": "1.0", "id": f"event-{self._events}", "source": "/test", "type": "calls", "subject": account,
            "time": rfc3339(self.clock.ms * 1000), "data": {"calls": calls},
        }  # fmt: skip
        await self.log.append(EVENTS_TOPIC, 0, json.dumps(body).encode())

    async def settle(self) -> None:
        """Stripe's events reach the mirror, and the log reaches every view and Stripe."""
        await super().settle()
        if self._sender is not None:
            await self._flow(self._sender)

    async def _flow(self, sender: StripeSender) -> None:
        while await BindingOutbox(self.tables, self.accounts, self.store).relay():
            pass
        await append_everywhere(self.log, SECRET, Tick(log_id=self.log_id, partitions=self.partitions))
        await self.fold_all()
        archive = ArchiveProcessor(self.log, self.clickhouse, SECRET)
        for partition in range(self.partitions):
            offset = await archive.start_offset(partition)
            while records := await self.log.read(EVENTS_TOPIC, partition, offset):
                await archive.step(partition, records)
                offset = records[-1].next_offset
            await hourly_relay(self.store, self.clickhouse).relay(partition)
            await ReportRelay(self.store.reports, self.store.accounts, self.log).relay(partition)
            offset = self._reports_read_to.get(partition) or await sender.start_offset(partition) or 0
            while records := await self.log.read(REPORTS_TOPIC, partition, offset):
                await sender.step(partition, records)
                offset = records[-1].next_offset
            self._reports_read_to[partition] = offset
            await sender.idle(partition)
        self.stripe.simulator.catch_up()
