"""The live view in Redis, rebuilt from the log (I6, I7): the same fold, into keys of another generation.

One partition after the other, so that at most one of them is held twice:
1. fold from offset 0, or, where the log's start is gone, from the newest snapshot (`schemas.snapshots`) that the
   log still reaches. The built generation has a checkpoint of its own: cut short, it goes on from there.
2. once it reaches as far as the live checkpoint: swap, if neither checkpoint has moved. What anybody has read of the
   old generation is then true of the new one as well; nothing that was seen goes back.
3. the running worker is fenced, starts again, and folds on from the new checkpoint. The old keys are unlinked.

What goes outside meanwhile: cells of closed arrival buckets (they will not change, and equal what is there) and
duplicates go to ClickHouse, so that Redis holds hours of them and not months. A closed report bucket which the live
view has published is dropped; without a live view it is published: the same intents, under the same identifiers.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec

from aggregators.codec import GENERATION_SHIFT, version
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
from schemas.log import EVENTS_TOPIC, Log
from schemas.rebuild import GENERATION_MAX, GenerationsSeen, GenerationStore, Progress
from schemas.rollup import Checkpoint
from schemas.snapshots import CHUNKS_AT_ONCE, Snapshot, SnapshotStore

SWAP_REFUSALS_MAX: Final = 1_000
_POSITIONS: Final = (1 << GENERATION_SHIFT) - 1


class _Parts(NamedTuple):
    """What a rebuild was given."""

    log: Log
    store: GenerationStore
    hourly: GenerationsSeen
    clock: Clock
    secret: bytes
    limits: RebuildLimits
    progress: Callable[[Progress], None]
    snapshots: SnapshotStore | None
    from_snapshot: bool


class LiveViewRebuild:
    """Builds every partition's live view again and swaps it in. Run again after any end, it goes on."""

    def __init__(
        self,
        log: Log,
        store: GenerationStore,
        hourly: GenerationsSeen,
        clock: Clock,
        secret: bytes,
        limits: RebuildLimits | None = None,
        progress: Callable[[Progress], None] = lambda _: None,
        snapshots: SnapshotStore | None = None,
        *,
        from_snapshot: bool = False,
    ) -> None:
        """`from_snapshot`: start from the newest snapshot also where the log reaches back to its start."""
        self._parts = _Parts(
            log, store, hourly, clock, secret, limits or RebuildLimits(), progress, snapshots, from_snapshot
        )  # fmt: skip

    async def run(self) -> int:
        """Rebuild all partitions; the generation that is live afterwards.

        Raises `OperatorNeeded` where the log reaches back neither to its start nor to a snapshot, `Fenced` where
        another rebuild runs, `Transient` where a store does not answer: the live view is whole in each case, and a
        repeated call goes on.
        """
        partitions = await self._parts.log.partition_count(EVENTS_TOPIC)
        generation = await self._parts.store.rebuilding()
        if generation is None:
            for partition in range(partitions):
                await _start(self._parts, partition)
            generation = await self._parts.store.begin_rebuild(await self._next_generation(partitions))
        built = self._parts.store.built(generation)
        try:
            for partition in range(partitions):
                if not await self._parts.store.is_live(partition, generation):
                    await _Partition(self._parts, built, partition, generation).run()
                await self._parts.store.sweep(partition)
        finally:
            await built.close()
        await self._parts.store.end_rebuild(generation)
        return generation

    async def abandon(self) -> int | None:
        """Give up what is being built and unlink it; partitions that were swapped stay so. The generation, if any."""
        generation = await self._parts.store.rebuilding()
        if generation is not None:
            await self._parts.store.end_rebuild(generation)
        for partition in range(await self._parts.log.partition_count(EVENTS_TOPIC)):
            await self._parts.store.sweep(partition)
        return generation

    async def _next_generation(self, partitions: int) -> int:
        checkpoints = [await self._parts.store.load_checkpoint(partition) for partition in range(partitions)]
        held = [checkpoint.generation for checkpoint in checkpoints if checkpoint is not None]
        generation = max([*held, await self._parts.hourly.latest_generation()]) + 1
        # The first generation has no name of its own among the keys.
        generation = max(generation, 2)
        if generation > GENERATION_MAX:
            raise OperatorNeeded(
                f"the live view was rebuilt {GENERATION_MAX} times, and rows of usage_hourly cannot number more: "
                "rebuild usage_hourly into an empty table under a new deployment"
            )
        return generation


