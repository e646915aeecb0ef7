"""The commands about trials, second subscriptions, and invoices that cannot become final."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.open import side_tables_of
from pipeline.settings import Settings
from schemas.duplicates import Duplicate, DuplicateState
from schemas.invoices import UnfinalizedInvoice
from schemas.trials import Trial

UNSETTLED = (DuplicateState.FOUND, DuplicateState.REFUND_PROPOSED, DuplicateState.FOREIGN)


async def trials(settings: Settings, account: str, limit: int) -> Sequence[Trial]:
    """The newest trials. Raises `Transient`."""
    async with side_tables_of(settings) as (_, tables):
        return await tables.trials.listed(account, limit)


async def duplicates(settings: Settings, limit: int, *, with_settled: bool) -> Sequence[Duplicate]:
    """The newest second subscriptions. Raises `Transient`."""
    async with side_tables_of(settings) as (_, tables):
        return await tables.duplicates.listed(() if with_settled else UNSETTLED, limit)


async def settle(settings: Settings, subscription: str, by: str, reason: str) -> Duplicate:
    """Note what a person decided. Raises `InvalidInput` and `Transient`; repeatable."""
    async with side_tables_of(settings) as (base, tables):
        return await tables.duplicates.settle(subscription, by, reason, base.clock.now_ms())


async def unfinalized(settings: Settings, limit: int) -> Sequence[UnfinalizedInvoice]:
    """The oldest drafts that cannot become final. Raises `Transient`."""
    async with side_tables_of(settings) as (_, tables):
        return await tables.unfinalized.listed(limit)
