"""Which totals leave the live view: those of periods that ended longer ago than `policy.periods_kept_ms` (S7, I11).

Every total is due at the end of its period plus that span, as known when the total began. Each record retires a few due
totals in order, more if it has more events. Expiry is thus spread over many commits, so month end does not cause one
huge commit. Only the log decides (I7), not the start of a flush or a clock.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from aggregators.bindings import apply
from aggregators.periods import period_at
from aggregators.steps import AccountControl
from schemas.log import offset_of
from schemas.meters import Policy
from schemas.periods import AccountState
from schemas.rollup import Changes, DueTotal, TotalKey, View

# One total per record, and one more per this many events: deleting a total costs about as much as writing them.
EVENTS_PER_TOTAL: Final = 16
NEVER_MS: Final = 1 << 62


class Moment(NamedTuple):
    """The offset of a record, the stream time after it, and the number of its events."""

    offset: int
    stream_time_ms: int
    received: int


class Passed(NamedTuple):
    """What expiry needs of the records of a flush: their moments, the policy in force by offset, and the bindings,
    closings and account flushes."""

    moments: Sequence[Moment]
    policies: Mapping[int, Policy]
    controls: Sequence[AccountControl]


class Expired(NamedTuple):
    """The retired totals, the totals with a later due time, and the due time of the next total after them."""

    retired: list[TotalKey]
    due: dict[TotalKey, int]
    next_due_ms: int


def _looks(moment: Moment) -> int:
    return 1 + moment.received // EVENTS_PER_TOTAL


def looks_max(moments: Sequence[Moment]) -> int:
    """How many due totals `expire` examines at most for these records."""
    return sum(map(_looks, moments))


def expire(passed: Passed, due: Sequence[DueTotal], states: Mapping[str, AccountState]) -> Expired:
    """Retire the totals that are due. `due` are the first `looks_max + 1` totals in order, or all if there are fewer;
    `states` are the states of their accounts at the checkpoint.

    If a period became longer after its total began, the total gets a later due time.
    """
    heap = [(total.due_ms, _order(total.key), total.key) for total in due]
    heapq.heapify(heap)
    accounts = {total.key.account for total in due}
    controls = [step for step in passed.controls if step.control.account in accounts]
    retired: list[TotalKey] = []
    later: dict[TotalKey, int] = {}
    for moment in passed.moments:
        kept_ms = passed.policies[moment.offset].periods_kept_ms
        for _ in range(_looks(moment)):
            if not heap or heap[0][0] > moment.stream_time_ms:
                break
            _, order, key = heapq.heappop(heap)
            state = _state_at(passed, states, controls, key.account, moment.offset)
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
    passed: Passed, states: Mapping[str, AccountState], controls: Sequence[AccountControl], account: str, offset: int
) -> AccountState:
    state = states[account]
    for step in controls:
        step_offset = offset_of(step.position)
        if step_offset <= offset and step.control.account == account:
            state = apply(state, step.control, step.position, passed.policies[step_offset], step.stream_time_ms)
    return state


def with_expired(changes: Changes, expired: Expired, view: View) -> Changes:
    """The changes of a flush with its retired totals and new due times; `view` must contain the retired totals."""
    if not expired.retired and not expired.due:
        return changes
    # A level may have been carried over to a total that the same record retires.
    retired = {key: tuple({**view.totals[key], **changes.totals.get(key, {})}) for key in expired.retired}
    return changes._replace(due={**changes.due, **expired.due}, retired=retired)
