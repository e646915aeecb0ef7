"""The paths under `/v1/revenue`: recurring revenue and its movements, retention, cohorts, recognized and deferred."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Annotated, Any, Final

from fastapi import Query
from pydantic import Field
from starlette.responses import Response

from aggregators.instants import format_instant_ms
from aggregators.mrr import cohorts, months
from pipeline.access.revenue import By, Revenue, day_text, percent, read_recognition, read_revenue, retention, spans
from pipeline.http.dependencies import Finance, GatewayDependencies
from pipeline.http.errors import ApiError, json_answer, retry_after
from pipeline.http.models import Answer, Instant
from pipeline.http.queries import RevenueParameters
from schemas.clock import DAY_MS
from schemas.currencies import currency_exponent
from schemas.recognition import Effect, Recognized
from schemas.revenue import MovementKind, RevenueStores

# Each answer reads the whole history, so one is computed at a time, and so many wait.
WAITING_MAX: Final = 16


class SpanAnswer(Answer):
    """A span of days of one currency. Amounts are in minor units of the currency."""

    from_: str = Field(alias="from", description="The first day, in UTC.")
    to: str = Field(description="The day behind the last one.")
    currency: str
    exponent: int = Field(description="The number of decimals of the currency at Stripe.")


class MrrAnswer(SpanAnswer):
    """Monthly recurring revenue: `start` and all changes add up to `end`."""

    start: int
    new: int
    reactivation: int
    expansion: int
    contraction: int
    churn: int
    involuntary_churn: int
    end: int
    accounts: int = Field(description="How many accounts bring anything at the end.")
    annual: int = Field(description="Twelve times `end`.")


class MrrsAnswer(Answer):
    """Monthly recurring revenue by span and currency."""

    rows: list[MrrAnswer]
    unpriced_items: int = Field(description="Items with prices of no catalog, which are left out.")


class MovementAnswer(Answer):
    """A change of the monthly recurring revenue of an account, in minor units."""

    account: str
    currency: str
    exponent: int
    at: Instant
    kind: str = Field(description="One of the movements in docs/revenue.md.")
    before: int
    after: int
    change: int


class MovementsAnswer(Answer):
    """The movements of a span, oldest first."""

    rows: list[MovementAnswer]


class RetentionAnswer(SpanAnswer):
    """What the accounts of a span's start bring at its end."""

    start: int
    retained: int = Field(description="What the accounts of the start bring at the end.")
    kept: int = Field(description="The same, of each account at most what it brought at the start.")
    net_retention_percent: str | None = Field(description="Null of nothing.")
    gross_retention_percent: str | None
    end: int
    annual: int = Field(description="Twelve times `end`.")


class RetentionsAnswer(Answer):
    """Net and gross revenue retention by span and currency."""

    rows: list[RetentionAnswer]


class CohortAnswer(Answer):
    """The accounts whose first recurring revenue was in one span, at the end of that span and of each later one."""

    from_: str = Field(alias="from", description="The first day of the cohort's span, in UTC.")
    currency: str
    exponent: int
    amounts: list[int]
    accounts: list[int]
    percent: list[str | None] = Field(description="The share of the first amount.")


class CohortsAnswer(Answer):
    """The cohorts whose first span is one of those asked for."""

    rows: list[CohortAnswer]


class RecognizedAnswer(SpanAnswer):
    """What was recognized: `earned`, `breakage`, `credit_note` and `void` add up to `recognized`."""

    earned: int
    breakage: int
    credit_note: int
    void: int
    recognized: int
    bad_debt: int = Field(description="An expense, and no part of `recognized`.")


class RecognizedsAnswer(Answer):
    """Recognized revenue by span and currency."""

    rows: list[RecognizedAnswer]


