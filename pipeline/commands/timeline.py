"""The commands `account timeline` and `account acknowledge`."""

from __future__ import annotations

from pipeline.http.timeline import TimelineStores, read_timeline
from pipeline.open import side_tables_of
from pipeline.settings import Settings
from portal.timeline import Timeline
from schemas.acknowledgements import Acknowledged


async def timeline(settings: Settings, account: str, limit: int, before: int | None) -> Timeline:
    """A page of an account's timeline. Raises `Transient`, and `InvalidInput` before the first catalog."""
    async with side_tables_of(settings) as (base, tables):
        stores = TimelineStores(
            base.clock,
            tables.catalog,
            tables.account_records,
            tables.entitlements,
            tables.dunning,
            tables.notices,
            tables.seats,
        )
        return await read_timeline(stores, account, limit, before)


async def acknowledge(settings: Settings, account: str, what: str, actor: str, reason: str) -> Acknowledged:
    """Leave a thing of an account as it is. Raises `InvalidInput` and `Transient`; repeatable."""
    async with side_tables_of(settings) as (base, tables):
        return await tables.acknowledgements.acknowledge(account, what, actor, reason, base.clock.now_ms())
