"""Levels that stand beyond their period: the totals of meters with `carry_over` (S13).

When stream time reaches the end of a period, the total of such a meter is merged into the total of the next period.
Only the log decides when (I7): the first record at or after the end does it, for at most `CARRIED_MAX` totals, and the
next record goes on. Merging a level twice changes nothing, and neither does the order, so it does not matter whether
usage of the next period came first. A late event merges into its period and into all periods after it that have begun.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from aggregators.bindings import RESTATEMENT_DOUBLINGS_MAX, RESTATEMENT_MS_MAX, is_waiting
from aggregators.expiry import NEVER_MS
from aggregators.periods import period_at
from schemas.analytics import PeriodLevel, PeriodUsage
from schemas.meters import Policy
from schemas.periods import AccountState, Period
from schemas.rollup import DueTotal, TotalKey

# Totals that one record carries over. More than one flush writes otherwise, so that a month's end stays short.
CARRIED_MAX: Final = 1_000


# How long a restatement may hold up levels, in stream time.
HELD_UP_MS_MAX: Final = RESTATEMENT_MS_MAX * 2**RESTATEMENT_DOUBLINGS_MAX


class Carry(NamedTuple):
    """A total, and a target in a later period that the total's level stands in too. Both are numbers of the ledger."""

    total: int
    number: int


class Carried(NamedTuple):
    """What one record carries over: totals, each with the next period of its account. `due` are the new times of totals
    that were looked at, None for those that are done; `next_due_ms` is the time of the next total after them."""

    totals: list[tuple[TotalKey, Period]]
    due: dict[TotalKey, int | None]
    next_due_ms: int


def carried(due: Sequence[DueTotal], states: Mapping[str, AccountState], stream_time_ms: int) -> Carried:
    """Carry over the totals that are due. `due` are the first `CARRIED_MAX + 1` totals in order, or all if there are
    fewer; `states` are the states of the accounts of those that are due.

    A total whose period became longer gets a later time, and so does one of an account that waits for a restatement:
    the restatement counts with the totals as they are. A level that no event changed for long passes several periods.
    """
    heap = [(total.due_ms, _order(total.key), total.key) for total in due]
    heapq.heapify(heap)
    queued = {total.key for total in due}
    totals: list[tuple[TotalKey, Period]] = []
    later: dict[TotalKey, int | None] = {}
    for _ in range(CARRIED_MAX):
        if not heap or heap[0][0] > stream_time_ms:
            break
        _, _, key = heapq.heappop(heap)
        state = states[key.account]
        end_ms = period_at(state, key.period_start_ms).end_ms
        if is_waiting(state, stream_time_ms) and state.pending is not None:
            later[key] = state.pending.until_ms
        elif end_ms > stream_time_ms:
            later[key] = end_ms
        else:
            later[key] = None
            after = period_at(state, end_ms)
            totals.append((key, after))
            following = TotalKey(key.account, after.start_ms)
            if after.end_ms <= stream_time_ms and following not in queued:
                queued.add(following)
                later[following] = after.end_ms
                heapq.heappush(heap, (after.end_ms, _order(following), following))
    times_ms = [due_ms for due_ms in later.values() if due_ms is not None]
    return Carried(totals, later, min([heap[0][0] if heap else NEVER_MS, *times_ms]))


def standing_in(state: AccountState, period: Period, stream_time_ms: int) -> Iterator[Period]:
    """The periods after this one that have begun at a stream time: a level of the period stands in them too."""
    while period.end_ms <= stream_time_ms:
        period = period_at(state, period.end_ms)
        yield period


def due_again(
    account: str, state: AccountState, from_ms: int, policy: Policy, stream_time_ms: int
) -> dict[TotalKey, int | None]:
    """When the levels of an account whose state has changed are due, in its periods from an instant on, by total.

    A binding may have moved the end of the running period, or of a next one that already counts usage of the future. A
    restatement may have held up levels (`HELD_UP_MS_MAX`). The time of a total that does not exist is of no effect.
    """
    period = period_at(state, from_ms)
    due: dict[TotalKey, int | None] = {}
    while period.start_ms <= stream_time_ms + policy.future_ms:
        due[TotalKey(account, period.start_ms)] = period.end_ms
        period = period_at(state, period.end_ms)
    return due


def _order(key: TotalKey) -> bytes:
    return f"{key.period_start_ms}:{key.account}".encode()


def standing(levels: Sequence[PeriodLevel], state: AccountState, until_ms: int) -> Iterator[PeriodUsage]:
    """Every period that begins before `until_ms`, from the first level on, with its level; periods without events too.
    What was carried into a period is the level of the period before. `levels`: with the periods' present ends."""
    before: int | None = None
    for place, (period, minor) in enumerate(levels):
        yield PeriodUsage(period, minor, before)
        before = minor
        next_ms = levels[place + 1].period.start_ms if place + 1 < len(levels) else until_ms
        end_ms = period.end_ms
        while end_ms < next_ms:
            following = Period(end_ms, period_at(state, end_ms).end_ms)
            yield PeriodUsage(following, minor, minor)
            end_ms = following.end_ms
