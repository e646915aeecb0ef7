"""Has the events processed again that were set aside because one of their objects was missing."""

from __future__ import annotations

from typing import Final

from pipeline.webhooks.appending import append_again
from schemas.log import Log
from schemas.side_tables import SideTables

# An object for which Stripe keeps silent takes two minutes, eight at once, and a step may take 15 minutes.
RETRIES_AT_ONCE_MAX: Final = 20


async def append_set_aside(log: Log, tables: SideTables) -> int:
    """Append up to `RETRIES_AT_ONCE_MAX` events again, those first that were read longest ago; returns how many.

    A record that the log has deleted by now is left out: only a resync brings its objects. A repetition is harmless.
    Raises `Transient`.
    """
    appended = 0
    for event in await tables.set_aside():
        if appended == RETRIES_AT_ONCE_MAX:
            break
        appended += await append_again(log, event)
    return appended
