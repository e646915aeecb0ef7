"""Plan changes over HTTP: `POST /v1/accounts/{account}/quotes`, their acceptance, and `GET /v1/plans`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final, Literal, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from aggregators.catalog_prices import prices_of
from aggregators.catalog_words import amounts_text
from aggregators.instants import format_instant_ms
from pipeline.changes.operating import accept
from pipeline.changes.parts import Parts
from pipeline.changes.quoting import make_quote
from pipeline.http import change_models as models
from pipeline.http.access import quantity_of
from pipeline.http.api_keys import ApiKey, Role
from pipeline.http.body import Bodies
from pipeline.http.dependencies import Billing, GatewayDependencies, PlanReader
from pipeline.http.errors import ApiError, json_answer
from pipeline.http.models import MoneyAnswer
from pipeline.http.queries import AccountInPath
from schemas.catalog import Catalog, Plan, PlanId
from schemas.errors import InvalidInput
from schemas.events import check_account
from schemas.periods import Interval
from schemas.plan_changes import ChangeKind, ChangeRequest, Operation, OperationState, Quote, Refusal, RefusalCode
from schemas.upgrades import Money

BODY_BYTES_MAX: Final = 16 * 1024
KEY_CHARACTERS_MAX: Final = 256
Text = Annotated[str, msgspec.Meta(max_length=256)]
Body = TypeVar("Body")
_STATUSES: Final[Mapping[RefusalCode, int]] = {
    RefusalCode.NO_QUOTE: 404, RefusalCode.OPERATOR_ONLY: 403, RefusalCode.CONTRACT: 403,
}  # fmt: skip


class QuoteBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The body of a request for a quote."""

    plan: Text = ""
    interval: Literal["day", "week", "month", "year"] | None = None
    currency: Text = ""
    quantities: Annotated[dict[Text, int], msgspec.Meta(max_length=100)] = {}
    used: Annotated[dict[Text, str], msgspec.Meta(max_length=100)] = {}
    trial: bool = False
    cancel: Literal["", "period_end", "now"] = ""
    by: Text = ""


class AcceptBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The body of an acceptance."""

    by: Text = ""


class ChangeEndpoints:
    """The handlers. An app has one object."""

    def __init__(self, dependencies: GatewayDependencies) -> None:
        self._dependencies = dependencies
        self._bodies = Bodies(BODY_BYTES_MAX)

    async def quote(self, request: Request, account: AccountInPath, key: Billing) -> Response:
        """Quotes a change of plan, quantities or interval, or an end. Changes nothing. The same Idempotency-Key gets
        the same quote; without one, so does the same request within a quote's life."""
        check_account(account)
        async with self._bodies.read(request) as body:
            wanted = decoded(
                body, QuoteBody, '{"plan": "pro", "quantities": {"locations": 2}}, or {"cancel": "period_end"}'
            )
        name = idempotency_key(request)
        found = await make_quote(await self._parts(), account, requested(wanted, key), actor(wanted.by, key), name)
        if isinstance(found, Refusal):
            raise refused(found)
        return json_answer(quote_answer(found, None), 201)

    async def accept(self, request: Request, account: AccountInPath, quote: str, key: Billing) -> Response:
        """Carries a quote out. 202 while Stripe has not answered yet; the same request again then goes on, and answers
        how far the change is. One quote is one change, so its id is the Idempotency-Key."""
        check_account(account)
        async with self._bodies.read(request) as body:
            wanted = decoded(body, AcceptBody, '{"by": "ann"}, or nothing') if body.strip() else AcceptBody()
        return await self._accepted(await self._parts(), account, quote, actor(wanted.by, key), key)

    async def undo(self, account: AccountInPath, key: Billing) -> Response:
        """Takes a pending change or a coming end back: quotes that and accepts the quote."""
        check_account(account)
        parts, by = await self._parts(), actor("", key)
        found = await make_quote(parts, account, ChangeRequest(ChangeKind.UNDO, by_operator=is_operator(key)), by)
        if isinstance(found, Refusal):
            raise refused(found)
        return await self._accepted(parts, account, found.id, by, key)

    async def plans(self, _key: PlanReader) -> Response:
        """The plans that are sold, with their prices."""
        opened = self._dependencies.catalog
        if opened is None:
            raise _not_configured()
        catalog = (await (await opened()).standing()).catalog
        sold = [] if catalog is None else sorted(catalog.plans.items(), key=lambda each: (each[1].rank, each[0]))
        return json_answer(models.PlansAnswer(plans=[_plan(catalog, name, plan) for name, plan in sold if catalog]))

    async def _accepted(self, parts: Parts, account: str, identifier: str, by: str, key: ApiKey) -> Response:
        found = await accept(parts, account, identifier, by, by_operator=is_operator(key))
        if isinstance(found, Refusal):
            raise refused(found)
        quote, operation = found
        if operation.state is OperationState.FAILED:
            raise ApiError(409, "change_failed", f"{operation.detail}; nothing more is tried: ask for a new quote")
        return json_answer(quote_answer(quote, operation), 200 if operation.state is OperationState.DONE else 202)

    async def _parts(self) -> Parts:
        return await parts_of(self._dependencies)


