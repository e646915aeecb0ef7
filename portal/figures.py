"""The figures of the finance dashboard, as tables that the page and the CSV files share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from itertools import dropwhile
from typing import Final, NamedTuple, Protocol

from aggregators.instants import civil_from_days
from schemas.clock import DAY_MS
from schemas.currencies import currency_exponent
from schemas.dunning import Recovery
from schemas.recognition import Effect, Recognized
from schemas.revenue import Cohort, MonthRevenue, Movement, MovementKind
from schemas.upgrades import Money

# Under it, failed payments take more than they should: the alert's threshold too.
RECOVERY_PERCENT_MIN: Final = 30
KINDS: Final[Mapping[MovementKind, str]] = {
    MovementKind.NEW: "New",
    MovementKind.REACTIVATION: "Reactivation",
    MovementKind.EXPANSION: "Expansion",
    MovementKind.CONTRACTION: "Contraction",
    MovementKind.CHURN: "Churn",
    MovementKind.INVOLUNTARY_CHURN: "Unpaid churn",
}
_MONTHS: Final = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip


class UsageMonth(NamedTuple):
    """What final invoices bill for usage whose period ended in a month, net, in minor units."""

    start_ms: int
    currency: str
    amount_minor: int


class Figures(NamedTuple):
    """What the dashboard shows.

    `starts_ms`: the starts of its months, the last of them the running one, and the end of that. `recognized` has the
    same months, the running one with today as its last day. `unpriced_items`: items with prices of no catalog, which
    are left out.
    """

    now_ms: int
    starts_ms: Sequence[int]
    movements: Sequence[Movement]
    months: Sequence[MonthRevenue]
    cohorts: Sequence[Cohort]
    recognized: Sequence[Recognized]
    recoveries: Sequence[Recovery]
    usage: Sequence[UsageMonth]
    unpriced_items: int = 0

    @property
    def currencies(self) -> Sequence[str]:
        """The currencies that have any figure, by name."""
        found = {each.currency for each in self.months} | {each.currency for each in self.recognized}
        found |= {each.currency for each in self.recoveries} | {each.currency for each in self.usage}
        return sorted(found)


def days_until(now_ms: int, starts_ms: Sequence[int]) -> Sequence[int]:
    """The days at which the months begin, and tomorrow: what the running month earns later is not earned yet."""
    return [*(each // DAY_MS for each in starts_ms[:-1]), now_ms // DAY_MS + 1]


class FinanceBooks(Protocol):
    """Reads the figures. May raise `Transient`, and `InvalidInput` before the first catalog."""

    async def figures(self) -> Figures:
        """The figures of the last months, at most a minute old."""
        ...


class Percent(NamedTuple):
    """A share; None of nothing."""

    tenths: int | None


class Mark(NamedTuple):
    """A share that is too low."""

    percent: Percent


Cell = str | int | Money | Percent | Mark


class Table(NamedTuple):
    """One table. `columns` have the name in a CSV file, and the head on the page."""

    name: str
    title: str
    columns: Sequence[tuple[str, str]]
    rows: Sequence[Sequence[Cell]]


def share(part: int, whole: int) -> Percent:
    """A share with one decimal, rounded half up."""
    return Percent((2_000 * part + whole) // (2 * whole) if whole > 0 else None)


def month_name(start_ms: int) -> str:
    """A month for machines, such as `2026-10`."""
    year, month, _ = civil_from_days(start_ms // DAY_MS)
    return f"{year:04d}-{month:02d}"


def month_words(start_ms: int) -> str:
    """A month for people, such as `October 2026`."""
    year, month, _ = civil_from_days(start_ms // DAY_MS)
    return f"{_MONTHS[month - 1]} {year}"


def day_name(instant_ms: int) -> str:
    """A day in UTC, such as `2026-10-03`."""
    year, month, day = civil_from_days(instant_ms // DAY_MS)
    return f"{year:04d}-{month:02d}-{day:02d}"


def money(currency: str, minor: int) -> Money:
    """An amount with the exponent of its currency."""
    return Money(minor, currency, currency_exponent(currency))


def months_of(figures: Figures, currency: str) -> Sequence[MonthRevenue]:
    """The months of a currency since it had any recurring revenue, the newest first."""
    own = [each for each in figures.months if each.currency == currency]
    return list(dropwhile(lambda each: not (each.start_minor or each.end_minor or each.changes), own))[::-1]


def earned_of(figures: Figures, currency: str) -> Sequence[Recognized]:
    """The months of a currency since anything was billed or earned, the newest first."""
    own = [each for each in figures.recognized if each.currency == currency]
    return list(dropwhile(lambda each: not (each.billed or each.recognized or each.deferred_end), own))[::-1]


def recurring_in(figures: Figures, currency: str, start_ms: int, end_ms: int) -> Fraction:
    """What recurring revenue brings in a month, in minor units: each change counts from its instant on."""
    own = [each for each in figures.movements if each.currency == currency and each.at_ms < end_ms]
    return Fraction(sum(each.change_minor * (end_ms - max(each.at_ms, start_ms)) for each in own), end_ms - start_ms)


def tables(figures: Figures, currency: str) -> Sequence[Table]:
    """All tables of a currency."""
    return [
        _movements_by_month(figures, currency),
        _kept(figures, currency),
        _earned(figures, currency),
        _usage(figures, currency),
        _cohorts(figures, currency),
        _recovery(figures, currency),
    ]


def _movements_by_month(figures: Figures, currency: str) -> Table:
    columns = [("month", "Month"), ("start", "Start"), *((kind.value, head) for kind, head in KINDS.items())]
    rows: list[Sequence[Cell]] = [
        [
            month_name(each.start_ms),
            money(currency, each.start_minor),
            *(money(currency, each.changes.get(kind, 0)) for kind in KINDS),
            money(currency, each.end_minor),
        ]
        for each in months_of(figures, currency)
    ]
    return Table("mrr", "Monthly recurring revenue", [*columns, ("end", "End")], rows)


def _kept(figures: Figures, currency: str) -> Table:
    columns = [
        ("month", "Month"), ("accounts", "Accounts"), ("annual", "ARR"), ("net_retention_percent", "NRR"),
        ("gross_retention_percent", "GRR"),
    ]  # fmt: skip
    rows: list[Sequence[Cell]] = [
        [
            month_name(each.start_ms),
            each.accounts,
            money(currency, 12 * each.end_minor),
            share(each.retained_minor, each.start_minor),
            share(each.kept_minor, each.start_minor),
        ]
        for each in months_of(figures, currency)
    ]
    return Table("retention", "Retention and yearly run rate", columns, rows)


def _earned(figures: Figures, currency: str) -> Table:
    columns = [
        ("month", "Month"), ("recognized", "Earned"), ("billed", "Billed"), ("taken_back", "Taken back"),
        ("bad_debt", "Bad debt"), ("deferred_start", "Deferred at start"), ("deferred_end", "Deferred at end"),
        ("unbilled_end", "Unbilled at end"),
    ]  # fmt: skip
    rows: list[Sequence[Cell]] = []
    for each in earned_of(figures, currency):
        amounts = (
            each.recognized, each.billed, each.taken_back, each.bad_debt, each.deferred_start, each.deferred_end,
            each.unbilled_end,
        )  # fmt: skip
        rows.append([month_name(each.start_day * DAY_MS), *(money(currency, minor) for minor in amounts)])
    return Table("deferred", "Earned and deferred revenue", columns, rows)


def _usage(figures: Figures, currency: str) -> Table:
    rows: list[Sequence[Cell]] = [
        [month_name(each.start_ms), money(currency, each.amount_minor)]
        for each in reversed(figures.usage)
        if each.currency == currency
    ]
    return Table("usage", "Usage revenue", [("month", "Period ended in"), ("amount", "Billed usage")], rows)


def _cohorts(figures: Figures, currency: str) -> Table:
    own = [each for each in reversed(figures.cohorts) if each.currency == currency]
    ages = max((len(each.minor) for each in own), default=0)
    columns = [("month", "First month"), ("accounts", "Accounts"), ("first", "Brought then")]
    columns += [(f"percent_{age}", f"+{age}") for age in range(1, ages)]
    rows: list[Sequence[Cell]] = [
        [
            month_name(each.start_ms),
            each.accounts[0],
            money(currency, each.minor[0]),
            *(share(minor, each.minor[0]) for minor in each.minor[1:]),
            *[""] * (ages - len(each.minor)),
        ]
        for each in own
    ]
    return Table("cohorts", "Cohorts", columns, rows)


def _recovery(figures: Figures, currency: str) -> Table:
    columns = [
        ("month", "First failure in"), ("cases", "Cases"), ("recovered", "Recovered"), ("percent", "Rate"),
        ("amount", "Amount"), ("recovered_amount", "Recovered amount"), ("amount_percent", "Rate of amount"),
        ("running", "Still open"),
    ]  # fmt: skip
    rows: list[Sequence[Cell]] = [
        [
            month_name(each.opened_from_ms),
            each.opened,
            each.recovered,
            _marked(each.recovered, each.opened, each.running),
            Money(each.opened_minor, currency, each.exponent),
            Money(each.recovered_minor, currency, each.exponent),
            _marked(each.recovered_minor, each.opened_minor, each.running),
            each.running,
        ]
        for each in reversed(figures.recoveries)
        if each.currency == currency and each.opened
    ]
    return Table("recovery", "Recovery of failed payments", columns, rows)


def _marked(part: int, whole: int, running: int) -> Percent | Mark:
    """A rate, marked if it is low and no case can raise it any more."""
    found = share(part, whole)
    is_low = found.tenths is not None and found.tenths < 10 * RECOVERY_PERCENT_MIN
    return Mark(found) if is_low and not running else found


def moves(figures: Figures, currency: str, start_ms: int, end_ms: int) -> Table:
    """The changes of a month, the greatest first: which accounts moved, when and why."""
    columns = [("account", "Account"), ("day", "Day"), ("kind", "Why"), ("before", "Before"), ("after", "After")]
    found = [each for each in figures.movements if each.currency == currency and start_ms <= each.at_ms < end_ms]
    found.sort(key=lambda each: (-abs(each.change_minor), each.account, each.at_ms))
    rows: list[Sequence[Cell]] = [
        [
            each.account,
            day_name(each.at_ms),
            KINDS[each.kind],
            *(money(currency, minor) for minor in (each.before_minor, each.after_minor, each.change_minor)),
        ]
        for each in found
    ]
    return Table("movements", "Which accounts moved", [*columns, ("change", "Change")], rows)


def csv_value(cell: Cell) -> str:
    """A cell in a CSV file: amounts in major units, shares in percent, both without signs of their unit."""
    if isinstance(cell, Mark):
        cell = cell.percent
    if isinstance(cell, Money):
        return f"{Decimal(cell.minor).scaleb(-cell.exponent):.{cell.exponent}f}"
    if isinstance(cell, Percent):
        return "" if cell.tenths is None else str(Decimal(cell.tenths).scaleb(-1))
    return str(cell)


EFFECT_WORDS: Final[Mapping[Effect, str]] = {
    Effect.EARNED: "days that passed, usage, and credits that were drawn",
    Effect.BREAKAGE: "credits that expired",
    Effect.CREDIT_NOTE: "credit notes",
    Effect.VOID: "void invoices",
}
