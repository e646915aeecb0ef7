"""Has the events of a customer processed again that came before the customer belonged to an account."""

from __future__ import annotations

import asyncio
from itertools import islice

from pipeline.webhooks.appending import APPENDS_AT_ONCE_MAX
from schemas.log import BILLING_EVENTS_TOPIC, Log
from schemas.side_tables import HeldEvent, SideTables


async def append_held(log: Log, tables: SideTables, customer: str) -> int:
    """Append the held events of a customer again, after the customer was linked; returns how many.

    The bindings do not wait for this: the mirror has the customer's rows. The events get their audit rows. A record
    that the log has deleted by now stays held. A repetition is harmless. Raises `Transient`.
    """

    async def append(event: HeldEvent) -> int:
        for record in await log.read(BILLING_EVENTS_TOPIC, event.partition, event.offset, 1):
            if record.offset == event.offset:
                value, key = record.value or b"", record.key
                await log.append(BILLING_EVENTS_TOPIC, record.partition, value, key=key, headers=record.headers)
                return 1
        return 0

    held, appended = iter(await tables.held(customer)), 0
    while chunk := list(islice(held, APPENDS_AT_ONCE_MAX)):
        appended += sum(await asyncio.gather(*(append(event) for event in chunk)))
    return appended
