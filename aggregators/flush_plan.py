"""The second step of a flush: `place` finds the period of every arrival, `plan` lists what the fold must read.

`place` needs the states of the accounts. The archive runs `place` too, to leave out events quarantined as late.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import NamedTuple

import msgspec

from aggregators.bindings import apply, is_payable_in, is_waiting, report_start_ms
from aggregators.codec import CellKey, FlushKey, ReportKey, cell_field, flush_field, flushes_bucket_ms, report_field
from aggregators.deferred import contributions_at, deferred_entry
from aggregators.instants import hour_of_us
from aggregators.marks import by_bucket, current_slice, live_slices
from aggregators.meters import quarantines_late
from aggregators.periods import is_closed, open_period, period_at
from aggregators.scan import Scan
from aggregators.signing import distinct_member, mark
from aggregators.steps import AccountControl, Arrival, DedupDecisionStep
from schemas.aggregations import AggregationRule
from schemas.clock import HOUR_MS
from schemas.log import offset_of
from schemas.meters import Meter, Policy
from schemas.periods import AccountState, Period
from schemas.rollup import BucketField, Checkpoint, Deferred, MarkKey, MarkSlice, ReadRequest, TotalKey, UniqueKey

# The open period of an account's last event: start, end, the stream time that closes the period, the period itself, and
# the last account flush.
_Running = tuple[int, int, int, Period, int]


class Placed(msgspec.Struct, frozen=True, gc=False):
    """An arrival with the period it counts in. `late`: the period of its event time was closed. `kept_out`: it is late,
    and one of its meters quarantines late events, or another payer would pay for it. `flushed_ms`: the last
    account flush before it."""

    arrival: Arrival
    period: Period
    late: bool
    kept_out: bool
    flushed_ms: int = 0


class PlacedDedupDecision(NamedTuple):
    """A dedup decision, and whether its event is late and kept out (`Placed`)."""

    step: DedupDecisionStep
    kept_out: bool


class Placement(NamedTuple):
    """All arrivals in log order, with deferred events again at their dedup decisions; the account states that changed;
    all decisions; the deferred events that were read for the decisions, by position; and the account flushes."""

    placed: list[Placed]
    accounts: dict[str, AccountState]
    decisions: list[PlacedDedupDecision]
    deferred: Mapping[int, Deferred]
    account_flushes: Collection[BucketField]


class Target(msgspec.Struct, frozen=True, gc=False):
    """Where contributions of one kind go: a cell, a total, and a report entry if the meter is reported to Stripe.

    All three are numbers in the plan. Several targets may share a cell, because an arrival hour can contain several
    report buckets.
    """

    meter: Meter
    rule: AggregationRule
    cell: int
    total: int
    report: int | None
    unique: UniqueKey | None


class Candidate(msgspec.Struct, frozen=True, gc=False):
    """A placed arrival with its mark (unless it stands for a decision) and, per contribution, (target number, minor,
    distinct member)."""

    placed: Placed
    bucket_hash: int
    member: int
    contributions: tuple[tuple[int, int, int], ...]
    marked: bool = True


class FlushPlan(NamedTuple):
    """Everything the fold needs besides the view, made from a scan, account states and the checkpoint."""

    scan: Scan
    candidates: list[Candidate]
    targets: list[Target]
    cells: list[BucketField]
    totals: list[tuple[TotalKey, str]]
    reports: list[BucketField]
    accounts: dict[str, AccountState]
    slices: tuple[MarkSlice, ...]
    request: ReadRequest
    deferred: Mapping[int, Deferred] = {}
    account_flushes: Collection[BucketField] = ()


def place(
    scan: Scan,
    states: Mapping[str, AccountState],
    deferred: Mapping[int, Deferred] | None = None,
) -> Placement:
    """Find the period of every arrival in log order, and apply the bindings and closings between the arrivals.

    `deferred` are the events of `scan.decided` that still wait. A decision on an event that is neither among them nor
    among the arrivals places nothing. While an account waits for a restatement, its arrivals are deferred as if they
    were far-late, and decisions on its events change nothing.
    """
    changed: dict[str, AccountState] = {}
    placed: list[Placed] = []
    decisions: list[PlacedDedupDecision] = []
    known = dict(deferred or {})
    policies = scan.policies
    policy: Policy | None = None
    running: dict[str, _Running] = {}
    account_flushes: list[BucketField] = []
    for step in scan.steps:
        if policy is not (policy := policies[offset_of(step.position)]):
            running.clear()
        if isinstance(step, DedupDecisionStep):
            state = changed.get(step.decision.account) or states.get(step.decision.account) or AccountState()
            if is_waiting(state, step.stream_time_ms):
                continue
            decisions.append(_placed_decision(step, state, policy))
            event = known.get(step.decision.position)
            if event is not None and event.account == step.decision.account:
                placed.append(_decided(step, event, state, policy))
            continue
        if isinstance(step, AccountControl):
            account = step.control.account
            before = changed.get(account) or states.get(account) or AccountState()
            after = changed[account] = apply(before, step.control, step.position, policy, step.stream_time_ms)
            running.pop(account, None)
            if after.flushed_ms != before.flushed_ms:
                key = FlushKey(report_start_ms(before, policy, step.stream_time_ms), after.flushed_ms, account)
                bucket_ms = flushes_bucket_ms(policy.report_bucket_end_ms(step.stream_time_ms))
                account_flushes.append(BucketField(bucket_ms, flush_field(key)))
            continue
        if step.deferred is not None:
            known[step.position] = step.deferred
        if step.deferred is not None or not step.contributions:
            placed.append(Placed(step, Period(0, 0), late=False, kept_out=False))
            continue
        instant_ms = step.time_us // 1000
        last = running.get(step.account)
        if last is not None and last[0] <= instant_ms < last[1] and step.stream_time_ms < last[2]:
            placed.append(Placed(step, last[3], late=False, kept_out=False, flushed_ms=last[4]))
            continue
        state = changed.get(step.account) or states.get(step.account) or AccountState()
        if is_waiting(state, step.stream_time_ms):
            event = known[step.position] = deferred_entry(step, scan.raw(step.position))
            waiting = msgspec.structs.replace(step, deferred=event)
            placed.append(Placed(waiting, Period(0, 0), late=False, kept_out=False))
            continue
        period = period_at(state, instant_ms)
        if is_closed(state, period, policy.grace_ms, step.stream_time_ms):
            carried = open_period(state, step.stream_time_ms)
            if quarantines_late(step.contributions) or not is_payable_in(state, instant_ms, carried):
                placed.append(Placed(step, period, late=True, kept_out=True))
            else:
                placed.append(Placed(step, carried, late=True, kept_out=False, flushed_ms=state.flushed_ms))
        else:
            running[step.account] = (*period, period.end_ms + policy.grace_ms, period, state.flushed_ms)
            placed.append(Placed(step, period, late=False, kept_out=False, flushed_ms=state.flushed_ms))
    return Placement(placed, changed, decisions, deferred or {}, account_flushes)


def _placed_decision(step: DedupDecisionStep, state: AccountState, policy: Policy) -> PlacedDedupDecision:
    instant_ms, decision = step.decision.time_us // 1000, step.decision
    if not decision.metered or not is_closed(state, period_at(state, instant_ms), policy.grace_ms, step.stream_time_ms):
        return PlacedDedupDecision(step, kept_out=False)
    payable = is_payable_in(state, instant_ms, open_period(state, step.stream_time_ms))
    return PlacedDedupDecision(step, kept_out=decision.quarantine or not payable)


def _decided(step: DedupDecisionStep, event: Deferred, state: AccountState, policy: Policy) -> Placed:
    """A deferred event at its dedup decision. The event counts in a period that is open there."""
    arrival = Arrival(
        step.position, step.stream_time_ms, event.account, event.id, event.type, event.source, event.time_us, {},
        contributions_at(event, step.meter_set), event, step.decision,
    )  # fmt: skip
    period = period_at(state, event.time_us // 1000)
    if not is_closed(state, period, policy.grace_ms, step.stream_time_ms):
        return Placed(arrival, period, late=False, kept_out=False, flushed_ms=state.flushed_ms)
    if _placed_decision(step, state, policy).kept_out:
        return Placed(arrival, period, late=True, kept_out=True)
    carried = open_period(state, step.stream_time_ms)
    return Placed(arrival, carried, late=True, kept_out=False, flushed_ms=state.flushed_ms)


def plan(scan: Scan, placement: Placement, checkpoint: Checkpoint, hash_key: bytes) -> FlushPlan:
    """What the fold will do and must read. `checkpoint` is the state before the scan's first record."""
    policy = scan.policies[min(scan.policies)] if scan.policies else Policy()
    # `scan` stops before slices change (`marks.unchanged_until_ms`), so any stream time of the scan gives these slices.
    stream_time_ms = max(checkpoint.stream_time_ms, scan.state.stream_time_ms)
    slices = live_slices(checkpoint.slices, stream_time_ms, policy.window_ms)
    current = current_slice(checkpoint.slices, stream_time_ms, policy.window_ms)
    readable = tuple(mark_slice for mark_slice in slices if mark_slice.members)
    if not slices or slices[-1].start_ms != current.start_ms:
        slices = (*slices, current)

    builder = _Builder(scan.policies, hash_key)
    candidates = []
    for placed in placement.placed:
        arrival = placed.arrival
        if arrival.deferred is not None:
            candidates.append(_deferred_candidate(placed, builder, hash_key))
            continue
        bucket_hash, member = mark(hash_key, arrival.account, arrival.id)
        contributions = () if placed.kept_out else builder.contributions(placed)
        candidates.append(Candidate(placed, bucket_hash, member, contributions))
    marks: dict[MarkKey, list[int]] = {}
    for mark_slice in readable:
        marks.update(by_bucket(mark_slice, ((item.bucket_hash, item.member) for item in candidates if item.marked)))
    cells, reports = list(builder.cells), list(builder.reports)
    request = ReadRequest(
        marks=marks,
        totals=list(dict.fromkeys(key for key, _ in builder.totals)),
        cells=cells,
        reports=reports,
        uniques=builder.uniques,
    )
    return FlushPlan(
        scan, candidates, builder.targets, cells, list(builder.totals), reports, placement.accounts, slices, request,
        placement.deferred, placement.account_flushes,
    )  # fmt: skip


