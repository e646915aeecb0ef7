"""The commands about recurring revenue: months, movements and cohorts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final, NamedTuple

from aggregators.instants import format_instant_ms
from aggregators.mrr import account_revenue, cohorts, months
from aggregators.plan_offer import amount_of
from pipeline.access.dunning import month_starts
from pipeline.changes.parts import shop_of
from pipeline.open import side_tables_of
from pipeline.settings import Settings
from schemas.catalog_changes import CatalogStore
from schemas.revenue import AuditChange, Cohort, MonthRevenue, Movement, MovementKind, RevenueStore

MOVEMENT_COLUMNS: Final = ("account", "currency", "at", "kind", "before", "after", "change")
_PERCENT_PLACES: Final = Decimal("0.1")


class Revenue(NamedTuple):
    """The movements of all accounts, and what no catalog has a price for. `exponents` by currency."""

    movements: Sequence[Movement]
    unpriced_items: int
    exponents: Mapping[str, int]
    starts_ms: Sequence[int]

    @property
    def months(self) -> Sequence[MonthRevenue]:
        return months(self.movements, self.starts_ms)

    @property
    def cohorts(self) -> Sequence[Cohort]:
        return cohorts(self.movements, self.starts_ms)


async def revenue(settings: Settings, months_back: int) -> Revenue:
    """Replay the audit of all accounts. Takes some seconds for each 100 000 rows.

    Raises `Transient`, and `InvalidInput` before the first catalog.
    """
    async with side_tables_of(settings) as (base, tables):
        return await read_revenue(tables.catalog, tables.revenue, base.clock.now_ms(), months_back)


async def read_revenue(catalog: CatalogStore, store: RevenueStore, now_ms: int, months_back: int) -> Revenue:
    """As `revenue`, from stores."""
    shop = await shop_of(catalog)

    def amount(price: str, quantity: int, currency: str) -> Fraction | None:
        return amount_of(shop, price, quantity, currency)

    found: list[Movement] = []
    unpriced = 0
    async for changes in store.changes():
        unpriced += _replayed(changes, amount, now_ms, found)
    return Revenue(found, unpriced, shop.commerce.catalog.currencies, month_starts(now_ms, months_back))


def _replayed(
    changes: Sequence[AuditChange],
    amount: Callable[[str, int, str], Fraction | None],
    now_ms: int,
    found: list[Movement],
) -> int:
    own = account_revenue(changes, amount, now_ms)
    found += own.movements
    return own.unpriced_items


def major(minor: int, exponent: int) -> str:
    """An amount as decimal text in major units, such as `149.00`."""
    return f"{Decimal(minor).scaleb(-exponent):.{exponent}f}"


def percent(part: int, whole: int) -> str | None:
    """A share in percent with one decimal, rounded half up; None of nothing."""
    if not whole:
        return None
    return str(Decimal((2_000 * part + whole) // (2 * whole)).scaleb(-1).quantize(_PERCENT_PLACES))


def month_document(month: MonthRevenue, exponents: Mapping[str, int]) -> dict[str, Any]:
    """A month as JSON. Amounts are decimal text in major units for a month, shares in percent."""

    def money(minor: int) -> str:
        return major(minor, exponents.get(month.currency, 2))

    return {
        "month": format_instant_ms(month.start_ms)[:7],
        "currency": month.currency,
        "start": money(month.start_minor),
        **{kind.value: money(month.changes.get(kind, 0)) for kind in MovementKind},
        "end": money(month.end_minor),
        "accounts": month.accounts,
        "net_retention_percent": percent(month.retained_minor, month.start_minor),
        "gross_retention_percent": percent(month.kept_minor, month.start_minor),
        "annual": money(12 * month.end_minor),
    }


def movement_rows(found: Iterable[Movement], exponents: Mapping[str, int]) -> Iterable[Sequence[str]]:
    """The rows of `MOVEMENT_COLUMNS`."""
    for each in found:
        exponent = exponents.get(each.currency, 2)
        amounts = (each.before_minor, each.after_minor, each.change_minor)
        yield (
            each.account,
            each.currency,
            format_instant_ms(each.at_ms),
            each.kind.value,
            *(major(minor, exponent) for minor in amounts),
        )


def cohort_document(cohort: Cohort, exponents: Mapping[str, int]) -> dict[str, Any]:
    """A cohort as JSON: what it brings at the end of its first month and of each later one."""
    exponent = exponents.get(cohort.currency, 2)
    return {
        "month": format_instant_ms(cohort.start_ms)[:7],
        "currency": cohort.currency,
        "amounts": [major(minor, exponent) for minor in cohort.minor],
        "accounts": list(cohort.accounts),
        "percent": [percent(minor, cohort.minor[0]) for minor in cohort.minor],
    }
