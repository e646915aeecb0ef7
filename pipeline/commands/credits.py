"""The commands `credits balance`, `ledger`, `grant` and `void`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aggregators.credit_terms import pools_of
from pipeline.access.credits import CreditBalance, CreditParts, balance_of
from pipeline.access.renewal import commerce_of
from pipeline.access.usage import LiveUsageSource
from pipeline.open import open_live_view, side_tables_of
from pipeline.settings import Settings
from schemas.credits import Category, CreditEntry, CreditGrant, Granted, NewGrant
from schemas.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class GrantWish:
    """A grant that a person asks for. `effective_ms` None: from now on. `key` names the request."""

    account: str
    pool: str
    credits: int
    key: str
    reason: str
    category: Category = Category.PROMOTIONAL
    priority: int = 50
    effective_ms: int | None = None
    expires_ms: int | None = None


async def show_balance(settings: Settings, account: str) -> CreditBalance:
    """The credits of an account. Raises `Transient`."""
    async with side_tables_of(settings) as (base, tables):
        view = open_live_view(settings)
        try:
            usage = LiveUsageSource(view.totals, base.genesis.partitions, base.clock)
            parts = CreditParts(tables.credits, tables.catalog, tables.holds, usage, base.clock)
            return await balance_of(parts, account)
        finally:
            await view.close()


async def list_entries(settings: Settings, account: str, limit: int) -> Sequence[CreditEntry]:
    """The newest rows of an account's ledger, the oldest of them first. Raises `Transient`."""
    async with side_tables_of(settings) as (_, tables):
        return await tables.credits.entries(account, limit, newest=True)


async def make_grant(settings: Settings, wish: GrantWish, by: str) -> Granted:
    """Grant credits. Raises `InvalidInput` if the active catalog has no such pool of ours, and as `Credits.grant`."""
    async with side_tables_of(settings) as (base, tables):
        found = await commerce_of(tables.catalog)
        pools = {pool.name for pool in pools_of(found[1].catalog)} if found else set()
        if wish.pool not in pools:
            have = ", ".join(sorted(pools)) or "none"
            raise InvalidInput("POOL", f"the active catalog has no pool {wish.pool!r} in mode ledger; it has {have}")
        now_ms = base.clock.now_ms()
        effective_ms = now_ms if wish.effective_ms is None else wish.effective_ms
        new = NewGrant(
            wish.account, wish.pool, wish.category, wish.credits, effective_ms, wish.key, wish.expires_ms, wish.priority
        )
        return await tables.credits.grant(new, by, wish.reason, now_ms)


async def void_grant(settings: Settings, account: str, grant: str, reason: str, by: str, *, owes: bool) -> CreditGrant:
    """Take back what is left of a grant. Raises as `Credits.void`."""
    async with side_tables_of(settings) as (base, tables):
        return await tables.credits.void(account, grant, by, reason, base.clock.now_ms(), owes=owes)
