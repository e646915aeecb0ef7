"""Has the events of a customer processed again that came before the customer belonged to an account."""

from __future__ import annotations

from schemas.log import BILLING_EVENTS_TOPIC, Log
from schemas.side_tables import SideTables


async def append_held(log: Log, tables: SideTables, customer: str) -> int:
    """Append the held events of a customer again, after the customer was linked; returns how many.

    The bindings do not wait for this: the mirror has the customer's rows. The events get their audit rows. A record
    that the log has deleted by now stays held. A repetition is harmless. Raises `Transient`.
    """
    appended = 0
    for event in await tables.held(customer):
        records = await log.read(BILLING_EVENTS_TOPIC, event.partition, event.offset, 1)
        for record in records:
            if record.offset == event.offset:
                value, key = record.value or b"", record.key
                await log.append(BILLING_EVENTS_TOPIC, record.partition, value, key=key, headers=record.headers)
                appended += 1
    return appended
