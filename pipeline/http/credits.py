"""Credits over HTTP: `/v1/accounts/{account}/credits`, and the packs and grants below it."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from aggregators.instants import format_instant_ms, parse_instant_us, why_no_instant
from pipeline.credits.balances import account_balance
from pipeline.credits.buying import PackWish, buy
from pipeline.credits.giving import Gift, give, take
from pipeline.http import credit_models as models
from pipeline.http.api_keys import ApiKey, Role
from pipeline.http.body import Bodies
from pipeline.http.changes import Text, actor, decoded, idempotency_key
from pipeline.http.dependencies import Billing, CreditStores, GatewayDependencies, Operator, SeatReader
from pipeline.http.errors import ApiError, json_answer
from pipeline.http.models import MoneyAnswer
from pipeline.http.queries import AccountInPath
from schemas.clock import MILLISECOND_US
from schemas.credit_balances import AccountBalance, CreditsOfPool, GrantBalance
from schemas.errors import InvalidInput
from schemas.events import check_account
from schemas.packs import Purchase, PurchaseState
from schemas.stripe_credits import Source

BODY_BYTES_MAX: Final = 16 * 1024


class TopUpBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The body of a purchase."""

    pool: Text
    pack: Text = ""
    quantity: int = 1
    currency: Text = ""
    return_url: str
    by: Text = ""


class GrantBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The body of a grant."""

    pool: Text
    credits: int
    category: Annotated[str, msgspec.Meta(pattern="^(promotional|paid)$")] = "promotional"
    priority: int = 50
    effective: str | None = None
    expires: str | None = None
    by: Text
    reason: Text


class VoidBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The body of what takes a grant back."""

    by: Text
    reason: Text
    owes: bool = False


class CreditEndpoints:
    """The handlers. An app has one object."""

    def __init__(self, dependencies: GatewayDependencies) -> None:
        self._dependencies = dependencies
        self._bodies = Bodies(BODY_BYTES_MAX)

    async def balance(self, account: AccountInPath, _key: SeatReader) -> Response:
        """The credits of an account by pool and grant. A pool of ours is exact: usage that is counted and not reported
        yet, and holds, are taken off. Of grants at Stripe the balance is an estimate."""
        check_account(account)
        stores = await self._stores()
        return json_answer(balance_answer(await account_balance(stores.packs, stores.ledger, account)))

    async def top_up(self, request: Request, account: AccountInPath, key: Billing) -> Response:
        """Makes the page of Stripe on which the customer pays for a pack. The credits exist when the invoice is paid.
        The same Idempotency-Key, which is required, gets the same page. 202 while Stripe has not answered yet: send the
        same request with the same key again."""
        async with self._bodies.read(request) as body:
            shape = '{"pool": "scans", "return_url": "https://app.example/billing"}'
            wanted = decoded(body, TopUpBody, shape)
        stores = await self._stores()
        wish = PackWish(
            account, wanted.pool, wanted.pack, wanted.quantity, wanted.currency, wanted.return_url,
            actor(wanted.by, key), idempotency_key(request),
        )  # fmt: skip
        purchase = await buy(stores.packs, wish)
        if purchase.state is PurchaseState.FAILED:
            raise ApiError(409, "purchase_failed", f"{purchase.detail}; buy again under another Idempotency-Key")
        return json_answer(purchase_answer(purchase), 202 if purchase.state is PurchaseState.WANTED else 201)

    async def grant(self, request: Request, account: AccountInPath, key: Operator) -> Response:
        """Gives credits to an account. The same Idempotency-Key, which is required, gets the same grant: 201, and 200
        for one that was made before. A grant at Stripe is `ordered` until the mirror has seen it."""
        async with self._bodies.read(request) as body:
            shape = '{"pool": "scans", "credits": 100, "by": "ann", "reason": "ticket 4711"}'
            wanted = decoded(body, GrantBody, shape)
        stores, now_ms = await self._stores(), self._dependencies.clock.now_ms()
        effective_ms = instant_ms("effective", wanted.effective)
        gift = Gift(
            account, wanted.pool, wanted.credits, Source(wanted.category), wanted.priority,
            now_ms if effective_ms is None else effective_ms, instant_ms("expires", wanted.expires),
            _person(wanted.by, key), wanted.reason, _required_key(request),
        )  # fmt: skip
        grant, is_new = await give(stores.packs, gift)
        return json_answer(_grant(wanted.pool, grant), 201 if is_new else 200)

    async def void(self, request: Request, account: AccountInPath, grant: str, key: Operator) -> Response:
        """Takes back what is left of a grant. With `owes`, what was used of a grant of ours is owed, and the next grant
        pays it first. The same request again changes nothing."""
        check_account(account)
        _required_key(request)
        async with self._bodies.read(request) as body:
            wanted = decoded(body, VoidBody, '{"by": "ann", "reason": "a mistake"}')
        stores = await self._stores()
        found = await take(
            stores.packs, account, grant, _person(wanted.by, key), wanted.reason, owes=wanted.owes
        )  # fmt: skip
        if found is None:
            raise ApiError(404, "no_grant", "the account has no such grant: GET …/credits lists them", "grant")
        pool, left = found
        return json_answer(_grant(pool, left))

    async def _stores(self) -> CreditStores:
        if self._dependencies.credits is None:
            message = "this gateway has no credits: set TIDEMARK_SQL_URL and TIDEMARK_STRIPE_API_KEY"
            raise ApiError(501, "not_configured", message)
        return await self._dependencies.credits()


