"""Writes the quarantine: the unchanged bytes of each event that was not counted, the reason, and the position.

Processors write an entry before the commit that counts the rejection. After a crash in between, the same entry is
written again; readers treat entries with the same position as one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from itertools import islice
from typing import Final

from aggregators.steps import Quarantined
from schemas.errors import InvalidInput
from schemas.log import REJECTED_TOPIC, Headers, Log, index_of, offset_of


class Header:
    """The names of an entry's headers. An entry without an offset was never in the log; `SOURCE` is its writer.

    `CUT_AT_BYTES` is set if the entry has only the first bytes of a value.
    """

    REASON: Final = "tidemark-reason"
    DETAIL: Final = "tidemark-detail"
    TOPIC: Final = "tidemark-topic"
    SOURCE: Final = "tidemark-source"
    PARTITION: Final = "tidemark-partition"
    OFFSET: Final = "tidemark-offset"
    INDEX: Final = "tidemark-index"
    STREAM_TIME_MS: Final = "tidemark-stream-time-ms"
    CUT_AT_BYTES: Final = "tidemark-cut-at-bytes"


DETAIL_BYTES_MAX: Final = 1_000
APPENDS_AT_ONCE_MAX: Final = 256
RAW_BYTES_KEPT: Final = 1_000_000


async def quarantine(log: Log, topic: str, partition: int, entries: Sequence[Quarantined]) -> None:
    """Append the entries to `usage.rejected` and return after all are durable. Raises the log's errors."""
    await append_all(
        append_entry(
            log,
            partition,
            entry.reason,
            entry.detail,
            topic,
            entry.raw,
            event_place(partition, entry.position, entry.stream_time_ms),
        )
        for entry in entries
    )


async def append_entry(
    log: Log, partition: int, reason: str, detail: str, topic: str, raw: bytes, origin: Headers, *, cut: bool = False
) -> None:
    """Append one entry for an event of `topic`. `origin` are the headers with the event's place or writer.

    Keeps the first `RAW_BYTES_KEPT` bytes of a larger value if the log rejects the value as too large, or with `cut`.
    Raises the log's errors.
    """
    headers = (
        (Header.REASON, reason.encode()),
        (Header.DETAIL, detail.encode("utf-8", "replace")[:DETAIL_BYTES_MAX]),
        (Header.TOPIC, topic.encode()),
        *origin,
    )
    if not cut or len(raw) <= RAW_BYTES_KEPT:
        try:
            await log.append(REJECTED_TOPIC, partition, raw, headers=headers)
        except InvalidInput:
            pass
        else:
            return
    headers = (*headers, (Header.CUT_AT_BYTES, str(RAW_BYTES_KEPT).encode()))
    await log.append(REJECTED_TOPIC, partition, raw[:RAW_BYTES_KEPT], headers=headers)


async def append_all(appends: Iterable[Coroutine[None, None, None]]) -> None:
    """Run the appends, `APPENDS_AT_ONCE_MAX` at a time."""
    waiting = iter(appends)
    while chunk := list(islice(waiting, APPENDS_AT_ONCE_MAX)):
        await asyncio.gather(*chunk)


def event_place(partition: int, position: int, stream_time_ms: int) -> Headers:
    """The headers that say where in the log an event stands."""
    return (
        (Header.PARTITION, str(partition).encode()),
        (Header.OFFSET, str(offset_of(position)).encode()),
        (Header.INDEX, str(index_of(position)).encode()),
        (Header.STREAM_TIME_MS, str(stream_time_ms).encode()),
    )
