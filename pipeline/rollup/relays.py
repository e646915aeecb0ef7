"""Relays the rollup's outbox (S8): cells and duplicates to ClickHouse, ended report buckets to `billing.reports`.

Every step writes first and deletes from the outbox afterwards. A crash in between repeats the write, which changes
nothing: the row's version or the intent's identifier is the same. Two relays of one partition do no harm.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from aggregators.codec import parse_cell_field, parse_cell_text, parse_flush_field, parse_report_field
from aggregators.deferred import complete_up_to_ms
from aggregators.intents import intent_of, parts_of
from schemas.analytics import DuplicateRow, HourlyRow, HourlyStore, RelayPosition
from schemas.clock import HOUR_MS
from schemas.errors import OperatorNeeded
from schemas.live_view import AccountDirectory, AnalyticsOutbox, DeferredEvents, OutboxDrops, ReportOutbox
from schemas.log import REPORTS_TOPIC, Log
from schemas.reports import Intent
from schemas.rollup import Checkpoint, DirtyCell, Waiting

INTENTS_AT_ONCE_MAX: Final = 500
FLUSHES_AT_ONCE_MAX: Final = 100
DUPLICATES_AT_ONCE_MAX: Final = 10_000


class Relayed(NamedTuple):
    """The counts of one relay call. `complete`: no duplicate and no dirty cell was left at the checkpoint it read."""

    cells: int
    duplicates: int
    complete: bool


def hourly_row(cell: DirtyCell, partition: int) -> HourlyRow:
    """The `usage_hourly` row of a cell."""
    bucket_ms, field = cell.key
    hour_ms, period_start_ms, meter, dimensions, account = parse_cell_field(field)
    aggregation, scale, period_end_ms, value = parse_cell_text(cell.text)
    # By position, because names would double the cost of a cell.
    return HourlyRow(
        account, meter, period_start_ms, period_end_ms, hour_ms, dimensions, bucket_ms, aggregation, scale,
        value.minor, value.time_us, value.position, partition, cell.version,
    )  # fmt: skip


class HourlyRelay:
    """Relays cells and duplicates to ClickHouse."""

    def __init__(
        self,
        outbox: AnalyticsOutbox,
        drops: OutboxDrops,
        deferred: DeferredEvents,
        hourly: HourlyStore,
        cells_max: int = 50_000,
    ) -> None:
        self._outbox = outbox
        self._drops = drops
        self._deferred = deferred
        self._hourly = hourly
        self._cells_max = cells_max
        self._saved: dict[int, RelayPosition] = {}
        self._checked: dict[int, Checkpoint] = {}

    async def relay(self, partition: int) -> Relayed:
        """Relay one partition once.

        Raises `Transient` if a store does not answer (nothing is lost), `OperatorNeeded` if the live view is a copy
        from before a rebuild, whose rows would lose against the stored ones.
        """
        before, waiting = await self._deferred.waiting(partition)
        checkpoint, cells = await self._outbox.dirty(partition, self._cells_max)
        # After the cells, so that the position that is saved below covers every duplicate, too.
        duplicates = await self.duplicates(partition)
        if checkpoint is None or before is None:
            return Relayed(0, duplicates, complete=True)
        await self._check_generation(partition, checkpoint, cells)
        complete = len(cells) < self._cells_max
        if cells:
            first_ms = min(cell.key.bucket_ms for cell in cells)
            if not complete and first_ms + HOUR_MS <= checkpoint.stream_time_ms:
                # A restatement changes complete buckets. Until it is relayed in full, they must not count as complete.
                complete_ms = await self._complete_ms(partition, before, waiting, checkpoint)
                await self._save(RelayPosition(partition, checkpoint.next_offset, min(first_ms, complete_ms)))
            await self._hourly.insert_hourly([hourly_row(cell, partition) for cell in cells])
            await self._outbox.confirm_dirty(partition, cells)
        if complete:
            complete_ms = await self._complete_ms(partition, before, waiting, checkpoint)
            await self._save(RelayPosition(partition, checkpoint.next_offset, complete_ms))
            await self._outbox.drop_closed_buckets(partition)
        return Relayed(len(cells), duplicates, complete)

    async def _complete_ms(self, partition: int, before: Checkpoint, waiting: Waiting, checkpoint: Checkpoint) -> int:
        """The stream time up to which the rows are complete after the cells of `checkpoint` are written."""
        complete_ms = complete_up_to_ms(before, waiting, checkpoint)
        # Read after the cells, to include every drop from before the cells were read.
        dropped = (await self._drops.dropped(partition)).cells
        return min(complete_ms, *dropped) if dropped else complete_ms

    async def _check_generation(self, partition: int, checkpoint: Checkpoint, cells: Sequence[DirtyCell]) -> None:
        """Raise `OperatorNeeded` if ClickHouse has rows of a later generation in buckets that are still to be relayed:
        then this live view is a copy from before a rebuild. Asks ClickHouse once, and again if the checkpoint moved
        back or changed its generation."""
        checked = self._checked.get(partition)
        if checked and checked.generation == checkpoint.generation and checked.next_offset <= checkpoint.next_offset:
            self._checked[partition] = checkpoint
            return
        # Buckets before the open one and the oldest dirty cell may have rows of an unfinished or abandoned rebuild.
        buckets = [checkpoint.stream_time_ms // HOUR_MS * HOUR_MS, *(cell.key.bucket_ms for cell in cells)]
        newer = await self._hourly.generation_since(partition, min(buckets))
        if newer > checkpoint.generation:
            now, _ = await self._deferred.waiting(partition)
            # A rebuild may have swapped its generation in since the checkpoint was read.
            if now is None or now.generation == checkpoint.generation:
                raise OperatorNeeded(
                    f"partition {partition}: the live view is of generation {checkpoint.generation}, usage_hourly "
                    f"holds rows of generation {newer} that it would not replace: Redis was restored from a copy "
                    "that is older than the last rebuild. Build it again with `tidemark rebuild redis`."
                )
        self._checked[partition] = checkpoint

    async def duplicates(self, partition: int) -> int:
        """Relay the duplicates until none is left, `DUPLICATES_AT_ONCE_MAX` at once. Returns how many."""
        relayed = 0
        while events := await self._outbox.duplicates(partition, DUPLICATES_AT_ONCE_MAX):
            rows = [
                DuplicateRow(
                    event.account, event.id, event.type, event.source, event.time_us, event.data,
                    partition, event.position, event.stream_time_ms,
                )
                for event in events
            ]  # fmt: skip
            await self._hourly.insert_duplicates(rows)
            await self._outbox.confirm_duplicates(partition, [event.position for event in events])
            relayed += len(events)
            if len(events) < DUPLICATES_AT_ONCE_MAX:
                break
        return relayed

    async def _save(self, position: RelayPosition) -> None:
        if self._saved.get(position.partition) != position:
            await self._hourly.save_relayed(position)
            self._saved[position.partition] = position


class ReportRelay:
    """Turns ended report buckets into intents in `billing.reports` (I10).

    Flushes come first. So an entry that is left when its bucket ends for all accounts is of an account whose last
    bucket ends there too.
    """

    def __init__(self, reports: ReportOutbox, accounts: AccountDirectory, log: Log) -> None:
        self._reports = reports
        self._accounts = accounts
        self._log = log

    async def relay(self, partition: int) -> int:
        """Publish the intents of one partition's ended report buckets. Returns how many.

        Raises `Transient` if a store or the log does not answer; nothing is lost.
        """
        checkpoint, buckets = await self._reports.report_buckets(partition)
        if checkpoint is None or checkpoint.meter_set is None:
            return 0
        policy = checkpoint.meter_set.policy
        published = 0
        # Oldest first, and flushes before all of them: their keys are negative.
        for bucket_ms in buckets:
            if bucket_ms < 0:
                published += await self._relay_flushes(partition, bucket_ms)
            elif (end_ms := policy.report_bucket_end_ms(bucket_ms)) <= checkpoint.stream_time_ms:
                published += await self._relay_bucket(partition, bucket_ms, end_ms)
        return published

    async def _relay_flushes(self, partition: int, bucket_ms: int) -> int:
        """Publish what flushed accounts had counted so far."""
        published = 0
        while True:
            checkpoint, flushes = await self._reports.reports(partition, bucket_ms, FLUSHES_AT_ONCE_MAX)
            for start_ms, end_ms, account in map(parse_flush_field, flushes):
                then, entries = await self._reports.reports_of(partition, start_ms, account)
                if checkpoint is None or then is None or then.next_offset < checkpoint.next_offset:
                    # A replica that was behind has taken over, and may lack a part of the flushed usage.
                    return published
                relayed = await self._relay_entries(partition, then, start_ms, end_ms, entries)
                if relayed is None:
                    return published
                published += relayed
            await self._reports.confirm_reports(partition, bucket_ms, flushes)
            if not flushes:
                return published

    async def _relay_bucket(self, partition: int, start_ms: int, end_ms: int) -> int:
        published = 0
        while True:
            checkpoint, entries = await self._reports.reports(partition, start_ms, INTENTS_AT_ONCE_MAX)
            if checkpoint is None or checkpoint.stream_time_ms < end_ms:
                # A replica that was behind has taken over, and its bucket is still open.
                return published
            relayed = await self._relay_entries(partition, checkpoint, start_ms, end_ms, entries)
            if relayed is None or not entries:
                return published
            published += relayed

    async def _relay_entries(
        self, partition: int, checkpoint: Checkpoint, start_ms: int, end_ms: int, entries: Mapping[str, str]
    ) -> int | None:
        """Publish and delete entries of a bucket, which were read at a checkpoint after the bucket's end.

        Returns the number of intents. Returns None, and does nothing, if a replica that was behind has taken over: the
        state of an account may lack a binding that cut a period before the bucket's end.
        """
        keys = {field: parse_report_field(field) for field in entries}
        then, states = await self._accounts.accounts(partition, sorted({key.account for key in keys.values()}))
        if then is None or then.next_offset < checkpoint.next_offset:
            return None
        intents = [
            intent_of(checkpoint, start_ms, end_ms, key, entries[field], states[key.account])
            for field, key in keys.items()
        ]
        changed = [part for intent in intents if intent is not None for part in parts_of(intent)]
        for number in range(0, len(changed), INTENTS_AT_ONCE_MAX):
            await asyncio.gather(
                *(self._publish(partition, intent) for intent in changed[number : number + INTENTS_AT_ONCE_MAX])
            )
        await self._reports.confirm_reports(partition, start_ms, entries)
        return len(changed)

    async def _publish(self, partition: int, intent: Intent) -> None:
        value, key = intent.model_dump_json().encode(), intent.account.encode()
        await self._log.append(REPORTS_TOPIC, partition, value, key=key)
