"""The commands about notices: list and retry."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.open import side_tables_of
from pipeline.settings import Settings
from schemas.notices import Delivery, DeliveryState


async def listed(settings: Settings, state: DeliveryState | None, account: str, limit: int) -> Sequence[Delivery]:
    """The newest deliveries. Raises `Transient`."""
    async with side_tables_of(settings) as (_, tables):
        return await tables.notices.listed(state, account, limit)


async def retry(settings: Settings, notice: str) -> int:
    """Have the dead deliveries of a notice, or of all if it is "", sent again; returns how many. Raises `Transient`."""
    async with side_tables_of(settings) as (base, tables):
        return await tables.notices.retry(notice, base.clock.now_ms())
