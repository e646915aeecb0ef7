"""Reconciles once a day at a time of day."""

from __future__ import annotations

import calendar
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Final

from reconciler.records import RUNNING
from schemas.clock import DAY_MS, HOUR_MS, MINUTE_MS, Clock
from schemas.errors import Refused, Transient
from schemas.reconciliation import ReconciliationRecords

ROLE: Final = "auditor"
LOOK_EVERY_S: Final = 60.0
# A run that has not ended by then was interrupted.
RUN_WITHIN_MS: Final = 6 * HOUR_MS

_LOG = logging.getLogger(__name__)


class Auditor:
    """Runs `audit` once after each passing of the time of day, also if the process did not run at that time.

    Two auditors take turns by the rows of their runs. Two that look within the same second may both run, which costs
    reads and changes nothing.
    """

    def __init__(
        self,
        records: ReconciliationRecords,
        clock: Clock,
        time_of_day: str,
        audit: Callable[[int], Awaitable[None]],
        reads_left: Callable[[], Awaitable[int]],
    ) -> None:
        """`time_of_day` is in UTC, such as `03:00`. `audit` gets the calls to Stripe that it may make; `reads_left`
        gives those that are left for the month."""
        hours, minutes = time_of_day.split(":")
        self._at_ms = int(hours) * HOUR_MS + int(minutes) * MINUTE_MS
        self._records = records
        self._clock = clock
        self._audit = audit
        self._reads_left = reads_left
        self.failures = 0

    async def run(self) -> None:
        """Look every minute, for ever. A store that does not answer is asked again; raises `OperatorNeeded`."""
        while True:
            try:
                await self.look()
            except (Transient, Refused) as error:
                self.failures += 1
                _LOG.warning("no reconciliation now, the next try is in a minute: %s", error)
            await self._clock.sleep(LOOK_EVERY_S)

    async def look(self) -> bool:
        """Run if a run is due; whether it was."""
        now_ms = self._clock.now_ms()
        due_ms = (now_ms - self._at_ms) // DAY_MS * DAY_MS + self._at_ms
        last = await self._records.last_run(ROLE)
        if last is not None and last.started_ms >= due_ms:
            is_interrupted = last.verdict == RUNNING and last.started_ms + RUN_WITHIN_MS <= now_ms
            if not is_interrupted:
                return False
        # The reads of the month are spread over its days: a busy night must not blind the rest of the month.
        await self._audit(await self._reads_left() // days_left(now_ms))
        return True


def days_left(instant_ms: int) -> int:
    """The days of the instant's month from the instant on, at least 1."""
    moment = datetime.fromtimestamp(instant_ms // 1_000, UTC)
    return calendar.monthrange(moment.year, moment.month)[1] - moment.day + 1
