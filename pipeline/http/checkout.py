"""Stripe's hosted pages over HTTP: `POST /v1/accounts/{account}/checkout` and `…/portal`."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from pipeline.changes.operating import accept
from pipeline.changes.pages import portal_page
from pipeline.changes.quoting import make_quote
from pipeline.http import change_models as models
from pipeline.http.api_keys import ApiKey
from pipeline.http.body import Bodies
from pipeline.http.changes import (
    BODY_BYTES_MAX,
    QuoteBody,
    actor,
    decoded,
    idempotency_key,
    is_operator,
    parts_of,
    quote_answer,
    refused,
    requested,
)
from pipeline.http.dependencies import Billing, GatewayDependencies
from pipeline.http.errors import ApiError, json_answer
from pipeline.http.queries import AccountInPath
from schemas.checkout import check_return_url
from schemas.errors import InvalidInput
from schemas.events import check_account
from schemas.plan_changes import ChangeRequest, OperationState, Quote, Refusal


class CheckoutBody(QuoteBody, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The body of a checkout."""

    quote: str = ""
    return_url: str


class PortalBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The body of a visit of the portal."""

    return_url: str
    only_card: bool = False


class CheckoutEndpoints:
    """The handlers. An app has one object."""

    def __init__(self, dependencies: GatewayDependencies) -> None:
        self._dependencies = dependencies
        self._bodies = Bodies(BODY_BYTES_MAX)

    async def checkout(self, request: Request, account: AccountInPath, key: Billing) -> Response:
        """Quotes a plan or a trial for an account without a subscription, and makes the page of Stripe on which the
        customer pays. An older open page of the account is ended. The same Idempotency-Key gets the same page. 202
        while Stripe has not answered yet: send the same request with the same key again."""
        check_account(account)
        async with self._bodies.read(request) as body:
            wanted = decoded(body, CheckoutBody, '{"plan": "pro", "return_url": "https://app.example/billing"}')
        check_return_url(wanted.return_url)
        parts, by = await parts_of(self._dependencies), actor(wanted.by, key)
        if wanted.quote and wanted.plan:
            raise InvalidInput("quote", "give a quote or a plan")
        made: Quote | Refusal | None
        if wanted.quote:
            made = await parts.changes.quote(account, wanted.quote)
        else:
            made = await make_quote(parts, account, _asked(wanted, key), by, idempotency_key(request))
        if isinstance(made, Refusal):
            raise refused(made)
        if made is not None and not made.decided.opens_checkout:
            message = "this change needs no page: POST …/quotes, and accept the quote"
            raise ApiError(409, "no_checkout", message, "plan")
        found = await accept(
            parts, account, made.id if made else wanted.quote, by, wanted.return_url, by_operator=is_operator(key)
        )
        if isinstance(found, Refusal):
            raise refused(found)
        quote, operation = found
        if operation.state is OperationState.FAILED:
            raise ApiError(409, "change_failed", f"{operation.detail}; nothing more is tried: ask for a new quote")
        answer = models.CheckoutAnswer(url=operation.url or None, quote=quote_answer(quote, operation))
        return json_answer(answer, 201 if operation.state is OperationState.DONE else 202)

    async def portal(self, request: Request, account: AccountInPath, _key: Billing) -> Response:
        """Makes a page of Stripe on which the customer replaces the card, and finds invoices and tax numbers. Plans are
        not changed there. A repeated request makes another page, which does no harm."""
        check_account(account)
        async with self._bodies.read(request) as body:
            wanted = decoded(body, PortalBody, '{"return_url": "https://app.example/billing"}')
        parts = await parts_of(self._dependencies)
        found = await portal_page(parts, account, wanted.return_url, only_card=wanted.only_card)
        if isinstance(found, Refusal):
            raise refused(found)
        return json_answer(models.PortalAnswer(url=found), 201)


def _asked(wanted: CheckoutBody, key: ApiKey) -> ChangeRequest:
    """The change that a checkout is for. Raises `InvalidInput`."""
    if wanted.cancel or not wanted.plan:
        raise InvalidInput("plan", "name the plan to buy, or a quote")
    return requested(wanted, key)._replace(by_page=True)
