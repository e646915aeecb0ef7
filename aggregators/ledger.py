"""What a worker knows of a partition's state, by number: accounts, and the targets, cells, totals and report entries.

An event finds its *target* by one look-up. A target is a number that stands for a cell, a total and, if the meter is
reported to Stripe, a report entry. So names and texts are made once per target, and not once per event.

A ledger is changed while records become columns, thus before the commit. It is valid at the worker's own checkpoint
only: after any error, and wherever the stored checkpoint is another one, the ledger is dropped.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import Any, Final, NamedTuple

from aggregators.codec import (
    CellKey,
    ReportKey,
    ReportValue,
    cell_field,
    cell_prefix,
    parse_cell_value,
    parse_report_text,
    parse_value,
    report_field,
)
from aggregators.periods import is_closed, period_at
from aggregators.signing import marker
from schemas.aggregations import AggregationRule
from schemas.clock import HOUR_MS, MILLISECOND_US
from schemas.meters import Meter, Policy
from schemas.periods import AccountState, Period
from schemas.rollup import BucketField, Changes, ReadRequest, TotalKey, UniqueKey, View

NO_PERIOD: Final = Period(0, 0)
# No event has this hour.
_NO_HOUR_MS: Final = -1


class Account:
    """An account with one open period. Immutable: another state or another period makes another object, so an account
    may be part of a key.

    An event within `[from_us, until_us)` counts in `period`, as long as stream time has not passed the period's grace.
    Both are 0 if no period is known to be open, or if the account waits for a restatement. `marker` gives a copy of
    the keyed hash of the account's name, which the mark of each event begins with.
    """

    __slots__ = ("from_us", "marker", "name", "period", "state", "until_us")

    def __init__(self, name: str, state: AccountState, period: Period, marker: Callable[[], blake2b]) -> None:
        self.name = name
        self.state = state
        self.period = period
        self.from_us, self.until_us = period.start_ms * MILLISECOND_US, period.end_ms * MILLISECOND_US
        self.marker = marker


class Place(NamedTuple):
    """Where contributions count: an account's period, and the account's last flush before (0: none)."""

    account: str
    period: Period
    flushed_ms: int


class Ledger:
    """The ledger of one partition. The lists of targets, cells, totals and report entries are parallel, by number.

    A value is None (absent), a number of minor units, or what else the aggregation keeps (`AggregationRule.kept`).
    """

    def __init__(self, hash_key: bytes) -> None:
        self.hash_key = hash_key
        self.accounts: dict[str, Account] = {}
        # The accounts that were entered since the maker of columns looked last (`columns.ColumnMaker`).
        self.entered: list[Account] = []
        # Numbers of targets that a maker of columns has kept are valid in their epoch only.
        self.epoch = 0
        self._turned = False
        self._arrival_ms = self._report_ms = -1
        # No total is due before this stream time; 0 if the store was not asked yet. The same of levels.
        self.due_ms = self.levels_due_ms = 0
        # The ends of the open periods with their accounts, as a heap; None while no meter carries over.
        self._ends: list[tuple[int, str]] | None = None
        self.total_numbers: dict[TotalKey, dict[str, int]] = {}
        self.total_keys: list[TotalKey] = []
        self.total_meters: list[Meter] = []
        self.total_values: list[Any] = []
        # Totals that were read and have no number, by meter; and the keys of all totals that the store has.
        self._texts: dict[TotalKey, dict[str, str]] = {}
        self.stored: set[TotalKey] = set()
        self._unread_totals: dict[TotalKey, None] = {}
        self._drop_targets()

    def _drop_targets(self) -> None:
        self._targets: dict[tuple[str, str, int, str, Period, int], int] = {}
        self.cell_of: list[int] = []
        self.total_of: list[int] = []
        # -1 if the meter is not reported to Stripe.
        self.entry_of: list[int] = []
        self.end_ms: list[int] = []
        self.prefixes: list[str] = []
        self.meters: list[Meter] = []
        self._cells: dict[BucketField, int] = {}
        self.cell_keys: list[BucketField] = []
        self.cell_rules: list[AggregationRule] = []
        self.cell_values: list[Any] = []
        self._unread_cells: list[int] = []
        self._entries: dict[BucketField, int] = {}
        self.entry_keys: list[BucketField] = []
        self.entry_values: list[ReportValue | None] = []
        self._unread_entries: list[int] = []

    @property
    def size(self) -> int:
        """The number of entries: accounts, targets, totals with what was read of them, and report entries. There are no
        more cells than targets."""
        totals = (self.total_keys, self.total_numbers, self.stored, self._texts, self._ends or ())
        return sum(map(len, (self.accounts, self.entered, self.cell_of, self.entry_keys, *totals)))

    # Accounts

    def enter(self, states: Mapping[str, AccountState], policy: Policy, stream_time_ms: int) -> None:
        """Enter accounts, or the new states of accounts, with the period of this stream time."""
        for name, state in states.items():
            held = self.accounts.get(name)
            hasher = held.marker if held else marker(self.hash_key, name).copy
            account = Account(name, state, open_period(state, policy, stream_time_ms), hasher)
            self.accounts[name] = account
            self.entered.append(account)
            if self._ends is not None:
                heapq.heappush(self._ends, (period_at(state, stream_time_ms).end_ms, name))

    # Levels

    @property
    def levels_before_ms(self) -> int:
        """Before this stream time no level is due and, while a meter carries over, no period of a known account
        ends."""
        return min(self._ends[0][0], self.levels_due_ms) if self._ends else self.levels_due_ms

    def watch_ends(self, policy: Policy, stream_time_ms: int) -> None:
        """From now on, know when periods of accounts end. Accounts whose period has ended get the next one, so that
        late usage is no longer plain."""
        if self._ends is None:
            self._ends = []
            ended = set(self.accounts)
        else:
            ended = set[str]()
            while self._ends and self._ends[0][0] <= stream_time_ms:
                ended.add(heapq.heappop(self._ends)[1])
        self.enter({name: self.accounts[name].state for name in sorted(ended)}, policy, stream_time_ms)

    def watch_no_ends(self) -> None:
        """No meter carries over any more."""
        self._ends = None

    # Targets

    def is_at(self, policy: Policy, stream_time_ms: int) -> bool:
        """Whether a stream time is in the arrival bucket and the report bucket that the targets are of."""
        return (self._arrival_ms, self._report_ms) == _buckets_ms(policy, stream_time_ms)

    def go_to(self, policy: Policy, stream_time_ms: int) -> None:
        """Go to the arrival bucket and the report bucket of a stream time, which have targets of their own."""
        self._arrival_ms, self._report_ms = _buckets_ms(policy, stream_time_ms)
        self.turn()

    def turn(self) -> None:
        """Begin another epoch: the same contributions get new targets. Those of before are kept until `commit`."""
        self.epoch += 1
        self._turned = self._turned or bool(self.cell_of)
        self._targets = {}

    def target(self, place: Place, meter: Meter, hour_ms: int, dimensions: str) -> int:
        """The number of the target of contributions to a meter, by the hour of their event time."""
        key = (place.account, meter.slug, hour_ms, dimensions, place.period, place.flushed_ms)
        number = self._targets.get(key)
        if number is None:
            field = cell_field(CellKey(hour_ms, place.period.start_ms, meter.slug, dimensions, place.account))
            cell = self._cell(BucketField(self._arrival_ms, field), meter.aggregation.rule)
            number = self._targets[key] = self._new_target(place, meter, cell)
        return number

    def level(self, key: TotalKey, meter: Meter) -> int:
        """The number of a total whose level is carried over."""
        return self._total(key, meter)

    def level_target(self, place: Place, meter: Meter) -> int:
        """The number of the target of levels that are carried over to a period. It has no cell: no event made them."""
        key = (place.account, meter.slug, _NO_HOUR_MS, "", place.period, place.flushed_ms)
        number = self._targets.get(key)
        if number is None:
            number = self._targets[key] = self._new_target(place, meter, -1)
        return number

    def _new_target(self, place: Place, meter: Meter, cell: int) -> int:
        account, (start_ms, end_ms), slug = place.account, place.period, meter.slug
        entry = -1
        if meter.stripe_event_name:
            report_ms = max(self._report_ms, place.flushed_ms)
            entry = self._entry(BucketField(report_ms, report_field(ReportKey(start_ms, slug, account))))
        self.cell_of.append(cell)
        self.total_of.append(self._total(TotalKey(account, start_ms), meter))
        self.entry_of.append(entry)
        self.end_ms.append(end_ms)
        self.prefixes.append(cell_prefix(meter.aggregation, meter.scale, end_ms))
        self.meters.append(meter)
        return len(self.cell_of) - 1

    def _cell(self, key: BucketField, rule: AggregationRule) -> int:
        number = self._cells.setdefault(key, len(self.cell_keys))
        if number == len(self.cell_keys):
            self.cell_keys.append(key)
            self.cell_rules.append(rule)
            self.cell_values.append(None)
            self._unread_cells.append(number)
        return number

    def _entry(self, key: BucketField) -> int:
        number = self._entries.setdefault(key, len(self.entry_keys))
        if number == len(self.entry_keys):
            self.entry_keys.append(key)
            self.entry_values.append(None)
            self._unread_entries.append(number)
        return number

    def _total(self, key: TotalKey, meter: Meter) -> int:
        numbers = self.total_numbers.setdefault(key, {})
        number = numbers.get(meter.slug)
        if number is None:
            number = numbers[meter.slug] = len(self.total_keys)
            self.total_keys.append(key)
            self.total_meters.append(meter)
            texts = self._texts.get(key)
            text = None
            if texts is None:
                self._unread_totals[key] = None
            else:
                text = texts.pop(meter.slug, None)
            self.total_values.append(None if text is None else meter.aggregation.rule.kept(parse_value(text)))
        return number

    def unique_key(self, total: int) -> UniqueKey:
        """The key of the distinct values of a total."""
        account, start_ms = self.total_keys[total]
        return UniqueKey(account, self.total_meters[total].slug, start_ms)

    # The store

    def request(self) -> ReadRequest:
        """What must be read before the next fold: what got a number since the last read."""
        return ReadRequest(
            totals=list(self._unread_totals),
            cells=[self.cell_keys[number] for number in self._unread_cells],
            reports=[self.entry_keys[number] for number in self._unread_entries],
        )

    def learn(self, view: View) -> None:
        """Take the answer to `request`."""
        for key in self._unread_totals:
            texts = self._texts[key] = dict(view.totals[key])
            if texts:
                self.stored.add(key)
            for slug, number in self.total_numbers[key].items():
                text = texts.pop(slug, None)
                if text is not None:
                    self.total_values[number] = self.total_meters[number].aggregation.rule.kept(parse_value(text))
        for number in self._unread_cells:
            text = view.cells.get(self.cell_keys[number])
            value = None if text is None else parse_cell_value(text)
            if value is not None:
                self.cell_values[number] = self.cell_rules[number].kept(value)
        for number in self._unread_entries:
            text = view.reports.get(self.entry_keys[number])
            if text is not None:
                self.entry_values[number] = parse_report_text(text)
        self._unread_totals.clear()
        self._unread_cells.clear()
        self._unread_entries.clear()

    def commit(self, changes: Changes) -> None:
        """Go on after a commit: forget what retired, and the targets of earlier epochs."""
        self.due_ms = min([self.due_ms, *changes.due.values()])
        self.levels_due_ms = min([self.levels_due_ms, *(due for due in changes.levels.values() if due is not None)])
        for key in changes.retired:
            self.total_numbers.pop(key, None)
            self._texts.pop(key, None)
            self.stored.discard(key)
        if self._turned:
            self._turned = False
            self.epoch += 1
            self._drop_targets()


def _buckets_ms(policy: Policy, stream_time_ms: int) -> tuple[int, int]:
    return stream_time_ms // HOUR_MS * HOUR_MS, policy.report_bucket_ms(stream_time_ms)


def open_period(state: AccountState, policy: Policy, stream_time_ms: int) -> Period:
    """The period of the stream time if it takes usage at once; else `NO_PERIOD`."""
    if state.pending is not None and state.pending.until_ms is not None:
        return NO_PERIOD
    period = period_at(state, stream_time_ms)
    return NO_PERIOD if is_closed(state, period, policy.grace_ms, stream_time_ms) else period
