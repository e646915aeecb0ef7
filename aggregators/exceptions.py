"""The events that are not plain, one by one: rejected, late, deferred, of a new period, and without a cheap form.

`aggregators.columns` leaves them out. Here each is judged as the gateway judges it, and what counts comes back into the
same columns. Deferred events come back at their dedup decisions.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from aggregators.bindings import is_waiting
from aggregators.columns import Columns
from aggregators.decode import Raws, Rejected
from aggregators.deferred import contributions_at, deferred_entry
from aggregators.instants import hour_of_us
from aggregators.judge import Rules
from aggregators.ledger import Account, Ledger, Place, open_period
from aggregators.levels import Carry, standing_in
from aggregators.meters import CompiledMeterSet, Contribution, quarantines_late
from aggregators.placement import placed_at_arrival, placed_at_decision
from aggregators.scan import arrival_of
from aggregators.signing import distinct_member
from aggregators.steps import DedupDecisionStep, Quarantined
from schemas.control import DedupDecision
from schemas.events import EventStruct
from schemas.log import index_of
from schemas.meters import Policy
from schemas.periods import Period
from schemas.reasons import Reason
from schemas.rollup import Deferred, TotalKey


class Now(NamedTuple):
    """The record that is taken: its stream time, the rules there, and the meter set in force."""

    stream_time_ms: int
    rules: Rules
    compiled: CompiledMeterSet

    @property
    def policy(self) -> Policy:
        """The policy in force."""
        return self.compiled.meter_set.policy


class Decided(NamedTuple):
    """A deferred event at the position of its dedup decision. `kept_out` is set if the event counts in no period."""

    position: int
    event: Deferred
    is_new: bool
    kept_out: Quarantined | None


class Exceptions:
    """The exceptions of one flush.

    `kept_out` and `deferred` are by position; an event among them may turn out to be a duplicate, and then it is only
    that. `skipped` has the number of valid events that a meter skipped for their data, by meter and reason. `carries`
    are the levels that late events of the segment in hand may have moved.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.quarantined: list[Quarantined] = []
        self.kept_out: dict[int, Quarantined] = {}
        self.deferred: dict[int, Deferred] = {}
        self.decided: list[Decided] = []
        self.skipped: Counter[tuple[str, Reason]] = Counter()
        self.carries: dict[Carry, None] = {}

    def take(self, at: int, event: EventStruct | Rejected, raws: Raws, now: Now, columns: Columns) -> None:
        """Take one event at a position. `raws` are the bytes of its record's events."""
        stream_time_ms = now.stream_time_ms
        if isinstance(event, Rejected):
            self.quarantined.append(Quarantined(at, stream_time_ms, event.reason, event.detail, event.raw))
            return
        arrival = arrival_of(event, at, stream_time_ms, now.rules, now.policy, raws)
        if isinstance(arrival, Quarantined):
            self.quarantined.append(arrival)
            return
        self.skipped.update(
            (slug, why.reason) for slug, why in now.compiled.skips(event.type, arrival.data, arrival.time_us)
        )
        account = self._ledger.accounts[event.subject]
        columns.mark(at, account, event.id)
        time_us, contributions = arrival.time_us, arrival.contributions
        if arrival.deferred is not None:
            self.deferred[at] = arrival.deferred
            return
        if contributions and is_waiting(account.state, stream_time_ms):
            self.deferred[at] = deferred_entry(arrival, raws.parts[index_of(at)])
            return
        if not contributions:
            columns.unmetered.append(at)
            return
        account = self._at_stream_time(account, now)
        placed = placed_at_arrival(account.state, time_us, contributions, now.policy, stream_time_ms)
        if placed.kept_out:
            detail = f"{account.name}: its period is closed, and {_why_not_carried(contributions)}"
            raw = raws.parts[index_of(at)]
            self.kept_out[at] = Quarantined(at, stream_time_ms, Reason.PERIOD_CLOSED, detail, raw)
            return
        self._contribute(account, placed.period, contributions, time_us, at, columns)
        self._carry(account, placed.period, contributions, stream_time_ms)

    def decide(self, step: DedupDecisionStep, event: Deferred | None, policy: Policy, columns: Columns) -> None:
        """Take one dedup decision. `event` is the deferred event at its position; None if none waits there."""
        decision, at = step.decision, step.position
        account = self._ledger.accounts[decision.account]
        if event is None or event.account != decision.account or is_waiting(account.state, step.stream_time_ms):
            return
        placed = placed_at_decision(step, event, account.state, policy)
        kept_out = _kept_out(event, decision) if placed.kept_out else None
        self.decided.append(Decided(at, event, decision.new, kept_out))
        if not decision.new or placed.kept_out:
            return
        contributions = contributions_at(event, step.meter_set)
        if not contributions:
            columns.unmetered.append(at)
        self._contribute(account, placed.period, contributions, event.time_us, at, columns)
        self._carry(account, placed.period, contributions, step.stream_time_ms)

    def _at_stream_time(self, account: Account, now: Now) -> Account:
        """The account with the period of stream time as its open one, so that its next events may be plain."""
        here = account.period.start_ms <= now.stream_time_ms < account.period.end_ms
        # Where a record closed the running period, no period is open until the period ends.
        if not here and open_period(account.state, now.policy, now.stream_time_ms) != account.period:
            self._ledger.enter({account.name: account.state}, now.policy, now.stream_time_ms)
        return self._ledger.accounts[account.name]

    def _contribute(
        self, account: Account, period: Period, contributions: tuple[Contribution, ...], time_us: int, at: int,
        columns: Columns,
    ) -> None:  # fmt: skip
        place, ledger = Place(account.name, period, account.state.flushed_ms), self._ledger
        for contribution in contributions:
            if contribution.is_sample:
                continue
            meter = contribution.meter
            number = ledger.target(place, meter, hour_of_us(time_us), contribution.dimensions)
            is_distinct = meter.aggregation.rule.distinct
            minor = distinct_member(ledger.hash_key, contribution.text) if is_distinct else contribution.minor
            columns.of(contribution).append(number, at, minor, time_us)

    def _carry(
        self, account: Account, period: Period, contributions: tuple[Contribution, ...], stream_time_ms: int
    ) -> None:
        """Carry the levels of a period that has ended over to the periods after it, which have begun."""
        if period.end_ms > stream_time_ms:
            return
        ledger, key = self._ledger, TotalKey(account.name, period.start_ms)
        for contribution in contributions:
            if contribution.meter.carry_over:
                total = ledger.level(key, contribution.meter)
                for after in standing_in(account.state, period, stream_time_ms):
                    place = Place(account.name, after, account.state.flushed_ms)
                    self.carries[Carry(total, ledger.level_target(place, contribution.meter))] = None


def refused(event: Deferred) -> Quarantined:
    """The entry of an event that is not deferred because too many deferred events wait."""
    detail = f"{event.account}: this partition already has policy.deferred_max deferred events"
    return _quarantined(event, Reason.TOO_MANY_DEFERRED, detail)


def _kept_out(event: Deferred, decision: DedupDecision) -> Quarantined:
    """The entry of a deferred event whose period was closed meanwhile. The meters of its arrival have decided."""
    why = _why("one of its meters" if decision.quarantine else "")
    return _quarantined(event, Reason.PERIOD_CLOSED, f"{event.account}: its period is closed, and {why}")


def _why_not_carried(contributions: tuple[Contribution, ...]) -> str:
    return _why(" and ".join(item.meter.slug for item in contributions if quarantines_late((item,))))


def _why(meters: str) -> str:
    """Why late usage counts in no later period."""
    return f"the late policy of {meters} is quarantine" if meters else "another payer pays for the open period"


def _quarantined(event: Deferred, reason: Reason, detail: str) -> Quarantined:
    return Quarantined(event.position, event.stream_time_ms, reason, detail, event.raw.encode())
