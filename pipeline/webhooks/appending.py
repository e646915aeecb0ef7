"""Appends events that Stripe did not deliver to `billing.events`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from itertools import islice
from typing import Final

from aggregators.billing_events import event_key, read_event
from aggregators.partitioning import partition_of
from schemas.billing_events import VIA_HEADER, Via
from schemas.log import BILLING_EVENTS_TOPIC, Log
from schemas.side_tables import HeldEvent

APPENDS_AT_ONCE_MAX: Final = 200


async def append_events(log: Log, values: Iterable[bytes], via: Via) -> int:
    """Append events in their order by partition; returns how many. Raises the log's errors, `InvalidInput` for a value
    that is no event. After an error some are appended; a repetition is harmless."""
    partitions = await log.partition_count(BILLING_EVENTS_TOPIC)
    headers = ((VIA_HEADER, via.value.encode()),)

    async def append(value: bytes) -> None:
        key = event_key(read_event(value))
        await log.append(BILLING_EVENTS_TOPIC, partition_of(key, partitions), value, key=key.encode(), headers=headers)

    waiting, appended = iter(values), 0
    while chunk := list(islice(waiting, APPENDS_AT_ONCE_MAX)):
        await asyncio.gather(*(append(value) for value in chunk))
        appended += len(chunk)
    return appended


async def append_again(log: Log, event: HeldEvent) -> bool:
    """Append the record of an event that waits again; False if the log has deleted the record. A repetition is
    harmless. Raises the log's errors."""
    for record in await log.read(BILLING_EVENTS_TOPIC, event.partition, event.offset, 1):
        if record.offset == event.offset:
            value, key = record.value or b"", record.key
            await log.append(BILLING_EVENTS_TOPIC, record.partition, value, key=key, headers=record.headers)
            return True
    return False
