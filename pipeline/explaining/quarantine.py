"""Looks for one event among the newest entries of the quarantine."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from pipeline.explaining.stores import Quarantined
from pipeline.logs.rejected import READ_RECORDS_MAX, quarantine_entry
from schemas.log import REJECTED_TOPIC, Log, Record

# Of each partition, the newest ones.
ENTRIES_MAX: Final = 20_000


def in_quarantine(log: Log) -> Callable[[Callable[[bytes], bool]], Awaitable[Quarantined]]:
    """A function that looks for the newest entry which satisfies a condition."""

    async def looked(wanted: Callable[[bytes], bool]) -> Quarantined:
        count, found = 0, Quarantined(0)
        for partition in range(await log.partition_count(REJECTED_TOPIC)):
            bounds = await log.bounds(REJECTED_TOPIC, partition)
            offset = max(bounds.first, bounds.next - ENTRIES_MAX)
            while offset < bounds.next:
                records = await log.read(REJECTED_TOPIC, partition, offset, READ_RECORDS_MAX)
                if not records:
                    break
                offset = records[-1].next_offset
                count += len(records)
                found = _newest(found, records, wanted)
        return found._replace(looked=count)

    return looked


def _newest(found: Quarantined, records: Sequence[Record], wanted: Callable[[bytes], bool]) -> Quarantined:
    for record in records:
        entry = quarantine_entry(record)
        if entry.stream_time_ms >= found.at_ms and wanted(entry.value):
            found = Quarantined(0, entry.reason, entry.detail, entry.position, entry.stream_time_ms)
    return found
