"""The gateway's dependencies, and the check of a request's API key."""

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
    """The parts of the live view that answer current usage."""

    accounts: AccountDirectory
    deferred: DeferredEvents
    totals: LiveTotals


@dataclass(frozen=True, slots=True)
class GatewayDependencies:
    """The settings and stores of the gateway. The gateway closes none of them.

    Each request calls `meter_set` once, so the call must answer from memory. None means that there is no meter set yet:
    valid events are accepted unmetered. `Transient` means that the meter set is not known yet: valid events are
    accepted, and reads are answered with 503. `meter_set_age_s` returns the seconds since the meter set was last read
    from its store, None before the first time. Without `live` the gateway does not answer current usage. Without
    `usage` the gateway does not answer usage over time. Without `hourly`, `complete_up_to` is null.
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


def authorized(
    dependencies: GatewayDependencies, request: Request, role: Role | None, account: str | None = None
) -> ApiKey:
    """The key of a request. `role` None allows every role.

    Raises `ApiError`: 401 without a valid key, 403 if the key does not have the role or belongs to another account.
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
