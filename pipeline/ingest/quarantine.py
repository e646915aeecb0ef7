"""Keeps what was not counted: original bytes, reason and position, in `usage.rejected`.

Written before the commit that counts the rejection. A crash in between writes the entry again; readers know it by
its position, so a repeated entry is one entry.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from aggregators.steps import Quarantined
from schemas.errors import InvalidInput
from schemas.log import REJECTED_TOPIC, Headers, Log, index_of, offset_of

DETAIL_BYTES_MAX: Final = 1_000
APPENDS_AT_ONCE_MAX: Final = 256
RAW_BYTES_KEPT: Final = 1_000_000


def entry_headers(topic: str, partition: int, entry: Quarantined) -> Headers:
    """The headers of a quarantine record: where the event stood and why it was not counted."""
    return (
        ("tidemark-reason", entry.reason.value.encode()),
        ("tidemark-detail", entry.detail.encode("utf-8", "replace")[:DETAIL_BYTES_MAX]),
        ("tidemark-topic", topic.encode()),
        ("tidemark-partition", str(partition).encode()),
        ("tidemark-offset", str(offset_of(entry.position)).encode()),
        ("tidemark-index", str(index_of(entry.position)).encode()),
        ("tidemark-stream-time-ms", str(entry.stream_time_ms).encode()),
    )


async def quarantine(log: Log, topic: str, partition: int, entries: Sequence[Quarantined]) -> None:
    """Append the entries to `usage.rejected` and return once all are durable."""
    for start in range(0, len(entries), APPENDS_AT_ONCE_MAX):
        chunk = entries[start : start + APPENDS_AT_ONCE_MAX]
        await asyncio.gather(*(_append(log, topic, partition, entry) for entry in chunk))


async def _append(log: Log, topic: str, partition: int, entry: Quarantined) -> None:
    headers = entry_headers(topic, partition, entry)
    try:
        await log.append(REJECTED_TOPIC, partition, entry.raw, headers=headers)
    except InvalidInput:
        # Larger than the quarantine takes: the start says what it is, and the log still has the record itself.
        cut = (*headers, ("tidemark-cut-at-bytes", str(RAW_BYTES_KEPT).encode()))
        await log.append(REJECTED_TOPIC, partition, entry.raw[:RAW_BYTES_KEPT], headers=cut)