async def parts_of(dependencies: GatewayDependencies) -> Parts:
    """What plan changes need. Raises `ApiError` if this gateway changes none."""
    if dependencies.changes is None:
        raise _not_configured()
    return await dependencies.changes()


def _not_configured() -> ApiError:
    message = "this gateway changes no plans: set TIDEMARK_SQL_URL and TIDEMARK_STRIPE_API_KEY"
    return ApiError(501, "not_configured", message)


def idempotency_key(request: Request) -> str:
    """The header `Idempotency-Key`, or "". Raises `InvalidInput` for one that is too long."""
    name = request.headers.get("idempotency-key", "")
    if len(name) > KEY_CHARACTERS_MAX:
        raise InvalidInput("Idempotency-Key", f"must have at most {KEY_CHARACTERS_MAX} characters")
    return name


def requested(wanted: QuoteBody, key: ApiKey) -> ChangeRequest:
    """What a body wants. Raises `InvalidInput`."""
    if bool(wanted.plan) == bool(wanted.cancel):
        raise InvalidInput("plan", 'give a plan, or {"cancel": "period_end"}')
    kinds = {"period_end": ChangeKind.CANCEL, "now": ChangeKind.CANCEL_NOW}
    kind = kinds.get(wanted.cancel, ChangeKind.TRIAL if wanted.trial else ChangeKind.PLAN)
    return ChangeRequest(
        kind,
        wanted.plan,
        None if wanted.interval is None else Interval(wanted.interval),
        wanted.currency,
        wanted.quantities,
        {name: quantity_of("used", text) for name, text in wanted.used.items()},
        is_operator(key),
    )


def is_operator(key: ApiKey) -> bool:
    """Whether a key speaks for the business, and not for one of its accounts."""
    return key.may(Role.OPERATOR) and key.account is None


def actor(by: str, key: ApiKey) -> str:
    """Who asks, for the audit. Raises `InvalidInput` for what PostgreSQL cannot keep."""
    if "\0" in by:
        raise InvalidInput("by", "must not have a NUL")
    return f"{by} (key {key.id})" if by else f"key {key.id}"


def refused(refusal: Refusal) -> ApiError:
    """The answer to what is refused."""
    return ApiError(_STATUSES.get(refusal.code, 409), refusal.code.value, refusal.message, refusal.field)


def quote_answer(quote: Quote, operation: Operation | None) -> models.QuoteAnswer:
    """A quote in JSON, with its operation if it was accepted."""

    def money(minor: int) -> MoneyAnswer:
        return MoneyAnswer(**Money(minor, quote.total.currency, quote.total.exponent)._asdict())

    following = None
    if quote.next_minor is not None and quote.next_ms is not None:
        following = models.NextInvoiceAnswer(at=format_instant_ms(quote.next_ms), amount=money(quote.next_minor))
    checked: Literal["equal", "differs", "not_compared"] = "not_compared"
    if quote.ours_minor is not None:
        checked = "equal" if quote.ours_minor == quote.subtotal_minor else "differs"
    return models.QuoteAnswer(
        id=quote.id,
        account=quote.account,
        words=quote.words,
        row=quote.decided.row,
        when=quote.decided.when.value,
        due_now=money(quote.due_minor),
        total=money(quote.total.minor),
        tax=money(quote.tax_minor),
        next=following,
        lines=[
            models.QuoteLineAnswer(
                text=line.text,
                amount=money(line.amount_minor),
                proration=line.is_proration,
                from_=format_instant_ms(line.start_ms),
                until=format_instant_ms(line.end_ms),
            )
            for line in quote.lines
        ],
        checked=checked,
        expires_at=format_instant_ms(quote.expires_ms),
        accepted_at=None if quote.accepted_ms is None else format_instant_ms(quote.accepted_ms),
        operation=None
        if operation is None
        else models.OperationAnswer(
            id=operation.id,
            state=operation.state.value,
            detail=operation.detail,
            invoice=quote.invoice,
            charged=None if quote.charged_minor is None else money(quote.charged_minor),
            differs=quote.is_differing,
            checkout_url=operation.url,
        ),
    )


def _plan(catalog: Catalog, name: str, plan: Plan) -> models.PlanAnswer:
    identifier = PlanId(name, plan.version)
    return models.PlanAnswer(
        id=str(identifier),
        name=plan.name or name,
        description=plan.description,
        rank=plan.rank,
        trial_days=plan.trial.days if plan.trial else None,
        prices=[
            models.PlanPriceAnswer(
                component=price.component,
                interval=price.terms.interval,
                currency=price.terms.currency,
                amount=amounts_text(price),
                quantity=price.feature,
                metered=bool(price.meter),
            )
            for price in prices_of(catalog, identifier, plan)
        ],
    )


def decoded(body: bytes, kind: type[Body], shape: str) -> Body:
    """The body of a request. Raises `ApiError`."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(400, "invalid_input", f"{str(error)[:200]}; send {shape}") from None