class DeferredAnswer(SpanAnswer):
    """`start` + `billed` + `taken_back` − `recognized` = `end` = `deferred` − `unbilled`."""

    start: int
    billed: int
    taken_back: int = Field(description="What credit notes, voids and write-offs took off what was billed.")
    recognized: int
    end: int
    deferred: int = Field(description="Billed and not earned at the end.")
    unbilled: int = Field(description="Earned at the end, and on no final invoice then.")


class DeferredsAnswer(Answer):
    """Deferred revenue by span and currency."""

    rows: list[DeferredAnswer]


Parameters = Annotated[RevenueParameters, Query()]


class RevenueEndpoints:
    """The handlers. An app has one object. Each reads the whole history, one after the other: another request waits,
    and beyond `WAITING_MAX` requests the answer is 503."""

    def __init__(self, dependencies: GatewayDependencies) -> None:
        self._dependencies = dependencies
        self._turn = asyncio.Lock()
        self._waiting = 0

    def paths(self) -> Iterator[tuple[str, Callable[..., Any], str, type[Answer]]]:
        """Each path with its handler, what it is about, and the form of its answer."""
        yield "/v1/revenue/mrr", self.mrr, "Monthly recurring revenue", MrrsAnswer
        yield "/v1/revenue/movements", self.movements, "Changes of recurring revenue", MovementsAnswer
        yield "/v1/revenue/retention", self.retention, "Net and gross retention", RetentionsAnswer
        yield "/v1/revenue/cohorts", self.cohorts, "Accounts by their first revenue", CohortsAnswer
        yield "/v1/revenue/recognized", self.recognized, "Recognized revenue", RecognizedsAnswer
        yield "/v1/revenue/deferred", self.deferred, "Deferred revenue", DeferredsAnswer

    async def mrr(self, _key: Finance, parameters: Parameters) -> Response:
        """Monthly recurring revenue by span and currency."""
        days = self._days(parameters)

        def answer(found: Revenue) -> Answer:
            rows = [
                MrrAnswer(
                    **_span(each.start_ms // DAY_MS, each.end_ms // DAY_MS, each.currency),
                    **{kind.value: each.changes.get(kind, 0) for kind in MovementKind},
                    start=each.start_minor,
                    end=each.end_minor,
                    accounts=each.accounts,
                    annual=12 * each.end_minor,
                )
                for each in months(found.movements, _starts(days))
            ]
            return MrrsAnswer(rows=rows, unpriced_items=found.unpriced_items)

        return await self._replayed(answer)

    async def movements(self, _key: Finance, parameters: Parameters) -> Response:
        """Each change of recurring revenue in the span, oldest first. `by` changes nothing."""
        days = self._days(parameters)
        start_ms, end_ms = days[0] * DAY_MS, days[-1] * DAY_MS

        def answer(found: Revenue) -> Answer:
            own = sorted(found.movements, key=lambda each: (each.at_ms, each.account, each.currency))
            rows = [
                MovementAnswer(
                    account=each.account,
                    currency=each.currency,
                    exponent=currency_exponent(each.currency),
                    at=format_instant_ms(each.at_ms),
                    kind=each.kind.value,
                    before=each.before_minor,
                    after=each.after_minor,
                    change=each.change_minor,
                )
                for each in own
                if start_ms <= each.at_ms < end_ms
            ]
            return MovementsAnswer(rows=rows)

        return await self._replayed(answer)

    async def retention(self, _key: Finance, parameters: Parameters) -> Response:
        """Net and gross retention by span and currency; with `by=whole`, from the first day to the last."""
        days = self._days(parameters)

        def answer(found: Revenue) -> Answer:
            rows = [
                RetentionAnswer(
                    **_span(each.start_ms // DAY_MS, each.end_ms // DAY_MS, each.currency),
                    start=each.start_minor,
                    retained=each.retained_minor,
                    kept=each.kept_minor,
                    net_retention_percent=percent(each.retained_minor, each.start_minor),
                    gross_retention_percent=percent(each.kept_minor, each.start_minor),
                    end=each.end_minor,
                    annual=12 * each.end_minor,
                )
                for each in retention(found, days)
            ]
            return RetentionsAnswer(rows=rows)

        return await self._replayed(answer)

    async def cohorts(self, _key: Finance, parameters: Parameters) -> Response:
        """The accounts by the span of their first recurring revenue."""
        days = self._days(parameters)

        def answer(found: Revenue) -> Answer:
            rows = [
                CohortAnswer(
                    from_=day_text(each.start_ms // DAY_MS),
                    currency=each.currency,
                    exponent=currency_exponent(each.currency),
                    amounts=list(each.minor),
                    accounts=list(each.accounts),
                    percent=[percent(minor, each.minor[0]) for minor in each.minor],
                )
                for each in cohorts(found.movements, _starts(days))
            ]
            return CohortsAnswer(rows=rows)

        return await self._replayed(answer)

    async def recognized(self, _key: Finance, parameters: Parameters) -> Response:
        """Recognized revenue by span and currency."""

        def answer(found: Sequence[Recognized]) -> Answer:
            rows = [
                RecognizedAnswer(
                    **_span(each.start_day, each.end_day, each.currency),
                    **{effect.value: each.effects.get(effect, 0) for effect in Effect},
                    recognized=each.recognized,
                    bad_debt=each.bad_debt,
                )
                for each in found
            ]
            return RecognizedsAnswer(rows=rows)

        return await self._recognition(self._days(parameters), answer)

    async def deferred(self, _key: Finance, parameters: Parameters) -> Response:
        """Deferred revenue by span and currency."""

        def answer(found: Sequence[Recognized]) -> Answer:
            rows = [
                DeferredAnswer(
                    **_span(each.start_day, each.end_day, each.currency),
                    start=each.deferred_start - each.unbilled_start,
                    billed=each.billed,
                    taken_back=each.taken_back,
                    recognized=each.recognized,
                    end=each.deferred_end - each.unbilled_end,
                    deferred=each.deferred_end,
                    unbilled=each.unbilled_end,
                )
                for each in found
            ]
            return DeferredsAnswer(rows=rows)

        return await self._recognition(self._days(parameters), answer)

    def _days(self, parameters: RevenueParameters) -> Sequence[int]:
        now_ms = self._dependencies.clock.now_ms()
        return spans(now_ms, parameters.from_, parameters.to, By(parameters.by))

    async def _replayed(self, answer: Callable[[Revenue], Answer]) -> Response:
        async def read(stores: RevenueStores) -> Answer:
            now_ms = self._dependencies.clock.now_ms()
            return answer(await read_revenue(stores.catalog, stores.changes, now_ms, 1))

        return await self._in_turn(read)

    async def _recognition(self, days: Sequence[int], answer: Callable[[Sequence[Recognized]], Answer]) -> Response:
        async def read(stores: RevenueStores) -> Answer:
            return answer(await read_recognition(stores.books, days))

        return await self._in_turn(read)

    async def _in_turn(self, read: Callable[[RevenueStores], Awaitable[Answer]]) -> Response:
        revenue = self._dependencies.revenue
        if revenue is None:
            raise ApiError(501, "not_configured", "this gateway knows no revenue: set TIDEMARK_SQL_URL")
        if self._waiting >= WAITING_MAX:
            raise ApiError(503, "overloaded", "too many wait for revenue: ask again later", headers=retry_after(5))
        self._waiting += 1
        try:
            async with self._turn:
                return json_answer(await read(await revenue()))
        finally:
            self._waiting -= 1


def _span(start_day: int, end_day: int, currency: str) -> dict[str, Any]:
    names = {"from_": day_text(start_day), "to": day_text(end_day)}
    return {**names, "currency": currency, "exponent": currency_exponent(currency)}


def _starts(days: Sequence[int]) -> Sequence[int]:
    return [day * DAY_MS for day in days]
