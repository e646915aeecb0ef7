"""Compares `usage_hourly` with the recount, for arrival buckets that are closed, relayed and archived."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from reconciler.causes import Cause, Pair
from reconciler.compare import Difference, Range, differences
from reconciler.recount import PartitionState, Recounter
from reconciler.report import Findings, Row, instant_text
from reconciler.views import Behind, PartitionStates, Views, same_log
from schemas.analytics import RecountKey
from schemas.clock import HOUR_MS
from schemas.rollup import Checkpoint

NAMES_MAX: Final = 10
RESTATED: Final = "late bindings had the usage of accounts restated while usage_hourly was read: {}"
DROPPED: Final = (
    "{} {}{} are missing in ClickHouse: the outbox dropped them over its limit TIDEMARK_OUTBOX_MAX. Run "
    "`tidemark rebuild usage_hourly`"
)


class Settled(NamedTuple):
    """Arrival buckets before `before_ms` cannot change any more; `detail` says why later ones can."""

    before_ms: int
    detail: str
    cause: Cause = Cause.IN_FLIGHT


@dataclass(frozen=True, slots=True)
class CellsComparison:
    """Compares `usage_hourly` and the recount. Memory grows with the cells of one partition."""

    views: Views
    recounter: Recounter
    states: PartitionStates
    findings: Findings
    limits: Range

    async def run(self, state: PartitionState) -> list[Difference[RecountKey]]:
        """Returns the differences of a partition; equal and unchecked cells go to the findings."""
        settled = await self._settled(state)
        # The rows are read last, so they contain all settled cells.
        found = self._inside(state, await self.views.reader.hourly_cells(state.partition))
        expected = self._inside(state, await self.recounter.cells(state))
        for key in [key for key, value in expected.items() if not value and key not in found]:
            # The fold writes no cell for an event that only repeats distinct values.
            meter = state.history.definitions.get(key.meter)
            if meter and meter.aggregation.rule.distinct:
                del expected[key]
        keys = expected.keys() | found.keys()
        waiting = {key for key in keys if key.arrival_bucket_ms >= settled.before_ms}
        if waiting:
            row = Row(Pair.HOURLY, settled.cause, state.partition, detail=settled.detail)
            self.findings.add(row, len(waiting))
        waiting |= await self._restated(state, keys - waiting)
        equal, differing = differences(
            {key: value for key, value in expected.items() if key not in waiting},
            {key: value for key, value in found.items() if key not in waiting},
        )
        self.findings.equal(Pair.HOURLY, equal)
        return differing

    async def _restated(self, state: PartitionState, keys: set[RecountKey]) -> set[RecountKey]:
        """The cells among `keys` that a restatement may have changed between the recount and the read of the rows. A
        restatement changes cells even of settled arrival buckets."""
        checkpoint = same_log(state, await self.views.live.state.load_checkpoint(state.partition))
        now = await self.states.at(state.partition, checkpoint)
        if isinstance(now, Behind):
            moved, detail = keys, f"whether a late binding changed cells meanwhile is unknown: {now.detail}"
        else:
            before = state.history.accounts
            names = {
                name
                for name, account in now.history.accounts.items()
                if account.restatements != (before[name].restatements if name in before else [])
            }
            moved = {key for key in keys if key.account in names}
            detail = RESTATED.format(", ".join(sorted({key.account for key in moved})[:NAMES_MAX]))
        if moved:
            row = Row(Pair.HOURLY, Cause.IN_FLIGHT, state.partition, detail=detail)
            self.findings.add(row, len(moved))
        return moved

    def _inside(self, state: PartitionState, cells: Mapping[RecountKey, int]) -> dict[RecountKey, int]:
        if self.limits == Range():
            return dict(cells)
        period = state.history.period
        return {
            key: value for key, value in cells.items() if self.limits.overlaps(period(key.account, key.period_start_ms))
        }

    async def _settled(self, state: PartitionState) -> Settled:
        dropped = await self.views.live.drops.dropped(state.partition)
        if dropped.duplicates:
            row = Row(
                Pair.DUPLICATES, Cause.UNCHECKED, state.partition, detail=DROPPED.format(dropped.duplicates, "rows", "")
            )
            self.findings.add(row, dropped.duplicates)
        return await settled(self.views, self.states, state.partition, state.checkpoint)


async def settled(views: Views, states: PartitionStates, partition: int, checkpoint: Checkpoint) -> Settled:
    """The settled buckets of a partition: stream time, relay and archive have passed them, and no cell is dirty or
    dropped."""
    limits = [
        Settled(_hour(checkpoint.stream_time_ms), "the arrival bucket is still open: stream time has not passed it")
    ]
    _, oldest_dirty = await views.live.outbox.dirty(partition, 1)
    if oldest_dirty:
        bucket_ms = oldest_dirty[0].key.bucket_ms
        limits.append(Settled(bucket_ms, "cells of the arrival bucket wait in Redis to be relayed"))
    dropped = await views.live.drops.dropped(partition)
    if dropped.cells:
        first_ms = min(dropped.cells)
        detail = DROPPED.format(sum(dropped.cells.values()), "cells", f" from {instant_text(first_ms)} on")
        limits.append(Settled(first_ms, detail, Cause.UNCHECKED))
    relayed = (await views.hourly.load_relayed()).get(partition)
    relayed_ms = _hour(relayed.stream_time_ms) if relayed else 0
    limits.append(Settled(relayed_ms, "the relay to usage_hourly has not passed the arrival bucket"))
    archived = await states.archived(partition, checkpoint)
    archived_ms = _hour(archived.stream_time_ms) if archived else 0
    limits.append(Settled(archived_ms, "the archive has not passed the arrival bucket"))
    return min(limits, key=lambda limit: limit.before_ms)


def _hour(instant_ms: int) -> int:
    return instant_ms // HOUR_MS * HOUR_MS
