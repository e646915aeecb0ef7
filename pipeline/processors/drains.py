"""Drains the rollup's outbox: cells and duplicates to ClickHouse, closed report buckets to `billing.reports`.

Every step writes first and forgets after; a crash in between writes the same again, which changes nothing (absolute
by version, or identical by identifier). Two drainers of one partition do no harm.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final, NamedTuple

from aggregators.fields import parse_cell_field, parse_cell_text
from aggregators.intents import account_of, intent_of
from aggregators.parked import complete_up_to_ms
from schemas.analytics import DrainPosition, DuplicateRow, HourlyRow, HourlyStore
from schemas.clock import HOUR_MS
from schemas.errors import OperatorNeeded
from schemas.log import REPORTS_TOPIC, Log
from schemas.reports import Intent
from schemas.rollup import DirtyCell, Fence, RollupStore, Waiting

INTENTS_AT_ONCE_MAX: Final = 500
DUPLICATES_AT_ONCE_MAX: Final = 10_000


class Drained(NamedTuple):
    """What one drain moved. `complete` says that nothing was left at the fence it read."""

    cells: int
    duplicates: int
    complete: bool


def hourly_row(cell: DirtyCell, partition: int) -> HourlyRow:
    """The `usage_hourly` row of a cell."""
    key = parse_cell_field(cell.key.field)
    aggregation, scale, period_end_ms, value = parse_cell_text(cell.text)
    return HourlyRow(
        account=key.account,
        meter=key.meter,
        period_start_ms=key.period_start_ms,
        period_end_ms=period_end_ms,
        hour_ms=key.hour_ms,
        dimensions=key.dimensions,
        arrival_bucket_ms=cell.key.bucket_ms,
        aggregation=aggregation,
        scale=scale,
        value_minor=value.minor,
        latest_time_us=value.time_us,
        latest_position=value.position,
        partition=partition,
        version=cell.version,
    )


class HourlyDrain:
    """Moves cells and duplicates of partitions into ClickHouse."""

    def __init__(self, store: RollupStore, hourly: HourlyStore, cells_max: int = 50_000) -> None:
        self._store = store
        self._hourly = hourly
        self._cells_max = cells_max
        self._saved: dict[int, DrainPosition] = {}
        self._checked: dict[int, Fence] = {}

    async def drain(self, partition: int) -> Drained:
        """Drain one partition once. Raises `Transient` where a store does not answer; nothing is lost by that.
        `OperatorNeeded` where the live view is a copy from before a rebuild, whose rows would lose against newer ones.
        """
        duplicates = await self.duplicates(partition)
        before, waiting = await self._store.waiting(partition)
        fence, cells = await self._store.dirty(partition, self._cells_max)
        if fence is None or before is None:
            return Drained(0, duplicates, complete=True)
        await self._check_generation(partition, fence, cells)
        complete = len(cells) < self._cells_max
        if cells:
            first_ms = min(cell.key.bucket_ms for cell in cells)
            if not complete and first_ms + HOUR_MS <= fence.log_time_ms:
                # A re-cut changes buckets that were complete: until all of it is there, answers hold parts of two cuts.
                complete_ms = await self._complete_ms(partition, before, waiting, fence)
                await self._save(DrainPosition(partition, fence.next_offset, min(first_ms, complete_ms)))
            await self._hourly.insert_hourly([hourly_row(cell, partition) for cell in cells])
            await self._store.confirm_dirty(partition, cells)
        if complete:
            complete_ms = await self._complete_ms(partition, before, waiting, fence)
            await self._save(DrainPosition(partition, fence.next_offset, complete_ms))
            await self._store.drop_closed_buckets(partition)
        return Drained(len(cells), duplicates, complete)

    async def _complete_ms(self, partition: int, before: Fence, waiting: Waiting, fence: Fence) -> int:
        """How far the rows are complete once all cells that were read are there."""
        complete_ms = complete_up_to_ms(before, waiting, fence)
        # Read after the cells: what was dropped before they were read must not be called complete.
        lost = (await self._store.lost(partition)).cells
        return min(complete_ms, *lost) if lost else complete_ms

    async def _check_generation(self, partition: int, fence: Fence, cells: Sequence[DirtyCell]) -> None:
        """Rows of a later generation where this view still has something to say: it was rebuilt after this copy of it
        was taken. Asked once, and again where the fence is of another generation or lies further back than before."""
        checked = self._checked.get(partition)
        if checked and checked.generation == fence.generation and checked.next_offset <= fence.next_offset:
            self._checked[partition] = fence
            return
        # Before the open bucket and the oldest changed cell it has no say: a rebuild that is under way, or was given
        # up, has rows there.
        buckets = [fence.log_time_ms // HOUR_MS * HOUR_MS, *(cell.key.bucket_ms for cell in cells)]
        newer = await self._hourly.generation_since(partition, min(buckets))
        if newer > fence.generation:
            now = await self._store.load_fence(partition)
            # A rebuild may have been swapped in since the fence was read.
            if now is None or now.generation == fence.generation:
                raise OperatorNeeded(
                    f"partition {partition}: the live view is of generation {fence.generation}, usage_hourly holds "
                    f"rows of generation {newer} that it would not replace: Redis was restored from a copy that is "
                    "older than the last rebuild. Build it again with `tidemark rebuild redis`."
                )
        self._checked[partition] = fence

    async def duplicates(self, partition: int) -> int:
        """Move duplicates once, at most `DUPLICATES_AT_ONCE_MAX`; how many."""
        found = await self._store.duplicates(partition, DUPLICATES_AT_ONCE_MAX)
        if found:
            rows = [
                DuplicateRow(
                    each.account, each.id, each.type, each.source, each.time_us, each.data,
                    partition, each.position, each.log_time_ms,
                )
                for each in found
            ]  # fmt: skip
            await self._hourly.insert_duplicates(rows)
            await self._store.confirm_duplicates(partition, [each.position for each in found])
        return len(found)

    async def _save(self, position: DrainPosition) -> None:
        if self._saved.get(position.partition) != position:
            await self._hourly.save_drained(position)
            self._saved[position.partition] = position


class ReportDrain:
    """Turns closed report buckets into intents in `billing.reports` (I10)."""

    def __init__(self, store: RollupStore, log: Log) -> None:
        self._store = store
        self._log = log

    async def drain(self, partition: int) -> int:
        """Publish the intents of every closed bucket of one partition; how many. Errors as `HourlyDrain.drain`."""
        fence, buckets = await self._store.report_buckets(partition)
        if fence is None or fence.catalog is None:
            return 0
        interval_ms = fence.catalog.policy.report_interval_ms
        published = 0
        for bucket_ms in buckets:
            if bucket_ms + interval_ms <= fence.log_time_ms:
                published += await self._drain_bucket(partition, bucket_ms, bucket_ms + interval_ms)
        return published

    async def _drain_bucket(self, partition: int, start_ms: int, end_ms: int) -> int:
        published = 0
        while True:
            fence, entries = await self._store.reports(partition, start_ms, INTENTS_AT_ONCE_MAX)
            whose = {field: account_of(field) for field in entries}
            then, states = await self._store.accounts(partition, sorted(set(whose.values())))
            if fence is None or then is None or min(fence.log_time_ms, then.log_time_ms) < end_ms:
                # A replica that was behind has taken over: there the bucket is still open.
                return published
            intents = [intent_of(fence, start_ms, end_ms, *entry, states[whose[entry[0]]]) for entry in entries.items()]
            published += await self._publish(partition, [intent for intent in intents if intent is not None])
            await self._store.confirm_reports(partition, start_ms, entries)
            if not entries:
                return published

    async def _publish(self, partition: int, intents: Sequence[Intent]) -> int:
        await asyncio.gather(
            *(
                self._log.append(
                    REPORTS_TOPIC, partition, intent.model_dump_json().encode(), key=intent.account.encode()
                )
                for intent in intents
            )
        )
        return len(intents)
