"""Recognized and deferred revenue and retention for a span of days, as the commands and the HTTP API give them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.access.revenue import By, day_text, major, percent, read_recognition, read_revenue, retention, spans
from pipeline.open import side_tables_of
from pipeline.settings import Settings
from schemas.clock import DAY_MS
from schemas.currencies import currency_exponent
from schemas.recognition import Effect, Recognized
from schemas.revenue import MonthRevenue


async def recognition_in(settings: Settings, from_: str | None, to: str | None, by: By) -> Sequence[Recognized]:
    """Compute recognized and deferred revenue. Takes some seconds for each 100 000 invoices.

    Raises `Transient`, and `InvalidInput` as `spans`.
    """
    async with side_tables_of(settings) as (base, tables):
        return await read_recognition(tables.invoice_books, spans(base.clock.now_ms(), from_, to, by))


def span_document(start_day: int, end_day: int, currency: str) -> dict[str, Any]:
    """The first fields of every row: the first day, the day behind the last one, and the currency."""
    return {"from": day_text(start_day), "to": day_text(end_day), "currency": currency}


def recognized_document(row: Recognized) -> dict[str, Any]:
    """What was recognized, as JSON: decimal text in major units."""
    money = _money(row.currency)
    return {
        **span_document(row.start_day, row.end_day, row.currency),
        **{effect.value: money(row.effects.get(effect, 0)) for effect in Effect},
        "recognized": money(row.recognized),
        "bad_debt": money(row.bad_debt),
    }


def deferred_document(row: Recognized) -> dict[str, Any]:
    """What is billed and not earned, less what is earned and not billed, as JSON, and how that changed: `start` +
    `billed` + `taken_back` − `recognized` = `end` = `deferred` − `unbilled`."""
    money = _money(row.currency)
    return {
        **span_document(row.start_day, row.end_day, row.currency),
        "start": money(row.deferred_start - row.unbilled_start),
        "billed": money(row.billed),
        "taken_back": money(row.taken_back),
        "recognized": money(row.recognized),
        "end": money(row.deferred_end - row.unbilled_end),
        "deferred": money(row.deferred_end),
        "unbilled": money(row.unbilled_end),
    }


async def retention_in(settings: Settings, from_: str | None, to: str | None, by: By) -> Sequence[dict[str, Any]]:
    """The rows of `retention_document`. Raises as `recognition_in`, and `InvalidInput` before the first catalog."""
    async with side_tables_of(settings) as (base, tables):
        now_ms = base.clock.now_ms()
        days = spans(now_ms, from_, to, by)
        found = await read_revenue(tables.catalog, tables.revenue, now_ms, 1)
    return [retention_document(each, found.exponents) for each in retention(found, days)]


def retention_document(month: MonthRevenue, exponents: Mapping[str, int]) -> dict[str, Any]:
    """What became of the accounts that had recurring revenue at the start, as JSON."""

    def money(minor: int) -> str:
        return major(minor, exponents.get(month.currency, 2))

    return {
        **span_document(month.start_ms // DAY_MS, month.end_ms // DAY_MS, month.currency),
        "start": money(month.start_minor),
        "retained": money(month.retained_minor),
        "kept": money(month.kept_minor),
        "net_retention_percent": percent(month.retained_minor, month.start_minor),
        "gross_retention_percent": percent(month.kept_minor, month.start_minor),
        "end": money(month.end_minor),
        "annual": money(12 * month.end_minor),
    }


def _money(currency: str) -> Any:
    exponent = currency_exponent(currency)
    return lambda minor: major(minor, exponent)
