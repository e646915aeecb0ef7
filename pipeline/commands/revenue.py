"""The commands about recurring revenue: months, movements and cohorts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from aggregators.instants import format_instant_ms
from pipeline.access.revenue import Revenue, major, percent, read_revenue
from pipeline.open import side_tables_of
from pipeline.settings import Settings
from schemas.revenue import Cohort, MonthRevenue, Movement, MovementKind

MOVEMENT_COLUMNS: Final = ("account", "currency", "at", "kind", "before", "after", "change")


async def revenue(settings: Settings, months_back: int) -> Revenue:
    """Replay the audit of all accounts. Takes some seconds for each 100 000 rows.

    Raises `Transient`, and `InvalidInput` before the first catalog.
    """
    async with side_tables_of(settings) as (base, tables):
        return await read_revenue(tables.catalog, tables.revenue, base.clock.now_ms(), months_back)


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