def balance_answer(balance: AccountBalance) -> models.CreditsAnswer:
    """A balance in JSON."""
    return models.CreditsAnswer(
        account=balance.account,
        at=format_instant_ms(balance.at_ms),
        complete_up_to=_instant(balance.complete_up_to_ms),
        pools=[_pool(pool) for pool in balance.pools],
        purchases=[purchase_answer(purchase) for purchase in balance.purchases],
    )


def _pool(pool: CreditsOfPool) -> models.PoolAnswer:
    return models.PoolAnswer.model_validate(
        {
            **{
                name: getattr(pool, name)
                for name in ("pool", "unit", "mode", "overdraft", "left", "owed", "undrawn", "held")
            },
            "estimate": pool.is_estimate,
            "as_of": _instant(pool.as_of_ms),
            "grants": [_grant(pool.pool, grant) for grant in pool.grants],
            "packs": [
                models.PackAnswer(
                    pack=sold.price.pack,
                    credits=sold.price.credits,
                    amount=MoneyAnswer(
                        minor=int(sold.price.terms.unit_minor or 0),
                        currency=sold.price.terms.currency,
                        exponent=sold.price.exponent,
                    ),
                )
                for sold in pool.packs
            ],
        }
    )


def _grant(pool: str, grant: GrantBalance) -> models.CreditGrantAnswer:
    return models.CreditGrantAnswer.model_validate(
        {
            **{name: getattr(grant, name) for name in ("id", "category", "credits", "remaining", "priority", "state")},
            "pool": pool,
            "effective": format_instant_ms(grant.effective_ms),
            "expires": _instant(grant.expires_ms),
            "by_tidemark": grant.by_us,
        }
    )


def purchase_answer(purchase: Purchase) -> models.PurchaseAnswer:
    """A purchase in JSON."""
    return models.PurchaseAnswer(
        id=purchase.id,
        pool=purchase.pool,
        pack=purchase.pack,
        quantity=purchase.quantity,
        credits=purchase.credits * purchase.quantity,
        how=purchase.how.value,
        state=purchase.state.value,
        url=purchase.url or None,
        invoice=purchase.invoice,
        detail=purchase.detail,
        made_at=format_instant_ms(purchase.made_ms),
    )


def _instant(ms: int | None) -> str | None:
    return None if ms is None else format_instant_ms(ms)


def instant_ms(field: str, text: str | None) -> int | None:
    """An instant of a body, in ms UTC. Raises `InvalidInput` with the field."""
    if text is None:
        return None
    instant_us = parse_instant_us(text)
    if instant_us is None:
        raise InvalidInput(field, f"{why_no_instant(text)}; write it as 2027-01-01T00:00:00Z")
    return instant_us // MILLISECOND_US


def _required_key(request: Request) -> str:
    """The header `Idempotency-Key`. Raises `InvalidInput` without it."""
    name = idempotency_key(request)
    if not name:
        raise InvalidInput("Idempotency-Key", "send the header, so that a repeated request is one grant")
    return name


def _person(by: str, key: ApiKey) -> str:
    """Who it was, for the audit. Raises `ApiError` for a key that an account has for itself."""
    if key.account is not None and key.role is Role.ADMIN:
        message = f"key {key.id} belongs to one account: what it is given, only an operator may say"
        raise ApiError(403, "forbidden", message)
    return actor(by, key)
