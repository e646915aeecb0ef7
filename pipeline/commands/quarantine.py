"""Listing the quarantine and sending its events again, as functions."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence

from aggregators.decode import decode, is_batch, timed
from pipeline.logs.marked import Identity, marked
from pipeline.logs.redriving import Judge, Preview, Redriving, all_entries, new_redrive_id, preview
from pipeline.logs.rejected import READ_RECORDS_MAX, QuarantineEntry, quarantine_entry
from pipeline.open import Base, meter_set_in_force, open_base, open_live_view, side_tables_of
from pipeline.settings import Settings
from schemas.errors import InvalidInput
from schemas.log import INBOX_TOPIC, REJECTED_TOPIC, Log
from schemas.redrives import Redrive, Redrives, RedriveState, Selection


@contextlib.asynccontextmanager
async def _opened(settings: Settings) -> AsyncIterator[Base]:
    base = await open_base(settings, create=False)
    try:
        yield base
    finally:
        await base.log.close()


async def quarantined(settings: Settings, reason: str | None, limit: int) -> list[QuarantineEntry]:
    """The newest `limit` entries, oldest first, without repetitions of a position. Keeps `limit` entries per partition
    in memory."""
    newest: list[QuarantineEntry] = []
    async with _opened(settings) as base:
        for partition in range(await base.log.partition_count(REJECTED_TOPIC)):
            newest += await _newest(base.log, partition, reason, limit)
    return sorted(newest, key=lambda entry: (entry.stream_time_ms, entry[:4]))[-limit:]


async def _newest(log: Log, partition: int, reason: str | None, limit: int) -> Iterable[QuarantineEntry]:
    bounds = await log.bounds(REJECTED_TOPIC, partition)
    entries: dict[tuple[str, int, int, int], QuarantineEntry] = {}
    offset = bounds.first
    while offset < bounds.next and (records := await log.read(REJECTED_TOPIC, partition, offset, READ_RECORDS_MAX)):
        offset = records[-1].next_offset
        for entry in map(quarantine_entry, records):
            if reason in (None, entry.reason):
                entries[entry[:4]] = entry
        while len(entries) > limit:
            del entries[next(iter(entries))]
    return entries.values()


async def entries_at(settings: Settings, positions: Collection[str]) -> list[QuarantineEntry]:
    """The entries at these positions, one for each, in the order of the quarantine; missing ones are left out."""
    found: dict[str, QuarantineEntry] = {}
    async with _opened(settings) as base:
        async for entries in all_entries(base.log):
            found |= {entry.position: entry for entry in entries if entry.position in positions}
    return list(found.values())


async def send(settings: Settings, entries: Sequence[QuarantineEntry]) -> int:
    """Append entries to `usage.inbox` as they are; returns their number. Repetition is safe: an event is counted
    once."""
    async with _opened(settings) as base:
        count = await base.log.partition_count(INBOX_TOPIC)
        for entry in entries:
            await base.log.append(INBOX_TOPIC, entry.partition % count, redriven(entry))
    return len(entries)


def redriven(entry: QuarantineEntry) -> bytes:
    """The bytes to append: those of the entry. An event without a time gets the time of its first arrival."""
    decoded = decode(entry.value, len(entry.value) + 1)
    if is_batch(entry.value) or not decoded.events:
        return entry.value
    return timed(entry.value, decoded.events[0][1], entry.stream_time_ms)


async def previewed(settings: Settings, selection: Selection) -> Preview:
    """What a redrive would do, by the meters in force; nothing is written. Raises `InvalidInput` and `Transient`."""
    async with _opened(settings) as base:
        view = open_live_view(settings)
        try:
            checkpoint = await view.state.load_checkpoint(0)
            judge = Judge(selection, checkpoint.meter_set if checkpoint else None, base.clock.now_ms())

            async def arrived(identities: Collection[Identity]) -> Collection[Identity]:
                return await marked(view.marks, settings.secret_bytes(), base.genesis.partitions, identities)

            return await preview(base.log, judge, arrived, lambda: False)
        finally:
            await view.close()


async def running(settings: Settings, selection: Selection) -> Redrive | None:
    """The redrive of this selection that has not ended. Raises `InvalidInput` without PostgreSQL, and `Transient`."""
    async with _bulk(settings) as (_, redrives):
        return await redrives.running(selection)


async def redrive(
    settings: Settings, selection: Selection, by: str, reason: str, note: Callable[[Redrive], None]
) -> Redrive:
    """Begin a redrive, or go on with the one of this selection, and send to its end; `note` is called after each step.

    Raises `InvalidInput`, `Transient`, and `Fenced` if another process goes on with it.
    """
    meter_set = await meter_set_in_force(settings)
    async with _bulk(settings) as (base, redrives):
        redriving = Redriving(base.log, redrives, base.clock)
        judge = Judge(selection, meter_set, base.clock.now_ms())
        found = await redriving.begin(new_redrive_id(), selection, by, reason)
        while found.state is RedriveState.RUNNING:
            found = await redriving.step(found, judge)
            note(found)
        return found


@contextlib.asynccontextmanager
async def _bulk(settings: Settings) -> AsyncIterator[tuple[Base, Redrives]]:
    if not settings.sql_url.startswith("postgresql://"):
        raise InvalidInput(
            "TIDEMARK_SQL_URL", "is not set, and a redrive notes there how far it is: set it, or give positions"
        )
    async with side_tables_of(settings) as (base, tables):
        yield base, tables.redrives
