"""The live view in Redis, rebuilt from the log (I6, I7): the same fold, into keys of another generation.

One partition after the other, so that at most one of them is held twice:
1. fold from offset 0. The built generation has a fence of its own: cut short, it goes on from there.
2. once it reaches as far as the live fence: swap, if neither fence has moved. What anybody has read of the old
   generation is then true of the new one as well; nothing that was seen goes back.
3. the running worker is fenced, starts again, and folds on from the new fence. The old keys are unlinked.

What goes outside meanwhile: cells of closed arrival buckets (they will not change, and equal what is there) and
duplicates go to ClickHouse, so that Redis holds hours of them and not months. A closed report bucket which the live
view has published is dropped; without a live view it is published: the same intents, under the same identifiers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from pipeline.processors.drains import INTENTS_AT_ONCE_MAX, HourlyDrain, ReportDrain, hourly_row
from pipeline.processors.rollup import RollupProcessor, RollupSettings
from pipeline.rebuild.limits import RebuildLimits
from pipeline.rebuild.scratch import behind_the_view, check_live, check_reach, first_fence
from pipeline.rebuild.sparing import SparingLog
from schemas.clock import HOUR_MS, Clock
from schemas.errors import Fenced, OperatorNeeded
from schemas.log import EVENTS_TOPIC, Log
from schemas.rebuild import GENERATION_MAX, GenerationsSeen, GenerationStore, Progress
from schemas.rollup import Fence, RollupStore

SWAP_REFUSALS_MAX: Final = 1_000
REMEDY: Final = (
    "Restore Redis from its append-only file or a replica instead, or bring those records back from a copy of the log."
)


class _Parts(NamedTuple):
    """What a rebuild was given."""

    log: Log
    store: GenerationStore
    hourly: GenerationsSeen
    clock: Clock
    secret: bytes
    limits: RebuildLimits
    progress: Callable[[Progress], None]


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
    ) -> None:
        self._parts = _Parts(log, store, hourly, clock, secret, limits or RebuildLimits(), progress)

    async def run(self) -> int:
        """Rebuild all partitions; the generation that is live afterwards.

        Raises `OperatorNeeded` where the log does not reach back to its start, `Fenced` where another rebuild runs,
        `Transient` where a store does not answer: the live view is whole in each case, and a repeated call goes on.
        """
        partitions = await self._parts.log.partition_count(EVENTS_TOPIC)
        generation = await self._parts.store.rebuilding()
        if generation is None:
            await check_reach(self._parts.log, partitions, REMEDY)
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
        fences = [await self._parts.store.load_fence(partition) for partition in range(partitions)]
        held = [fence.generation for fence in fences if fence is not None]
        generation = max([*held, await self._parts.hourly.latest_generation()]) + 1
        # The first generation has no name of its own among the keys.
        generation = max(generation, 2)
        if generation > GENERATION_MAX:
            raise OperatorNeeded(
                f"the live view was rebuilt {GENERATION_MAX} times, and rows of usage_hourly cannot number more: "
                "rebuild usage_hourly into an empty table under a new deployment"
            )
        return generation


class _Partition:
    """The rebuild of one partition."""

    def __init__(self, parts: _Parts, built: RollupStore, partition: int, generation: int) -> None:
        self._parts = parts
        self._built = built
        self._at = partition
        self._generation = generation
        self._log = SparingLog(parts.log)
        self._duplicates = HourlyDrain(built, parts.hourly)
        settings = RollupSettings(parts.limits.events_max, replay_from_start=True)
        self._rollup = RollupProcessor(self._log, built, parts.clock, parts.secret, settings)

    async def run(self) -> None:
        """Fold from where it stands to the live fence, and swap."""
        parts, partition = self._parts, self._at
        await self._live()
        if await self._built.load_fence(partition) is None:
            first = await first_fence(parts.log, parts.secret, partition, self._generation)
            await self._built.create_fence(partition, first)
        offset = await self._rollup.start_offset(partition)
        drained_hour, refusals = -1, 0
        while True:
            live = await self._live()
            self._log.kept_before(live.next_offset if live else 0)
            records = await parts.log.read(EVENTS_TOPIC, partition, offset, parts.limits.records_max)
            if records:
                await self._rollup.step(partition, records)
                offset = records[-1].next_offset
            fence = self._rollup.fences[partition]
            if fence.log_time_ms // HOUR_MS != drained_hour:
                await self._drain()
                drained_hour = fence.log_time_ms // HOUR_MS
            await self._report(fence, swapped=False)
            if len(records) == parts.limits.records_max:
                continue
            if not records and live is not None and live.next_offset > fence.next_offset:
                raise behind_the_view(partition, live, fence.next_offset)
            if await self._swapped(fence):
                await self._report(fence, swapped=True)
                return
            refusals += 1
            if refusals > SWAP_REFUSALS_MAX:
                raise Fenced(f"partition {partition}: the live view was ahead at every attempt to swap; run it again")

    async def _live(self) -> Fence | None:
        live = await self._parts.store.load_fence(self._at)
        check_live(self._at, live, self._parts.secret)
        return live

    async def _swapped(self, fence: Fence) -> bool:
        """Try to swap. False where the live view is ahead, or moved meanwhile."""
        live = await self._live()
        check_live(self._at, live, self._parts.secret, fence.log_id)
        if live is not None and live.next_offset > fence.next_offset:
            return False
        return await self._parts.store.swap(self._at, live, fence)

    async def _report(self, fence: Fence, *, swapped: bool) -> None:
        end = (await self._parts.log.bounds(EVENTS_TOPIC, self._at)).next
        self._parts.progress(Progress(self._at, fence.next_offset, end, fence.counters.received, swapped))

    async def _drain(self) -> None:
        """Move out what is final, so that the built generation stays as small as a live one. Final for the live view
        too, where there is one: rows of a later generation in its open buckets say that it was swapped out."""
        partition, most = self._at, self._parts.limits.cells_max
        live = await self._live()
        while await self._duplicates.duplicates(partition):
            pass
        while True:
            fence, cells = await self._built.dirty(partition, most)
            passed_ms = min(each.log_time_ms for each in (fence, live) if each) if fence else 0
            closed = [cell for cell in cells if cell.key.bucket_ms + HOUR_MS <= passed_ms]
            if closed:
                await self._parts.hourly.insert_hourly([hourly_row(cell, partition) for cell in closed])
                await self._built.confirm_dirty(partition, closed)
            if len(cells) < most or len(closed) < len(cells):
                break
        await self._built.drop_closed_buckets(partition)
        await self._drain_reports()

    async def _drain_reports(self) -> None:
        partition = self._at
        live, waiting = await self._parts.store.report_buckets(partition)
        if live is None:
            await ReportDrain(self._built, self._log).drain(partition)
            return
        fence, buckets = await self._built.report_buckets(partition)
        if fence is None or fence.catalog is None:
            return
        closed_before_ms = min(fence.log_time_ms, live.log_time_ms) - fence.catalog.policy.report_interval_ms
        for bucket_ms in buckets:
            if bucket_ms <= closed_before_ms and bucket_ms not in waiting:
                while entries := await self._built.reports(partition, bucket_ms, INTENTS_AT_ONCE_MAX):
                    await self._built.confirm_reports(partition, bucket_ms, list(entries))
                await self._built.confirm_reports(partition, bucket_ms, [])
