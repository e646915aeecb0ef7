"""The corrector: makes the adjustments that follow from correction records (S16).

A record says what should have counted instead of an event; the corrector compares that with what the event counted and
with the adjustments that the archive has, and appends the difference. It has no state of its own: after a restart it
looks at all records again and finds them told. Adjustments have ids that depend only on what was read, so two
correctors of one partition do no harm. The archive must pass what was appended before an event is looked at again.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from typing import Any, Final

from aggregators.corrections import Change, change_id
from aggregators.instants import format_instant_ms
from pipeline.logs.adjustments import append_adjustments
from pipeline.logs.correcting import NOT_ARCHIVED, UNDECIDED, Judged, Uncorrectable, changes_of, judge_event
from schemas.adjustments import adjustment
from schemas.analytics import ArchiveStore
from schemas.clock import MILLISECOND_US, MINUTE_MS
from schemas.control import CorrectionRecord
from schemas.corrections import CorrectionArchive
from schemas.log import EVENTS_TOPIC, Log, position

_log: Final = logging.getLogger(__name__)

# Records that one call looks at; the next call goes on.
RECORDS_MAX: Final = 500
# Corrected events that the archive does not show, as a table lacks rows for a moment when it is exchanged. They are
# looked at again after a minute of stream time, further ones at the next start.
WAITING_MAX: Final = 1_000


@dataclass(slots=True)
class _Partition:
    """`since`: records below are told, but those from `old` to `old_before`, which were there at the first call."""

    since: int | None = None
    old: int = 0
    old_before: int = 0
    behind: int = 0
    # Events whose adjustments the archive has not shown yet, with the ids of these.
    open: dict[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)
    waiting: list[tuple[str, str]] = field(default_factory=list)
    waited_ms: int = 0


class Corrector:
    """Appends the adjustments of corrections; knows no Faust."""

    def __init__(self, log: Log, archive: ArchiveStore, corrections: CorrectionArchive) -> None:
        self._log = log
        self._archive = archive
        self._corrections = corrections
        self._partitions: dict[int, _Partition] = {}

    async def correct(self, partition: int) -> int:
        """Tell what follows from the records of one partition that the archive has passed. Returns the number of
        adjustments.

        Raises `Transient` if ClickHouse or the log does not answer; the next call makes the same adjustments.
        """
        known = self._partitions.setdefault(partition, _Partition())
        reached = await self._archive.load_position(partition)
        if reached is None or reached.next_offset < known.behind:
            return 0
        before = position(reached.next_offset)
        since = known.since
        if since is None:
            # New records do not wait until all of history was looked at.
            since = known.old_before = before
        waiting = known.waiting if reached.stream_time_ms - known.waited_ms >= MINUTE_MS else []
        if before <= since and known.old >= known.old_before and not known.open and not waiting:
            return 0
        rows = await self._corrections.corrections(partition, since, before, RECORDS_MAX)
        old = await self._corrections.corrections(partition, known.old, known.old_before, RECORDS_MAX - len(rows))
        corrected = ((row.record.account, row.record.event) for row in (*rows, *old))
        looked_at = dict.fromkeys([*known.open, *waiting, *corrected])
        told, still_open = 0, dict[tuple[str, str], tuple[str, ...]]()
        still_waiting = [each for each in known.waiting if each not in looked_at]
        for account, event in looked_at:
            events = await self._adjustments(account, event, before)
            if events is None:
                still_waiting.append((account, event))
                continue
            ids = tuple(str(each["id"]) for each in events)
            if known.open.get((account, event)) == ids:
                # The fold keeps them out (I9): they are in the quarantine.
                _log.warning("%s: the adjustments of event %s are kept out of a closed period", account, event)
            elif events:
                still_open[account, event] = ids
                await append_adjustments(self._log, partition, events)
                told += len(events)
        known.since = before if len(rows) < RECORDS_MAX else rows[-1].position + 1
        if len(rows) + len(old) < RECORDS_MAX:
            known.old = known.old_before
        elif old:
            known.old = old[-1].position + 1
        if waiting or not known.waiting:
            known.waited_ms = reached.stream_time_ms
        known.open, known.waiting = still_open, still_waiting[:WAITING_MAX]
        if told:
            known.behind = (await self._log.bounds(EVENTS_TOPIC, partition)).next
        return told

    async def _adjustments(self, account: str, event: str, before: int) -> list[dict[str, Any]] | None:
        """None: the archive cannot say yet."""
        records = [row.record for row in await self._corrections.deciding(account, event, before)]
        judged = await judge_event(self._corrections, account, event, before)
        last = next((record for record in reversed(records) if record.counts), None)
        if last is None:
            return []
        if isinstance(judged, str):
            return None if judged in (NOT_ARCHIVED, UNDECIDED) else []
        try:
            made = await changes_of(self._corrections, judged, records, before)
        except Uncorrectable as error:
            _log.warning("%s: the corrections of event %s are not told: %s", account, event, error.message)
            return []
        return [_event(judged, last, each) for each in made]


def _event(judged: Judged, record: CorrectionRecord, change: Change) -> dict[str, Any]:
    """The adjustment. It has the time of the event."""
    event, time_ms = judged.event, judged.event.time_us // MILLISECOND_US
    notes = {
        "corrects": record.event, "correction": record.correction, "kind": record.kind, "by": record.by,
        "reason": record.reason,
    }  # fmt: skip
    return adjustment(
        change.meter, event.account, change_id(record.event, change), format_instant_ms(time_ms), change.minor,
        json.loads(change.dimensions), notes,
    )  # fmt: skip
