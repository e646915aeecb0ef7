"""A flush: records that are committed together. This step turns them into segments of columns over the ledger.

A segment ends where a control record changes an account or the meter set, and where an arrival bucket or a report
bucket begins. Within a segment, the order of events matters to dedup and to distinct values only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from itertools import islice
from typing import Final, NamedTuple

from aggregators.bindings import apply, report_start_ms
from aggregators.codec import FlushKey, flush_field, flushes_bucket_ms
from aggregators.columns import Books, Segment
from aggregators.decode import Raws
from aggregators.exceptions import Exceptions, Now
from aggregators.expiry import NEVER_MS, Moment, Passed
from aggregators.judge import rules_at
from aggregators.ledger import Place
from aggregators.levels import CARRIED_MAX, Carried, Carry, carried, due_again
from aggregators.marks import current_slice, live_slices, unchanged_until_ms
from aggregators.meters import CompiledMeterSet
from aggregators.partitioning import partition_of
from aggregators.scan import LogFollower, LogState, accounts_of_control, has_control_header, is_restatement
from aggregators.steps import AccountControl, Arrival, DedupDecisionStep
from schemas.control import RestatementRecord
from schemas.log import Record, position
from schemas.meters import Meter, Policy
from schemas.periods import AccountState
from schemas.rollup import (
    BucketField,
    Checkpoint,
    Deferred,
    DueTotal,
    MarkKey,
    MarkSlice,
    ReadRequest,
    TotalKey,
    UniqueKey,
    View,
)

# The maker looks at so much at once. Small records are then taken together, while they are in the processor's cache.
LOOK_BYTES_MAX: Final = 64 * 1024
# An unknown account costs a read of the store, so the accounts of the records behind are asked for at the same time.
AHEAD_BYTES_MAX: Final = 4 * 1024 * 1024


class Part(NamedTuple):
    """A segment, the policy in force, and the levels to carry over at the segment's end."""

    segment: Segment
    policy: Policy
    carries: Sequence[Carry]


