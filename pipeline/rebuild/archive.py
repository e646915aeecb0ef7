"""`usage_events`, `dedup_decisions` and `control_log`, rebuilt from the log by the archive's own processor (I3).

1. archive every partition from offset 0 into tables beside the live ones. The positions beside them say how far it is:
   cut short, it goes on from there.
2. once all partitions reach the log's end: exchange the tables.
3. archive on, into the exchanged tables, to the log's end as it stands after the exchange. An archive that was in the
   middle of a batch wrote the first of it into the old tables; its records lie below that end. The positions are
   exchanged last, so that until then they say how far this is.

The running archive goes on by the position it holds in memory. Rows are kept by identity and first arrival, so what
both write is one row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

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


class _Parts(NamedTuple):
    log: Log
    staging: TableStaging
    secret: bytes
    limits: RebuildLimits
    progress: Callable[[Progress], None]


class ArchiveRebuild:
    """Rebuilds the archive's tables. Run again after any end, it goes on."""

    def __init__(
        self,
        log: Log,
        staging: TableStaging,
        secret: bytes,
        limits: RebuildLimits | None = None,
        progress: Callable[[Progress], None] = lambda _: None,
    ) -> None:
        self._parts = _Parts(log, staging, secret, limits or RebuildLimits(), progress)

    async def run(self) -> None:
        """Rebuild.

        Raises `OperatorNeeded` where the log does not reach back to its start, `Transient` where a store does not
        answer; a repeated call goes on.
        """
        staging, partitions = self._parts.staging, await self._parts.log.partition_count(EVENTS_TOPIC)
        found = await staging.building(TABLES)
        if found is None or found.is_partial(TABLES):
            await check_reach(self._parts.log, partitions, REMEDY)
        building = await staging.begin(TABLES, "log")
        if POSITIONS not in building.swapped:
            left = [table for table in DATA if table not in building.swapped]
            if left:
                # Twice: the second time for what came while the other partitions were archived.
                for partition in [*range(partitions), *range(partitions)]:
                    await self._reach(partition, staging.beside((*left, POSITIONS)), swapped=False)
                for table in left:
                    await staging.swap(table)
            for partition in range(partitions):
                await self._reach(partition, staging.beside((POSITIONS,)), swapped=True)
            await staging.swap(POSITIONS)
        await staging.drop(TABLES)

    async def _reach(self, partition: int, store: AnalyticalStore, *, swapped: bool) -> None:
        """Archive one partition to the log's end as it stands now."""
        parts = self._parts
        archive = ArchiveProcessor(
            parts.log, store, parts.secret, events_max=parts.limits.events_max, replay_from_start=True
        )
        offset = await archive.start_offset(partition)
        end = (await parts.log.bounds(EVENTS_TOPIC, partition)).next
        while offset < end:
            records = await parts.log.read(EVENTS_TOPIC, partition, offset, parts.limits.records_max)
            if not records:
                break
            await archive.step(partition, records)
            offset = records[-1].next_offset
            parts.progress(Progress(partition, offset, max(end, offset), None, swapped=False))
        parts.progress(Progress(partition, offset, max(end, offset), None, swapped))


async def abandon_archive(staging: TableStaging) -> bool:
    """Give up what is being built of the archive. False where nothing was.

    Raises `OperatorNeeded` where a table was swapped in already: only finishing makes all of them whole.
    """
    found = await staging.building(TABLES)
    if found is None:
        return False
    if found.swapped:
        raise OperatorNeeded(
            f"{' and '.join(sorted(found.swapped))} was swapped in already, and is finished by running "
            "`tidemark rebuild archive` again"
        )
    await staging.drop(TABLES)
    return True
