"""Small deployments on in-memory fakes: a log with a manual clock, and helpers that run real processors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from aggregators.columns import MakerOf, PythonColumns
from pipeline.logs.control_records import append_control, append_everywhere, ensure_deployment
from pipeline.logs.fake import FakeLog
from pipeline.rollup.processor import RollupProcessor, RollupSettings
from pipeline.rollup.relays import HourlyRelay
from pipeline.settings import Settings
from schemas.analytics import HourlyStore
from schemas.control import Control, MeterSetRecord
from schemas.live_view import LiveView
from schemas.log import EVENTS_TOPIC, Record
from schemas.meters import MeterSet
from sinks.redis.fake import FakeLiveView
from tests.worlds.clock import ManualClock

SECRET = b"a secret of thirty-two characters"


# The stores of a view.
STORES: Final = frozenset(name for name, value in vars(LiveView).items() if isinstance(value, property))


def hourly_relay(view: LiveView, hourly: HourlyStore, cells_max: int = 50_000) -> HourlyRelay:
    """The relay of a live view to ClickHouse."""
    return HourlyRelay(view.outbox, view.drops, view.deferred, hourly, cells_max)


class World:
    """One deployment on fakes. `start` creates the log; records are appended at the clock's time."""

    def __init__(self, now_ms: int, partitions: int = 2, store: LiveView | None = None) -> None:
        self.clock = ManualClock(now_ms)
        self.log = FakeLog(self.clock)
        self.store: LiveView = store or FakeLiveView()
        self.partitions = partitions
        self.log_id = ""
        self._revisions: Counter[str] = Counter()

    async def start(self, meter_set: Mapping[str, Any] | MeterSet) -> None:
        topics = Settings(partitions=self.partitions, retention_days=3650).topics()
        self.log_id = (await ensure_deployment(self.log, SECRET, topics)).log_id
        parsed = meter_set if isinstance(meter_set, MeterSet) else MeterSet.model_validate(meter_set)
        await append_everywhere(self.log, SECRET, MeterSetRecord(meter_set=parsed))

    async def control(self, partition: int, control: Control) -> int:
        """Appends a control record; returns its offset."""
        return await append_control(self.log, SECRET, partition, control)

    def revision(self, account: str) -> int:
        """The revision of the account's next binding or closing."""
        self._revisions[account] += 1
        return self._revisions[account]

    async def records(self, partition: int, topic: str = EVENTS_TOPIC) -> list[Record]:
        """All records of a partition."""
        records: list[Record] = []
        offset = (await self.log.bounds(topic, partition)).first
        while batch := await self.log.read(topic, partition, offset):
            records += batch
            offset = batch[-1].next_offset
        return records

    def rollup(self, settings: RollupSettings | None = None, maker_of: MakerOf = PythonColumns) -> RollupProcessor:
        """A new rollup process on the same stores."""
        return RollupProcessor(self.log, self.store.state, self.clock, SECRET, settings, maker_of=maker_of)

    async def fold_all(self, processor: RollupProcessor | None = None) -> RollupProcessor:
        """Folds every partition to the log's end."""
        worker = processor or self.rollup()
        for partition in range(self.partitions):
            offset = await worker.start_offset(partition)
            while batch := await self.log.read(EVENTS_TOPIC, partition, offset):
                await worker.step(partition, batch)
                offset = batch[-1].next_offset
        return worker