class Flush:
    """One flush of a partition, from the records to what the fold needs. Used once.

    `parts` are the segments. `deferred` are the stored events that the dedup decisions name, by position. `before` are
    the states at the checkpoint, and `accounts` the states after the flush, of the accounts that changed. `levels` are
    the new times at which levels are due, and `levels_wait` says that some are due and wait for the next flush.
    """

    def __init__(self, partition: int, checkpoint: Checkpoint, books: Books, secret: bytes) -> None:
        state = LogState(checkpoint.log_id, checkpoint.partitions, checkpoint.stream_time_ms, checkpoint.meter_set)
        self.log = LogFollower(partition, state, secret)
        self.checkpoint = checkpoint
        self._window_ms = self.log.policy.window_ms
        self._books = books
        self.ledger = books.ledger
        # The meter set of the segment, and the maker of its columns.
        self._compiled = self.log.compiled
        self._carrying = _carrying(self._compiled)
        self._maker = books.maker(self._compiled)
        self._now: Now | None = None
        # The maker has looked at the records before this one.
        self._looked_at = 0
        self.exceptions = Exceptions(self.ledger)
        self.parts: list[Part] = []
        self.values: dict[int, bytes] = {}
        self.policies: dict[int, Policy] = {}
        self.moments: list[Moment] = []
        self.controls: list[AccountControl] = []
        self.before: dict[str, AccountState] = {}
        self.accounts: dict[str, AccountState] = {}
        self.account_flushes: list[BucketField] = []
        self.deferred: dict[int, Deferred] = {}
        self.restatement: AccountControl | None = None
        self.levels: dict[TotalKey, int | None] = {}
        self.levels_wait = False
        # When the first total retires that a level has begun.
        self._retires_ms = NEVER_MS
        self._due_levels: Sequence[DueTotal] = ()
        self.received = 0
        self.next_offset = checkpoint.next_offset
        # After `request`: the slices that may have marks, and the marks of all events by set of the last slice.
        self.slices: tuple[MarkSlice, ...] = ()
        self.marks: dict[MarkKey, Sequence[int]] = {}

    @property
    def passed(self) -> Passed:
        """What expiry needs of the records."""
        return Passed(self.moments, self.policies, self.controls)

    def take(self, records: Sequence[Record], events_max: int) -> Iterator[ReadRequest]:
        """Take the first of these records, and go on at `next_offset`. Never raises for any record.

        Yields what must be read at the checkpoint first; give the answer to `know` and go on. Takes at least one
        record. Stops before a mark slice begins or ends, before a record at which levels may be carried over, and after
        `events_max` events. A restatement record is taken alone.
        """
        policy, first_ms = self.log.policy, max(self.checkpoint.stream_time_ms, records[0].timestamp_ms)
        before_ms = unchanged_until_ms(self.checkpoint.slices, first_ms, policy.window_ms)
        for number, record in enumerate(records):
            alone = is_restatement(record)
            if number and (
                alone
                or self.received >= events_max
                or (next_ms := max(self.log.stream_time_ms, record.timestamp_ms)) >= before_ms
                or next_ms >= self.ledger.levels_before_ms
            ):
                break
            self.policies[record.offset] = self.log.policy
            before = self.received
            is_control = self.log.is_control(record)
            if self.log.compiled is not self._compiled:
                self._switch(number)
            if not number and not alone:
                yield from self._carry_over()
                before_ms = min(before_ms, self._retires_ms)
            if is_control:
                yield from self._controls(records, number)
            else:
                now = self._go_to_stream_time()
                if number >= self._looked_at:
                    yield from self._look_at(records, number)
                self._events(record, now)
            self.moments.append(Moment(record.offset, self.log.stream_time_ms, self.received - before))
            self.next_offset = record.next_offset
            if alone:
                break
        self._end_segment()

    def know(self, view: View) -> None:
        """Take the answer to what `take` has yielded."""
        self.ledger.enter(view.accounts, self.log.policy, self.log.stream_time_ms)
        self.deferred.update(view.deferred)
        self._due_levels = view.levels

    # Events

    def _events(self, record: Record, now: Now) -> None:
        """Take a record that has events."""
        maker, base = self._maker, position(record.offset)
        self.values[record.offset] = value = record.value or b""
        raws, columns, take = Raws(value), maker.columns, self.exceptions.take
        self.received += maker.take(record, lambda place, event: take(base | place, event, raws, now, columns))

    def _look_at(self, records: Sequence[Record], number: int) -> Iterator[ReadRequest]:
        """Ask for the unknown accounts of `records[number]` and of some records behind."""
        ahead = [records[number], *_up_to(records, number + 1, LOOK_BYTES_MAX)]
        self._looked_at = number + len(ahead)
        unknown = self._at_home(self._maker.unknown([each for each in ahead if not has_control_header(each)]))
        if unknown:
            yield ReadRequest(accounts=sorted(unknown | self._unknown_behind(records, self._looked_at)))

    def _unknown_behind(self, records: Sequence[Record], number: int) -> set[str]:
        """The accounts of `records[number]` and the records behind that are not in the ledger."""
        behind = list(_up_to(records, number, AHEAD_BYTES_MAX))
        unknown = self._maker.unknown([record for record in behind if not has_control_header(record)])
        for record in behind:
            if has_control_header(record):
                unknown |= accounts_of_control(record) - self.ledger.accounts.keys()
        return self._at_home(unknown)

    def _at_home(self, accounts: set[str]) -> set[str]:
        """Those that live on this partition."""
        here, partitions = self.log.partition, self.log.partitions
        return {account for account in accounts if partition_of(account, partitions) == here}

    def _go_to_stream_time(self) -> Now:
        stream_time_ms, compiled = self.log.stream_time_ms, self.log.compiled
        if self._now is None or self._now.stream_time_ms != stream_time_ms or self._now.compiled is not compiled:
            policy = compiled.meter_set.policy
            if not self.ledger.is_at(policy, stream_time_ms):
                self._end_segment()
                self.ledger.go_to(policy, stream_time_ms)
            self._now = Now(stream_time_ms, rules_at(stream_time_ms, compiled, self.log.home), compiled)
            self._maker.go_to(stream_time_ms, self._now.rules)
        return self._now

    def _end_segment(self) -> None:
        segment, carries = self._maker.taken(), list(self.exceptions.carries)
        self.exceptions.carries.clear()
        if segment.positions or segment.columns or segment.unmetered or carries:
            self.parts.append(Part(segment, self._compiled.meter_set.policy, carries))

    # Levels

    def _carry_over(self) -> Iterator[ReadRequest]:
        """Carry over the levels that are due at the first record's stream time. All that is due is in the store: a
        flush ends before the record at which a level becomes due, so that the boundaries of flushes do not matter."""
        ledger, stream_time_ms = self.ledger, self.log.stream_time_ms
        if stream_time_ms < ledger.levels_before_ms:
            return
        if self._carrying:
            ledger.watch_ends(self.log.policy, stream_time_ms)
        if stream_time_ms < ledger.levels_due_ms:
            return
        yield ReadRequest(levels_max=CARRIED_MAX + 1)
        due = self._due_levels
        accounts = {total.key.account for total in due if total.due_ms <= stream_time_ms}
        if unknown := sorted(accounts - ledger.accounts.keys()):
            yield ReadRequest(accounts=unknown)
        states = {account: ledger.accounts[account].state for account in accounts}
        self._go_to_stream_time()
        self._carry(carried(due, states, stream_time_ms))

    def _carry(self, found: Carried) -> None:
        ledger, accounts = self.ledger, self.ledger.accounts
        self.levels.update(found.due)
        ledger.levels_due_ms = found.next_due_ms
        self.levels_wait = found.next_due_ms <= self.log.stream_time_ms
        for key, after in found.totals:
            self._retires_ms = min(self._retires_ms, after.end_ms + self.log.policy.periods_kept_ms)
            place = Place(key.account, after, accounts[key.account].state.flushed_ms)
            for meter in self._carrying:
                carry = Carry(ledger.level(key, meter), ledger.level_target(place, meter))
                self.exceptions.carries[carry] = None

    # Control records

    def _controls(self, records: Sequence[Record], number: int) -> Iterator[ReadRequest]:
        """Take the steps of `records[number]`, which is a control record."""
        log = self.log
        steps = [step for step in log.steps if not isinstance(step, Arrival)]
        log.steps.clear()
        self.received += log.received
        log.received = 0
        if not steps:
            return
        self._go_to_stream_time()
        self._maker.finish()
        needed = self._needed(steps)
        if needed.accounts:
            needed = needed._replace(accounts=sorted({*needed.accounts, *self._unknown_behind(records, number + 1)}))
        if needed.accounts or needed.deferred:
            yield needed
        for step in steps:
            if isinstance(step, DedupDecisionStep):
                at = step.decision.position
                event = self.exceptions.deferred.get(at) or self.deferred.get(at)
                self.exceptions.decide(step, event, log.policy, self._maker.columns)
            elif isinstance(step.control, RestatementRecord):
                self.restatement = step
            else:
                self._end_segment()
                self._apply(step)

    def _switch(self, number: int) -> None:
        """Go on with the meter set in force after `records[number]`."""
        self._end_segment()
        self.ledger.turn()
        self._compiled = self.log.compiled
        self._carrying = _carrying(self._compiled)
        if self._carrying:
            self.ledger.watch_ends(self.log.policy, self.log.stream_time_ms)
        else:
            self.ledger.watch_no_ends()
        self._maker = self._books.maker(self._compiled)
        self._looked_at = number + 1

    def _needed(self, steps: Sequence[AccountControl | DedupDecisionStep]) -> ReadRequest:
        accounts: set[str] = set()
        decided: dict[int, None] = {}
        for step in steps:
            if isinstance(step, DedupDecisionStep):
                accounts.add(step.decision.account)
                decided[step.decision.position] = None
            else:
                accounts.add(step.control.account)
        here = self.exceptions.deferred.keys() | self.deferred.keys()
        return ReadRequest(
            accounts=sorted(accounts - self.ledger.accounts.keys()), deferred=[at for at in decided if at not in here]
        )

    def _apply(self, step: AccountControl) -> None:
        account, policy, stream_time_ms = step.control.account, self.log.policy, step.stream_time_ms
        before = self.ledger.accounts[account].state
        after = apply(before, step.control, step.position, policy, stream_time_ms)
        self.before.setdefault(account, before)
        self.accounts[account] = after
        self.controls.append(step)
        self.ledger.enter({account: after}, policy, stream_time_ms)
        if self._carrying:
            self.levels.update(due_again(account, after, stream_time_ms, policy, stream_time_ms))
        if after.flushed_ms != before.flushed_ms:
            key = FlushKey(report_start_ms(before, policy, stream_time_ms), after.flushed_ms, account)
            bucket_ms = flushes_bucket_ms(policy.report_bucket_end_ms(stream_time_ms))
            self.account_flushes.append(BucketField(bucket_ms, flush_field(key)))

    # What must be read

    def request(self) -> ReadRequest:
        """What the fold must read: marks in every slice that may have them, what is new in the ledger, and which
        distinct values are new. Call this once, after `take`."""
        checkpoint, window_ms = self.checkpoint, self._window_ms
        # Slices do not change within a flush (`marks.unchanged_until_ms`).
        stream_time_ms = self.log.stream_time_ms
        slices = live_slices(checkpoint.slices, stream_time_ms, window_ms)
        current = current_slice(checkpoint.slices, stream_time_ms, window_ms)
        self.slices = slices if slices and slices[-1].start_ms == current.start_ms else (*slices, current)
        self.marks = self.marks_in(current)
        marks = dict(self.marks) if current.members else {}
        for mark_slice in slices:
            if mark_slice.members and mark_slice.start_ms != current.start_ms:
                marks.update(self.marks_in(mark_slice))
        return self.ledger.request()._replace(marks=marks, uniques=self._distinct())

    def marks_in(self, mark_slice: MarkSlice, unmarked: AbstractSet[int] = frozenset()) -> dict[MarkKey, Sequence[int]]:
        """The members of the marks by set of a slice, without those at the positions `unmarked`."""
        return self._maker.marks([part.segment for part in self.parts], mark_slice, unmarked)

    def repeats(self, present: AbstractSet[int]) -> set[int]:
        """The positions of the marks that came before, in the flush or as one of the members `present`."""
        return self._maker.repeats([part.segment for part in self.parts], present)

    def _distinct(self) -> dict[UniqueKey, list[int]]:
        ledger = self.ledger
        members: dict[int, set[int]] = {}
        for part in self.parts:
            for column in part.segment.columns:
                if column.meter.aggregation.rule.distinct:
                    for number, member in zip(column.numbers, column.minors, strict=True):
                        members.setdefault(ledger.total_of[number], set()).add(member)
        return {ledger.unique_key(total): list(found) for total, found in members.items()}


def _carrying(compiled: CompiledMeterSet) -> list[Meter]:
    return [meter for meter in compiled.meter_set.meters if meter.carry_over]


def _up_to(records: Sequence[Record], number: int, bytes_max: int) -> Iterator[Record]:
    """The records from `records[number]` on, of together at most so many bytes."""
    size = 0
    for record in islice(records, number, None):
        size += len(record.value or b"")
        if size > bytes_max:
            return
        yield record
