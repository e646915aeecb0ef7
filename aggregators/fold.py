"""The last step of a flush: dedup and aggregate (I6). Live path, replay, rebuild and simulation call this function."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from operator import attrgetter
from typing import Any, NamedTuple

import msgspec

from aggregators.codec import FLUSH_TEXT, ReportValue, moved_report_text, value_text, version
from aggregators.columns import Column
from aggregators.decode import decode, normalised
from aggregators.deferred import duplicate_of, far_late_us
from aggregators.exceptions import refused
from aggregators.flush import Flush
from aggregators.judge import event_time_us
from aggregators.ledger import Ledger
from aggregators.levels import Carry
from aggregators.marks import expired_keys
from aggregators.steps import Quarantined
from schemas.adjustments import is_reserved
from schemas.log import index_of, offset_of
from schemas.meters import Meter, Policy
from schemas.rollup import (
    BucketField,
    Changes,
    Checkpoint,
    Counters,
    Deferred,
    Duplicate,
    MarkKey,
    RankingKey,
    TotalKey,
    UniqueKey,
    View,
)


class Folded(NamedTuple):
    """What one flush changes, and all entries for the quarantine topic, by position."""

    changes: Changes
    quarantined: list[Quarantined]


class _Rulings:
    """What becomes of each event of a flush, by position: duplicate, kept out, deferred, refused, or counted.

    `again` are duplicates by their mark, and `kept_out` those without a mark. `out` are all positions whose
    contributions do not count.
    """

    def __init__(self, flush: Flush, present: AbstractSet[int]) -> None:
        self._flush = flush
        self.again, self.kept_out = self._dedup(present)
        self.out = self.again | self.kept_out
        self.waiting = flush.checkpoint.counters.deferred
        self.deferred: dict[int, Deferred] = {}
        self.decided: list[Deferred] = []
        # Deferred events of this flush, and decided ones that are counted.
        self.held = self.released = 0
        self.refused: list[Quarantined] = []
        self.late: list[Quarantined] = [
            entry for at, entry in flush.exceptions.kept_out.items() if at in self.kept_out
        ]  # fmt: skip
        self.duplicates: list[Duplicate] = []
        if flush.exceptions.deferred or flush.exceptions.decided:
            self._hold_and_decide()
        self.duplicates += self._rows()

    def _dedup(self, present: AbstractSet[int]) -> tuple[set[int], set[int]]:
        late = self._flush.exceptions.kept_out
        if not late:
            return self._flush.repeats(present), set()
        segments = [part.segment for part in self._flush.parts]
        seen, again, kept_out = set(present), set[int](), set[int]()
        for segment in segments:
            for at, member in zip(segment.positions, segment.members, strict=True):
                if member in seen:
                    again.add(at)
                elif at in late:
                    # No mark: the event is not counted, and a redrive must not find it to be a duplicate.
                    kept_out.add(at)
                else:
                    seen.add(member)
        return again, kept_out

    def _hold_and_decide(self) -> None:
        """Follow the deferred events in log order: some begin to wait, and some end."""
        exceptions = self._flush.exceptions
        waiting = dict(self._flush.deferred)
        decisions = {decided.position: decided for decided in exceptions.decided}
        for at in sorted((exceptions.deferred.keys() - self.again) | decisions.keys()):
            event = exceptions.deferred.get(at)
            if event is not None:
                self._hold(event, waiting)
                continue
            decided = decisions[at]
            # Not waiting: the event had its decision already, or was never deferred (a duplicate, or refused).
            if waiting.pop(decided.event.position, None) is None:
                self.out.add(at)
                continue
            self.waiting -= 1
            if self.deferred.pop(decided.event.position, None) is None:
                self.decided.append(decided.event)
            if not decided.is_new:
                self.duplicates.append(duplicate_of(decided.event))
            elif decided.kept_out is not None:
                self.late.append(decided.kept_out)
            else:
                self.released += 1

    def _hold(self, event: Deferred, waiting: dict[int, Deferred]) -> None:
        self.held += 1
        policy = self._flush.policies[offset_of(event.position)]
        # An event that is not far-late waits for a restatement. That takes minutes, so there is no limit of events.
        far_late = event.time_us < far_late_us(policy, event.stream_time_ms)
        # Nobody would send an adjustment again: whoever told the difference finds the adjustment in the archive.
        if far_late and self.waiting >= policy.deferred_max and not is_reserved(event.type):
            # The event has a mark, unlike other quarantined events: from here on the archive contains its identity.
            self.refused.append(refused(event))
            return
        self.waiting += 1
        waiting[event.position] = self.deferred[event.position] = event

    def _rows(self) -> list[Duplicate]:
        """The rows of the duplicates. Their records are decoded once more, because columns keep nothing of an event."""
        flush = self._flush
        stream_times_ms = {moment.offset: moment.stream_time_ms for moment in flush.moments}
        rows = []
        offset, events = -1, {}
        for at in sorted(self.again):
            if offset_of(at) != offset:
                offset = offset_of(at)
                events = dict(decode(flush.values[offset], flush.policies[offset].event_bytes_max).events)
            event, stream_time_ms = events[index_of(at)], stream_times_ms[offset]
            time_us = event_time_us(event, stream_time_ms)
            assert time_us is not None, "only a valid event has a mark"  # noqa: S101 - an invariant, not input
            rows.append(
                Duplicate(
                    at, event.subject, event.id, event.type, event.source, time_us, normalised(event.data or {}),
                    stream_time_ms,
                )
            )  # fmt: skip
        return rows

    def counters(self, before: Counters, rejected: int) -> Counters:
        """The counters after the flush. `rejected` are events that never got a mark."""
        flush = self._flush
        marked = sum(len(part.segment.positions) for part in flush.parts)
        unmetered = sum(at not in self.out for part in flush.parts for at in part.segment.unmetered)
        counted = marked - len(self.again) - len(self.kept_out) - self.held + self.released - unmetered
        counters = Counters(
            received=before.received + flush.received,
            counted=before.counted + counted,
            duplicate=before.duplicate + len(self.duplicates),
            unmetered=before.unmetered + unmetered,
            late=before.late + len(self.late),
            rejected=before.rejected + rejected + len(self.refused),
            deferred=self.waiting,
        )
        assert counters.conserved, f"I1 does not hold: {counters}"  # noqa: S101 - an invariant, not input
        return counters


class _Sums:
    """Merges columns into the ledger, and keeps what changes. Used for one call of `fold`."""

    def __init__(self, ledger: Ledger, present: dict[UniqueKey, set[int]], stream_time_ms: int) -> None:
        self._ledger = ledger
        self._present = present
        self.uniques: dict[UniqueKey, list[int]] = {}
        # By number: the position of each target's last event, the totals, and the last target of each report entry with
        # the total there.
        self.positions: dict[int, int] = {}
        self.totals: dict[int, None] = {}
        self.entries: dict[int, tuple[int, Any]] = {}
        self._reported: dict[int, int] = {}
        self.due: dict[TotalKey, int] = {}
        # When the levels of new totals are due.
        self._stream_time_ms = stream_time_ms
        self.levels: dict[TotalKey, int | None] = {}

    def add(self, columns: Iterable[Column], policy: Policy, carries: Iterable[Carry]) -> None:
        """Merge the columns of a segment, then the levels that are carried over."""
        for column in columns:
            self._merge(column, policy)
        # A later segment may count in another report bucket.
        ledger = self._ledger
        for entry, number in self._reported.items():
            self.entries[entry] = number, ledger.total_values[ledger.total_of[number]]
        self._reported.clear()
        for total, number in carries:
            value = ledger.total_values[total]
            if value is not None:
                self._carry(value, number, policy)

    def _carry(self, value: Any, number: int, policy: Policy) -> None:
        """Merge a level into the total of a target, which has no cell."""
        ledger = self._ledger
        total, entry, meter = ledger.total_of[number], ledger.entry_of[number], ledger.meters[number]
        before = ledger.total_values[total]
        after = value if before is None else meter.aggregation.rule.joined(before, value)
        if after == before:
            return
        if before is None:
            self._begin(number, policy)
        if entry >= 0:
            if ledger.entry_values[entry] is None:
                ledger.entry_values[entry] = _opened(meter, before)
            self.entries[entry] = number, after
        ledger.total_values[total] = after
        self.totals[total] = None

    def _merge(self, column: Column, policy: Policy) -> None:
        ledger, rule = self._ledger, column.meter.aggregation.rule
        if rule.distinct:
            column = self._new(column)
        cell_of, total_of, entry_of, joined = ledger.cell_of, ledger.total_of, ledger.entry_of, rule.joined
        cells, totals, entries = ledger.cell_values, ledger.total_values, ledger.entry_values
        reported, changed, is_reported = self._reported, self.totals, bool(column.meter.stripe_event_name)
        for number, value in rule.gathered(column).items():
            cell, total = cell_of[number], total_of[number]
            held, before = cells[cell], totals[total]
            cells[cell] = value if held is None else joined(held, value)
            if before is None:
                self._begin(number, policy)
            if is_reported:
                entry = entry_of[number]
                if entries[entry] is None:
                    entries[entry] = _opened(column.meter, before)
                reported[entry] = number
            totals[total] = value if before is None else joined(before, value)
            changed[total] = None
        positions, last = self.positions, zip(column.numbers, column.positions, strict=True)
        if is_reserved(column.meter.event_type):
            # The plain events of a count are in a column of their own, which may reach further.
            positions.update((number, max(at, positions.get(number, at))) for number, at in dict(last).items())
        else:
            positions.update(last)

    def _new(self, column: Column) -> Column:
        """The contributions of members that are new in their period; each counts 1."""
        ledger, new = self._ledger, Column(column.meter)
        keys: dict[int, UniqueKey] = {}
        for number, at, member in zip(column.numbers, column.positions, column.minors, strict=True):
            total = ledger.total_of[number]
            key = keys.get(total) or keys.setdefault(total, ledger.unique_key(total))
            present = self._present.setdefault(key, set())
            if member not in present:
                present.add(member)
                self.uniques.setdefault(key, []).append(member)
                new.append(number, at, 1, 0)
        return new

    def _begin(self, number: int, policy: Policy) -> None:
        """Set the times at which a new total is due."""
        ledger = self._ledger
        key = ledger.total_keys[ledger.total_of[number]]
        if key not in ledger.stored:
            ledger.stored.add(key)
            self.due[key] = ledger.end_ms[number] + policy.periods_kept_ms
        # Where the period has ended, the level is carried over in this flush.
        if ledger.meters[number].carry_over and ledger.end_ms[number] > self._stream_time_ms:
            self.levels[key] = ledger.end_ms[number]

    def cells(self, generation: int) -> tuple[dict[BucketField, str], dict[BucketField, int]]:
        """The texts and the versions of the changed cells. Several targets may share a cell: the last event decides."""
        ledger, positions = self._ledger, self.positions
        texts: dict[BucketField, str] = {}
        dirty: dict[BucketField, int] = {}
        keys, values, prefixes = ledger.cell_keys, ledger.cell_values, ledger.prefixes
        first_version = version(generation, 0)
        for cell, number in self._last_targets().items():
            key, value = keys[cell], values[cell]
            text = str(value) if type(value) is int else value_text(ledger.cell_rules[cell].value(value))
            texts[key] = prefixes[number] + text
            dirty[key] = first_version | positions[number]
        return texts, dirty

    def _last_targets(self) -> dict[int, int]:
        """The target of each changed cell's last event, by cell."""
        cell_of, positions = self._ledger.cell_of, self.positions
        last = dict(zip(map(cell_of.__getitem__, positions), positions, strict=True))
        if len(last) < len(positions):
            for number, at in positions.items():
                cell = cell_of[number]
                if positions[last[cell]] < at:
                    last[cell] = number
        return last

    def totals_and_rankings(self) -> tuple[dict[TotalKey, dict[str, str]], dict[RankingKey, dict[str, int]]]:
        """The texts of the changed totals, and the accounts' places in the rankings."""
        ledger = self._ledger
        totals: dict[TotalKey, dict[str, str]] = {}
        rankings: dict[RankingKey, dict[str, int]] = {}
        ranking, scores = RankingKey("", 0), dict[str, int]()
        keys, meters, values = ledger.total_keys, ledger.total_meters, ledger.total_values
        for number in self.totals:
            key, meter, value = keys[number], meters[number], values[number]
            slug, (account, period_start_ms) = meter.slug, key
            if type(value) is int:
                minor, text = value, str(value)
            else:
                rule = meter.aggregation.rule
                minor, text = rule.minor(value), value_text(rule.value(value))
            fields = totals.get(key)
            if fields is None:
                totals[key] = {slug: text}
            else:
                fields[slug] = text
            # The totals of a meter follow each other, and most are of one period.
            if ranking != (slug, period_start_ms):
                ranking = RankingKey(slug, period_start_ms)
                scores = rankings.setdefault(ranking, {})
            scores[account] = minor
        return totals, rankings

    def reports(self) -> dict[BucketField, str]:
        """The texts of the changed report entries."""
        ledger = self._ledger
        reports: dict[BucketField, str] = {}
        keys, values, meters, end_ms = ledger.entry_keys, ledger.entry_values, ledger.meters, ledger.end_ms
        for entry, (number, total) in self.entries.items():
            opened = values[entry]
            assert opened is not None, "`_merge` opens it"  # noqa: S101 - an invariant, not input
            minor = total if type(total) is int else meters[number].aggregation.rule.minor(total)
            reports[keys[entry]] = moved_report_text(opened, minor, end_ms[number])
        return reports


