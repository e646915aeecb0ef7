"""What the gateway is given, and who may use it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

from starlette.requests import Request

from pipeline.http.api_keys import ApiKey, Keys, Role
from pipeline.http.errors import ApiError
from pipeline.settings import Settings
from schemas.analytics import HourlyStore, UsageReader
from schemas.clock import Clock
from schemas.control import Genesis
from schemas.live_view import AccountDirectory, DeferredEvents, LiveTotals
from schemas.log import Log
from schemas.meters import MeterSet

MeterSetSource = Callable[[], Awaitable[MeterSet | None]]

KEY_CHARACTERS_MAX: Final = 256


class LiveUsage(NamedTuple):
    """What live usage answers read."""

    accounts: AccountDirectory
    deferred: DeferredEvents
    totals: LiveTotals


@dataclass(frozen=True, slots=True)
class GatewayDependencies:
    """Everything the gateway reaches. It closes none of them.

    `meter_set` is asked once per request and should answer from memory; None means that no meter set is in force yet,
    and events are then taken as the fold takes them: well-formed ones are accepted, unmetered. `live` None takes
    away live usage, `usage` None takes away usage over time. `hourly` tells how far `usage_hourly` is complete;
    without it `complete_up_to` is null.
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


def authorized(
    dependencies: GatewayDependencies, request: Request, role: Role | None, account: str | None = None
) -> ApiKey:
    """The key of a request; any role will do where `role` is None.

    Raises `ApiError`: 401 where the key proves nothing, 403 where it may not do this.
    """
    scheme, _, text = request.headers.get("authorization", "").partition(" ")
    text = text.strip()
    key = None
    if scheme.lower() == "bearer" and len(text) <= KEY_CHARACTERS_MAX:
        key = dependencies.keys.verify(text)
    if key is None:
        message = "send a valid key: Authorization: Bearer tm_…; `tidemark key create` makes one"
        raise ApiError(401, "unauthorized", message, headers={"WWW-Authenticate": 'Bearer realm="tidemark"'})
    if role is not None and not key.may(role):
        raise ApiError(403, "forbidden", f"key {key.id} has the role {key.role}: this needs {role} or admin")
    if account is not None and not key.reaches(account):
        raise ApiError(403, "forbidden", f"key {key.id} belongs to another account", "account")
    return key
