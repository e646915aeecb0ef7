"""A rebuild world whose worker takes snapshots."""

from __future__ import annotations

from pathlib import Path

from pipeline.rebuild.live_view import LiveViewRebuild
from pipeline.rollup.processor import RollupProcessor
from pipeline.rollup.snapshots import Snapshots
from schemas.clock import HOUR_MS
from schemas.log import EVENTS_TOPIC
from sinks.clickhouse.fake_snapshots import FakeSnapshots
from tests.worlds.deployment import SECRET
from tests.worlds.rebuild import PARTITIONS, RebuildWorld, assert_same_view


class SnapshotWorld(RebuildWorld):
    """A rebuild world whose worker takes a snapshot every hour of stream time."""

    def __init__(self, folder: Path, events: int = 1_200) -> None:
        super().__init__(events)
        self.kept = FakeSnapshots()
        self.notes: list[str] = []
        self.snapshots = Snapshots(
            self.live.copies, self.kept, HOUR_MS, str(folder), lambda outcome, _: self.notes.append(outcome)
        )

    async def fold_all(self) -> RollupProcessor:
        worker = RollupProcessor(self.log, self.live.state, self.clock, SECRET, snapshots=self.snapshots)
        for partition in range(PARTITIONS):
            await self.snapshots.write(partition)
            offset = await worker.start_offset(partition)
            while batch := await self.log.read(EVENTS_TOPIC, partition, offset, 5):
                await worker.step(partition, batch)
                await self.snapshots.write(partition)
                offset = batch[-1].next_offset
        return worker

    def restoring(self, countdown: int = 0, *, after: bool = False, explicit: bool = False) -> LiveViewRebuild:
        """`tidemark rebuild redis` with the snapshots; `explicit` starts from one even if the log is whole."""
        return self.rebuild(countdown, after=after, snapshots=self.kept, from_snapshot=explicit)

    async def remember(self) -> None:
        """Saves the live view for a comparison after the log has lost its start."""
        await self.tick()
        await self.work()
        self.whole = await self.straight()

    async def trim(self) -> None:
        """Retention: removes the log before the newest snapshot."""
        for partition in range(PARTITIONS):
            newest = (await self.kept.snapshots(partition))[0].next_offset
            records = self.log._partitions[EVENTS_TOPIC, partition].records
            del records[:newest]

    async def assert_same(self) -> None:
        """The live view equals the one that was folded from the whole log."""
        assert_same_view(self.live, self.whole, "deferred")
