"""Rebuilds `usage_hourly` and `usage_duplicates` from the log (I6, I7): the same fold, into staging tables.

1. Fold every partition from offset 0 into a shadow copy in Redis, and relay the shadow copy into the staging tables.
   The checkpoint of the shadow copy records the progress, so an interrupted rebuild continues there.
2. When all partitions reach the live checkpoint, exchange the tables.
3. Fold on to the live checkpoint as of after the exchange. A relay that began before the exchange wrote into the old
   table; all its rows are below this checkpoint, so the fold makes them again.
4. Drop the old `usage_duplicates`, then the shadow copy, then the old `usage_hourly`. After the first drop, a continued
   rebuild only cleans up and needs neither the log nor the live view.

Rows carry the live view's generation, so a row that the live relay writes is the same or a newer one. Rows without an
event behind them are gone afterwards. The rebuild publishes no intents and no quarantine entries.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import msgspec

from aggregators.columns import MakerOf, PythonColumns
from pipeline.rebuild.limits import RebuildLimits
from pipeline.rebuild.no_quarantine_log import NoQuarantineLog
from pipeline.rebuild.shadow_copy import begin, behind_the_view, check_live, check_reach
from pipeline.rollup.processor import RollupProcessor, RollupSettings
from pipeline.rollup.relays import HourlyRelay
from schemas.analytics import HourlyStore, RelayPosition
from schemas.clock import HOUR_MS, Clock
from schemas.errors import OperatorNeeded
from schemas.live_view import LiveView, ReportOutbox
from schemas.log import EVENTS_TOPIC, OFFSET_MAX, Log
from schemas.rebuild import Building, GenerationsSeen, Progress, TableStaging
from schemas.rollup import Checkpoint

TABLES: Final = ("usage_duplicates", "usage_hourly")
# The old table that is dropped when both new tables are complete.
CAUGHT_UP: Final = "usage_duplicates"
SOURCE: Final = "log"
REMEDY: Final = (
    "Count them again out of usage_events instead (`tidemark rebuild usage_hourly --from clickhouse`), or bring those "
    "records back from a copy of the log."
)


class Note(msgspec.Struct, frozen=True):
    """The parameters of a rebuild of `usage_hourly`, stored with the staging tables.

    `generations` are the live view's, by partition. The last three are for a rebuild from ClickHouse: by
    partition, the offset and stream time to which `usage_events` is counted before the swap; and the number of the
    rebuild that made `usage_events`.
    """

    source: str
    name: str
    generations: tuple[int, ...]
    offsets: tuple[int, ...] = ()
    stream_times_ms: tuple[int, ...] = ()
    events_rebuilt: int = 0


async def begun(staging: TableStaging, source: str) -> tuple[Note, Building] | None:
    """The unfinished rebuild of `usage_hourly`, or None. Raises `OperatorNeeded` if its source is another one."""
    building = await staging.building(TABLES)
    return None if building is None else (noted(building, source), building)


def noted(building: Building, source: str) -> Note:
    """The note of an unfinished rebuild of `usage_hourly`. Errors as `begun`."""
    note = msgspec.json.decode(building.note, type=Note)
    if note.source != source:
        raise OperatorNeeded(
            f"a rebuild of usage_hourly from {note.source} was begun and is not finished: run it again with "
            f"`--from {note.source}`, or give it up with `--abandon`"
        )
    return note


class _Filled:
    """The `HourlyStore` that the shadow copy is relayed into: staging tables, or after the exchange `live` tables."""

    def __init__(self, store: HourlyStore, *, live: bool) -> None:
        self.insert_hourly = store.insert_hourly
        self.insert_duplicates = store.insert_duplicates
        self.load_relayed = store.load_relayed
        self._save = store.save_relayed if live else None

    async def generation_since(self, partition: int, bucket_ms: int) -> int:  # noqa: ARG002 - the protocol's
        """0, because the relay's check for an outdated live view does not apply to the shadow copy."""
        return 0

    async def save_relayed(self, position: RelayPosition) -> None:
        """Save the position in live tables only: staging rows do not show how far `usage_hourly` is complete."""
        if self._save is not None:
            await self._save(position)

    async def close(self) -> None:
        """Do nothing: the owner closes the store."""


