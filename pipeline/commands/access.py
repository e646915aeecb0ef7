"""The commands about what accounts may do: check, entitlements, override, overrides and revoke."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING

from pipeline.access.checks import AccessChecks, Answer
from pipeline.access.holds import GatewayHolds, HoldRequest
from pipeline.access.overriding import Wish, grant_wishes
from pipeline.access.usage import LiveUsageSource
from pipeline.open import Base, open_base, open_live_view, open_side_tables
from pipeline.settings import Settings
from schemas.entitlements import EntitlementVersion, Override
from schemas.errors import InvalidInput
from schemas.events import check_account
from schemas.holds import Hold

if TYPE_CHECKING:
    from sinks.sql.store import PostgresSideTables


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
            usage = LiveUsageSource(view.totals, base.genesis.partitions, base.clock)
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


async def override(settings: Settings, wish: Wish, *, is_new: bool = False) -> Override:
    """Grant something to an account, or take it away. Raises `InvalidInput` and `Transient`; see `grant_wishes`."""
    async with _stores(settings) as (base, tables):
        return (await grant_wishes(tables.catalog, tables.entitlements, [wish], base.clock.now_ms(), is_new=is_new))[0]


async def revoke(settings: Settings, account: str, number: int, actor: str, reason: str) -> Override:
    """Take back what a person granted. Raises `InvalidInput` if there is no such grant."""
    async with _stores(settings) as (base, tables):
        return await tables.entitlements.revoke(account, number, actor, reason, base.clock.now_ms())


async def overrides(settings: Settings, account: str) -> Sequence[Override]:
    """What people granted to an account."""
    async with _stores(settings) as (_, tables):
        return await tables.entitlements.overrides(account)


async def entitlements(settings: Settings, account: str, at_ms: int | None) -> tuple[EntitlementVersion | None, int]:
    """The entitlements of an account that held at an instant, now if that is None, and the instant. None: nothing was
    computed by then, so the account has the default plan."""
    async with _stores(settings) as (base, tables):
        at_ms = base.clock.now_ms() if at_ms is None else at_ms
        return await tables.entitlements.version_at(account, at_ms), at_ms


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
