"""What the archived control records say: which meters, graces, bindings and closings were in force where.

Reads `control_log` rows on its own; the fold follows the same records in the log.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from reconciler.boundaries import CALENDAR_MONTHS, Cutting, cuttings, period_containing
from schemas.analytics import ControlRow, MeterSpan
from schemas.clock import MINUTE_MS
from schemas.control import BindingRecord, CloseRecord, ControlKind, MeterSetRecord, RestatementRecord
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
    """A binding that takes effect in the past once restatement records have answered the one at `position`: one that
    begins it, and before stream time `until_ms` one that ends it. The account's later bindings follow after it."""

    position: int
    from_ms: int
    effective_ms: int
    binding: Binding
    until_ms: int = 0
    begun: int = 0
    later: list[Binding] = field(default_factory=list)


@dataclass(slots=True)
class AccountHistory:
    """One account's bindings as they are now, who pays from when on, and its explicit closings: (start of the period,
    position of the record).

    A binding takes effect beyond every event that was accepted before it, or once all of them were counted again; so
    the way in which the account is cut now is right for all of its events. A customer may be named for usage that is
    already counted.
    """

    bindings: tuple[Binding, ...] = ()
    customers: tuple[Binding, ...] = ()
    has_payer: bool = False
    closings: list[tuple[int, int]] = field(default_factory=list)
    waiting: LateBinding | None = None
    restatements: list[tuple[int, int]] = field(default_factory=list)
    """(start of the first period concerned, start of the report bucket in which its usage is reported anew)."""

    @property
    def cut(self) -> tuple[Cutting, ...]:
        """How it is cut."""
        return cuttings(self.bindings)

    def customer_at(self, instant_ms: int) -> Binding | None:
        """The binding that says who pays at an instant, or None."""
        held = [binding for binding in self.customers if binding.effective_from_ms <= instant_ms]
        return held[-1] if held else None

    def re_reported(self, period_start_ms: int, bucket_start_ms: int) -> bool:
        """Whether a later report bucket replaces what this one reported of the period, because of a restatement."""
        return any(from_ms <= period_start_ms and bucket_start_ms < bucket for from_ms, bucket in self.restatements)

    def carrying_from_ms(self, stream_time_ms: int) -> int:
        """Where the period begins that takes carried usage: the first from stream time on that no record closed."""
        cut, closed = self.cut, {start_ms for start_ms, _ in self.closings}
        period = period_containing(cut, stream_time_ms)
        while period.start_ms in closed:
            period = period_containing(cut, period.end_ms)
        return period.start_ms


@dataclass(frozen=True, slots=True)
class History:
    """A partition's control records up to one position.

    `graces` are (position, grace_ms), ascending, never empty. `from_ms` and `to_ms` bound the event and stream times of
    everything archived below the position, but for events that were deferred, which may be older; (0, 0) where there is
    no meter set.
    """

    meters: tuple[MeterSpan, ...]
    reported: Mapping[str, tuple[Reported, ...]]
    graces: tuple[tuple[int, int], ...]
    accounts: Mapping[str, AccountHistory]
    definitions: Mapping[str, Meter]
    policy: Policy
    from_ms: int
    to_ms: int
    # The shortest span after their end for which any meter set kept periods in the live view.
    kept_ms: int

    def period(self, account: str, start_ms: int) -> Period:
        """The account's period that begins at `start_ms`, with its end as it is known now: views know a period by
        its start, and may have written it down before a binding cut it."""
        known = self.accounts.get(account)
        return Period(start_ms, period_containing(known.cut if known else (CALENDAR_MONTHS,), start_ms).end_ms)


def history_of(rows: Sequence[ControlRow], stream_time_ms: int) -> History:
    """The history of a partition's control rows (oldest first), read at stream time `stream_time_ms`.

    Raises `ValidationError` for a row that no version of the archive writes.
    """
    building = _Building()
    for row in rows:
        building.take(row)
    return building.finished(stream_time_ms)


