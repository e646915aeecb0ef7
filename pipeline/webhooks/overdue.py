"""Has subscriptions fetched whose period is over by the mirror, and which still give what was paid for it.

Stripe begins a new period, or ends the subscription, in the second in which a period is over. If no event of that came,
and none was in Stripe's list, the subscription would be active for ever.
"""

from __future__ import annotations

from typing import Final

from aggregators.billing_events import resync_record
from pipeline.webhooks.appending import append_events
from schemas.billing_events import Via
from schemas.clock import HOUR_MS, SECOND_MS, Clock
from schemas.log import Log
from schemas.side_tables import SideTables

# An event is late for minutes at most while webhooks arrive or Stripe's list is read.
PATIENCE_MS: Final = HOUR_MS
# Of more, those whose period ended last come first, and the others when these are answered.
OVERDUE_AT_ONCE_MAX: Final = 200


async def append_overdue(log: Log, tables: SideTables, clock: Clock) -> int:
    """Append a resync record for each subscription whose period has been over for an hour; returns how many. Costs a
    fetch each when they are processed. A repetition is harmless. Raises `Transient`."""
    now_ms = clock.now_ms()
    found = await tables.overdue(now_ms - PATIENCE_MS, OVERDUE_AT_ONCE_MAX)
    run, now_s = f"overdue_{now_ms}", now_ms // SECOND_MS
    return await append_events(log, [resync_record(run, name, of, now_s) for name, of in found], Via.RESYNC)