async def _start(parts: _Parts, partition: int) -> Snapshot | None:
    """The snapshot to start from, or None for the log's start.

    Raises `OperatorNeeded` where neither is there, with what would be needed.
    """
    bounds = await parts.log.bounds(EVENTS_TOPIC, partition)
    if bounds.first == 0 and not parts.from_snapshot:
        return None
    genesis = await find_genesis(parts.log, parts.secret, partition)
    found = await parts.snapshots.snapshots(partition) if parts.snapshots else ()
    ours = [
        each
        for each in found
        if genesis is not None
        and each.log_id == genesis.log_id
        and each.next_offset <= bounds.next
        and checkpoint_of(each).secret_fingerprint == fingerprint(parts.secret)
    ]
    reached = [each for each in ours if each.next_offset >= bounds.first]
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

    def __init__(self, parts: _Parts, built: GenerationStore, partition: int, generation: int) -> None:
        self._parts = parts
        self._built = built
        self._at = partition
        self._generation = generation
        self._newest = 0
        self._log = NoQuarantineLog(parts.log)
        self._duplicates = HourlyRelay(built, parts.hourly)
        settings = RollupSettings(parts.limits.events_max, replay_from_start=True)
        self._rollup = RollupProcessor(self._log, built, parts.clock, parts.secret, settings)

    async def run(self) -> None:
        """Fold from where it stands to the live checkpoint, and swap."""
        parts, partition = self._parts, self._at
        await self._live()
        if await self._built.load_checkpoint(partition) is None:
            await self._begin(await _start(parts, partition))
        self._newest = await parts.hourly.generation_since(partition, 0)
        offset = await self._rollup.start_offset(partition)
        relayed_hour, refusals = -1, 0
        while True:
            live = await self._live()
            self._log.kept_before(live.next_offset if live else 0)
            records = await parts.log.read(EVENTS_TOPIC, partition, offset, parts.limits.records_max)
            if records:
                await self._rollup.step(partition, records)
                offset = records[-1].next_offset
            checkpoint = self._rollup.checkpoints[partition]
            if checkpoint.stream_time_ms // HOUR_MS != relayed_hour:
                await self._relay()
                relayed_hour = checkpoint.stream_time_ms // HOUR_MS
            await self._report(checkpoint, swapped=False)
            at_end = len(records) < parts.limits.records_max
            # A live view that stands still far back is overtaken there: what is built must not hold all hours since.
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

    async def _begin(self, at: Snapshot | None) -> None:
        """Make the state before the first record, or that of a snapshot."""
        if at is None:
            parts = self._parts
            await begin(parts.log, parts.secret, self._built, self._at, self._generation)
            return
        # The checkpoint comes last: cut short, the snapshot is taken in anew, or the log folded from its start.
        owner = uuid.uuid4().hex
        await self._built.begin_restore(self._at, owner)
        await self._take_in(at, owner)
        checkpoint: Checkpoint = msgspec.structs.replace(checkpoint_of(at), generation=self._generation)
        await self._built.end_restore(self._at, owner, checkpoint)

    async def _take_in(self, at: Snapshot, owner: str) -> None:
        assert self._parts.snapshots is not None, "it came from there"  # noqa: S101 - an invariant, not input
        number = 0
        while chunks := await self._parts.snapshots.chunks(at, number, CHUNKS_AT_ONCE):
            await self._built.take_in(self._at, owner, chunks)
            number += len(chunks)
        if number != at.chunks:
            raise Transient(f"partition {self._at}: the snapshot at offset {at.next_offset} was dropped; run it again")

    async def _live(self) -> Checkpoint | None:
        live = await self._parts.store.load_checkpoint(self._at)
        check_live(self._at, live, self._parts.secret)
        return live

    async def _swapped(self, checkpoint: Checkpoint) -> bool:
        """Try to swap. False where the live view is ahead, or moved meanwhile."""
        live = await self._live()
        check_live(self._at, live, self._parts.secret, checkpoint.log_id)
        if live is not None and live.next_offset > checkpoint.next_offset:
            return False
        return await self._parts.store.swap(self._at, live, checkpoint)

    async def _report(self, checkpoint: Checkpoint, *, swapped: bool) -> None:
        end = (await self._parts.log.bounds(EVENTS_TOPIC, self._at)).next
        self._parts.progress(Progress(self._at, checkpoint.next_offset, end, checkpoint.counters.received, swapped))

    async def _relay(self) -> None:
        """Move out what is final, so that the built generation stays as small as a live one. Final for the live view
        too, where there is one: rows of a later generation in its open buckets say that it was swapped out."""
        partition, most = self._at, self._parts.limits.cells_max
        live = await self._live()
        while await self._duplicates.duplicates(partition):
            pass
        while True:
            checkpoint, cells = await self._built.dirty(partition, most)
            passed_ms = min(each.stream_time_ms for each in (checkpoint, live) if each) if checkpoint else 0
            closed = [cell for cell in cells if cell.key.bucket_ms + HOUR_MS <= passed_ms]
            if closed:
                generation = self._generation_of_rows(live)
                rows = [hourly_row(cell, partition) for cell in closed]
                rows = [each._replace(version=version(generation, each.version & _POSITIONS)) for each in rows]
                await self._parts.hourly.insert_hourly(rows)
                await self._built.confirm_dirty(partition, closed)
            if len(cells) < most or len(closed) < len(cells):
                break
        await self._built.drop_closed_buckets(partition)
        await self._relay_reports()

    def _generation_of_rows(self, live: Checkpoint | None) -> int:
        """Under which generation rows of closed cells are written.

        Under the live view's: should this rebuild be given up, what the live view says of such a cell later (where a
        binding comes late) must replace its row. Under the one that is built where there is no live view, or where it
        is an older copy whose rows would lose against those that are there.
        """
        if live is not None and live.generation >= self._newest:
            return live.generation
        self._newest = self._generation
        return self._generation

    async def _relay_reports(self) -> None:
        partition = self._at
        live, waiting = await self._parts.store.report_buckets(partition)
        if live is None:
            await ReportRelay(self._built, self._log).relay(partition)
            return
        checkpoint, buckets = await self._built.report_buckets(partition)
        if checkpoint is None or checkpoint.meter_set is None:
            return
        closed_before_ms = (
            min(checkpoint.stream_time_ms, live.stream_time_ms) - checkpoint.meter_set.policy.report_interval_ms
        )
        for bucket_ms in buckets:
            if bucket_ms <= closed_before_ms and bucket_ms not in waiting:
                while entries := (await self._built.reports(partition, bucket_ms, INTENTS_AT_ONCE_MAX))[1]:
                    await self._built.confirm_reports(partition, bucket_ms, entries)
                await self._built.confirm_reports(partition, bucket_ms, {})