def _deferred_candidate(placed: Placed, builder: _Builder, hash_key: bytes) -> Candidate:
    """A deferred arrival has a mark and no contributions; at its decision it has contributions and no mark."""
    arrival = placed.arrival
    if arrival.decision is None:
        return Candidate(placed, *mark(hash_key, arrival.account, arrival.id), ())
    counts = arrival.decision.new and not placed.kept_out
    return Candidate(placed, 0, 0, builder.contributions(placed) if counts else (), marked=False)


class _Builder:
    """Numbers the targets, cells, totals and report entries of one plan."""

    def __init__(self, policies: Mapping[int, Policy], hash_key: bytes) -> None:
        self.policies = policies
        self.hash_key = hash_key
        self.targets: list[Target] = []
        self.cells: dict[BucketField, int] = {}
        self.totals: dict[tuple[TotalKey, str], int] = {}
        self.reports: dict[BucketField, int] = {}
        self.uniques: dict[UniqueKey, list[int]] = {}
        self._offset = -1
        self._buckets = _Buckets(0, 0)
        self._numbers: dict[tuple[str, str, int, str, int, int], int] = {}
        self._numbers_by_buckets: dict[_Buckets, dict[tuple[str, str, int, str, int, int], int]] = {}

    def contributions(self, placed: Placed) -> tuple[tuple[int, int, int], ...]:
        arrival, period = placed.arrival, placed.period
        if offset_of(arrival.position) != self._offset:
            self._enter(arrival)
        hour_ms = hour_of_us(arrival.time_us)
        numbers, targets = self._numbers, self.targets
        contributions = []
        for contribution in arrival.contributions:
            meter = contribution.meter
            key = (arrival.account, meter.slug, hour_ms, contribution.dimensions, period.start_ms, placed.flushed_ms)
            number = numbers.get(key)
            if number is None:
                number = numbers[key] = len(targets)
                targets.append(self._target(placed, contribution.dimensions, meter, hour_ms))
            member = 0
            unique = targets[number].unique
            if unique is not None:
                member = distinct_member(self.hash_key, contribution.text)
                self.uniques.setdefault(unique, []).append(member)
            contributions.append((number, contribution.minor, member))
        return tuple(contributions)

    def _enter(self, arrival: Arrival) -> None:
        """Go on to the record of this arrival: the record's stream time decides the buckets of all its events."""
        self._offset = offset_of(arrival.position)
        policy = self.policies[self._offset]
        self._buckets = _Buckets(
            arrival.stream_time_ms // HOUR_MS * HOUR_MS, policy.report_bucket_ms(arrival.stream_time_ms)
        )
        self._numbers = self._numbers_by_buckets.setdefault(self._buckets, {})

    def _target(self, placed: Placed, dimensions: str, meter: Meter, hour_ms: int) -> Target:
        account, start_ms = placed.arrival.account, placed.period.start_ms
        buckets = self._buckets
        if placed.flushed_ms > buckets.report_ms:
            buckets = buckets._replace(report_ms=placed.flushed_ms)
        keys = _keys(account, dimensions, meter.slug, start_ms, hour_ms, buckets, bool(meter.stripe_event_name))
        rule = meter.aggregation.rule
        unique = UniqueKey(account, meter.slug, start_ms) if rule.distinct else None
        cell = self.cells.setdefault(keys.cell, len(self.cells))
        total = self.totals.setdefault((keys.total, meter.slug), len(self.totals))
        report = None if keys.report is None else self.reports.setdefault(keys.report, len(self.reports))
        return Target(meter, rule, cell, total, report, unique)


class _Buckets(NamedTuple):
    """The arrival bucket and the report bucket of a record."""

    arrival_ms: int
    report_ms: int


class _Keys(NamedTuple):
    """The keys under which a target's values are stored."""

    total: TotalKey
    cell: BucketField
    report: BucketField | None


# A busy cell is in every flush. Its cached keys take a kilobyte and save most of the cost of a target.
@lru_cache(maxsize=65_536)
def _keys(
    account: str, dimensions: str, meter: str, period_start_ms: int, hour_ms: int, buckets: _Buckets, reported: bool
) -> _Keys:
    cell = CellKey(hour_ms, period_start_ms, meter, dimensions, account)
    report = None
    if reported:
        report = BucketField(buckets.report_ms, report_field(ReportKey(period_start_ms, meter, account)))
    return _Keys(
        TotalKey(account, period_start_ms),
        BucketField(buckets.arrival_ms, cell_field(cell)),
        report,
    )
