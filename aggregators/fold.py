"""The last step of a flush: dedup and aggregate (I6). One pure function; live path, replay, rebuild and
simulation all call it.
"""

from __future__ import annotations

from typing import NamedTuple

from aggregators.decode import normalised
from aggregators.fields import (
    ReportValue,
    Value,
    cell_text,
    parse_cell_text,
    parse_report_text,
    parse_value,
    report_text,
    value_text,
    version,
)
from aggregators.marks import expired_keys
from aggregators.plan import Candidate, Plan, Target
from aggregators.scan import Arrival
from schemas.meters import Aggregation
from schemas.rollup import (
    BucketField,
    Changes,
    Counters,
    Duplicate,
    Fence,
    MarkKey,
    RankingKey,
    TotalKey,
    UniqueKey,
    View,
)

_TotalName = tuple[TotalKey, str]


class Folded(NamedTuple):
    """What one flush changes. `late` are arrivals to be quarantined because their period is closed."""

    changes: Changes
    late: list[Arrival]


class _Fold:
    """The running values of one fold; lives for one call."""

    def __init__(self, fence: Fence, plan: Plan, view: View) -> None:
        self.plan = plan
        self.view = view
        self.generation = fence.generation
        self.current = plan.slices[-1]
        self.present = set(view.marks)
        self.marks: dict[MarkKey, list[int]] = {}
        self.totals: dict[_TotalName, Value] = {}
        self.cells: dict[int, tuple[Value, int]] = {}
        self.reports: dict[BucketField, ReportValue] = {}
        self.unique_present: dict[UniqueKey, set[int]] = {key: set(held) for key, held in view.uniques.items()}
        self.unique_added: dict[UniqueKey, list[int]] = {}
        self.duplicates: list[Duplicate] = []
        self.late: list[Arrival] = []
        self.counted = self.unmetered = 0

    def take(self, candidate: Candidate) -> None:
        arrival = candidate.placed.arrival
        if candidate.member in self.present:
            self.duplicates.append(
                Duplicate(
                    arrival.position, arrival.account, arrival.id, arrival.type, arrival.source, arrival.time_us,
                    normalised(arrival.data), arrival.log_time_ms,
                )
            )  # fmt: skip
            return
        if candidate.placed.kept_out:
            # No mark: the event is not counted, and must not be taken for a duplicate when it is redriven.
            self.late.append(arrival)
            return
        self.present.add(candidate.member)
        key = MarkKey(self.current.start_ms, candidate.bucket_hash % self.current.buckets)
        self.marks.setdefault(key, []).append(candidate.member)
        if not candidate.contributions:
            self.unmetered += 1
            return
        self.counted += 1
        for number, minor, member in candidate.contributions:
            self._contribute(number, minor, member, arrival)

    def _contribute(self, number: int, minor: int, member: int, arrival: Arrival) -> None:
        target = self.plan.targets[number]
        aggregation = target.meter.aggregation
        if target.unique is not None:
            held = self.unique_present.setdefault(target.unique, set())
            if member in held:
                return
            held.add(member)
            self.unique_added.setdefault(target.unique, []).append(member)
            minor = 1
        name = (target.total, target.meter.slug)
        total = self.totals.get(name) or self._stored_total(name)
        self._report(target, total)
        cell = self.cells.get(number)
        cell_value = self._stored_cell(target) if cell is None else cell[0]
        self.totals[name] = new_total = merge(aggregation, total, minor, arrival)
        self.cells[number] = (merge(aggregation, cell_value, minor, arrival), arrival.position)
        if target.report_key is not None:
            entry = self.reports[target.report_key]
            self.reports[target.report_key] = entry._replace(current_minor=new_total.minor)

    def _stored_total(self, name: _TotalName) -> Value | None:
        text = self.view.totals[name[0]].get(name[1])
        return None if text is None else parse_value(text)

    def _stored_cell(self, target: Target) -> Value | None:
        text = self.view.cells.get(target.cell_key)
        return None if text is None else parse_cell_text(text)[2]

    def _report(self, target: Target, total: Value | None) -> None:
        """Open the report entry of this bucket, with the total as it stood at the bucket's start."""
        key = target.report_key
        if key is None or key in self.reports:
            return
        stored = self.view.reports.get(key)
        base = 0 if total is None else total.minor
        if stored is None:
            self.reports[key] = ReportValue(base, base, target.meter.scale, target.meter.stripe_event_name or "")
        else:
            self.reports[key] = parse_report_text(stored)

    def changes(self, fence: Fence) -> Changes:
        plan, scan = self.plan, self.plan.scan
        added = sum(map(len, self.marks.values()))
        slices = (*plan.slices[:-1], self.current._replace(members=self.current.members + added))
        totals: dict[TotalKey, dict[str, str]] = {}
        rankings: dict[RankingKey, dict[str, int]] = {}
        for (key, meter), value in self.totals.items():
            totals.setdefault(key, {})[meter] = value_text(value)
            rankings.setdefault(RankingKey(meter, key.period_start_ms), {})[key.account] = value.minor
        cells, dirty = {}, {}
        for number, (value, position) in self.cells.items():
            target = plan.targets[number]
            cells[target.cell_key] = cell_text(target.meter.aggregation, target.meter.scale, value)
            dirty[target.cell_key] = version(self.generation, position)
        return Changes(
            fence=Fence(
                log_id=fence.log_id,
                partitions=fence.partitions,
                livemode=fence.livemode,
                stripe_account=fence.stripe_account,
                generation=fence.generation,
                next_offset=scan.next_offset,
                log_time_ms=scan.state.log_time_ms,
                secret_fingerprint=fence.secret_fingerprint,
                catalog=scan.state.catalog,
                counters=self._counters(fence.counters),
                slices=slices,
            ),
            marks=self.marks,
            totals=totals,
            rankings=rankings,
            cells=cells,
            dirty=dirty,
            reports={key: report_text(value) for key, value in self.reports.items()},
            uniques=self.unique_added,
            accounts=plan.accounts,
            duplicates=self.duplicates,
            expired_marks=expired_keys(fence.slices, slices),
        )

    def _counters(self, before: Counters) -> Counters:
        scan = self.plan.scan
        counters = Counters(
            received=before.received + scan.received,
            counted=before.counted + self.counted,
            duplicate=before.duplicate + len(self.duplicates),
            unmetered=before.unmetered + self.unmetered,
            late=before.late + len(self.late),
            rejected=before.rejected + len(scan.quarantined),
            parked=before.parked,
        )
        assert counters.conserved, f"I1 does not hold: {counters}"  # noqa: S101 - an invariant, not input
        return counters


def merge(aggregation: Aggregation, held: Value | None, minor: int, arrival: Arrival) -> Value:
    """The aggregate after one more quantity."""
    if aggregation is Aggregation.LATEST:
        if held is not None and (held.time_us, held.position) >= (arrival.time_us, arrival.position):
            return held
        return Value(minor, arrival.time_us, arrival.position)
    if held is None:
        return Value(minor)
    if aggregation is Aggregation.MAX:
        return held if held.minor >= minor else Value(minor)
    if aggregation in (Aggregation.COUNT, Aggregation.SUM, Aggregation.UNIQUE):
        return Value(held.minor + minor)
    raise NotImplementedError(f"say how two values of {aggregation} become one")


def fold(fence: Fence, plan: Plan, view: View) -> Folded:
    """Fold a planned flush over the fence and what was read at it. Pure; never raises on any record."""
    running = _Fold(fence, plan, view)
    for candidate in plan.candidates:
        running.take(candidate)
    return Folded(running.changes(fence), running.late)
