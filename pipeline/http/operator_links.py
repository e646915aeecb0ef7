"""`POST /v1/operator/page`: a signed link to the operator's page."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import quote

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from aggregators.instants import format_instant_ms
from pipeline.http.body import Bodies
from pipeline.http.dependencies import GatewayDependencies, Operator
from pipeline.http.errors import ApiError, json_answer
from pipeline.http.models import Answer, Instant
from pipeline.http.page_links import BODY_BYTES_MAX, PageLink, PageSecrets, life_of, signing
from pipeline.settings import Settings
from portal.tokens import OPERATOR, signed


class OperatorPageAnswer(Answer):
    """A signed link. Whoever has it sees the whole deployment until it ends, and can redrive and acknowledge."""

    url: str
    expires_at: Instant
    asked_by: str = Field(description="Whom the audit names beside the person who sends a form.")


class OperatorLinkEndpoint:
    """The handler. An app has one object."""

    def __init__(self, dependencies: GatewayDependencies, secrets: PageSecrets) -> None:
        self._dependencies = dependencies
        self._secrets = secrets
        self._bodies = Bodies(BODY_BYTES_MAX)

    async def make(self, request: Request, key: Operator) -> Response:
        """Make a link. Changes nothing: a link ends at its time, and cannot be taken back but by another secret."""
        settings = self._dependencies.settings
        if key.account is not None:
            raise ApiError(403, "forbidden", f"key {key.id} belongs to one account: the page shows all of them")
        if settings.page_secrets is None or not settings.page_url:
            message = "this gateway shows no pages: set TIDEMARK_PAGE_URL and TIDEMARK_PAGE_SECRETS"
            raise ApiError(501, "not_configured", message)
        async with self._bodies.read(request) as body:
            life_s = life_of(body)
        who, now_ms = f"key {key.id}", self._dependencies.clock.now_ms()
        made = operator_link(settings, self._secrets(), who, life_s, now_ms)
        answer = OperatorPageAnswer(url=made.url, expires_at=format_instant_ms(made.expires_ms), asked_by=who)
        return json_answer(answer, 201)


def operator_link(settings: Settings, secrets: Sequence[str], who: str, life_s: int, now_ms: int) -> PageLink:
    """A link for the person or key `who`. Raises `InvalidInput` with the missing setting, or the wrong field."""
    address, expires_ms = signing(settings, secrets, life_s, now_ms)
    return PageLink(f"{address}/operator/{quote(signed(who, expires_ms, secrets[0], OPERATOR))}/", expires_ms)
