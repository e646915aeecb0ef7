"""Rebuilds the live view in Redis from the log (I6, I7): the same fold, into keys of another generation.

Partitions are rebuilt one after the other, so that Redis holds only one of them twice:
1. Fold from offset 0, or, if the log's start is gone, from the newest snapshot (`schemas.snapshots`) that the log still
   reaches. The new generation has a checkpoint of its own, so an interrupted rebuild continues there.
2. When the new generation reaches the live checkpoint, swap the generations if neither checkpoint has moved. Everything
   that was read from the old generation is then true of the new one too.
3. The running worker is fenced, restarts, and folds on from the new checkpoint. The old keys are unlinked.

During the rebuild, duplicates and the cells of closed arrival buckets are relayed to ClickHouse, so that Redis holds
hours of them and not months. These cells no longer change and equal the stored rows. A closed report bucket is dropped
if the live view has published it. Without a live view it is published: the same intents with the same identifiers.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import msgspec

from aggregators.codec import report_bucket_end_ms, version
from aggregators.columns import MakerOf, PythonColumns
from aggregators.signing import fingerprint
from pipeline.logs.control_records import find_genesis
from pipeline.rebuild.limits import RebuildLimits
from pipeline.rebuild.no_quarantine_log import NoQuarantineLog
from pipeline.rebuild.shadow_copy import begin, behind_the_view, check_live
from pipeline.rollup.processor import RollupProcessor, RollupSettings
from pipeline.rollup.relays import INTENTS_AT_ONCE_MAX, HourlyRelay, ReportRelay, hourly_row
from pipeline.rollup.snapshots import checkpoint_of
from schemas.clock import HOUR_MS, Clock
from schemas.errors import Fenced, OperatorNeeded, Transient
from schemas.live_view import LiveView
from schemas.log import EVENTS_TOPIC, POSITION_MAX, Log
from schemas.rebuild import GENERATION_MAX, GenerationsSeen, Progress
from schemas.rollup import Checkpoint
from schemas.snapshots import CHUNKS_AT_ONCE, Snapshot, SnapshotStore

SWAP_REFUSALS_MAX: Final = 1_000


@dataclass
class LiveViewRebuild:
    """Rebuilds every partition's live view and swaps it in. An interrupted rebuild continues when it is run again.

    `from_snapshot`: start from the newest snapshot even if the log still has its first record. `maker_of`: see
    `RollupProcessor`.
    """

    log: Log
    live: LiveView
    hourly: GenerationsSeen
    clock: Clock
    secret: bytes
    limits: RebuildLimits = field(default_factory=RebuildLimits)
    progress: Callable[[Progress], None] = lambda _: None
    snapshots: SnapshotStore | None = None
    from_snapshot: bool = field(default=False, kw_only=True)
    maker_of: MakerOf = field(default=PythonColumns, kw_only=True)

    async def run(self) -> int:
        """Rebuild all partitions. Returns the generation that is live afterwards.

        Raises `OperatorNeeded` if the log reaches back neither to its first record nor to a snapshot, `Fenced` if
        another rebuild runs, `Transient` if a store does not answer. The live view stays complete in each case, and a
        repeated call continues.
        """
        partitions = await self.log.partition_count(EVENTS_TOPIC)
        generation = await self.live.rebuilds.rebuilding()
        if generation is None:
            for partition in range(partitions):
                await _start(self, partition)
            generation = await self.live.rebuilds.begin_rebuild(await self._next_generation(partitions))
        built = self.live.built(generation)
        try:
            for partition in range(partitions):
                if not await self.live.generations.is_live(partition, generation):
                    await _Partition(self, built, partition, generation).run()
                await self.live.generations.sweep(partition)
        finally:
            await built.close()
        await self.live.rebuilds.end_rebuild(generation)
        return generation

    async def abandon(self) -> int | None:
        """Unlink the unfinished generation and return its number, or None. Swapped partitions stay swapped."""
        generation = await self.live.rebuilds.rebuilding()
        if generation is not None:
            await self.live.rebuilds.end_rebuild(generation)
        for partition in range(await self.log.partition_count(EVENTS_TOPIC)):
            await self.live.generations.sweep(partition)
        return generation

    async def _next_generation(self, partitions: int) -> int:
        checkpoints = [await self.live.state.load_checkpoint(partition) for partition in range(partitions)]
        used = [checkpoint.generation for checkpoint in checkpoints if checkpoint is not None]
        # At least 2, because the keys of generation 1 carry no number.
        generation = max([1, *used, await self.hourly.latest_generation()]) + 1
        if generation > GENERATION_MAX:
            raise OperatorNeeded(
                f"the live view was rebuilt {GENERATION_MAX} times, and rows of usage_hourly cannot number more: "
                "rebuild usage_hourly into an empty table under a new deployment"
            )
        return generation


async def _start(rebuild: LiveViewRebuild, partition: int) -> Snapshot | None:
    """The snapshot to start from, or None for the log's first record.

    Raises `OperatorNeeded` if there is neither; the message says which records are missing.
    """
    bounds = await rebuild.log.bounds(EVENTS_TOPIC, partition)
    if bounds.first == 0 and not rebuild.from_snapshot:
        return None
    genesis = await find_genesis(rebuild.log, rebuild.secret, partition)
    snapshots = await rebuild.snapshots.snapshots(partition) if rebuild.snapshots else ()
    ours = [
        snapshot
        for snapshot in snapshots
        if genesis is not None
        and snapshot.log_id == genesis.log_id
        and snapshot.next_offset <= bounds.next
        and checkpoint_of(snapshot).secret_fingerprint == fingerprint(rebuild.secret)
    ]
    reached = [snapshot for snapshot in ours if snapshot.next_offset >= bounds.first]
    if reached:
        return reached[0]
    if not bounds.first:
        raise OperatorNeeded(
            f"{EVENTS_TOPIC}-{partition} has no snapshot of this log and secret. Nothing was changed. Rebuild "
            "`--from log`, which reaches back to its start."
        )
    newest, since = "there is no snapshot of it", 0
    if ours:
        newest, since = f"the newest snapshot stands at offset {ours[0].next_offset}", ours[0].next_offset
    raise OperatorNeeded(
        f"{EVENTS_TOPIC}-{partition} begins at offset {bounds.first} and {newest}: counts cannot be made without what "
        f"stood in between. Nothing was changed. Bring offsets {since} to {bounds.first - 1} back from a copy of the "
        "log, or restore Redis from its append-only file or a replica."
    )


class _Partition:
    """The rebuild of one partition."""

    def __init__(self, rebuild: LiveViewRebuild, built: LiveView, partition: int, generation: int) -> None:
        self._rebuild = rebuild
        self._built = built
        self._partition = partition
        self._generation = generation
        self._newest = 0
        self._log = NoQuarantineLog(rebuild.log)
        self._duplicates = HourlyRelay(built.outbox, built.drops, built.deferred, rebuild.hourly)
        settings = RollupSettings(rebuild.limits.events_max, replay_from_start=True)
        self._rollup = RollupProcessor(
            self._log, built.state, rebuild.clock, rebuild.secret, settings, maker_of=rebuild.maker_of
        )

    async def run(self) -> None:
        """Fold on to the live checkpoint, and swap the generations."""
        rebuild, partition = self._rebuild, self._partition
        await self._live()
        if await self._built.state.load_checkpoint(partition) is None:
            await self._begin(await _start(rebuild, partition))
        self._newest = await rebuild.hourly.generation_since(partition, 0)
        offset = await self._rollup.start_offset(partition)
        relayed_hour, refusals = -1, 0
        while True:
            live = await self._live()
            self._log.kept_before(live.next_offset if live else 0)
            records = await rebuild.log.read(EVENTS_TOPIC, partition, offset, rebuild.limits.records_max)
            if records:
                await self._rollup.step(partition, records)
                offset = records[-1].next_offset
            checkpoint = self._rollup.checkpoints[partition]
            if checkpoint.stream_time_ms // HOUR_MS != relayed_hour:
                await self._relay()
                relayed_hour = checkpoint.stream_time_ms // HOUR_MS
            await self._report(checkpoint, swapped=False)
            # A short read is not the end: the log also limits the bytes of a read.
            at_end = not records or offset >= (await rebuild.log.bounds(EVENTS_TOPIC, partition)).next
            # A live view that does not move is overtaken: otherwise the new generation would keep every hour since.
            if not at_end and (live is None or live.next_offset > checkpoint.next_offset):
                continue
            if not records and live is not None and live.next_offset > checkpoint.next_offset:
                raise behind_the_view(partition, live, checkpoint.next_offset)
            if await self._swapped(checkpoint):
                await self._report(checkpoint, swapped=True)
                return
            refusals += at_end
            if refusals > SWAP_REFUSALS_MAX:
                raise Fenced(f"partition {partition}: the live view was ahead at every attempt to swap; run it again")

    async def _begin(self, snapshot: Snapshot | None) -> None:
        """Write the state before the partition's first record, or the state of a snapshot."""
        rebuild, copies, partition = self._rebuild, self._built.copies, self._partition
        if snapshot is None:
            await begin(rebuild.log, rebuild.secret, copies, partition, self._generation)
            return
        # The checkpoint comes last: an interrupted restore starts again.
        owner = uuid.uuid4().hex
        await copies.begin_restore(partition, owner)
        assert rebuild.snapshots is not None, "it came from there"  # noqa: S101 - an invariant, not input
        number = 0
        while chunks := await rebuild.snapshots.chunks(snapshot, number, CHUNKS_AT_ONCE):
            await copies.take_in(partition, owner, chunks)
            number += len(chunks)
        if number != snapshot.chunks:
            raise Transient(
                f"partition {partition}: the snapshot at offset {snapshot.next_offset} was dropped; run it again"
            )
        checkpoint: Checkpoint = msgspec.structs.replace(checkpoint_of(snapshot), generation=self._generation)
        await copies.end_restore(partition, owner, checkpoint)

    async def _live(self) -> Checkpoint | None:
        live = await self._rebuild.live.state.load_checkpoint(self._partition)
        check_live(self._partition, live, self._rebuild.secret)
        return live

    async def _swapped(self, checkpoint: Checkpoint) -> bool:
        """Try to swap the generations. False if the live view is ahead or moved meanwhile."""
        live = await self._live()
        check_live(self._partition, live, self._rebuild.secret, checkpoint.log_id)
        if live is not None and live.next_offset > checkpoint.next_offset:
            return False
        return await self._rebuild.live.generations.swap(self._partition, live, checkpoint)

    async def _report(self, checkpoint: Checkpoint, *, swapped: bool) -> None:
        end = (await self._rebuild.log.bounds(EVENTS_TOPIC, self._partition)).next
        self._rebuild.progress(
            Progress(self._partition, checkpoint.next_offset, end, checkpoint.counters.received, swapped)
        )

    async def _relay(self) -> None:
        """Relay what no longer changes, to keep the new generation as small as a live one.

        A bucket must be closed in the live view too: rows of a later generation in an open bucket would say that the
        live view was swapped out.
        """
        partition, most = self._partition, self._rebuild.limits.cells_max
        live = await self._live()
        await self._duplicates.duplicates(partition)
        while True:
            checkpoint, cells = await self._built.outbox.dirty(partition, most)
            passed_ms = min(view.stream_time_ms for view in (checkpoint, live) if view) if checkpoint else 0
            closed = [cell for cell in cells if cell.key.bucket_ms + HOUR_MS <= passed_ms]
            if closed:
                generation = self._generation_of_rows(live)
                rows = [hourly_row(cell, partition) for cell in closed]
                rows = [row._replace(version=version(generation, row.version & POSITION_MAX)) for row in rows]
                await self._rebuild.hourly.insert_hourly(rows)
                await self._built.outbox.confirm_dirty(partition, closed)
            if len(cells) < most or len(closed) < len(cells):
                break
        await self._built.outbox.drop_closed_buckets(partition)
        await self._relay_reports()

    def _generation_of_rows(self, live: Checkpoint | None) -> int:
        """The generation in the versions of closed cells' rows.

        The live view's: if this rebuild is abandoned, rows that the live view writes later (after a late binding) must
        replace these. The new generation, if there is no live view, or if the live view is an older copy whose rows
        would lose against the stored ones.
        """
        if live is not None and live.generation >= self._newest:
            return live.generation
        self._newest = self._generation
        return self._generation

    async def _relay_reports(self) -> None:
        partition = self._partition
        live, waiting = await self._rebuild.live.reports.report_buckets(partition)
        if live is None:
            await ReportRelay(self._built.reports, self._built.accounts, self._log).relay(partition)
            return
        checkpoint, buckets = await self._built.reports.report_buckets(partition)
        if checkpoint is None or checkpoint.meter_set is None:
            return
        policy, passed_ms = checkpoint.meter_set.policy, min(checkpoint.stream_time_ms, live.stream_time_ms)
        for bucket_ms in buckets:
            if report_bucket_end_ms(bucket_ms, policy) <= passed_ms and bucket_ms not in waiting:
                while entries := (await self._built.reports.reports(partition, bucket_ms, INTENTS_AT_ONCE_MAX))[1]:
                    await self._built.reports.confirm_reports(partition, bucket_ms, entries)
                await self._built.reports.confirm_reports(partition, bucket_ms, {})
