"""`GET /v1/revenue/journal` for the finance system, and `POST /v1/revenue/page` for its people."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from aggregators.instants import format_instant_ms
from aggregators.journal import entry_document
from pipeline.http.body import Bodies
from pipeline.http.dashboard import dashboard_link
from pipeline.http.dependencies import Finance, GatewayDependencies
from pipeline.http.errors import ApiError, json_answer
from pipeline.http.models import Answer, Instant
from pipeline.http.page_links import BODY_BYTES_MAX, PageSecrets, life_of
from pipeline.http.queries import JournalParameters


class PlanItemAnswer(Answer):
    """An item of a subscription."""

    price: str
    plan: str = Field(description="The plan of the catalog, or an empty text.")
    quantity: int | None = Field(description="Null of a metered price.")


class EntryAnswer(Answer):
    """One fact about money or a plan. It never changes."""

    number: int = Field(description="1, 2, 3, … without a gap.")
    id: str = Field(description="The fact: object, kind, and the how many-th of the kind.")
    kind: str = Field(
        description="`invoice`, `payment`, `credit_note`, `void`, `write_off`, `refund`, `dispute`, `recognized` or "
        "`plan_change`."
    )
    account: str
    object: str = Field(description="The object of Stripe.")
    invoice: str = Field(description="The invoice that is concerned, or an empty text.")
    at: Instant = Field(description="When it happened, as Stripe says.")
    recorded_at: Instant = Field(description="When Tidemark wrote it.")
    amount_minor: int | None = Field(
        description="In the smallest unit; null where no money moved. Less than 0: undone."
    )
    tax_minor: int | None = Field(description="How much of the amount is tax; null where nobody says.")
    currency: str
    exponent: int | None = Field(description="How many decimals the currency has.")
    cause: str = Field(description="The event of Stripe, or the resync.")
    reason: str = Field(description="Stripe's reason, or an empty text.")
    before: list[PlanItemAnswer]
    after: list[PlanItemAnswer]


class JournalAnswer(Answer):
    """Entries of the journal in the order of their numbers."""

    entries: list[EntryAnswer]
    next_after: int = Field(description="The `after` of the next page, also later: entries that come have more.")
    has_more: bool = Field(description="Whether there are more by now.")


class DashboardAnswer(Answer):
    """A signed link. Whoever has it sees what the business earns until it ends."""

    url: str
    expires_at: Instant


class FinanceEndpoints:
    """The handlers. An app has one object."""

    def __init__(self, dependencies: GatewayDependencies, secrets: PageSecrets) -> None:
        self._dependencies = dependencies
        self._secrets = secrets
        self._bodies = Bodies(BODY_BYTES_MAX)

    async def journal(self, _key: Finance, parameters: Annotated[JournalParameters, Query()]) -> Response:
        """Entries behind a number. Who has read them goes on at `next_after`, and reads each entry once."""
        if self._dependencies.journal is None:
            raise ApiError(501, "not_configured", "this gateway has no journal: set TIDEMARK_SQL_URL")
        limit, store = parameters.limit, await self._dependencies.journal()
        found = await store.entries(parameters.after, limit + 1, parameters.account or "")
        shown = found[:limit]
        return json_answer(
            JournalAnswer(
                entries=[EntryAnswer.model_validate(entry_document(each)) for each in shown],
                next_after=shown[-1].number if shown else parameters.after,
                has_more=len(found) > limit,
            )
        )

    async def page(self, request: Request, _key: Finance) -> Response:
        """Make a link to the dashboard. Changes nothing: a link ends at its time."""
        settings = self._dependencies.settings
        if settings.page_secrets is None or not settings.page_url:
            message = "this gateway shows no pages: set TIDEMARK_PAGE_URL and TIDEMARK_PAGE_SECRETS"
            raise ApiError(501, "not_configured", message)
        async with self._bodies.read(request) as body:
            life_s = life_of(body)
        made = dashboard_link(settings, self._secrets(), life_s, self._dependencies.clock.now_ms())
        return json_answer(DashboardAnswer(url=made.url, expires_at=format_instant_ms(made.expires_ms)), 201)
