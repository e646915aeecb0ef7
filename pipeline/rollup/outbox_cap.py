"""Keeps the outbox within its cap and reports dropped entries: in the program's log, as a gauge and at `/readyz`."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any, Final

from aggregators.instants import format_instant_ms
from pipeline.metrics import Metrics
from schemas.live_view import OutboxDrops
from schemas.rollup import Dropped

DROPPED: Final = (
    "%d entries of partition %d were dropped: more than TIDEMARK_OUTBOX_MAX (%d) waited for ClickHouse. Live totals "
    "are whole; once ClickHouse is back, `tidemark rebuild usage_hourly` fills usage_hourly and usage_duplicates again"
)

_log = logging.getLogger(__name__)


class OutboxCap:
    """Enforces the cap separately from the relay, which does not start without ClickHouse. Errors as `drops`."""

    def __init__(self, drops: OutboxDrops, entries_max: int, metrics: Metrics) -> None:
        self._drops = drops
        self._entries_max = entries_max
        self._metrics = metrics
        self._remedies: dict[int, str] = {}

    async def keep(self, partition: int) -> None:
        """Drop one partition's entries over the cap, and update the report of all dropped entries."""
        if excess := await self._drops.drop_excess(partition, self._entries_max):
            _log.error(DROPPED, excess, partition, self._entries_max)
        dropped = await self._drops.dropped(partition)
        self._remedies.pop(partition, None)
        if dropped.cells or dropped.duplicates:
            self._remedies[partition] = _remedy(dropped)
        for kind, entries in (("cells", sum(dropped.cells.values())), ("duplicates", dropped.duplicates)):
            self._metrics.set("tidemark_outbox_dropped_entries", entries, partition=str(partition), kind=kind)

    def details(self, owned: Collection[int]) -> dict[str, Any]:
        """For `/readyz`: for each owned partition, which view must be rebuilt and from which time; empty if none."""
        dropped = {
            str(partition): self._remedies[partition] for partition in sorted(self._remedies) if partition in owned
        }
        return {"dropped": dropped} if dropped else {}


def _remedy(dropped: Dropped) -> str:
    what = f"usage_hourly from {format_instant_ms(min(dropped.cells))} on" if dropped.cells else "usage_duplicates"
    return f"{what}: run `tidemark rebuild usage_hourly` once ClickHouse is back"
