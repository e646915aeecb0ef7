"""`GET` and `PUT /v1/accounts/{account}`: which Stripe customer an account belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from aggregators.instants import format_instant_ms, parse_instant_us, why_no_instant
from pipeline.http import models
from pipeline.http.body import Bodies
from pipeline.http.dependencies import AccountLinks, Admin, GatewayDependencies, Reader
from pipeline.http.errors import ApiError, json_answer, overloaded
from pipeline.http.queries import AccountInPath
from schemas.clock import MILLISECOND_US, MINUTE_MS
from schemas.errors import InvalidInput
from schemas.events import check_account
from schemas.side_tables import Link

BODY_BYTES_MAX: Final = 16 * 1024
# Each waits for the mirror, for up to a minute without progress.
LINKS_AT_ONCE_MAX: Final = 16
# The body's field for a field of `AccountLinks.link`.
_FIELDS: Final = {"customer": "stripe_customer", "starts_ms": "from"}


class Wanted(msgspec.Struct, forbid_unknown_fields=True, frozen=True, rename={"from_": "from"}):
    """The body of a `PUT`."""

    stripe_customer: str
    from_: str | None = None


class AccountsEndpoint:
    """The handlers. An app has one object."""

    def __init__(self, dependencies: GatewayDependencies) -> None:
        self._dependencies = dependencies
        self._bodies = Bodies(BODY_BYTES_MAX)
        self._in_flight = 0

    async def show(self, account: AccountInPath, _key: Reader) -> Response:
        """The Stripe customer that an account belongs to, and its links so far."""
        check_account(account)
        links = self._links()
        return self._answer(account, await links.links(account))

    async def put(self, request: Request, account: AccountInPath, key: Admin) -> Response:
        """Creates the account if it is new, and links it to a Stripe customer: from then on the customer's
        subscriptions say who pays. The same request again changes nothing."""
        check_account(account)
        links = self._links()
        if key.account is not None:
            message = f"key {key.id} belongs to one account: who pays for it, only a key of all accounts may say"
            raise ApiError(403, "forbidden", message)
        if self._in_flight >= LINKS_AT_ONCE_MAX:
            raise overloaded("the gateway links other accounts; send the request again", 5.0)
        self._in_flight += 1
        try:
            async with self._bodies.read(request) as body:
                wanted = _wanted(body)
            try:
                await links.link(account, wanted.stripe_customer, _from_ms(wanted.from_), f"key {key.id}")
            except InvalidInput as error:
                raise InvalidInput(_FIELDS.get(error.field, error.field), error.message) from error
            return self._answer(account, await links.links(account))
        finally:
            self._in_flight -= 1

    def _links(self) -> AccountLinks:
        if self._dependencies.accounts is None:
            message = "this gateway links no accounts: set TIDEMARK_SQL_URL and TIDEMARK_STRIPE_API_KEY"
            raise ApiError(501, "not_configured", message)
        return self._dependencies.accounts

    def _answer(self, account: str, links: Sequence[Link]) -> Response:
        now_ms = self._dependencies.clock.now_ms()
        now = [link for link in links if link.starts_ms <= now_ms and (link.ends_ms is None or now_ms < link.ends_ms)]
        return json_answer(
            models.AccountAnswer(
                account=account,
                stripe_customer=now[0].customer or None if now else None,
                links=[
                    models.LinkAnswer(
                        stripe_customer=link.customer or None,
                        from_=format_instant_ms(link.starts_ms),
                        to=None if link.ends_ms is None else format_instant_ms(link.ends_ms),
                    )
                    for link in links
                ],
            )
        )


def _wanted(body: bytes) -> Wanted:
    """The body of a request. Raises `ApiError`."""
    try:
        document: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(400, "invalid_input", f"the body is not JSON: {str(error)[:200]}") from None
    try:
        return msgspec.convert(document, Wanted)
    except msgspec.ValidationError as error:
        shape = '{"stripe_customer": "cus_…", "from": "2026-11-01T00:00:00Z"}, where from may be absent'
        raise ApiError(400, "invalid_input", f"{str(error)[:200]}; send {shape}") from None


def _from_ms(text: str | None) -> int | None:
    """The minute of an instant. Raises `InvalidInput`."""
    if text is None:
        return None
    instant_us = parse_instant_us(text)
    if instant_us is None:
        raise InvalidInput("from", f"{why_no_instant(text)}; write it as 2026-11-01T00:00:00Z")
    return instant_us // MILLISECOND_US // MINUTE_MS * MINUTE_MS
