"""Finds in the archived control records which meters, graces, bindings and closings were in force at which positions.

This module shares no code with the fold, which applies the same records from the log.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from reconciler.boundaries import CALENDAR_MONTHS, Cutting, cuttings, period_containing
from schemas.analytics import ControlRow, MeterSpan
from schemas.clock import MINUTE_MS
from schemas.control import (
    BindingRecord,
    CloseRecord,
    ControlKind,
    FlushRecord,
    MeterSetRecord,
    RestatementRecord,
)
from schemas.log import POSITION_MAX
from schemas.meters import Meter, MeterSet, Policy
from schemas.periods import Billing, Binding, Period

BINDINGS_MAX: Final = 100
WAITING_MAX: Final = 100
RESTATEMENT_MS_MAX: Final = 10 * MINUTE_MS
RESTATEMENT_DOUBLINGS_MAX: Final = 3


class Reported(NamedTuple):
    """The positions `[from_position, before_position)` at which a meter had a Stripe event name."""

    from_position: int
    before_position: int


@dataclass(slots=True)
class LateBinding:
    """A binding in the past that waits for a restatement. A record that answers the one at `position` begins the
    restatement; another one ends it before stream time `until_ms`. Later bindings of the account wait too."""

    position: int
    from_ms: int
    effective_ms: int
    binding: Binding
    until_ms: int = 0
    begun: int = 0
    later: list[Binding] = field(default_factory=list)


class FlushPoint(NamedTuple):
    """A flush: usage below `position` is in report buckets that end by `instant_ms`, later usage is not."""

    position: int
    instant_ms: int


class Naming(NamedTuple):
    """A binding with the instant that it asked for and the one at which it took effect."""

    asked_ms: int
    effective_ms: int
    binding: Binding


@dataclass(slots=True)
class AccountHistory:
    """One account's present bindings, who was named to pay, and its closings: (start of the period, position of the
    record).

    A binding takes effect after every event that was accepted before it, or after a restatement of them. So the present
    periods of the account are right for all its events. A binding names the payer of counted usage only if nobody was
    named before.
    """

    bindings: tuple[Binding, ...] = ()
    namings: list[Naming] = field(default_factory=list)
    payer_cuts_ms: tuple[int, ...] = ()
    has_payer: bool = False
    closings: list[tuple[int, int]] = field(default_factory=list)
    waiting: LateBinding | None = None
    revision: int = 0
    restatements: list[tuple[int, int]] = field(default_factory=list)
    """(start of the first restated period, start of the report bucket in which the restated usage is reported)."""
    flushes: list[FlushPoint] = field(default_factory=list)

    @property
    def cut(self) -> tuple[Cutting, ...]:
        """The cuttings of the account's periods."""
        return cuttings(self.bindings, self.payer_cuts_ms)

    def customer_at(self, instant_ms: int) -> Binding | None:
        """The binding whose customer pays at an instant, or None. A binding names the payer from its effect on, and
        before only where nobody was named: there from the instant that it asked for."""
        paying: Binding | None = None
        for naming in self.namings:
            unnamed = paying is None or paying.billing == Billing.UNMAPPED
            if naming.effective_ms <= instant_ms or (unnamed and naming.asked_ms <= instant_ms):
                paying = naming.binding
        return paying

    def re_reported(self, period_start_ms: int, bucket_start_ms: int) -> bool:
        """Whether a restatement replaces the report of a period in a report bucket by one in a later bucket."""
        return any(from_ms <= period_start_ms and bucket_start_ms < bucket for from_ms, bucket in self.restatements)

    def carrying_from_ms(self, stream_time_ms: int) -> int:
        """The start of the period that takes carried usage: the first from stream time on without a close record."""
        cut, closed = self.cut, {start_ms for start_ms, _ in self.closings}
        period = period_containing(cut, stream_time_ms)
        while period.start_ms in closed:
            period = period_containing(cut, period.end_ms)
        return period.start_ms