class _Building:
    """Follows the rows; lives for one call."""

    def __init__(self) -> None:
        self.meter_set: MeterSet | None = None
        self.policy = Policy()
        self.policies = [self.policy]
        self.first_ms: int | None = None
        self.graces: list[tuple[int, int]] = []
        self.meters: dict[str, list[tuple[int, int]]] = {}
        self.reported: dict[str, list[tuple[int, int]]] = {}
        self.definitions: dict[str, Meter] = {}
        self.accounts: dict[str, AccountHistory] = {}

    def take(self, row: ControlRow) -> None:
        if self.first_ms is None:
            self.first_ms = row.stream_time_ms
        if row.kind == ControlKind.METER_SET:
            self._meter_set(row.position, MeterSetRecord.model_validate_json(row.value).meter_set)
        elif row.kind == ControlKind.BINDING:
            self._bind(row, BindingRecord.model_validate_json(row.value).binding)
        elif row.kind == ControlKind.CLOSE:
            self._close(row, CloseRecord.model_validate_json(row.value).instant_ms)
        elif row.kind == ControlKind.RESTATEMENT:
            self._restatement(row, RestatementRecord.model_validate_json(row.value))

    def _meter_set(self, position: int, meter_set: MeterSet) -> None:
        if self.meter_set is not None and meter_set.version <= self.meter_set.version:
            return
        self.meter_set, self.policy = meter_set, meter_set.policy
        self.policies.append(meter_set.policy)
        self.graces.append((position, meter_set.policy.grace_ms))
        _follow(self.meters, {meter.slug for meter in meter_set.meters}, position)
        _follow(self.reported, {meter.slug for meter in meter_set.meters if meter.stripe_event_name}, position)
        self.definitions.update((meter.slug, meter) for meter in meter_set.meters)

    def _bind(self, row: ControlRow, binding: Binding) -> None:
        """A binding waits where it takes effect in the past, or behind one that does."""
        account = self.accounts.setdefault(row.account, AccountHistory())
        if account.waiting is None:
            account.waiting = self._late(account, row, binding)
            if account.waiting is None:
                self._place(account, row, binding)
            return
        account.waiting.later.append(binding)
        if len(account.waiting.later) > WAITING_MAX:
            self._give_up(account, account.waiting, row)

    def _close(self, row: ControlRow, instant_ms: int) -> None:
        """The period of an instant takes no more usage; what was being counted again is begun anew."""
        account = self.accounts.setdefault(row.account, AccountHistory())
        account.closings.append((period_containing(account.cut, instant_ms).start_ms, row.position))
        if account.waiting is not None:
            account.waiting.position, account.waiting.until_ms = row.position, 0

    def _give_up(self, account: AccountHistory, waiting: LateBinding, row: ControlRow) -> None:
        """The binding takes effect beyond all usage, and then what came after it."""
        account.waiting = None
        for each in (waiting.binding, *waiting.later):
            self._place(account, row, each)

    def _place(self, account: AccountHistory, row: ControlRow, binding: Binding) -> None:
        """Bind at a whole minute beyond every event that could be accepted before the record, and not before the
        period that takes carried usage by then; it replaces those that would take effect with it or after it, save one
        that makes that period begin."""
        carrying_ms = account.carrying_from_ms(row.stream_time_ms)
        effective_ms = max(binding.effective_from_ms, self._beyond_ms(row), carrying_ms)
        self._set(account, binding, effective_ms, max(effective_ms, carrying_ms + 1))

    def _set(self, account: AccountHistory, binding: Binding, effective_ms: int, replacing_from_ms: int) -> None:
        kept = [held for held in account.bindings if held.effective_from_ms < replacing_from_ms]
        placed = binding.model_copy(update={"effective_from_ms": effective_ms})
        account.bindings = (*kept[-(BINDINGS_MAX - 1) :], placed)
        earlier = [held for held in account.customers if held.effective_from_ms < binding.effective_from_ms]
        account.customers = (*earlier[-(BINDINGS_MAX - 1) :], binding)
        account.has_payer = account.has_payer or binding.billing != Billing.UNMAPPED

    def _beyond_ms(self, row: ControlRow) -> int:
        return ((row.stream_time_ms + self.policy.future_ms) // MINUTE_MS + 1) * MINUTE_MS

    def _late(self, account: AccountHistory, row: ControlRow, binding: Binding) -> LateBinding | None:
        """The restatement that a binding asks for: where it would change periods that are not closed and may hold usage
        for which nobody was ever named to pay."""
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
        placed = binding.model_copy(update={"effective_from_ms": effective_ms})
        kept = [held for held in account.bindings if held.effective_from_ms < effective_ms]
        after = cuttings([*kept, placed])
        if [each for each in cut if each.from_ms < beyond_ms] == [each for each in after if each.from_ms < beyond_ms]:
            return None
        return LateBinding(row.position, period_containing(cut, effective_ms).start_ms, effective_ms, binding)

    def _restatement(self, row: ControlRow, record: RestatementRecord) -> None:
        account = self.accounts.get(row.account)
        waiting = account.waiting if account else None
        if account is None or waiting is None or waiting.position != record.position:
            return
        in_time = row.stream_time_ms < waiting.until_ms
        if record.begins and not in_time:
            begun = self._late(account, row, waiting.binding)
            if begun is None:
                self._give_up(account, waiting, row)
            else:
                begun.begun, begun.later = waiting.begun + 1, waiting.later
                begun.until_ms = row.stream_time_ms + RESTATEMENT_MS_MAX * 2 ** min(
                    waiting.begun, RESTATEMENT_DOUBLINGS_MAX
                )
                account.waiting = begun
        elif in_time and record.declined:
            self._give_up(account, waiting, row)
        elif in_time and not record.begins:
            account.waiting = None
            self._set(account, waiting.binding, waiting.effective_ms, waiting.effective_ms)
            interval_ms = self.policy.report_interval_ms
            account.restatements.append((waiting.from_ms, row.stream_time_ms // interval_ms * interval_ms))
            for each in waiting.later:
                self._place(account, row, each)

    def finished(self, stream_time_ms: int) -> History:
        window_ms = max(policy.window_ms for policy in self.policies)
        future_ms = max(policy.future_ms for policy in self.policies)
        return History(
            meters=tuple(
                MeterSpan(self.definitions[slug], *span) for slug, spans in self.meters.items() for span in spans
            ),
            reported={slug: tuple(Reported(*span) for span in spans) for slug, spans in self.reported.items()},
            graces=tuple(self.graces) or ((0, self.policy.grace_ms),),
            accounts=self.accounts,
            definitions=self.definitions,
            policy=self.policy,
            from_ms=(self.first_ms or 0) - window_ms,
            to_ms=max(stream_time_ms, self.first_ms or 0) + future_ms,
            kept_ms=min(policy.periods_kept_ms for policy in self.policies[1:] or self.policies),
        )


def _follow(spans: dict[str, list[tuple[int, int]]], now: set[str], position: int) -> None:
    """Open a span for what is new at this position, close the spans of what is gone."""
    for slug, held in spans.items():
        if slug not in now and held[-1][1] == POSITION_MAX:
            held[-1] = (held[-1][0], position)
    for slug in sorted(now):
        held = spans.setdefault(slug, [])
        if not held or held[-1][1] != POSITION_MAX:
            held.append((position, POSITION_MAX))
