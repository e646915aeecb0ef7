"""What revenue is computed from, read and replayed: for the commands, the HTTP API and the dashboard."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction
from typing import Final, NamedTuple

from aggregators.instants import civil_from_days, days_from_civil, month_days
from aggregators.mrr import AmountOf, account_revenue, cohorts, months
from aggregators.plan_offer import amount_of
from aggregators.recognition import Totals
from pipeline.access.dunning import month_starts
from pipeline.changes.parts import shop_of
from schemas.catalog_changes import CatalogStore
from schemas.clock import DAY_MS
from schemas.errors import InvalidInput
from schemas.recognition import InvoiceBooks, Recognized
from schemas.revenue import AuditChange, Cohort, MonthRevenue, Movement, RevenueStore

_PERCENT_PLACES: Final = Decimal("0.1")
# Rows of an answer for each currency; a year of days.
SPANS_MAX: Final = 400
_DATE: Final = re.compile(r"([0-9]{4})-([0-9]{2})(?:-([0-9]{2}))?")


class By(StrEnum):
    """How a span is divided: in months or days of UTC, or not at all."""

    MONTH = "month"
    DAY = "day"
    WHOLE = "whole"


def day_of(field: str, text: str) -> int:
    """The day of `2027-03-01`, or the first of `2027-03`. Raises `InvalidInput` with the field."""
    found = _DATE.fullmatch(text)
    year, month, day = (int(each or 1) for each in found.groups()) if found else (0, 0, 0)
    if not (1970 <= year <= 9998 and 1 <= month <= 12 and 1 <= day <= month_days(year, month)):
        raise InvalidInput(field, f"{text!a:.40} is no day in UTC: write 2027-03-01, or 2027-03 for its first day")
    return days_from_civil(year, month, day)


def day_text(day: int) -> str:
    """A day as `2027-03-01`."""
    return "{:04}-{:02}-{:02}".format(*civil_from_days(day))


def spans(now_ms: int, from_: str | None, to: str | None, by: By) -> Sequence[int]:
    """The days at which spans of `[from_, to)` begin, and the end of the last one.

    Without `from_` and `to`, the six months of which this is the last. Raises `InvalidInput` if the end is not behind
    the begin, or beyond `SPANS_MAX` spans.
    """
    year, month, _ = civil_from_days(now_ms // DAY_MS)
    end = _month(12 * year + month) if to is None else day_of("to", to)
    last_year, last_month, _ = civil_from_days(end - 1)
    start = _month(12 * last_year + last_month - 6) if from_ is None else day_of("from", from_)
    if start >= end:
        raise InvalidInput("to", f"{day_text(end)} is not behind {day_text(start)}: name the first day after the span")
    if by is By.WHOLE:
        return [start, end]
    if by is By.DAY:
        found = [*range(start, end), end]
    else:
        first_year, first_month, _ = civil_from_days(start)
        months = range(12 * first_year + first_month, 12 * last_year + last_month)
        found = [start, *(_month(number) for number in months), end]
    if len(found) > SPANS_MAX + 1:
        raise InvalidInput("from", f"{len(found) - 1} rows are more than {SPANS_MAX}: name a shorter span, or months")
    return found


def _month(number: int) -> int:
    """The first day of a month, counted from the January of the year 0."""
    return days_from_civil(number // 12, number % 12 + 1, 1)


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


async def amounts_of(catalog: CatalogStore) -> AmountOf | None:
    """What items cost by the catalog; None before the first one. Raises `Transient`."""
    if (await catalog.standing()).catalog is None:
        return None
    shop = await shop_of(catalog)
    return lambda price, quantity, currency: amount_of(shop, price, quantity, currency)


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


async def read_recognition(books: InvoiceBooks, days: Sequence[int]) -> Sequence[Recognized]:
    """As `recognition_in`, from a store, for the spans between consecutive days."""
    totals = Totals(days)
    async for page in books.books():
        # A page takes some tenths of a second, in which a gateway answers others.
        await asyncio.to_thread(totals.add, page)
    return totals.rows()


def retention(found: Revenue, days: Sequence[int]) -> Sequence[MonthRevenue]:
    """The spans between consecutive days, of each currency."""
    return months(found.movements, [day * DAY_MS for day in days])