@dataclass(frozen=True, slots=True)
class History:
    """A partition's control records up to one position.

    `graces` are (position, grace_ms), ascending, never empty. The event and stream times of all archived events below
    the position are from `from_ms` to `to_ms`, except for deferred events, which may be older.
    """

    meters: tuple[MeterSpan, ...]
    reported: Mapping[str, tuple[Reported, ...]]
    graces: tuple[tuple[int, int], ...]
    accounts: Mapping[str, AccountHistory]
    definitions: Mapping[str, Meter]
    policy: Policy
    from_ms: int
    to_ms: int
    # The stream times of the records at which the meter set changed, by position.
    changed_ms: Mapping[int, int]
    # The shortest span for which any meter set kept ended periods in the live view.
    kept_ms: int

    def period(self, account: str, start_ms: int) -> Period:
        """The account's period that begins at `start_ms`, with its present end: a view may have stored the period
        before a binding moved the end."""
        known = self.accounts.get(account)
        return Period(start_ms, period_containing(known.cut if known else (CALENDAR_MONTHS,), start_ms).end_ms)


def history_of(rows: Sequence[ControlRow], stream_time_ms: int) -> History:
    """The history of a partition's control rows (oldest first) at a stream time. Raises pydantic's `ValidationError`
    for a malformed row."""
    building = _Building()
    for row in rows:
        building.take(row)
    return building.finished(stream_time_ms)


