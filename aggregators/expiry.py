"""Which totals leave the live view: those of periods that ended longer ago than `policy.periods_kept_ms` (S7, I11).

Every total has a time at which it is due, its period's end and that span as known when it began. Each record lets a few
of the due ones go, in their order: as many as the record's own size allows, so that the month's end of a million
accounts is no longer commit than others. Nothing but the log decides (I7): not where a flush begins, nor a clock.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from aggregators.bindings import apply
from aggregators.periods import period_at
from aggregators.scan import Moment, Scan
from aggregators.steps import AccountControl
from schemas.log import offset_of
from schemas.periods import AccountState
from schemas.rollup import Changes, DueTotal, TotalKey, View

# One total per record, and one more per so many events: it is about as much to unlink as these were to write.
EVENTS_PER_TOTAL: Final = 16
NEVER_MS: Final = 1 << 62


class Expired(NamedTuple):
    """Totals that leave, those that are due at another time, and when the next one is due after that."""

    retired: list[TotalKey]
    due: dict[TotalKey, int]
    next_due_ms: int


def _looks(moment: Moment) -> int:
    return 1 + moment.received // EVENTS_PER_TOTAL


def looks_max(scan: Scan) -> int:
    """How many totals these records may look at."""
    return sum(map(_looks, scan.moments))


def expire(scan: Scan, due: Sequence[DueTotal], states: Mapping[str, AccountState]) -> Expired:
    """Look at what is due. `due` are the first `looks_max + 1` or all, `states` those of their accounts at the
    checkpoint.

    A period may have become longer since its total began; then the total is due again at its end and what follows.
    """
    heap = [(each.due_ms, _order(each.key), each.key) for each in due]
    heapq.heapify(heap)
    accounts = {each.key.account for each in due}
    controls = [step for step in scan.steps if isinstance(step, AccountControl) and step.control.account in accounts]
    retired: list[TotalKey] = []
    later: dict[TotalKey, int] = {}
    for moment in scan.moments:
        kept_ms = scan.policies[moment.offset].periods_kept_ms
        for _ in range(_looks(moment)):
            if not heap or heap[0][0] > moment.stream_time_ms:
                break
            _, order, key = heapq.heappop(heap)
            state = _state_at(scan, states, controls, key.account, moment.offset)
            due_ms = period_at(state, key.period_start_ms).end_ms + kept_ms
            if due_ms <= moment.stream_time_ms:
                later.pop(key, None)
                retired.append(key)
            else:
                later[key] = due_ms
                heapq.heappush(heap, (due_ms, order, key))
    return Expired(retired, later, heap[0][0] if heap else NEVER_MS)


def _order(key: TotalKey) -> bytes:
    return f"{key.period_start_ms}:{key.account}".encode()


def _state_at(
    scan: Scan, states: Mapping[str, AccountState], controls: Sequence[AccountControl], account: str, offset: int
) -> AccountState:
    state = states[account]
    for step in controls:
        at = offset_of(step.position)
        if at <= offset and step.control.account == account:
            state = apply(state, step.control, step.position, scan.policies[at], step.stream_time_ms)
    return state


def with_expired(changes: Changes, expired: Expired, view: View) -> Changes:
    """A flush's changes and what leaves with it; `view` holds the totals that do."""
    if not expired.retired and not expired.due:
        return changes
    retired = {key: tuple(view.totals[key]) for key in expired.retired}
    return changes._replace(due={**changes.due, **expired.due}, retired=retired)
