"""The commands about what accounts may do: check, override, overrides and revoke."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncIterator, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, NamedTuple

from pipeline.access.checks import AccessChecks, Answer
from pipeline.access.holds import GatewayHolds, HoldRequest
from pipeline.access.renewal import commerce_of
from pipeline.access.usage import LiveUsageSource
from pipeline.open import Base, open_base, open_live_view, open_side_tables
from pipeline.settings import Settings
from schemas.catalog import FeatureType
from schemas.entitlements import UNLIMITED, Grant, Operation, Override, SourceKind, Value
from schemas.errors import InvalidInput
from schemas.events import check_account
from schemas.holds import Hold
from schemas.periods import INSTANT_MIN_MS

if TYPE_CHECKING:
    from sinks.sql.store import PostgresSideTables


class Wish(NamedTuple):
    """What a person grants to an account. `value` is a number, `unlimited`, `true`, `false` or the JSON of a config."""

    account: str
    feature: str
    operation: Operation
    value: str
    ends_ms: int | None
    actor: str
    reason: str
    contract: bool = False


async def check(
    settings: Settings,
    account: str,
    feature: str,
    quantity: Decimal,
    used: Decimal | None,
    hold: HoldRequest | None = None,
) -> tuple[Answer, int]:
    """Whether an account may use `quantity` more of a feature, and the time. With `hold`, the quantity is held. Raises
    `InvalidInput` and `Transient`."""
    check_account(account)
    async with _stores(settings) as (base, tables):
        view = open_live_view(settings)
        try:
            usage = LiveUsageSource(view.accounts, view.totals, base.genesis.partitions, base.clock)
            checks = AccessChecks(tables.catalog, tables.entitlements, usage, base.clock, holds=tables.holds)
            return await checks.check(account, feature, quantity, used, hold), base.clock.now_ms()
        finally:
            await view.close()


async def end_hold(settings: Settings, hold_id: str, used: Decimal | None) -> tuple[Hold, bool, int]:
    """Say what was used of a hold: all of it (None), a quantity, or nothing (0). Returns the hold, whether it is as was
    said, and the time. Raises `InvalidInput` if there is no such hold, or more was used than was held, and `Transient`.
    """
    async with _stores(settings) as (base, tables):
        holds = GatewayHolds(tables.holds, base.clock)
        found = await holds.get(hold_id)
        if found is None:
            raise InvalidInput("HOLD", f"there is no hold {hold_id[:100]!r}; an ended one is kept for a day")
        wanted = found.quantity if used is None else used
        ended = await holds.end(found, wanted)
        return ended, ended.used == wanted, base.clock.now_ms()


async def override(settings: Settings, wish: Wish) -> Override:
    """Grant something to an account, or take it away. Raises `InvalidInput` for a feature or value that does not fit
    the active catalog."""
    check_account(wish.account)
    async with _stores(settings) as (base, tables):
        now_ms = base.clock.now_ms()
        if wish.ends_ms is not None and wish.ends_ms <= now_ms:
            raise InvalidInput("--until", "is not later than now")
        found = await commerce_of(tables.catalog)
        if found is None:
            raise InvalidInput("feature", "no catalog is active: see `tidemark catalog plan --help`")
        features = found[1].catalog.features
        if wish.feature not in features:
            raise InvalidInput(
                "feature", f"{wish.feature[:100]!r} is no feature of the catalog: `tidemark catalog show`"
            )
        value = _value(wish, features[wish.feature].type)
        kind = SourceKind.CONTRACT if wish.contract else SourceKind.OVERRIDE
        source = f"{kind.value} {secrets.token_hex(4)}"
        # An override holds from now on; what was allowed before stays in the versions that are kept.
        grant = Grant(
            wish.feature,
            kind,
            source,
            wish.operation,
            value,
            now_ms,
            wish.ends_ms,
            cause=wish.actor,
            reason=wish.reason,
        )
        same = repeated(await tables.entitlements.overrides(wish.account), grant)
        return same or await tables.entitlements.override(wish.account, grant, wish.actor, now_ms)


async def revoke(settings: Settings, account: str, number: int, actor: str, reason: str) -> Override:
    """Take back what a person granted. Raises `InvalidInput` if there is no such grant."""
    async with _stores(settings) as (base, tables):
        return await tables.entitlements.revoke(account, number, actor, reason, base.clock.now_ms())


async def overrides(settings: Settings, account: str) -> Sequence[Override]:
    """What people granted to an account."""
    async with _stores(settings) as (_, tables):
        return await tables.entitlements.overrides(account)


def repeated(known: Sequence[Override], grant: Grant) -> Override | None:
    """The override in force that a grant only repeats. A value that was set otherwise since is set again."""
    rivals = [
        made
        for made in known
        if made.revoked_ms is None
        and (made.grant.feature, made.grant.kind, made.grant.operation) == (grant.feature, grant.kind, grant.operation)
    ]
    if grant.operation is Operation.SET:
        rivals = rivals[-1:]
    return next((made for made in rivals if _terms(made.grant) == _terms(grant)), None)


def _terms(grant: Grant) -> Grant:
    return grant._replace(source="", starts_ms=INSTANT_MIN_MS)


def _value(wish: Wish, kind: FeatureType) -> Value:
    """The value of a wish, as its feature needs it."""
    if wish.operation is Operation.DENY:
        return False
    if kind is FeatureType.FLAG and wish.value in ("true", "false"):
        return wish.value == "true"
    if kind in (FeatureType.LIMIT, FeatureType.SEAT):
        if wish.value == UNLIMITED.value and wish.operation in (Operation.SET, Operation.AT_LEAST):
            return UNLIMITED
        if wish.value.isascii() and wish.value.isdigit() and len(wish.value) <= 15:
            return Decimal(wish.value)
    if kind is FeatureType.CONFIG and wish.operation is Operation.SET and wish.value.startswith("{"):
        return _config(wish.value)
    forms = {
        FeatureType.FLAG: "true or false",
        FeatureType.CONFIG: "a JSON object, and only --set",
        FeatureType.LIMIT: "a whole number of up to 15 digits, or unlimited",
        FeatureType.SEAT: "a whole number of up to 15 digits, or unlimited",
    }
    raise InvalidInput("value", f"{wish.feature} is a {kind.value}: give {forms[kind]}")


def _config(text: str) -> str:
    import msgspec

    try:
        return msgspec.json.encode(msgspec.json.decode(text), order="sorted").decode()
    except msgspec.DecodeError as error:
        raise InvalidInput("value", f"is not JSON: {error}") from error


@contextlib.asynccontextmanager
async def _stores(settings: Settings) -> AsyncIterator[tuple[Base, PostgresSideTables]]:
    base = await open_base(settings, create=False)
    try:
        tables = await open_side_tables(base)
        try:
            yield base, tables
        finally:
            await tables.close()
    finally:
        await base.log.close()