class _Building:
    """Applies the rows in order. Used for one call of `history_of`."""

    def __init__(self) -> None:
        self.meter_set: MeterSet | None = None
        self.policy = Policy()
        self.policies = [self.policy]
        self.first_ms: int | None = None
        self.graces: list[tuple[int, int]] = []
        self.meters: dict[str, list[tuple[int, int]]] = {}
        self.reported: dict[str, list[tuple[int, int]]] = {}
        self.definitions: dict[str, Meter] = {}
        self.changed_ms: dict[int, int] = {}
        # The meter at the start of each of its spans, by slug and position.
        self.opened: dict[tuple[str, int], Meter] = {}
        self.accounts: dict[str, AccountHistory] = {}

    def take(self, row: ControlRow) -> None:
        if self.first_ms is None:
            self.first_ms = row.stream_time_ms
        if row.kind == ControlKind.METER_SET:
            self.changed_ms[row.position] = row.stream_time_ms
            self._meter_set(row.position, MeterSetRecord.model_validate_json(row.value).meter_set)
        elif row.kind == ControlKind.BINDING:
            bound = BindingRecord.model_validate_json(row.value)
            if self._is_next(row.account, bound.revision):
                self._bind(row, bound.binding)
        elif row.kind == ControlKind.CLOSE:
            closing = CloseRecord.model_validate_json(row.value)
            if self._is_next(row.account, closing.revision):
                self._close(row, closing.instant_ms)
        elif row.kind == ControlKind.FLUSH:
            if self._is_next(row.account, FlushRecord.model_validate_json(row.value).revision):
                self._flush(row)
        elif row.kind == ControlKind.RESTATEMENT:
            self._restatement(row, RestatementRecord.model_validate_json(row.value))

    def _meter_set(self, position: int, meter_set: MeterSet) -> None:
        if self.meter_set is not None and meter_set.version <= self.meter_set.version:
            return
        self.meter_set, self.policy = meter_set, meter_set.policy
        self.policies.append(meter_set.policy)
        self.graces.append((position, meter_set.policy.grace_ms))
        slugs = {meter.slug for meter in meter_set.meters}
        # A span ends where the meter begins to judge values differently, because a recount must judge like the fold.
        _follow(self.meters, slugs - {meter.slug for meter in meter_set.meters if self._judges_anew(meter)}, position)
        _follow(self.meters, slugs, position)
        self.opened.update(((meter.slug, position), meter) for meter in meter_set.meters)
        _follow(self.reported, {meter.slug for meter in meter_set.meters if meter.stripe_event_name}, position)
        self.definitions.update((meter.slug, meter) for meter in meter_set.meters)

    def _is_next(self, name: str, revision: int) -> bool:
        """Whether the record is the account's newest so far. An older one was appended again and changes nothing."""
        account = self.accounts.setdefault(name, AccountHistory())
        newest, account.revision = account.revision, max(account.revision, revision)
        return revision > newest

    def _judges_anew(self, meter: Meter) -> bool:
        before = self.definitions.get(meter.slug, meter)
        return (before.on_bad, before.allow_negative) != (meter.on_bad, meter.allow_negative)

    def _bind(self, row: ControlRow, binding: Binding) -> None:
        """Place a binding, or let it wait if it needs a restatement or another binding of the account waits."""
        account = self.accounts[row.account]
        if account.waiting is None:
            account.waiting = self._late(account, row, binding)
            if account.waiting is None:
                self._place(account, row, binding)
            return
        account.waiting.later.append(binding)
        if len(account.waiting.later) > WAITING_MAX:
            self._give_up(account, account.waiting, row)

    def _close(self, row: ControlRow, instant_ms: int) -> None:
        """Close the period of an instant. A running restatement must begin again."""
        account = self.accounts[row.account]
        account.closings.append((period_containing(account.cut, instant_ms).start_ms, row.position))
        if account.waiting is not None:
            account.waiting.position, account.waiting.until_ms = row.position, 0

    def _flush(self, row: ControlRow) -> None:
        """End the account's report bucket, one millisecond after its start at the earliest. If that is the end of the
        bucket of all accounts, nothing ends before it."""
        account = self.accounts[row.account]
        instant_ms = max(row.stream_time_ms, self._report_start_ms(account, row.stream_time_ms) + 1)
        if instant_ms // self.policy.report_interval_ms == row.stream_time_ms // self.policy.report_interval_ms:
            account.flushes.append(FlushPoint(row.position, instant_ms))

    def _report_start_ms(self, account: AccountHistory, stream_time_ms: int) -> int:
        """The start of the account's report bucket: that of all accounts, or its last flush in it."""
        begun_ms = stream_time_ms - stream_time_ms % self.policy.report_interval_ms
        return max([begun_ms, *(flush.instant_ms for flush in account.flushes[-1:])])

    def _give_up(self, account: AccountHistory, waiting: LateBinding, row: ControlRow) -> None:
        """Place the waiting bindings after all counted usage, in their order."""
        account.waiting = None
        for binding in (waiting.binding, *waiting.later):
            self._place(account, row, binding)

    def _place(self, account: AccountHistory, row: ControlRow, binding: Binding) -> None:
        """Bind at a whole minute after every event that could be accepted before the record, and not before the period
        that takes carried usage then. The binding replaces later ones, except the one that starts that period."""
        carrying_ms = account.carrying_from_ms(row.stream_time_ms)
        effective_ms = max(binding.effective_from_ms, self._beyond_ms(row), carrying_ms)
        self._set(account, binding, effective_ms, max(effective_ms, carrying_ms + 1))

    def _set(self, account: AccountHistory, binding: Binding, effective_ms: int, replacing_from_ms: int) -> None:
        account.namings.append(Naming(_asked_ms(account, binding), effective_ms, binding))
        before, after = account.customer_at(effective_ms - 1), account.customer_at(effective_ms)
        cuts_ms = [] if _payer(before) == _payer(after) else [effective_ms]
        kept = [old for old in account.bindings if old.effective_from_ms < replacing_from_ms]
        kept_cuts_ms = [cut_ms for cut_ms in account.payer_cuts_ms if cut_ms < replacing_from_ms]
        placed = binding.model_copy(update={"effective_from_ms": effective_ms})
        # A binding that repeats the periods before it must not displace the one that begins the open period.
        repeats = bool(kept) and cuttings((*kept, placed)) == cuttings(kept)
        account.bindings = tuple(kept) if repeats else (*kept[-(BINDINGS_MAX - 1) :], placed)
        account.payer_cuts_ms = (*kept_cuts_ms[-(BINDINGS_MAX - 1) :], *cuts_ms)
        account.has_payer = account.has_payer or binding.billing != Billing.UNMAPPED

    def _beyond_ms(self, row: ControlRow) -> int:
        return ((row.stream_time_ms + self.policy.future_ms) // MINUTE_MS + 1) * MINUTE_MS

    def _late(self, account: AccountHistory, row: ControlRow, binding: Binding) -> LateBinding | None:
        """The restatement that a binding needs, or None if no open period with usage would change, or if the account
        ever had a payer or was free."""
        cut, closed = account.cut, {start_ms for start_ms, _ in account.closings}
        open_ms = account.carrying_from_ms(row.stream_time_ms)
        while True:
            before = period_containing(cut, open_ms - 1)
            if before.end_ms + self.policy.grace_ms <= row.stream_time_ms or before.start_ms in closed:
                break
            open_ms = before.start_ms
        open_ms = max([open_ms, *(period_containing(cut, start_ms).end_ms for start_ms in closed)])
        effective_ms = max(binding.effective_from_ms, open_ms)
        beyond_ms = self._beyond_ms(row)
        if effective_ms >= beyond_ms or account.has_payer:
            return None
        # `_set` changes only the copy.
        after = dataclasses.replace(account, namings=[*account.namings])
        self._set(after, binding, effective_ms, effective_ms)
        before_cut, after_cut = (
            [cutting for cutting in cuts if cutting.from_ms < beyond_ms] for cuts in (cut, after.cut)
        )
        if before_cut == after_cut:
            return None
        return LateBinding(row.position, period_containing(cut, effective_ms).start_ms, effective_ms, binding)

    def _restatement(self, row: ControlRow, record: RestatementRecord) -> None:
        account = self.accounts.get(row.account)
        waiting = account.waiting if account else None
        if account is None or waiting is None or waiting.position != record.position:
            return
        in_time = row.stream_time_ms < waiting.until_ms
        if record.begins and not in_time:
            late = self._late(account, row, waiting.binding)
            if late is None:
                self._give_up(account, waiting, row)
            else:
                late.begun, late.later = waiting.begun + 1, waiting.later
                doublings = min(waiting.begun, RESTATEMENT_DOUBLINGS_MAX)
                late.until_ms = row.stream_time_ms + RESTATEMENT_MS_MAX * 2**doublings
                account.waiting = late
        elif in_time and record.declined:
            self._give_up(account, waiting, row)
        elif in_time and not record.begins:
            account.waiting = None
            self._set(account, waiting.binding, waiting.effective_ms, waiting.effective_ms)
            account.restatements.append((waiting.from_ms, self._report_start_ms(account, row.stream_time_ms)))
            for binding in waiting.later:
                self._place(account, row, binding)

    def finished(self, stream_time_ms: int) -> History:
        window_ms = max(policy.window_ms for policy in self.policies)
        future_ms = max(policy.future_ms for policy in self.policies)
        return History(
            meters=tuple(
                MeterSpan(self.opened[slug, span[0]], *span) for slug, spans in self.meters.items() for span in spans
            ),
            reported={slug: tuple(Reported(*span) for span in spans) for slug, spans in self.reported.items()},
            graces=tuple(self.graces) or ((0, self.policy.grace_ms),),
            accounts=self.accounts,
            definitions=self.definitions,
            policy=self.policy,
            from_ms=(self.first_ms or 0) - window_ms,
            to_ms=max(stream_time_ms, self.first_ms or 0) + future_ms,
            changed_ms=self.changed_ms,
            kept_ms=min(policy.periods_kept_ms for policy in self.policies[1:] or self.policies),
        )


def _asked_ms(account: AccountHistory, binding: Binding) -> int:
    """The instant from which a binding names the payer of unnamed usage: what it asked for, or the end of that period
    if the account had a payer, because its counted usage stays in undivided periods."""
    period = period_containing(account.cut, binding.effective_from_ms)
    is_undivided = account.has_payer and period.start_ms < binding.effective_from_ms
    return period.end_ms if is_undivided else binding.effective_from_ms


def _payer(binding: Binding | None) -> tuple[Billing, str]:
    """Whom a binding names; nobody without a binding."""
    return (Billing.UNMAPPED, "") if binding is None else (binding.billing, binding.stripe_customer)


def _follow(spans: dict[str, list[tuple[int, int]]], now: set[str], position: int) -> None:
    """At this position, close the spans of the slugs that are not in `now`, and open spans for new slugs."""
    for slug, slug_spans in spans.items():
        if slug not in now and slug_spans[-1][1] == POSITION_MAX:
            slug_spans[-1] = (slug_spans[-1][0], position)
    for slug in sorted(now):
        slug_spans = spans.setdefault(slug, [])
        if not slug_spans or slug_spans[-1][1] != POSITION_MAX:
            slug_spans.append((position, POSITION_MAX))
