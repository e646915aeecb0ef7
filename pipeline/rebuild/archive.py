"""Rebuilds `usage_events`, `dedup_decisions` and `control_log` from the log with the archive's own processor (I3).

1. Archive every partition from offset 0 into staging tables. The staging table of the positions records the progress,
   so an interrupted rebuild continues there.
2. When all partitions reach the log's end, exchange the data tables.
3. Archive into the exchanged tables up to the log's end after the exchange. The archive role may have written the first
   rows of a batch into the old tables; the records of that batch are below this end. The positions are exchanged last
   and record the progress until then.

The archive role keeps its position in memory and goes on meanwhile. Tables keep one row for each identity and first
arrival, so a row that both write is stored once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from pipeline.ingest.archive import ArchiveProcessor
from pipeline.rebuild.limits import RebuildLimits
from pipeline.rebuild.shadow_copy import check_reach
from schemas.errors import OperatorNeeded
from schemas.log import EVENTS_TOPIC, Log
from schemas.rebuild import AnalyticalStore, Progress, TableStaging

DATA: Final = ("usage_events", "dedup_decisions", "control_log")
POSITIONS: Final = "archive_positions"
TABLES: Final = (*DATA, POSITIONS)
REMEDY: Final = "Restore ClickHouse's tables from a backup, or bring those records back from a copy of the log."


@dataclass
class ArchiveRebuild:
    """Rebuilds the archive's tables. An interrupted rebuild continues when it is run again."""

    log: Log
    staging: TableStaging
    secret: bytes
    limits: RebuildLimits = field(default_factory=RebuildLimits)
    progress: Callable[[Progress], None] = lambda _: None

    async def run(self) -> None:
        """Rebuild all tables.

        Raises `OperatorNeeded` if the log no longer has its first record, `Transient` if a store does not answer; a
        repeated call continues.
        """
        partitions = await self.log.partition_count(EVENTS_TOPIC)
        started = await self.staging.building(TABLES)
        if started is None or started.is_partial(TABLES):
            await check_reach(self.log, partitions, REMEDY)
        building = await self.staging.begin(TABLES, "log")
        if POSITIONS not in building.swapped:
            left = [table for table in DATA if table not in building.swapped]
            if left:
                # The second pass archives what arrived while the other partitions were archived.
                for partition in [*range(partitions), *range(partitions)]:
                    await self._reach(partition, self.staging.beside((*left, POSITIONS)), swapped=False)
                for table in left:
                    await self.staging.swap(table)
            for partition in range(partitions):
                await self._reach(partition, self.staging.beside((POSITIONS,)), swapped=True)
            await self.staging.swap(POSITIONS)
        await self.staging.drop(TABLES)

    async def _reach(self, partition: int, store: AnalyticalStore, *, swapped: bool) -> None:
        """Archive one partition to the current end of the log."""
        archive = ArchiveProcessor(
            self.log, store, self.secret, events_max=self.limits.events_max, replay_from_start=True
        )
        offset = await archive.start_offset(partition)
        end = (await self.log.bounds(EVENTS_TOPIC, partition)).next
        while offset < end:
            records = await self.log.read(EVENTS_TOPIC, partition, offset, self.limits.records_max)
            if not records:
                break
            await archive.step(partition, records)
            offset = records[-1].next_offset
            self.progress(Progress(partition, offset, max(end, offset), None, swapped=False))
        self.progress(Progress(partition, offset, max(end, offset), None, swapped))


async def abandon_archive(staging: TableStaging) -> bool:
    """Drop the staging tables of an unfinished archive rebuild. Returns False if there is no such rebuild.

    Raises `OperatorNeeded` if a table was swapped in already: only finishing the rebuild makes all tables complete.
    """
    building = await staging.building(TABLES)
    if building is None:
        return False
    if building.swapped:
        raise OperatorNeeded(
            f"{' and '.join(sorted(building.swapped))} was swapped in already, and is finished by running "
            "`tidemark rebuild archive` again"
        )
    await staging.drop(TABLES)
    return True