@dataclass
class HourlyRebuild:
    """Rebuilds both tables. An interrupted rebuild continues when it is run again.

    `shadow_copy` opens the shadow copy of the given name. `maker_of`: see `RollupProcessor`.
    """

    log: Log
    live: LiveView
    shadow_copy: Callable[[str], LiveView]
    hourly: GenerationsSeen
    staging: TableStaging
    clock: Clock
    secret: bytes
    limits: RebuildLimits = field(default_factory=RebuildLimits)
    progress: Callable[[Progress], None] = lambda _: None
    maker_of: MakerOf = field(default=PythonColumns, kw_only=True)

    async def run(self) -> None:
        """Rebuild both tables.

        Raises `OperatorNeeded` if the log no longer has its first record, `Fenced` if another rebuild runs, `Transient`
        if a store does not answer; a repeated call continues.
        """
        staging, partitions = self.staging, await self.log.partition_count(EVENTS_TOPIC)
        started = await begun(staging, SOURCE)
        if started is None or started[1].is_partial(TABLES):
            await check_reach(self.log, partitions, REMEDY)
            # A missing staging table lost rows that the shadow copy no longer has.
            await abandon_hourly(staging, self.shadow_copy, partitions)
            note = Note(SOURCE, uuid.uuid4().hex[:16], await self._generations(partitions))
        else:
            note = started[0]
        building = await staging.begin(TABLES, msgspec.json.encode(note).decode())
        # The rows in the tables belong to the note stored with them, even if another command wrote both.
        note = noted(building, SOURCE)
        shadow_copy = self.shadow_copy(note.name)
        try:
            if not (CAUGHT_UP in building.swapped and CAUGHT_UP not in building.beside):
                await self._fill(shadow_copy, partitions, note, building)
                await staging.drop((CAUGHT_UP,))
            for partition in range(partitions):
                await shadow_copy.generations.forget(partition)
        finally:
            await shadow_copy.close()
        await staging.drop(TABLES)

    async def _fill(self, shadow_copy: LiveView, partitions: int, note: Note, building: Building) -> None:
        """Fill and exchange the tables that are not exchanged yet, then catch up with the live view."""
        staging = self.staging
        left = [table for table in TABLES if table not in building.swapped]
        if left:
            tables = _Filled(staging.beside(left), live=False)
            # The second pass folds what arrived while the other partitions were folded. Rows of later events
            # are missing after the exchange until the tables have caught up.
            for partition in [*range(partitions), *range(partitions)]:
                await self._reach(shadow_copy, partition, note, tables, swapped=False)
            for table in left:
                await staging.swap(table)
        live = _Filled(self.hourly, live=True)
        for partition in range(partitions):
            # Everything dropped from the outbox so far is below the checkpoint that is reached next.
            dropped = await self.live.drops.dropped(partition)
            await self._reach(shadow_copy, partition, note, live, swapped=True)
            await self.live.drops.backfilled(partition, dropped)

    async def _generations(self, partitions: int) -> tuple[int, ...]:
        generations = []
        for partition in range(partitions):
            live = await self.live.state.load_checkpoint(partition)
            check_live(partition, live, self.secret)
            generations.append(live.generation if live else max(1, await self.hourly.latest_generation()))
        return tuple(generations)

    async def _reach(
        self, shadow_copy: LiveView, partition: int, note: Note, hourly: HourlyStore, *, swapped: bool
    ) -> None:
        """Fold and relay one partition up to the current live checkpoint, or to the log's end if there is none."""
        log = NoQuarantineLog(self.log)
        log.kept_before(OFFSET_MAX)
        if await shadow_copy.state.load_checkpoint(partition) is None:
            await check_reach(self.log, partition + 1, REMEDY)
            await begin(self.log, self.secret, shadow_copy.copies, partition, note.generations[partition])
        settings = RollupSettings(self.limits.events_max, replay_from_start=True)
        rollup = RollupProcessor(log, shadow_copy.state, self.clock, self.secret, settings, maker_of=self.maker_of)
        offset = await rollup.start_offset(partition)
        live = await self.live.state.load_checkpoint(partition)
        check_live(partition, live, self.secret, rollup.checkpoints[partition].log_id)
        target = live.next_offset if live else (await self.log.bounds(EVENTS_TOPIC, partition)).next
        relay = HourlyRelay(shadow_copy.outbox, shadow_copy.drops, shadow_copy.deferred, hourly, self.limits.cells_max)
        relayed_hour = rollup.checkpoints[partition].stream_time_ms // HOUR_MS
        while offset < target:
            records = await self.log.read(EVENTS_TOPIC, partition, offset, self.limits.records_max)
            if not records:
                if live is not None:
                    raise behind_the_view(partition, live, offset)
                break
            await rollup.step(partition, records)
            offset = records[-1].next_offset
            checkpoint = rollup.checkpoints[partition]
            if checkpoint.stream_time_ms // HOUR_MS != relayed_hour:
                await self._relay(shadow_copy.reports, relay, partition)
                relayed_hour = checkpoint.stream_time_ms // HOUR_MS
            self._report(checkpoint, partition, target, swapped=False)
        await self._relay(shadow_copy.reports, relay, partition)
        self._report(rollup.checkpoints[partition], partition, target, swapped=swapped)

    def _report(self, checkpoint: Checkpoint, partition: int, target: int, *, swapped: bool) -> None:
        end = max(target, checkpoint.next_offset)
        self.progress(Progress(partition, checkpoint.next_offset, end, checkpoint.counters.received, swapped))

    async def _relay(self, reports: ReportOutbox, relay: HourlyRelay, partition: int) -> None:
        """Relay cells and duplicates, and delete report entries, to keep the shadow copy small."""
        while not (await relay.relay(partition)).complete:
            pass
        _, buckets = await reports.report_buckets(partition)
        for bucket_ms in buckets:
            while entries := (await reports.reports(partition, bucket_ms, self.limits.cells_max))[1]:
                await reports.confirm_reports(partition, bucket_ms, entries)
            await reports.confirm_reports(partition, bucket_ms, {})


async def abandon_hourly(staging: TableStaging, shadow_copy: Callable[[str], LiveView], partitions: int) -> bool:
    """Drop the staging tables of an unfinished `usage_hourly` rebuild, and its shadow copy if its source is the log.

    Returns False if there is no such rebuild. Raises `OperatorNeeded` if a table was swapped in already: only finishing
    the rebuild makes both tables complete.
    """
    building = await staging.building(TABLES)
    if building is None:
        return False
    note = msgspec.json.decode(building.note, type=Note)
    if building.swapped:
        raise OperatorNeeded(
            f"{' and '.join(sorted(building.swapped))} was swapped in already, and is finished by running "
            f"`tidemark rebuild usage_hourly --from {note.source}` again"
        )
    if note.source == SOURCE:
        store = shadow_copy(note.name)
        try:
            for partition in range(partitions):
                await store.generations.forget(partition)
        finally:
            await store.close()
    await staging.drop(TABLES)
    return True
