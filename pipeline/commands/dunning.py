"""The commands about dunning: list and write off."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pipeline.access.dunning import month_starts
from pipeline.open import side_tables_of
from pipeline.settings import Settings
from schemas.dunning import DunningCase, ListedCase, Recovery


class Dunned(NamedTuple):
    """Cases, and what became of those of the last months."""

    cases: Sequence[ListedCase]
    recoveries: Sequence[Recovery]


async def listed(settings: Settings, account: str, is_open: bool | None, limit: int, months: int) -> Dunned:
    """The newest cases, and the recoveries by month. Raises `Transient`."""
    async with side_tables_of(settings) as (base, tables):
        cases = await tables.dunning.listed(account=account, is_open=is_open, limit=limit)
        starts_ms = month_starts(base.clock.now_ms(), months)
        return Dunned(cases, await tables.dunning.recoveries(starts_ms))


async def write_off(settings: Settings, case: str, actor: str, reason: str) -> DunningCase:
    """Close a case. Raises `InvalidInput` or `Transient`; repeatable."""
    async with side_tables_of(settings) as (base, tables):
        return await tables.dunning.write_off(case, actor, reason, base.clock.now_ms())
