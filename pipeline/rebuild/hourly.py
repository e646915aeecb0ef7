"""`usage_hourly` and `usage_duplicates`, rebuilt from the log (I6, I7): the same fold, into tables beside them.

1. fold every partition from offset 0 into a shadow copy namespace of Redis, and relay it into the tables beside. The
   shadow copy checkpoint is the position: cut short, it goes on from there.
2. once all partitions reach as far as the live checkpoint: exchange the tables.
3. fold on to the live checkpoint as it stands after the exchange. A relay that had begun before it wrote into the old
   table, and all it wrote is made by the fold below that checkpoint.
4. drop the old `usage_duplicates`, which says that nothing but cleaning is left, then the shadow copy, then the old
   `usage_hourly`. Whoever goes on from here needs no log and no live view.

Rows carry the live view's generation, so a row that the live relays write is the same row or a newer one. What no
event ever made is in none of the tables afterwards. Nothing goes out: no intent, no quarantine entry.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec

from pipeline.rebuild.limits import RebuildLimits
from pipeline.rebuild.no_quarantine_log import NoQuarantineLog
from pipeline.rebuild.shadow_copy import begin, behind_the_view, check_live, check_reach
from pipeline.rollup.processor import RollupProcessor, RollupSettings
from pipeline.rollup.relays import HourlyRelay
from schemas.analytics import HourlyStore, RelayPosition
from schemas.clock import HOUR_MS, Clock
from schemas.errors import OperatorNeeded
from schemas.log import EVENTS_TOPIC, OFFSET_MAX, Log
from schemas.rebuild import Building, GenerationsSeen, GenerationStore, Progress, TableStaging
from schemas.rollup import Checkpoint, RollupStore

TABLES: Final = ("usage_duplicates", "usage_hourly")
# Whose old table is dropped as soon as both are caught up with.
CAUGHT_UP: Final = "usage_duplicates"
SOURCE: Final = "log"
REMEDY: Final = (
    "Count them again out of usage_events instead (`tidemark rebuild usage_hourly --from clickhouse`), or bring those "
    "records back from a copy of the log."
)


class Note(msgspec.Struct, frozen=True):
    """What a rebuild of `usage_hourly` was begun with; stands with the tables beside.

    `generations` are the live view's, by partition. From ClickHouse: up to which offset and stream time of each
    partition `usage_events` is counted before the swap, and which rebuild had made it.
    """

    source: str
    name: str
    generations: tuple[int, ...]
    offsets: tuple[int, ...] = ()
    stream_times_ms: tuple[int, ...] = ()
    events_rebuilt: int = 0


async def begun(staging: TableStaging, source: str) -> tuple[Note, Building] | None:
    """The rebuild of `usage_hourly` that was begun, or None. Raises `OperatorNeeded` where it has another source."""
    found = await staging.building(TABLES)
    if found is None:
        return None
    return noted(found, source), found


def noted(found: Building, source: str) -> Note:
    """What a rebuild of `usage_hourly` was begun with. Errors as `begun`."""
    note = msgspec.json.decode(found.note, type=Note)
    if note.source != source:
        raise OperatorNeeded(
            f"a rebuild of usage_hourly from {note.source} was begun and is not finished: run it again with "
            f"`--from {note.source}`, or give it up with `--abandon`"
        )
    return note


class _Filled:
    """`HourlyStore` as the shadow copy is relayed into it: the tables beside, or once they are exchanged the live
    ones (`live`)."""

    def __init__(self, store: HourlyStore, *, live: bool) -> None:
        self.insert_hourly = store.insert_hourly
        self.insert_duplicates = store.insert_duplicates
        self.load_relayed = store.load_relayed
        self._save = store.save_relayed if live else None

    async def generation_since(self, partition: int, bucket_ms: int) -> int:  # noqa: ARG002 - the protocol's
        """0: rows of a later generation refuse an old live view, and the shadow copy is none. They are as
        right."""
        return 0

    async def save_relayed(self, position: RelayPosition) -> None:
        """As the store; nothing beside, where the rows say nothing yet of how far `usage_hourly` reaches."""
        if self._save is not None:
            await self._save(position)

    async def close(self) -> None:
        """Closed by its owner."""


class _Parts(NamedTuple):
    log: Log
    live: RollupStore
    shadow_copy: Callable[[str], GenerationStore]
    hourly: GenerationsSeen
    staging: TableStaging
    clock: Clock
    secret: bytes
    limits: RebuildLimits
    progress: Callable[[Progress], None]


class HourlyRebuild:
    """Rebuilds both tables. Run again after any end, it goes on. `shadow_copy` opens a store under a name of its
    own."""

    def __init__(
        self,
        log: Log,
        live: RollupStore,
        shadow_copy: Callable[[str], GenerationStore],
        hourly: GenerationsSeen,
        staging: TableStaging,
        clock: Clock,
        secret: bytes,
        limits: RebuildLimits | None = None,
        progress: Callable[[Progress], None] = lambda _: None,
    ) -> None:
        self._parts = _Parts(
            log, live, shadow_copy, hourly, staging, clock, secret, limits or RebuildLimits(), progress
        )  # fmt: skip

    async def run(self) -> None:
        """Rebuild.

        Raises `OperatorNeeded` where the log does not reach back to its start, `Fenced` where another rebuild runs,
        `Transient` where a store does not answer; a repeated call goes on.
        """
        staging, partitions = self._parts.staging, await self._parts.log.partition_count(EVENTS_TOPIC)
        found = await begun(staging, SOURCE)
        if found is None or found[1].is_partial(TABLES):
            await check_reach(self._parts.log, partitions, REMEDY)
            # What has been relayed from the shadow copy is gone with a table.
            await abandon_hourly(staging, self._parts.shadow_copy, partitions)
            note = Note(SOURCE, uuid.uuid4().hex[:16], await self._generations(partitions))
            text = msgspec.json.encode(note).decode()
        else:
            text = found[1].note
        building = await staging.begin(TABLES, text)
        # What the tables hold so far is of the note that they bear, whoever gave it.
        note = noted(building, SOURCE)
        shadow_copy = self._parts.shadow_copy(note.name)
        try:
            if not (CAUGHT_UP in building.swapped and CAUGHT_UP not in building.beside):
                await self._fill(shadow_copy, partitions, note, building)
                await staging.drop((CAUGHT_UP,))
            for partition in range(partitions):
                await shadow_copy.forget(partition)
        finally:
            await shadow_copy.close()
        await staging.drop(TABLES)

    async def _fill(self, shadow_copy: GenerationStore, partitions: int, note: Note, building: Building) -> None:
        """Build what is not exchanged yet, exchange it, and catch up."""
        staging = self._parts.staging
        left = [table for table in TABLES if table not in building.swapped]
        if left:
            beside = _Filled(staging.beside(left), live=False)
            for partition in range(partitions):
                await self._reach(shadow_copy, partition, note, beside, swapped=False)
            # What came while the other partitions were built; what comes from now on is missing for a moment.
            for partition in range(partitions):
                await self._reach(shadow_copy, partition, note, beside, swapped=False)
            for table in left:
                await staging.swap(table)
        live = _Filled(self._parts.hourly, live=True)
        for partition in range(partitions):
            # What was dropped from the outbox by now lies below the checkpoint that is reached next.
            lost = await self._parts.live.lost(partition)
            await self._reach(shadow_copy, partition, note, live, swapped=True)
            await self._parts.live.refilled(partition, lost)

    async def _generations(self, partitions: int) -> tuple[int, ...]:
        generations = []
        for partition in range(partitions):
            live = await self._parts.live.load_checkpoint(partition)
            check_live(partition, live, self._parts.secret)
            generations.append(live.generation if live else max(1, await self._parts.hourly.latest_generation()))
        return tuple(generations)

    async def _reach(
        self, shadow_copy: GenerationStore, partition: int, note: Note, hourly: HourlyStore, *, swapped: bool
    ) -> None:
        """Fold and relay one partition up to the live checkpoint as it stands now, or without one to the log's end."""
        parts = self._parts
        log = NoQuarantineLog(parts.log)
        log.kept_before(OFFSET_MAX)
        if await shadow_copy.load_checkpoint(partition) is None:
            await check_reach(parts.log, partition + 1, REMEDY)
            await begin(parts.log, parts.secret, shadow_copy, partition, note.generations[partition])
        settings = RollupSettings(parts.limits.events_max, replay_from_start=True)
        rollup = RollupProcessor(log, shadow_copy, parts.clock, parts.secret, settings)
        offset = await rollup.start_offset(partition)
        live = await parts.live.load_checkpoint(partition)
        check_live(partition, live, parts.secret, rollup.checkpoints[partition].log_id)
        target = live.next_offset if live else (await parts.log.bounds(EVENTS_TOPIC, partition)).next
        relay = HourlyRelay(shadow_copy, hourly, parts.limits.cells_max)
        relayed_hour = rollup.checkpoints[partition].stream_time_ms // HOUR_MS
        while offset < target:
            records = await parts.log.read(EVENTS_TOPIC, partition, offset, parts.limits.records_max)
            if not records:
                if live is not None:
                    raise behind_the_view(partition, live, offset)
                break
            await rollup.step(partition, records)
            offset = records[-1].next_offset
            checkpoint = rollup.checkpoints[partition]
            if checkpoint.stream_time_ms // HOUR_MS != relayed_hour:
                await self._relay(shadow_copy, relay, partition)
                relayed_hour = checkpoint.stream_time_ms // HOUR_MS
            self._report(checkpoint, partition, target, swapped=False)
        await self._relay(shadow_copy, relay, partition)
        self._report(rollup.checkpoints[partition], partition, target, swapped=swapped)

    def _report(self, checkpoint: Checkpoint, partition: int, target: int, *, swapped: bool) -> None:
        end = max(target, checkpoint.next_offset)
        self._parts.progress(Progress(partition, checkpoint.next_offset, end, checkpoint.counters.received, swapped))

    async def _relay(self, shadow_copy: RollupStore, relay: HourlyRelay, partition: int) -> None:
        """Move cells and duplicates out and let report entries go, so that the shadow copy stays small."""
        while not (await relay.relay(partition)).complete:
            pass
        while await relay.duplicates(partition):
            pass
        _, buckets = await shadow_copy.report_buckets(partition)
        for bucket_ms in buckets:
            while entries := (await shadow_copy.reports(partition, bucket_ms, self._parts.limits.cells_max))[1]:
                await shadow_copy.confirm_reports(partition, bucket_ms, entries)
            await shadow_copy.confirm_reports(partition, bucket_ms, {})


async def abandon_hourly(staging: TableStaging, shadow_copy: Callable[[str], GenerationStore], partitions: int) -> bool:
    """Give up what is being built of `usage_hourly`, from wherever. False where nothing was.

    Raises `OperatorNeeded` where a table was swapped in already: only finishing makes both whole.
    """
    found = await staging.building(TABLES)
    if found is None:
        return False
    note = msgspec.json.decode(found.note, type=Note)
    if found.swapped:
        raise OperatorNeeded(
            f"{' and '.join(sorted(found.swapped))} was swapped in already, and is finished by running "
            f"`tidemark rebuild usage_hourly --from {note.source}` again"
        )
    if note.source == SOURCE:
        store = shadow_copy(note.name)
        try:
            for partition in range(partitions):
                await store.forget(partition)
        finally:
            await store.close()
    await staging.drop(TABLES)
    return True
