"""`usage_hourly` against the recount, for arrival buckets that are closed, drained and archived."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from reconciler.causes import Cause, Pair
from reconciler.compare import Difference, Range, differences
from reconciler.recount import Recounter, Snapshot
from reconciler.report import Findings, Row
from reconciler.table import instant_text
from reconciler.views import Behind, Snapshots, Views, same_log
from schemas.analytics import RecountKey
from schemas.clock import HOUR_MS
from schemas.meters import Aggregation

NAMES_MAX: Final = 10
COUNTED_AGAIN: Final = "late bindings had usage counted again (a re-cut) while usage_hourly was read: {}"
LOST: Final = (
    "{} {} that ClickHouse lacks were dropped, because more waited than TIDEMARK_OUTBOX_MAX allows{}: "
    "`tidemark rebuild usage_hourly` makes them again"
)


class Settled(NamedTuple):
    """Arrival buckets before `before_ms` cannot change any more; `detail` says what holds back the others."""

    before_ms: int
    detail: str
    cause: Cause = Cause.IN_FLIGHT


class CellsComparison:
    """Compares `usage_hourly` and the recount. Memory grows with the cells of one partition."""

    def __init__(
        self, views: Views, recounter: Recounter, snapshots: Snapshots, findings: Findings, limits: Range
    ) -> None:
        self._views = views
        self._recounter = recounter
        self._snapshots = snapshots
        self._findings = findings
        self._range = limits

    async def run(self, snapshot: Snapshot) -> list[Difference[RecountKey]]:
        """What differs on a partition; equal and unchecked cells go to the findings."""
        settled = await self._settled(snapshot)
        # The rows are read last: what is settled now is in them.
        found = self._inside(snapshot, await self._views.reader.hourly_cells(snapshot.partition))
        expected = self._inside(snapshot, await self._recounter.cells(snapshot))
        for key in [key for key, value in expected.items() if not value and key not in found]:
            # The fold writes no cell for an event that only repeats distinct values.
            if self._aggregation(snapshot, key.meter) is Aggregation.UNIQUE:
                del expected[key]
        keys = expected.keys() | found.keys()
        waiting = {key for key in keys if key.arrival_bucket_ms >= settled.before_ms}
        if waiting:
            row = Row(Pair.HOURLY, settled.cause, snapshot.partition, detail=settled.detail)
            self._findings.add(row, len(waiting))
        waiting |= await self._counted_again(snapshot, keys - waiting)
        equal, differing = differences(
            {key: value for key, value in expected.items() if key not in waiting},
            {key: value for key, value in found.items() if key not in waiting},
        )
        self._findings.equal(Pair.HOURLY, equal)
        return differing

    async def _counted_again(self, snapshot: Snapshot, keys: set[RecountKey]) -> set[RecountKey]:
        """The cells among `keys` that a re-cut may have changed between the recount and the reading of the rows: it
        empties cells of hours that passed long ago, and makes others in their place."""
        fence = same_log(snapshot, await self._views.store.load_fence(snapshot.partition))
        now = await self._snapshots.at(snapshot.partition, fence)
        if isinstance(now, Behind):
            moved, detail = keys, f"whether a late binding had cells counted again meanwhile is not known: {now.detail}"
        else:
            before = snapshot.history.accounts
            names = {
                name
                for name, account in now.history.accounts.items()
                if account.recuts != (before[name].recuts if name in before else [])
            }
            moved = {key for key in keys if key.account in names}
            detail = COUNTED_AGAIN.format(", ".join(sorted({key.account for key in moved})[:NAMES_MAX]))
        if moved:
            row = Row(Pair.HOURLY, Cause.IN_FLIGHT, snapshot.partition, detail=detail)
            self._findings.add(row, len(moved))
        return moved

    def _inside(self, snapshot: Snapshot, cells: Mapping[RecountKey, int]) -> dict[RecountKey, int]:
        if self._range == Range():
            return dict(cells)
        period = snapshot.history.period
        return {
            key: value for key, value in cells.items() if self._range.overlaps(period(key.account, key.period_start_ms))
        }

    @staticmethod
    def _aggregation(snapshot: Snapshot, slug: str) -> Aggregation | None:
        meter = snapshot.history.definitions.get(slug)
        return meter.aggregation if meter else None

    async def _settled(self, snapshot: Snapshot) -> Settled:
        """Log time has passed the bucket, nothing of it is dirty, and both drain and archive are beyond its end."""
        fence = snapshot.fence
        limits = [Settled(_hour(fence.log_time_ms), "the arrival bucket is still open: log time has not passed it")]
        _, oldest_dirty = await self._views.store.dirty(snapshot.partition, 1)
        if oldest_dirty:
            bucket_ms = oldest_dirty[0].key.bucket_ms
            limits.append(Settled(bucket_ms, "cells of the arrival bucket wait in Redis to be drained"))
        lost = await self._views.store.lost(snapshot.partition)
        if lost.cells:
            first_ms = min(lost.cells)
            detail = LOST.format(sum(lost.cells.values()), "cells", f" from {instant_text(first_ms)} on")
            limits.append(Settled(first_ms, detail, Cause.UNCHECKED))
        if lost.duplicates:
            row = Row(
                Pair.DUPLICATES, Cause.UNCHECKED, snapshot.partition, detail=LOST.format(lost.duplicates, "rows", "")
            )
            self._findings.add(row, lost.duplicates)
        drained = (await self._views.hourly.load_drained()).get(snapshot.partition)
        drained_ms = _hour(drained.log_time_ms) if drained else 0
        limits.append(Settled(drained_ms, "the drain to usage_hourly has not passed the arrival bucket"))
        archived = await self._snapshots.archived(snapshot.partition, fence)
        archived_ms = _hour(archived.log_time_ms) if archived else 0
        limits.append(Settled(archived_ms, "the archive has not passed the arrival bucket"))
        return min(limits, key=lambda each: each.before_ms)


def _hour(instant_ms: int) -> int:
    return instant_ms // HOUR_MS * HOUR_MS
