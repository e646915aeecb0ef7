"""One partition of `billing.reports`: its position in the ledger of intents, and the window of the sender."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from aggregators.meter_events import PAST_MAX_MS
from aggregators.report_records import has_long_name, parse_entries, within_time
from pipeline.billing.policy import SenderPolicy, SenderStatus
from pipeline.billing.window import Hold, SendWindow
from pipeline.logs.start_position import check_position
from schemas.errors import Fenced, Transient
from schemas.intent_ledger import IntentLedger, Waiting
from schemas.log import REPORTS_TOPIC, Log, Record
from schemas.reports import ReportEntry

REREAD: Final = (
    "To have the sink read the topic again from its first record, run in the SQL database: DELETE FROM positions WHERE "
    "reader = 'billing.reports'"
)

_LOG: Final = logging.getLogger(__name__)


class ReportPartition:
    """The ledger of one partition. `caught_up`: everything that the log had at the assignment was read.

    `waiting` has the counts of pending intents. Every call may raise `Transient`.
    """

    def __init__(self, number: int, log: Log, ledger: IntentLedger, policy: SenderPolicy) -> None:
        self.number = number
        self.window = SendWindow(policy.window_max)
        self.next_offset = 0
        self.caught_up = False
        self.waiting: Sequence[Waiting] = ()
        self._log = log
        self._ledger = ledger
        self._policy = policy
        self._believed_offset: int | None = None
        self._catch_up_to = 0
        self._counted_at_ms: int | None = None

    async def begin(self, now_ms: int) -> int:
        """The offset to read first: the ledger's position, or the log's first record if the ledger is empty.

        Raises `OperatorNeeded` if the log does not have the records between the position and its end.
        """
        # In this order, because another sender may still move the position.
        stored = await self._ledger.position(self.number)
        bounds = await self._log.bounds(REPORTS_TOPIC, self.number)
        if stored is not None:
            check_position(REPORTS_TOPIC, self.number, stored, bounds, REREAD, "the position of the ledger of intents")
        self._believed_offset = stored
        self.next_offset = bounds.first if stored is None else stored
        self._catch_up_to = bounds.next
        self.caught_up = self.next_offset >= bounds.next
        # Longer waits are of usage in the future, or of a clock that was ahead.
        policy = self._policy
        longest_ms = max(policy.hold_retry_max_ms, policy.look_retry_ms, policy.look_again_ms)
        await self._ledger.end_waits(self.number, now_ms + longest_ms)
        return self.next_offset

    async def apply(self, records: Sequence[Record]) -> None:
        """Write the records into the ledger, and what they change into the window. Records of before are left out."""
        new = [record for record in records if record.offset >= self.next_offset]
        entries: list[tuple[int, ReportEntry]] = []
        for record in new:
            own = [entry for entry in parse_entries(record.value) if not has_long_name(entry)]
            if not own:
                _LOG.error("billing.reports/%d: record %d is no report; it is ignored", self.number, record.offset)
            entries += [(record.offset, within_time(entry)) for entry in own]
        if not new:
            return
        next_offset = new[-1].next_offset
        try:
            changed = await self._ledger.apply(self.number, self._believed_offset, next_offset, entries)
        except Fenced as error:
            raise Transient(f"{error}: start again at the ledger's position") from error
        self._believed_offset = self.next_offset = next_offset
        self.caught_up = self.caught_up or next_offset >= self._catch_up_to
        # The ledger keeps the attempt that it was given. An equal one of another sender is another object.
        offsets = {id(entry): offset for offset, entry in entries}
        for known in changed:
            self.window.note(known, own_offset=offsets.get(id(known.attempt)))

    async def look_for_end(self) -> None:
        """Notice the end of a partition whose last offsets hold no records."""
        if not self.caught_up:
            left = await self._log.read(REPORTS_TOPIC, self.number, self.next_offset, 1)
            self.caught_up = not left or left[0].offset >= self._catch_up_to

    async def fill(self, now_ms: int) -> None:
        """Load due intents, if the window has room."""
        if wanted := self.window.wanted(now_ms):
            self.window.filled(await self._ledger.due(self.number, now_ms, wanted), now_ms)

    async def put_back(self, now_ms: int) -> None:
        """Write the progress of the intents that wait, and take them out of the window."""
        if taken := self.window.waiting(now_ms, self.next_offset):
            await self._ledger.waits(self.number, taken)

    async def end_waits(self, now_ms: int) -> None:
        """Make every intent due, because the clock was put back to `now_ms`."""
        await self._ledger.end_waits(self.number, now_ms)
        self.window.end_waits()

    async def count(self, now_ms: int) -> None:
        """Count the pending intents, if the last count is old."""
        counted_at_ms = self._counted_at_ms
        if counted_at_ms is None or not counted_at_ms <= now_ms < counted_at_ms + self._policy.count_interval_ms:
            self.waiting, self._counted_at_ms = await self._ledger.waiting(self.number), now_ms


def status_of(parts: Sequence[ReportPartition], open_breakers: int, counts: Mapping[str, int]) -> SenderStatus:
    """The values of a sender with these partitions."""
    waiting = [each for part in parts for each in part.waiting]
    held: Counter[str] = Counter()
    for each in waiting:
        held[each.hold] += each.intents
    ends_ms = [each.period_end_ms for each in waiting if each.hold not in (Hold.NONE, Hold.EARLY)]
    return SenderStatus(
        pending=held.total(),
        held={hold: intents for hold, intents in held.items() if hold},
        held_deadline_ms=min(ends_ms) + PAST_MAX_MS if ends_ms else None,
        open_breakers=open_breakers,
        caught_up=all(part.caught_up for part in parts),
        counts=dict(counts),
    )
