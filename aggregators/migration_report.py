"""What a migration means for the business: who is how far, who pays more, and which month brings no cash."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from aggregators.flat_to_metered import OVER
from aggregators.instants import civil_from_days
from schemas.clock import DAY_MS
from schemas.flat_to_metered import Item, ItemState, Migration

# From the last month at the flat price on.
MONTHS: Final = 4
_NOT_MOVED: Final = (*OVER, ItemState.RETURNING)


class WaveRow(NamedTuple):
    """A wave: how many subscriptions are in each state, and what is not charged when the metered periods of those that
    are moved begin, by currency."""

    wave: int
    states: Mapping[ItemState, int]
    gap_minor: Mapping[str, int]


class Effect(NamedTuple):
    """What changes in one currency for those that are moved, for a period. `unknown` have no figure yet."""

    currency: str
    exponent: int
    before_minor: int
    after_minor: int
    more: int
    more_minor: int
    less: int
    less_minor: int
    same: int
    unknown: int


class CashRow(NamedTuple):
    """What is charged in a month of one currency, without the migration and with it. Those without a figure are counted
    at the flat price."""

    currency: str
    exponent: int
    month: str
    before_minor: int
    after_minor: int


class Report(NamedTuple):
    """A migration for people."""

    migration: Migration
    waves: Sequence[WaveRow]
    effects: Sequence[Effect]
    cash: Sequence[CashRow]
    items: Sequence[Item]

    @property
    def moved(self) -> list[Item]:
        """The subscriptions that are moved or will be."""
        return [item for item in self.items if item.state not in _NOT_MOVED]

    @property
    def problems(self) -> list[Item]:
        """The subscriptions that differ."""
        return [item for item in self.items if item.problem and item.state not in OVER]

    @property
    def waiting(self) -> list[Item]:
        """The subscriptions that wait for something."""
        return [item for item in self.items if item.note and not item.problem]

    @property
    def credits(self) -> list[Item]:
        """The subscriptions that went back and paid more than the flat price meanwhile."""
        return [item for item in self.items if item.figures.credit_minor]


def report_of(migration: Migration, items: Sequence[Item]) -> Report:
    """The report of a migration."""
    waves = [_wave(number, items) for number in sorted({item.wave for item in items})]
    moved = [item for item in items if item.state not in _NOT_MOVED]
    currencies = sorted({(item.figures.currency, item.figures.exponent) for item in moved})
    effects, cash = [], list[CashRow]()
    for currency, exponent in currencies:
        own = [item for item in moved if item.figures.currency == currency]
        effects.append(_effect(currency, exponent, own))
        cash += _cash(currency, exponent, own)
    return Report(migration, waves, effects, cash, items)


def _wave(number: int, items: Iterable[Item]) -> WaveRow:
    own = [item for item in items if item.wave == number]
    flat: Counter[str] = Counter()
    for item in own:
        if item.state not in _NOT_MOVED:
            flat[item.figures.currency] += item.figures.gap_minor
    return WaveRow(number, Counter(item.state for item in own), dict(flat))


def _effect(currency: str, exponent: int, items: Iterable[Item]) -> Effect:
    found = Effect(currency, exponent, 0, 0, 0, 0, 0, 0, 0, 0)
    for item in items:
        future = item.figures.future_minor
        if future is None:
            found = found._replace(unknown=found.unknown + 1)
            continue
        change = future - item.figures.flat_minor
        found = found._replace(
            before_minor=found.before_minor + item.figures.flat_minor,
            after_minor=found.after_minor + future,
            more=found.more + (change > 0),
            more_minor=found.more_minor + max(change, 0),
            less=found.less + (change < 0),
            less_minor=found.less_minor + min(change, 0),
            same=found.same + (not change),
        )
    return found


def _cash(currency: str, exponent: int, items: Sequence[Item]) -> list[CashRow]:
    """By month: the flat price until the metered period begins, nothing in that month, and then the usage of the month
    before. Those that are not scheduled yet are counted as if they were moved as early as possible."""
    starts = {item.subscription: _starts(item) for item in items}
    first = min(starts.values(), default=0) - 1
    rows = []
    for month in range(first, first + MONTHS) if items else ():
        before = after = 0
        for item in items:
            flat, future = item.figures.flat_minor, item.figures.future_minor
            before += flat
            is_later = month > starts[item.subscription]
            if month < starts[item.subscription] or (is_later and future is None):
                after += flat
            elif is_later:
                after += future or 0
            else:
                after += item.figures.fees_minor
        rows.append(CashRow(currency, exponent, f"{month // 12}-{month % 12 + 1:02d}", before, after))
    return rows


def _starts(item: Item) -> int:
    """The month in which the metered period begins. A shadow takes a whole period first."""
    month = _month(item.figures.promoted_ms or item.renews_ms)
    return month + (item.state in (ItemState.PLANNED, ItemState.SHADOW) and item.figures.compared is None)


def _month(instant_ms: int) -> int:
    year, month, _ = civil_from_days(instant_ms // DAY_MS)
    return year * 12 + month - 1
