"""The gateway's dependencies, and the check of a request's API key."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Final, NamedTuple, Protocol

from fastapi import Depends, Security
from fastapi.security import HTTPBearer
from starlette.requests import Request

from pipeline.access.checks import AccessChecks
from pipeline.access.credits import CreditParts
from pipeline.changes.parts import Parts as ChangeParts
from pipeline.credits.stores import PackParts
from pipeline.explaining.stores import ExplainStores
from pipeline.http.api_keys import ApiKey, Keys, Role
from pipeline.http.errors import ApiError
from pipeline.http.known_keys import KnownKeys
from pipeline.http.operator_stores import OperatorStores
from pipeline.settings import Settings
from schemas.account_records import AccountRecords
from schemas.analytics import HourlyStore, UsageReader
from schemas.catalog_changes import CatalogStore
from schemas.clock import Clock
from schemas.control import Genesis
from schemas.corrections import CorrectionArchive
from schemas.dunning import DunningStore
from schemas.entitlements import Entitlements
from schemas.intent_ledger import IntentState, LedgerIntent
from schemas.journal import JournalStore
from schemas.live_view import AccountDirectory, DedupMarks, DeferredEvents, LiveTotals
from schemas.log import Log
from schemas.meters import MeterSet
from schemas.notices import NoticeOutbox
from schemas.revenue import RevenueStores
from schemas.seats import Seats
from schemas.side_tables import Link
from schemas.usage_evidence import UsageEvidence

MeterSetSource = Callable[[], Awaitable[MeterSet | None]]

KEY_CHARACTERS_MAX: Final = 256


class LiveUsage(NamedTuple):
    """The parts of the live view that answer current usage, and which events arrived before. Without `marks` no event
    can be verified."""

    accounts: AccountDirectory
    deferred: DeferredEvents
    totals: LiveTotals
    marks: DedupMarks | None = None


class AccountLinks(Protocol):
    """Links accounts to Stripe customers, and lists reports. Every call may raise `Transient` and `OperatorNeeded`."""

    async def link(self, account: str, customer: str, from_ms: int | None, actor: str) -> Link:
        """Link an account, as `tidemark account link` does; the same link again changes nothing. Takes seconds, or a
        minute if the role `mirror` does not run. Raises `InvalidInput`."""
        ...

    async def links(self, account: str) -> Sequence[Link]:
        """The links of an account, oldest first."""
        ...

    async def intents(self, state: IntentState, account: str, limit: int, after: str) -> Sequence[LedgerIntent]:
        """One page of the ledger of intents, of all accounts if `account` is ""."""
        ...


class CreditStores(NamedTuple):
    """The stores of credits: of packs and grants at Stripe, and what a balance of ours is read from."""

    packs: PackParts
    ledger: CreditParts


@dataclass(frozen=True, slots=True)
class GatewayDependencies:
    """The settings and stores of the gateway. The gateway closes none of them.

    Each request calls `meter_set` once, so the call must answer from memory. None means that there is no meter set yet:
    valid events are accepted unmetered. `Transient` means that the meter set is not known yet: valid events are
    accepted, and reads are answered with 503. `meter_set_age_s` returns the seconds since the meter set was last read
    from its store, None before the first time. Without `live` the gateway does not answer current usage. Without
    `usage` the gateway does not answer usage over time. Without `hourly`, `complete_up_to` is null.
    Without `accounts` the gateway links no accounts and lists no intents. Without `access` it answers no checks; while
    `access` returns None, SQL has not answered yet. `notices` and `dunning` are alike: without them the gateway lists
    no notices, and no dunning cases and banners. Without `changes` it changes no plans, without `catalog` it lists
    none, and without `records` and `seats` it shows no account's page and timeline; these calls may raise `Transient`
    and `OperatorNeeded`. `revenue` and `journal` are alike. Without `evidence` the page shows no hours and events,
    without `credits` no credits, and without `explain` no invoice and event is explained.
    Without `corrections` no event is corrected. Without `operator` the operator's page has the flow of events only.
    `keys` are those of the file, which are asked first; without `known_keys` there are no others.
    """

    log: Log
    genesis: Genesis
    settings: Settings
    clock: Clock
    keys: Keys
    meter_set: MeterSetSource
    live: LiveUsage | None = None
    usage: UsageReader | None = None
    hourly: HourlyStore | None = None
    meter_set_age_s: Callable[[], float | None] | None = None
    accounts: AccountLinks | None = None
    access: Callable[[], tuple[AccessChecks, Entitlements] | None] | None = None
    notices: Callable[[], NoticeOutbox | None] | None = None
    dunning: Callable[[], DunningStore | None] | None = None
    changes: Callable[[], Awaitable[ChangeParts]] | None = None
    catalog: Callable[[], Awaitable[CatalogStore]] | None = None
    records: Callable[[], Awaitable[AccountRecords]] | None = None
    seats: Callable[[], Awaitable[Seats]] | None = None
    evidence: UsageEvidence | None = None
    credits: Callable[[], Awaitable[CreditStores]] | None = None
    explain: Callable[[], Awaitable[ExplainStores]] | None = None
    operator: OperatorStores | None = None
    revenue: Callable[[], Awaitable[RevenueStores]] | None = None
    journal: Callable[[], Awaitable[JournalStore]] | None = None
    known_keys: KnownKeys | None = None
    corrections: CorrectionArchive | None = None


async def authorized(
    dependencies: GatewayDependencies, request: Request, *roles: Role, account: str | None = None
) -> ApiKey:
    """The key of a request, which must have one of the roles; without roles every key may.

    Raises `ApiError`: 401 without a valid key, 403 if the key has none of the roles or belongs to another account, and
    503 if PostgreSQL, which may have the key, does not answer.
    """
    scheme, _, text = request.headers.get("authorization", "").partition(" ")
    text = text.strip()
    key = None
    if scheme.lower() == "bearer" and len(text) <= KEY_CHARACTERS_MAX:
        key = dependencies.keys.verify(text)
        if key is None and dependencies.known_keys is not None:
            key = await dependencies.known_keys.verify(text)
    if key is None:
        message = "send a valid key: Authorization: Bearer tm_…; `tidemark key create` makes one"
        raise ApiError(401, "unauthorized", message, headers={"WWW-Authenticate": 'Bearer realm="tidemark"'})
    if key.expires_ms is not None and key.expires_ms <= dependencies.clock.now_ms():
        message = f"key {key.id} has expired: make another one with `tidemark key create`"
        raise ApiError(401, "unauthorized", message, headers={"WWW-Authenticate": 'Bearer realm="tidemark"'})
    if roles and not key.may(*roles):
        needed = " or ".join(dict.fromkeys((*roles, Role.ADMIN)))
        raise ApiError(403, "forbidden", f"key {key.id} has the role {key.role}: this needs {needed}")
    if account is not None and not key.reaches(account):
        raise ApiError(403, "forbidden", f"key {key.id} belongs to another account", "account")
    return key


_BEARER: Final = HTTPBearer(
    scheme_name="ApiKey",
    description="`Authorization: Bearer tm_…`; `tidemark key create` makes a key.",
    auto_error=False,
)
# Puts the scheme into `/openapi.json`; `authorized` reads the header.
_Scheme = Annotated[object, Security(_BEARER)]


async def _any_key(request: Request, _scheme: _Scheme) -> ApiKey:
    return await authorized(request.app.state.dependencies, request)


def _account_of(request: Request) -> str | None:
    account: str | None = request.path_params.get("account")
    return request.query_params.get("account") if account is None else account


async def _reader(request: Request, _scheme: _Scheme) -> ApiKey:
    """A key that may read the account that the request names in its path or query, if it names one."""
    account = _account_of(request)
    return await authorized(request.app.state.dependencies, request, Role.READ, account=account)


async def _admin(request: Request, _scheme: _Scheme) -> ApiKey:
    """A key of the role admin. If the key belongs to an account, the path must name that account."""
    account = request.path_params.get("account")
    return await authorized(request.app.state.dependencies, request, Role.ADMIN, account=account)


async def _operator(request: Request, _scheme: _Scheme) -> ApiKey:
    """A key of the role operator that reaches the account of the path or query, if it names one."""
    account = _account_of(request)
    return await authorized(request.app.state.dependencies, request, Role.OPERATOR, account=account)


async def _billing(request: Request, _scheme: _Scheme) -> ApiKey:
    """A key that may change the plan of the account of the path."""
    account = request.path_params.get("account")
    return await authorized(request.app.state.dependencies, request, Role.BILLING, Role.OPERATOR, account=account)


async def _plan_reader(request: Request, _scheme: _Scheme) -> ApiKey:
    return await authorized(request.app.state.dependencies, request, Role.READ, Role.BILLING, Role.OPERATOR)


async def _seat_reader(request: Request, _scheme: _Scheme) -> ApiKey:
    account = request.path_params.get("account")
    return await authorized(
        request.app.state.dependencies, request, Role.READ, Role.BILLING, Role.OPERATOR, account=account
    )


async def _checker(request: Request, _scheme: _Scheme) -> ApiKey:
    return await authorized(request.app.state.dependencies, request, Role.CHECK)


async def _override_reader(request: Request, _scheme: _Scheme) -> ApiKey:
    account = request.path_params.get("account")
    return await authorized(request.app.state.dependencies, request, Role.READ, Role.OPERATOR, account=account)


async def _finance(request: Request, _scheme: _Scheme) -> ApiKey:
    """A key of no single account: figures of revenue are those of the business."""
    key = await authorized(request.app.state.dependencies, request, Role.FINANCE)
    if key.account is not None:
        raise ApiError(403, "forbidden", f"key {key.id} belongs to one account, and revenue is that of all", "account")
    return key


async def _live(request: Request) -> LiveUsage:
    live: LiveUsage | None = request.app.state.dependencies.live
    if live is None:
        raise ApiError(501, "not_configured", "this gateway has no Redis: set TIDEMARK_REDIS_URL")
    return live


async def _analytics(request: Request) -> UsageReader:
    reader: UsageReader | None = request.app.state.dependencies.usage
    if reader is None:
        raise ApiError(501, "not_configured", "this gateway has no ClickHouse: set TIDEMARK_CLICKHOUSE_URL")
    return reader


# Parameters of handlers. They are checked in their order, and before the parameters of the query.
AnyKey = Annotated[ApiKey, Depends(_any_key)]
Reader = Annotated[ApiKey, Depends(_reader)]
Admin = Annotated[ApiKey, Depends(_admin)]
Checker = Annotated[ApiKey, Depends(_checker)]
Operator = Annotated[ApiKey, Depends(_operator)]
Billing = Annotated[ApiKey, Depends(_billing)]
SeatReader = Annotated[ApiKey, Depends(_seat_reader)]
PlanReader = Annotated[ApiKey, Depends(_plan_reader)]
OverrideReader = Annotated[ApiKey, Depends(_override_reader)]
Finance = Annotated[ApiKey, Depends(_finance)]
Live = Annotated[LiveUsage, Depends(_live)]
Analytics = Annotated[UsageReader, Depends(_analytics)]
