"""The commands about notices: list and retry."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence

from pipeline.open import Base, open_base, open_side_tables
from pipeline.settings import Settings
from schemas.notices import Delivery, DeliveryState, NoticeOutbox


async def listed(settings: Settings, state: DeliveryState | None, account: str, limit: int) -> Sequence[Delivery]:
    """The newest deliveries. Raises `Transient`."""
    async with _opened(settings) as (_, outbox):
        return await outbox.listed(state, account, limit)


async def retry(settings: Settings, notice: str) -> int:
    """Have the dead deliveries of a notice, or of all if it is "", sent again; returns how many. Raises `Transient`."""
    async with _opened(settings) as (base, outbox):
        return await outbox.retry(notice, base.clock.now_ms())


@contextlib.asynccontextmanager
async def _opened(settings: Settings) -> AsyncIterator[tuple[Base, NoticeOutbox]]:
    base = await open_base(settings, create=False)
    try:
        tables = await open_side_tables(base, migrate=False)
        try:
            yield base, tables.notices
        finally:
            await tables.close()
    finally:
        await base.log.close()
