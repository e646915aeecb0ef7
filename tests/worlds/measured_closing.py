"""A month's end with measured meters: the log, fold, archive and measurer run before the sender and the controller."""

from __future__ import annotations

import json
from typing import Any

from pipeline.billing.closing import Published
from pipeline.ingest.archive import ArchiveProcessor
from pipeline.logs.bindings import AccountLog
from pipeline.logs.control_records import append_everywhere, ensure_deployment
from pipeline.logs.flushes import FlushWatch, flush_account
from pipeline.roles.closing import told_by
from pipeline.rollup.measurer import Measurer
from pipeline.rollup.processor import RollupProcessor
from pipeline.rollup.relays import ReportRelay
from pipeline.rollup.resolver import Resolver
from pipeline.settings import Settings
from schemas.bills import Bill
from schemas.clock import MINUTE_MS
from schemas.control import MeterSetRecord, Tick
from schemas.log import EVENTS_TOPIC, REPORTS_TOPIC
from schemas.meters import MeterSet
from sinks.clickhouse.fake import FakeClickHouse
from sinks.clickhouse.fake_measures import FakeMeasures
from sinks.redis.fake import FakeLiveView
from tests.traffic.generate import rfc3339
from tests.worlds.closing import METER, ClosingWorld, ms
from tests.worlds.deployment import SECRET

DISK: dict[str, Any] = {
    "slug": "disk", "event_type": "disk", "aggregation": "time_weighted", "value_path": "$.gb", "scale": 1,
    "stripe_event_name": METER,
}  # fmt: skip


class MeasuredClosingWorld(ClosingWorld):
    """The whole way from events to invoices, with one partition. `is_archive_down`: the archive stands still."""

    def __init__(self, now: str, **options: Any) -> None:
        super().__init__(now, **options)
        self.view, self.clickhouse = FakeLiveView(), FakeClickHouse()
        self.is_archive_down = False

    async def start(self) -> MeasuredClosingWorld:
        """Make the log and the meter, too."""
        await super().start()
        topics = Settings(partitions=1, retention_days=3650).topics()
        self.genesis = await ensure_deployment(self.log, SECRET, topics, stripe_account="acct_simulator")
        meter_set = MeterSet.model_validate({"version": 1, "meters": [DISK]})
        await append_everywhere(self.log, SECRET, MeterSetRecord(meter_set=meter_set))
        samples = FakeMeasures(self.clickhouse)
        self.measurer = Measurer(
            self.log, self.view.accounts, self.clickhouse, samples, self.view.measured, 2 * MINUTE_MS
        )
        return self

    async def event(self, account: str, at: str, **data: Any) -> None:
        """An event of an application, which arrives now."""
        body = {
            "specversion": "1.0", "id": f"{account} {at}", "source": "/disks", "type": "disk", "subject": account,
            "time": rfc3339(ms(at) * 1_000), "data": data,
        }  # fmt: skip
        await self.log.append(EVENTS_TOPIC, 0, json.dumps(body).encode())

    async def told(self, account: str, bill: Bill, since_ms: int) -> bool:
        """What the sink asks."""
        return await told_by(self.genesis, self.view)(account, bill, since_ms)

    async def flush(self, account: str) -> Published:
        """A flush in the log."""
        self.flushed.append(account)
        accounts = AccountLog(self.log, 1, SECRET, self.clock)
        made = await flush_account(accounts, self.view, account)
        watch = FlushWatch(self.log, self.view, made, (await self.log.bounds(REPORTS_TOPIC, 0)).next)

        async def is_published() -> bool:
            return (await watch.look()).is_published

        return is_published

    async def count(self) -> None:
        """Let the worker and the archive work until nothing is left to do."""
        tick = Tick(log_id=self.genesis.log_id, partitions=1, stripe_account="acct_simulator")
        await append_everywhere(self.log, SECRET, tick)
        while await self._step():
            pass

    async def _step(self) -> bool:
        rollup, archive = RollupProcessor(self.log, self.view.state, self.clock, SECRET), None
        if not self.is_archive_down:
            archive = ArchiveProcessor(self.log, self.clickhouse, SECRET)
        for processor in (rollup, archive):
            if processor is not None:
                offset = await processor.start_offset(0)
                while records := await self.log.read(EVENTS_TOPIC, 0, offset):
                    await processor.step(0, records)
                    offset = records[-1].next_offset
        await ReportRelay(self.view.reports, self.view.accounts, self.log).relay(0)
        resolver = Resolver(self.log, self.view.deferred, self.view.accounts, self.clickhouse, SECRET)
        resolved, measured = await resolver.resolve(0), await self.measurer.measure(0)
        return sum(resolved) + measured.told > 0

    async def pump(self, rounds: int = 12) -> None:
        """Let everything work."""
        await self.count()
        await super().pump(rounds)
