"""Keeps the outbox within its cap and says what was lost: in the log of the process, as a gauge and at `/readyz`."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any, Final

from aggregators.instants import format_instant_ms
from pipeline.metrics import Metrics
from schemas.rollup import Lost, RollupStore

DROPPED: Final = (
    "%d entries of partition %d were dropped: more than TIDEMARK_OUTBOX_MAX (%d) waited for ClickHouse. Live totals "
    "are whole; once ClickHouse is back, `tidemark rebuild usage_hourly` fills usage_hourly and usage_duplicates again"
)

_log = logging.getLogger(__name__)


class OutboxCap:
    """Runs apart from the relay, which does not even begin while ClickHouse is away. Errors as the store."""

    def __init__(self, store: RollupStore, entries_max: int, metrics: Metrics) -> None:
        self._store = store
        self._entries_max = entries_max
        self._metrics = metrics
        self._lost: dict[int, str] = {}

    async def keep(self, partition: int) -> None:
        """Drop what is over the cap of one partition, and look at what was lost before."""
        if dropped := await self._store.shed(partition, self._entries_max):
            _log.error(DROPPED, dropped, partition, self._entries_max)
        lost = await self._store.lost(partition)
        self._lost.pop(partition, None)
        if lost.cells or lost.duplicates:
            self._lost[partition] = _remedy(lost)
        for kind, entries in (("cells", sum(lost.cells.values())), ("duplicates", lost.duplicates)):
            self._metrics.set("tidemark_outbox_lost_entries", entries, partition=str(partition), kind=kind)

    def details(self, owned: Collection[int]) -> dict[str, Any]:
        """What `/readyz` tells: per owned partition from when on which view has to be rebuilt; nothing where none."""
        lost = {str(partition): self._lost[partition] for partition in sorted(self._lost) if partition in owned}
        return {"lost": lost} if lost else {}


def _remedy(lost: Lost) -> str:
    what = f"usage_hourly from {format_instant_ms(min(lost.cells))} on" if lost.cells else "usage_duplicates"
    return f"{what}: run `tidemark rebuild usage_hourly` once ClickHouse is back"
