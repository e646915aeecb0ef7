"""`GET /v1/dunning/cases` for the business, and `GET /v1/accounts/{account}/banners` for the application."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import Query
from pydantic import Field
from starlette.responses import Response

from aggregators.dunning_words import banner_text
from aggregators.instants import format_instant_ms
from pipeline.http.dependencies import GatewayDependencies, Operator, Reader
from pipeline.http.errors import ApiError, json_answer, retry_after
from pipeline.http.models import Answer, Instant, MoneyAnswer
from pipeline.http.queries import AccountInPath, DunningParameters
from schemas.dunning import DunningStore, ListedCase, cursor_of

# A banner for each subscription with a case; more than a page can show.
BANNERS_MAX: Final = 20


class CaseAnswer(Answer):
    """One dunning case."""

    id: str
    account: str
    subscription: str
    state: str = Field(description="`closed`, or how far the case has come.")
    outcome: str | None = Field(description="How it was closed; null while it is open.")
    first_failed_at: Instant
    downgrade_at: Instant | None = Field(description="From when on the fallback plan gives; null: the plan gives.")
    next_at: Instant | None = Field(description="When it moves on if nothing happens before.")
    closed_at: Instant | None
    most_open: MoneyAnswer = Field(description="The most that was open at once.")
    open: MoneyAnswer = Field(description="What is open now of its invoices.")
    has_ended: bool = Field(description="Whether the subscription has ended: a payment does not restore the plan.")
    unbilled: str = Field(
        description="`unpaid` or `paused` if all was paid and Stripe still calls the subscription so, or an empty text."
    )
    invoices: list[str] = Field(description="Its open invoices at Stripe, oldest first.")
    pay_url: str = Field(description="Stripe's page on which the oldest one is paid, or an empty text.")


class CasesAnswer(Answer):
    """Dunning cases, the newest first failure first."""

    cases: list[CaseAnswer]
    next_cursor: str = Field(default="", description="The `cursor` of the next page; absent on the last page.")


class BannerAnswer(Answer):
    """One thing that an account's users should be told."""

    type: str = Field(description="The state of the dunning case.")
    subscription: str
    text: str = Field(description="In plain English.")
    since: Instant
    downgrade_at: Instant | None = Field(description="From when on the fallback plan gives; null: no day is set.")
    open: MoneyAnswer
    pay_url: str = Field(description="Stripe's page on which the oldest invoice is paid, or an empty text.")


class BannersAnswer(Answer):
    """What an account's users should be told now; usually nothing."""

    account: str
    banners: list[BannerAnswer]


class DunningEndpoints:
    """The handlers. An app has one object."""

    def __init__(self, dependencies: GatewayDependencies) -> None:
        self._dependencies = dependencies

    async def listed(self, key: Operator, parameters: Annotated[DunningParameters, Query()]) -> Response:
        """Cases, the newest first. A key of one account gets the cases of its own account."""
        account, limit = parameters.account or key.account or "", parameters.limit
        is_open = None if parameters.state is None else parameters.state == "open"
        found = await self._store().listed(
            account=account, is_open=is_open, limit=limit + 1, before=parameters.cursor
        )  # fmt: skip
        answer = CasesAnswer(cases=[case_answer(each) for each in found[:limit]])
        if len(found) > limit:
            answer = answer.model_copy(update={"next_cursor": cursor_of(found[limit - 1])})
        return json_answer(answer)

    async def banners(self, account: AccountInPath, _key: Reader) -> Response:
        """What an account's users should be told, from its open dunning cases."""
        now_ms = self._dependencies.clock.now_ms()
        found = await self._store().listed(account=account, is_open=True, limit=BANNERS_MAX)
        banners = [
            BannerAnswer(
                type=each.case.state.value,
                subscription=each.case.subscription,
                text=banner_text(each, now_ms),
                since=format_instant_ms(each.case.opened_ms),
                downgrade_at=_instant(each.case.downgrade_ms),
                open=_money(each, each.open_minor),
                pay_url=each.pay_url,
            )
            for each in found
            # Nothing is due next while the customer is linked to no account, or to another one.
            if each.case.next_ms is not None
        ]
        return json_answer(BannersAnswer(account=account, banners=banners))

    def _store(self) -> DunningStore:
        dunning = self._dependencies.dunning
        if dunning is None:
            raise ApiError(501, "not_configured", "this gateway knows no dunning cases: set TIDEMARK_SQL_URL")
        store = dunning()
        if store is None:
            raise ApiError(503, "not_known_yet", "PostgreSQL has not answered yet", headers=retry_after(2))
        return store


def case_answer(listed: ListedCase) -> CaseAnswer:
    """A case in JSON."""
    case = listed.case
    return CaseAnswer(
        id=case.id,
        account=case.account,
        subscription=case.subscription,
        state=case.state.value,
        outcome=None if case.outcome is None else case.outcome.value,
        first_failed_at=format_instant_ms(case.opened_ms),
        downgrade_at=_instant(case.downgrade_ms),
        next_at=_instant(case.next_ms),
        closed_at=_instant(case.closed_ms),
        most_open=_money(listed, case.amount_minor),
        open=_money(listed, listed.open_minor),
        has_ended=listed.has_ended,
        unbilled=listed.unbilled,
        invoices=list(listed.invoices),
        pay_url=listed.pay_url,
    )


def _instant(instant_ms: int | None) -> str | None:
    return None if instant_ms is None else format_instant_ms(instant_ms)


def _money(listed: ListedCase, minor: int) -> MoneyAnswer:
    return MoneyAnswer(minor=minor, currency=listed.case.currency, exponent=listed.case.exponent)
