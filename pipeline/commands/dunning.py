"""The commands about dunning: list and write off."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple

from pipeline.access.dunning import month_starts
from pipeline.open import Base, open_base, open_side_tables
from pipeline.settings import Settings
from schemas.dunning import DunningCase, DunningStore, ListedCase, Recovery


class Dunned(NamedTuple):
    """Cases, and what became of those of the last months."""

    cases: Sequence[ListedCase]
    recoveries: Sequence[Recovery]


async def listed(settings: Settings, account: str, is_open: bool | None, limit: int, months: int) -> Dunned:
    """The newest cases, and the recoveries by month. Raises `Transient`."""
    async with _opened(settings) as (base, store):
        cases = await store.listed(account=account, is_open=is_open, limit=limit)
        starts_ms = month_starts(base.clock.now_ms(), months)
        return Dunned(cases, await store.recoveries(starts_ms))


async def write_off(settings: Settings, case: str, actor: str, reason: str) -> DunningCase:
    """Close a case. Raises `InvalidInput` or `Transient`; repeatable."""
    async with _opened(settings) as (base, store):
        return await store.write_off(case, actor, reason, base.clock.now_ms())


@contextlib.asynccontextmanager
async def _opened(settings: Settings) -> AsyncIterator[tuple[Base, DunningStore]]:
    base = await open_base(settings, create=False)
    try:
        tables = await open_side_tables(base, migrate=False)
        try:
            yield base, tables.dunning
        finally:
            await tables.close()
    finally:
        await base.log.close()