def _opened(meter: Meter, before: Any) -> ReportValue:
    """A new entry of a report bucket: it begins with the total at the bucket's start."""
    base_minor = 0 if before is None else meter.aggregation.rule.minor(before)
    return ReportValue(base_minor, base_minor, 0, meter.scale, meter.stripe_event_name or "")


def fold(flush: Flush, view: View) -> Folded:
    """Fold a flush over the checkpoint and the view that was read at it. Never raises for any record.

    Changes the flush's ledger: whoever cannot commit the changes must drop it.
    """
    flush.ledger.learn(view)
    rulings = _Rulings(flush, view.marks)
    present = {key: set(members) for key, members in view.uniques.items()}
    sums = _Sums(flush.ledger, present, flush.log.stream_time_ms)
    for segment, policy, carries in flush.parts:
        out = rulings.out
        sums.add((column.without(out) if out else column for column in segment.columns), policy, carries)
    quarantined = [*flush.log.quarantined, *flush.exceptions.quarantined]
    counters = rulings.counters(flush.checkpoint.counters, len(quarantined))
    changes = _changes(flush, rulings, sums, counters)
    return Folded(changes, sorted([*quarantined, *rulings.late, *rulings.refused], key=attrgetter("position")))


def _changes(flush: Flush, rulings: _Rulings, sums: _Sums, counters: Counters) -> Changes:
    current = flush.slices[-1]
    marks = _marks(flush, rulings.again | rulings.kept_out)
    members = current.members + sum(map(len, marks.values()))
    slices = (*flush.slices[:-1], current._replace(members=members))
    cells, dirty = sums.cells(flush.checkpoint.generation)
    totals, rankings = sums.totals_and_rankings()
    return Changes(
        checkpoint=moved(flush, counters=counters, slices=slices),
        marks=marks,
        totals=totals,
        rankings=rankings,
        cells=cells,
        dirty=dirty,
        reports={**dict.fromkeys(flush.account_flushes, FLUSH_TEXT), **sums.reports()},
        uniques=sums.uniques,
        accounts=flush.accounts,
        duplicates=rulings.duplicates,
        expired_marks=expired_keys(flush.checkpoint.slices, slices),
        deferred=list(rulings.deferred.values()),
        decided=rulings.decided,
        due=sums.due,
        levels={**sums.levels, **flush.levels},
    )


def _marks(flush: Flush, unmarked: set[int]) -> dict[MarkKey, Sequence[int]]:
    """The new marks, by set of the current slice."""
    if not unmarked:
        return flush.marks
    return flush.marks_in(flush.slices[-1], unmarked)


def moved(flush: Flush, **fields: Any) -> Checkpoint:
    """The checkpoint after the records of a flush."""
    return msgspec.structs.replace(
        flush.checkpoint,
        next_offset=flush.next_offset,
        stream_time_ms=flush.log.stream_time_ms,
        meter_set=flush.log.meter_set,
        **fields,
    )
