"""The last step of a flush: dedup and aggregate (I6). Live path, replay, rebuild and simulation call this function."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import msgspec

from aggregators.codec import (
    FLUSH_TEXT,
    ReportValue,
    cell_text,
    parse_cell_value,
    parse_report_text,
    parse_value,
    report_text,
    value_text,
    version,
)
from aggregators.decode import normalised
from aggregators.deferred import duplicate_of, far_late_us
from aggregators.flush_plan import Candidate, FlushPlan, Placed
from aggregators.marks import by_bucket, expired_keys
from aggregators.steps import Arrival
from schemas.aggregations import Value
from schemas.control import DedupDecision
from schemas.log import offset_of
from schemas.rollup import (
    BucketField,
    Changes,
    Checkpoint,
    Counters,
    Deferred,
    Duplicate,
    RankingKey,
    TotalKey,
    UniqueKey,
    View,
)

T = TypeVar("T")


class Folded(NamedTuple):
    """What one flush changes. `kept_out` are arrivals to quarantine because their period is closed. `refused` are
    arrivals to quarantine because too many deferred events wait already."""

    changes: Changes
    kept_out: list[Arrival]
    refused: list[Arrival]


class _Fold:
    """The running values of one fold, by their numbers in the plan. Used for one call of `fold`."""

    def __init__(self, checkpoint: Checkpoint, plan: FlushPlan, view: View) -> None:
        self.plan = plan
        self.targets = plan.targets
        self.generation = checkpoint.generation
        self.current = plan.slices[-1]
        self.present = set(view.marks)
        self.marks: list[tuple[int, int]] = []
        self.totals = [_parsed(view.totals[key].get(meter), parse_value) for key, meter in plan.totals]
        self.cells = [_parsed(view.cells.get(key), parse_cell_value) for key in plan.cells]
        # The position of each target's last event in this flush.
        self.positions: list[int | None] = [None] * len(plan.targets)
        # The end of that event's period: a binding may cut a period while it runs.
        self.ends = [0] * len(plan.targets)
        self.reports = [_parsed(view.reports.get(key), parse_report_text) for key in plan.reports]
        # The total and the end of the period of each report entry, after the entry's last event.
        self.reported: list[tuple[Value, int] | None] = [None] * len(plan.reports)
        self.unique_present: dict[UniqueKey, set[int]] = {key: set(members) for key, members in view.uniques.items()}
        self.unique_added: dict[UniqueKey, list[int]] = {}
        self.duplicates: list[Duplicate] = []
        self.kept_out: list[Arrival] = []
        self.refused: list[Arrival] = []
        self.counted = self.unmetered = 0
        self.waiting = checkpoint.counters.deferred
        self.open = dict(plan.deferred)
        self.deferred: dict[int, Deferred] = {}
        self.decided: list[Deferred] = []
        self.stored_totals = view.totals
        self.due: dict[TotalKey, int] = {}

    def take(self, candidate: Candidate) -> None:
        arrival = candidate.placed.arrival
        if arrival.deferred is not None and arrival.decision is not None:
            self._decide(candidate, arrival.deferred, arrival.decision)
            return
        if candidate.member in self.present:
            self.duplicates.append(
                Duplicate(
                    arrival.position, arrival.account, arrival.id, arrival.type, arrival.source, arrival.time_us,
                    normalised(arrival.data), arrival.stream_time_ms,
                )
            )  # fmt: skip
            return
        if candidate.placed.kept_out:
            # No mark: the event is not counted, and a redrive must not find it to be a duplicate.
            self.kept_out.append(arrival)
            return
        self.present.add(candidate.member)
        self.marks.append((candidate.bucket_hash, candidate.member))
        if arrival.deferred is not None:
            self._defer(candidate, arrival.deferred)
        else:
            self._count(candidate)

    def _defer(self, candidate: Candidate, deferred: Deferred) -> None:
        policy = self.plan.scan.policies[offset_of(deferred.position)]
        # An event that is not far-late waits for a restatement. That takes minutes, so there is no limit of events.
        far_late = deferred.time_us < far_late_us(policy, deferred.stream_time_ms)
        if far_late and self.waiting >= policy.deferred_max:
            # The event has a mark, unlike other quarantined events: from here on the archive contains its identity.
            self.refused.append(candidate.placed.arrival)
            return
        self.waiting += 1
        self.open[deferred.position] = self.deferred[deferred.position] = deferred

    def _decide(self, candidate: Candidate, deferred: Deferred, decision: DedupDecision) -> None:
        # Not open: the event had its decision already, or was never deferred (a duplicate by its mark, or refused).
        if self.open.pop(deferred.position, None) is None:
            return
        self.waiting -= 1
        if self.deferred.pop(deferred.position, None) is None:
            self.decided.append(deferred)
        if not decision.new:
            self.duplicates.append(duplicate_of(deferred))
        elif candidate.placed.kept_out:
            self.kept_out.append(candidate.placed.arrival)
        else:
            self._count(candidate)

    def _count(self, candidate: Candidate) -> None:
        if not candidate.contributions:
            self.unmetered += 1
            return
        self.counted += 1
        for number, minor, member in candidate.contributions:
            self._contribute(number, minor, member, candidate.placed)

    def _contribute(self, number: int, minor: int, member: int, placed: Placed) -> None:
        arrival, period_end_ms = placed.arrival, placed.period.end_ms
        target = self.targets[number]
        if target.unique is not None:
            members = self.unique_present.setdefault(target.unique, set())
            if member in members:
                return
            members.add(member)
            self.unique_added.setdefault(target.unique, []).append(member)
            minor = 1
        rule, total_number, cell = target.rule, target.total, target.cell
        value = Value(minor, arrival.time_us, arrival.position) if rule.ordered else Value(minor)
        before, cell_before = self.totals[total_number], self.cells[cell]
        if before is None:
            self._begin(self.plan.totals[total_number][0], placed)
        self.totals[total_number] = total = value if before is None else rule.merge(before, value)
        self.cells[cell] = value if cell_before is None else rule.merge(cell_before, value)
        self.positions[number] = arrival.position
        self.ends[number] = period_end_ms
        entry = target.report
        if entry is not None:
            if self.reports[entry] is None:
                # The entry of a report bucket begins with the total at the bucket's start.
                base_minor, meter = before.minor if before else 0, target.meter
                opened = ReportValue(base_minor, base_minor, 0, meter.scale, meter.stripe_event_name or "")
                self.reports[entry] = opened
            self.reported[entry] = (total, period_end_ms)

    def _report(self, entry: int) -> str | None:
        """The text of a report entry; None if no event of this flush changed it."""
        report, reported = self.reports[entry], self.reported[entry]
        if report is None or reported is None:
            return None
        total, period_end_ms = reported
        return report_text(ReportValue(report.base_minor, total.minor, period_end_ms, report.scale, report.event_name))

    def _begin(self, key: TotalKey, placed: Placed) -> None:
        """Set the time at which a new total is due."""
        if key not in self.due and not self.stored_totals[key]:
            policy = self.plan.scan.policies[offset_of(placed.arrival.position)]
            self.due[key] = placed.period.end_ms + policy.periods_kept_ms

    def changes(self, checkpoint: Checkpoint) -> Changes:
        plan, scan = self.plan, self.plan.scan
        slices = (*plan.slices[:-1], self.current._replace(members=self.current.members + len(self.marks)))
        cells: dict[BucketField, str] = {}
        dirty: dict[BucketField, int] = {}
        # Cells without a contribution must not become dirty again: a relay may have written them since they were read.
        touched: dict[int, None] = {}
        reports = dict.fromkeys(plan.account_flushes, FLUSH_TEXT)
        for target, position, end_ms in zip(plan.targets, self.positions, self.ends, strict=True):
            cell = self.cells[target.cell]
            if cell is None or position is None:
                continue
            key, cell_version = plan.cells[target.cell], version(self.generation, position)
            # Several targets may share a cell: the version comes from the last event.
            if cell_version > dirty.get(key, -1):
                cells[key] = cell_text(target.meter.aggregation, target.meter.scale, end_ms, cell)
                dirty[key] = cell_version
            touched[target.total] = None
            if target.report is not None and (text := self._report(target.report)) is not None:
                reports[plan.reports[target.report]] = text
        totals: dict[TotalKey, dict[str, str]] = {}
        rankings: dict[RankingKey, dict[str, int]] = {}
        for number in touched:
            (total, meter), value = plan.totals[number], self.totals[number]
            if value is not None:
                totals.setdefault(total, {})[meter] = value_text(value)
                rankings.setdefault(RankingKey(meter, total.period_start_ms), {})[total.account] = value.minor
        return Changes(
            checkpoint=msgspec.structs.replace(
                checkpoint,
                next_offset=scan.next_offset,
                stream_time_ms=scan.state.stream_time_ms,
                meter_set=scan.state.meter_set,
                counters=self._counters(checkpoint.counters),
                slices=slices,
            ),
            marks=by_bucket(self.current, self.marks),
            totals=totals,
            rankings=rankings,
            cells=cells,
            dirty=dirty,
            reports=reports,
            uniques=self.unique_added,
            accounts=plan.accounts,
            duplicates=self.duplicates,
            expired_marks=expired_keys(checkpoint.slices, slices),
            deferred=list(self.deferred.values()),
            decided=self.decided,
            due=self.due,
        )

    def _counters(self, before: Counters) -> Counters:
        scan = self.plan.scan
        counters = Counters(
            received=before.received + scan.received,
            counted=before.counted + self.counted,
            duplicate=before.duplicate + len(self.duplicates),
            unmetered=before.unmetered + self.unmetered,
            late=before.late + len(self.kept_out),
            rejected=before.rejected + len(scan.quarantined) + len(self.refused),
            deferred=self.waiting,
        )
        assert counters.conserved, f"I1 does not hold: {counters}"  # noqa: S101 - an invariant, not input
        return counters


def _parsed(text: str | None, parse: Callable[[str], T]) -> T | None:
    return None if text is None else parse(text)


def fold(checkpoint: Checkpoint, plan: FlushPlan, view: View) -> Folded:
    """Fold a planned flush over the checkpoint and the view that was read at it. Never raises for any record."""
    running = _Fold(checkpoint, plan, view)
    for candidate in plan.candidates:
        running.take(candidate)
    return Folded(running.changes(checkpoint), running.kept_out, running.refused)
