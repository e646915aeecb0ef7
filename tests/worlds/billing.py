"""A deployment whose billing events come from a Stripe simulator in this process."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from aggregators.binding_timeline import overlaps, timeline
from aggregators.mirror import mirror_rows
from aggregators.partitioning import partition_of
from pipeline.logs.bindings import AccountLog
from pipeline.webhooks.linking import owned
from pipeline.webhooks.processor import BillingEventProcessor
from schemas.billing_events import VIA_HEADER, ObjectKind, ObjectName, StripeEvent, StripeObjects, Via
from schemas.log import BILLING_EVENTS_TOPIC, Log
from schemas.side_tables import MIRROR_COLUMNS, Arrived, Fetched, Row, SideTables, Step
from simulation.stripe_account import StripeAccount
from sinks.sql.fake import FakeSideTables
from tests.worlds.deployment import SECRET, World
from tests.worlds.reconciler import METER_SET

SCOPE = "test:acct_1"
# A partition that the log does not have: the side tables keep a position for what a link reads.
READS = 1_000_000


class BillingWorld(World):
    """A log, side tables and a Stripe account on one clock."""

    def __init__(self, now_ms: int, partitions: int = 1, seed: int = 0) -> None:
        super().__init__(now_ms, partitions)
        self.stripe = StripeAccount(self.clock, seed)
        self.tables = FakeSideTables(timeline, overlaps)

    async def open(self) -> None:
        """Make the log and the tables."""
        await self.start(METER_SET)
        await self.tables.migrate(SCOPE, self.log_id)

    @property
    def accounts(self) -> AccountLog:
        """The log for those who bind accounts."""
        return AccountLog(self.log, self.partitions, SECRET, self.clock)

    async def link(self, account: str, customer: str, starts_ms: int = 0) -> None:
        """Link an account, for all usage that nobody was named for if no instant is given."""
        await self.read(customer)
        await self.tables.link(account, customer, starts_ms, "tester", "", self.clock.now_ms())

    async def read(self, customer: str) -> None:
        """Put what decides who pays for a customer into the mirror, as the command of the link has it read. The log's
        partitions and the calls to Stripe that tests count stay as they are."""
        names = [*await owned(self.stripe, customer), ObjectName(ObjectKind.CUSTOMER, customer)]
        seqs = await self.tables.fetch_seqs(names)
        fetched = [Fetched(name, seqs[name], mirror_rows(name, self.stripe.read(name))) for name in names]
        offset, now_ms = await self.tables.position(READS) or 0, self.clock.now_ms()
        event = StripeEvent(f"read_{offset}", "read", now_ms // 1000, customer, ())
        await self.tables.commit(Step(READS, offset, offset + 1, now_ms, [Arrived(event, Via.RESYNC, offset)], fetched))

    async def deliver(self, events: Iterable[Mapping[str, Any]], via: Via = Via.WEBHOOK) -> None:
        """Append events as the receiver does."""
        for event in events:
            body = event["data"]["object"]
            key = str(body["id"] if body["object"] == "customer" else body.get("customer") or body.get("id", ""))
            await self.append(key, json.dumps(event).encode(), via)

    async def append(self, key: str, value: bytes, via: Via = Via.WEBHOOK) -> int:
        """Append one record of `billing.events`; returns its partition."""
        partition, headers = partition_of(key, self.partitions), ((VIA_HEADER, via.value.encode()),)
        await self.log.append(BILLING_EVENTS_TOPIC, partition, value, key=key.encode(), headers=headers)
        return partition

    def processor(
        self, log: Log | None = None, tables: SideTables | None = None, objects: StripeObjects | None = None
    ) -> BillingEventProcessor:
        """A new process on the same stores."""
        return BillingEventProcessor(log or self.log, tables or self.tables, objects or self.stripe, self.clock)

    async def process(
        self, processor: BillingEventProcessor | None = None, records_max: int = 100, *, backwards: bool = False
    ) -> None:
        """Process every partition to the log's end, the last one first if `backwards`."""
        running = processor or self.processor()
        for partition in sorted(range(self.partitions), reverse=backwards):
            offset = await running.start_offset(partition)
            while batch := await self.log.read(BILLING_EVENTS_TOPIC, partition, offset, records_max):
                await running.step(partition, batch)
                offset = batch[-1].next_offset

    def expected(self) -> dict[str, list[Row]]:
        """The mirror's rows of a full listing of the account."""
        tables: dict[str, list[Row]] = {table: [] for table in MIRROR_COLUMNS}
        for name in self.stripe.listing():
            for table, rows in mirror_rows(name, self.stripe.read(name)).items():
                tables[table] += rows
        return {table: sorted(rows, key=lambda row: str(row["id"])) for table, rows in tables.items()}

    async def mirrored(self) -> dict[str, list[Row]]:
        """The mirror's rows of what Stripe lists: a deleted customer is not listed."""
        return {
            table: [dict(row) for row in rows if not row.get("deleted")]
            for table, rows in (await self.tables.mirror()).items()
        }


def ids(events: Sequence[Mapping[str, Any]]) -> list[str]:
    """The ids of events."""
    return [event["id"] for event in events]
