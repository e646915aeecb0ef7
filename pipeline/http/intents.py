"""`GET /v1/billing/intents`: the reports to Stripe by their state, from the ledger of intents."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query
from starlette.responses import Response

from aggregators.instants import format_instant_ms
from aggregators.quantities import decimal_text
from pipeline.http import models
from pipeline.http.dependencies import GatewayDependencies, Reader
from pipeline.http.errors import ApiError, json_answer
from pipeline.http.queries import IntentsParameters
from schemas.intent_ledger import LedgerIntent


class IntentsEndpoint:
    """The handler. An app has one object."""

    def __init__(self, dependencies: GatewayDependencies) -> None:
        self._dependencies = dependencies

    async def listed(self, key: Reader, parameters: Annotated[IntentsParameters, Query()]) -> Response:
        """The reports of one state, by identifier. A key of one account gets the reports of its own account."""
        if self._dependencies.accounts is None:
            message = "this gateway has no ledger of intents: set TIDEMARK_SQL_URL and TIDEMARK_STRIPE_API_KEY"
            raise ApiError(501, "not_configured", message)
        account, limit = parameters.account or key.account or "", parameters.limit
        found = await self._dependencies.accounts.intents(parameters.state, account, limit + 1, parameters.cursor)
        answer = models.IntentsAnswer(intents=[_answer(known) for known in found[:limit]])
        if len(found) > limit:
            answer = answer.model_copy(update={"next_cursor": found[limit - 1].intent.identifier})
        return json_answer(answer)


def _answer(known: LedgerIntent) -> models.IntentAnswer:
    intent = known.intent
    return models.IntentAnswer(
        identifier=intent.identifier,
        account=intent.account,
        meter=intent.meter,
        state=known.state.value,
        quantity=decimal_text(intent.delta_minor, intent.scale),
        drawn=None if known.drawn_minor is None else decimal_text(known.drawn_minor, intent.scale),
        instant=format_instant_ms(intent.instant_ms),
        period_start=format_instant_ms(intent.period_start_ms),
        period_end=format_instant_ms(intent.period_end_ms),
        stripe_customer=known.stripe_customer or None,
        hold=known.hold or None,
        detail=known.detail,
        settled_at=None if known.settled_at_ms is None else format_instant_ms(known.settled_at_ms),
        in_doubt=known.in_doubt,
    )
