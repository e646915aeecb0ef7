"""Has the events of a customer processed again that came before the customer belonged to an account."""

from __future__ import annotations

import asyncio
from itertools import islice
from typing import Final

from pipeline.webhooks.appending import APPENDS_AT_ONCE_MAX, append_again
from schemas.billing_events import RESYNC_TYPE
from schemas.log import Log
from schemas.side_tables import HeldEvent, SideTables

# So many held events are read at first; then ten times as many, as long as there are more. Beyond the last number, the
# same link again appends the rest.
HELD_EVENTS_MIN: Final = 1_000
HELD_EVENTS_MAX: Final = 1_000_000


async def append_held(log: Log, tables: SideTables, customer: str) -> int:
    """Append the held events of a customer again, after the customer was linked; returns how many came from Stripe.

    The bindings do not wait for this: the mirror has the customer's rows. The events get their audit rows. A record
    that the log has deleted by now stays held. A repetition is harmless. Raises `Transient`.
    """

    async def append(event: HeldEvent) -> int:
        return int(await append_again(log, event) and event.type != RESYNC_TYPE)

    limit = HELD_EVENTS_MIN
    while len(events := await tables.held(customer, limit)) == limit and limit < HELD_EVENTS_MAX:
        limit *= 10
    waiting, appended = iter(events), 0
    while chunk := list(islice(waiting, APPENDS_AT_ONCE_MAX)):
        appended += sum(await asyncio.gather(*(append(event) for event in chunk)))
    return appended
