"""In which period usage counts, and which usage counts in none because its period is closed (I9).

The worker asks for each event that is not plain, the archive for every event: it leaves out what is kept out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from aggregators.bindings import apply, is_payable_in, is_waiting
from aggregators.deferred import deferred_entry
from aggregators.meters import Contribution, add_nothing, quarantines_late
from aggregators.periods import is_closed, open_period, period_at
from aggregators.scan import Scan
from aggregators.steps import AccountControl, Arrival, DedupDecisionStep
from schemas.log import offset_of
from schemas.meters import Policy
from schemas.periods import AccountState, Period
from schemas.rollup import Deferred

# The open period of an account's last event: start, end, and the stream time that closes the period.
_Running = tuple[int, int, int]


class Placed(NamedTuple):
    """The period that usage counts in. `kept_out`: the period of its event time is closed, and one of its meters
    quarantines late events, or another payer would pay for it."""

    period: Period
    kept_out: bool


class PlacedDedupDecision(NamedTuple):
    """A dedup decision, and whether its event is late and kept out (`Placed`)."""

    step: DedupDecisionStep
    kept_out: bool


class Placement(NamedTuple):
    """The arrivals that are not kept out, in log order; the dedup decisions; the account states that changed."""

    arrivals: list[Arrival]
    decisions: list[PlacedDedupDecision]
    accounts: dict[str, AccountState]


def placed_at_arrival(
    state: AccountState, time_us: int, contributions: tuple[Contribution, ...], policy: Policy, stream_time_ms: int
) -> Placed:
    """Where an event with contributions counts that arrives at a stream time and is not deferred."""
    instant_ms = time_us // 1000
    period = period_at(state, instant_ms)
    if add_nothing(contributions) or not is_closed(state, period, policy.grace_ms, stream_time_ms):
        return Placed(period, kept_out=False)
    carried = open_period(state, stream_time_ms)
    kept_out = quarantines_late(contributions) or not is_payable_in(state, instant_ms, carried)
    return Placed(carried, kept_out)


def placed_at_decision(step: DedupDecisionStep, event: Deferred, state: AccountState, policy: Policy) -> Placed:
    """Where a deferred event counts that is new: in a period that is open at its dedup decision."""
    period = period_at(state, event.time_us // 1000)
    if not is_closed(state, period, policy.grace_ms, step.stream_time_ms):
        return Placed(period, kept_out=False)
    return Placed(open_period(state, step.stream_time_ms), _is_kept_out(step, state, policy))


def _is_kept_out(step: DedupDecisionStep, state: AccountState, policy: Policy) -> bool:
    instant_ms, decision = step.decision.time_us // 1000, step.decision
    if not decision.metered or not is_closed(state, period_at(state, instant_ms), policy.grace_ms, step.stream_time_ms):
        return False
    return decision.quarantine or not is_payable_in(state, instant_ms, open_period(state, step.stream_time_ms))


def place(scan: Scan, states: Mapping[str, AccountState]) -> Placement:
    """Place all arrivals and decisions of a scan, and apply the control records between them.

    While an account waits for a restatement, its arrivals are deferred as if they were far-late, and decisions on its
    events change nothing.
    """
    changed: dict[str, AccountState] = {}
    arrivals: list[Arrival] = []
    decisions: list[PlacedDedupDecision] = []
    policy: Policy | None = None
    running: dict[str, _Running] = {}
    for step in scan.steps:
        if policy is not (policy := scan.policies[offset_of(step.position)]):
            running.clear()
        if isinstance(step, Arrival):
            if step.deferred is not None or not step.contributions:
                arrivals.append(step)
                continue
            last = running.get(step.account)
            if last is not None and last[0] <= step.time_us // 1000 < last[1] and step.stream_time_ms < last[2]:
                arrivals.append(step)
                continue
            state = changed.get(step.account) or states.get(step.account) or AccountState()
            if is_waiting(state, step.stream_time_ms):
                entry = deferred_entry(step, scan.raw(step.position))
                arrivals.append(msgspec.structs.replace(step, deferred=entry))
                continue
            placed = placed_at_arrival(state, step.time_us, step.contributions, policy, step.stream_time_ms)
            # The period of what adds nothing may be closed.
            is_own = placed.period.start_ms <= step.time_us // 1000 < placed.period.end_ms
            if is_own and not add_nothing(step.contributions):
                running[step.account] = (*placed.period, placed.period.end_ms + policy.grace_ms)
            if not placed.kept_out:
                arrivals.append(step)
        elif isinstance(step, DedupDecisionStep):
            state = changed.get(step.decision.account) or states.get(step.decision.account) or AccountState()
            if not is_waiting(state, step.stream_time_ms):
                decisions.append(PlacedDedupDecision(step, _is_kept_out(step, state, policy)))
        else:
            _apply(step, states, changed, policy)
            running.pop(step.control.account, None)
    return Placement(arrivals, decisions, changed)


def _apply(
    step: AccountControl, states: Mapping[str, AccountState], changed: dict[str, AccountState], policy: Policy
) -> None:
    account = step.control.account
    before = changed.get(account) or states.get(account) or AccountState()
    changed[account] = apply(before, step.control, step.position, policy, step.stream_time_ms)
