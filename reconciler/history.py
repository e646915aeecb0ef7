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
from schemas.control import AccountRecord, CatalogRecord, CloseRecord, ControlKind
from schemas.meters import Catalog, Meter, Policy
from schemas.periods import Binding, Period

POSITION_MAX: Final = (1 << 56) - 1
BINDINGS_MAX: Final = 100


class Reported(NamedTuple):
    """The positions `[from_position, before_position)` at which a meter had a Stripe event name."""

    from_position: int
    before_position: int


@dataclass(slots=True)
class AccountHistory:
    """One account's bindings as they are now, who pays from when on, and its explicit closings: (start of the period,
    position of the record).

    A binding takes effect beyond every event that was accepted before it, so the way in which the account is cut now
    is right for all of its events. A customer may be named for usage that is already counted; a period is never cut
    there.
    """

    bindings: tuple[Binding, ...] = ()
    customers: tuple[Binding, ...] = ()
    closings: list[tuple[int, int]] = field(default_factory=list)

    @property
    def cut(self) -> tuple[Cutting, ...]:
        """How it is cut."""
        return cuttings(self.bindings)

    def customer_at(self, instant_ms: int) -> Binding | None:
        """The binding that says who pays at an instant, or None."""
        held = [binding for binding in self.customers if binding.effective_from_ms <= instant_ms]
        return held[-1] if held else None

    def carrying_from_ms(self, log_time_ms: int) -> int:
        """Where the period begins that takes carried usage: the first from log time on that no record closed."""
        cut, closed = self.cut, {start_ms for start_ms, _ in self.closings}
        period = period_containing(cut, log_time_ms)
        while period.start_ms in closed:
            period = period_containing(cut, period.end_ms)
        return period.start_ms


@dataclass(frozen=True, slots=True)
class History:
    """A partition's control records up to one position.

    `graces` are (position, grace_ms), ascending, never empty. `from_ms` and `to_ms` bound the event and log times of
    everything archived below the position, but for events that were parked, which may be older; (0, 0) where there is
    no catalog.
    """

    meters: tuple[MeterSpan, ...]
    reported: Mapping[str, tuple[Reported, ...]]
    graces: tuple[tuple[int, int], ...]
    accounts: Mapping[str, AccountHistory]
    definitions: Mapping[str, Meter]
    policy: Policy
    from_ms: int
    to_ms: int
    # The shortest span after their end for which any catalog kept periods in the live view.
    kept_ms: int

    def period(self, account: str, start_ms: int) -> Period:
        """The account's period that begins at `start_ms`, with its end as it is known now: views know a period by
        its start, and may have written it down before a binding cut it."""
        known = self.accounts.get(account)
        return Period(start_ms, period_containing(known.cut if known else (CALENDAR_MONTHS,), start_ms).end_ms)


def history_of(rows: Sequence[ControlRow], log_time_ms: int) -> History:
    """The history of a partition's control rows (oldest first), read at log time `log_time_ms`.

    Raises `ValidationError` for a row that no version of the archive writes.
    """
    building = _Building()
    for row in rows:
        building.take(row)
    return building.finished(log_time_ms)


class _Building:
    """Follows the rows; lives for one call."""

    def __init__(self) -> None:
        self.catalog: Catalog | None = None
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
            self.first_ms = row.log_time_ms
        if row.kind == ControlKind.CATALOG:
            self._catalog(row.position, CatalogRecord.model_validate_json(row.value).catalog)
        elif row.kind == ControlKind.ACCOUNT:
            self._bind(row, AccountRecord.model_validate_json(row.value).binding)
        elif row.kind == ControlKind.CLOSE:
            account = self.accounts.setdefault(row.account, AccountHistory())
            instant_ms = CloseRecord.model_validate_json(row.value).instant_ms
            account.closings.append((period_containing(account.cut, instant_ms).start_ms, row.position))

    def _catalog(self, position: int, catalog: Catalog) -> None:
        if self.catalog is not None and catalog.version <= self.catalog.version:
            return
        self.catalog, self.policy = catalog, catalog.policy
        self.policies.append(catalog.policy)
        self.graces.append((position, catalog.policy.grace_ms))
        _follow(self.meters, {meter.slug for meter in catalog.meters}, position)
        _follow(self.reported, {meter.slug for meter in catalog.meters if meter.stripe_event_name}, position)
        self.definitions.update((meter.slug, meter) for meter in catalog.meters)

    def _bind(self, row: ControlRow, binding: Binding) -> None:
        """A binding takes effect at a whole minute beyond every event that could be accepted before its record, and
        not before the period that takes carried usage by then; it replaces those that would take effect with it or
        after it, save one that makes that period begin."""
        account = self.accounts.setdefault(row.account, AccountHistory())
        whole_minutes = (row.log_time_ms + self.policy.future_ms) // MINUTE_MS
        carrying_ms = account.carrying_from_ms(row.log_time_ms)
        effective_ms = max(binding.effective_from_ms, (whole_minutes + 1) * MINUTE_MS, carrying_ms)
        kept = [held for held in account.bindings if held.effective_from_ms < max(effective_ms, carrying_ms + 1)]
        placed = binding.model_copy(update={"effective_from_ms": effective_ms})
        account.bindings = (*kept[-(BINDINGS_MAX - 1) :], placed)
        earlier = [held for held in account.customers if held.effective_from_ms < binding.effective_from_ms]
        account.customers = (*earlier[-(BINDINGS_MAX - 1) :], binding)

    def finished(self, log_time_ms: int) -> History:
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
            to_ms=max(log_time_ms, self.first_ms or 0) + future_ms,
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
