"""Our totals of accounts' periods, and the reconciler's recount of the same from the archive."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from decimal import Decimal
from typing import Final

from aggregators.partitioning import partition_of
from reconciler.recount import Recounter
from reconciler.views import Behind, PartitionStates, Views
from schemas.aggregations import Aggregation
from schemas.backtest import PeriodTotals
from schemas.clock import Clock
from schemas.errors import Transient
from schemas.flat_to_metered import Counted, TotalKey
from schemas.periods import INSTANT_MIN_MS

WAIT_S: Final = 10.0


class RecountedTotals:
    """Implements `schemas.flat_to_metered.UsageTotals`, whose docstrings hold. `partitions`: of `usage.events`."""

    def __init__(self, views: Views, hourly: PeriodTotals, clock: Clock, partitions: int) -> None:
        self._views, self._hourly, self._clock, self._partitions = views, hourly, clock, partitions

    async def totals(self, accounts: Collection[str], meters: Sequence[str]) -> Mapping[TotalKey, Counted]:
        by_partition: dict[int, set[str]] = defaultdict(set)
        for account in accounts:
            by_partition[partition_of(account, self._partitions)].add(account)
        complete_ms = await self._hourly.complete_up_to_ms(self._partitions)
        found: dict[TotalKey, Counted] = {}
        for partition, own in sorted(by_partition.items()):
            found |= await self._partition(partition, own, meters, complete_ms)
        return found

    async def _partition(
        self, partition: int, accounts: set[str], meters: Sequence[str], complete_ms: int
    ) -> Mapping[TotalKey, Counted]:
        checkpoint = await self._views.live.state.load_checkpoint(partition)
        if checkpoint is None:
            raise Transient(f"partition {partition} has no checkpoint yet: start `tidemark worker`")
        state = await PartitionStates(self._views.reader, self._clock, WAIT_S).at(partition, checkpoint)
        if isinstance(state, Behind):
            raise Transient(f"partition {partition}: {state.detail}")
        spans = {span.meter.slug: span.meter for span in state.history.meters if span.meter.slug in meters}
        aggregations: dict[str, Aggregation] = {slug: meter.aggregation for slug, meter in spans.items()}
        rows = await self._hourly.totals(sorted(accounts), aggregations, INSTANT_MIN_MS, checkpoint.stream_time_ms)
        counted = {(row.account, row.meter, row.period): row.quantity for row in rows}
        again = await Recounter(self._views.reader).totals_of(state, frozenset(accounts))
        recounted = {
            key: Decimal(minor).scaleb(-spans[key[1]].scale) for key, minor in again.items() if key[1] in spans
        }
        return {
            key: Counted(counted.get(key, Decimal(0)), recounted.get(key, Decimal(0)))
            for key in counted.keys() | recounted.keys()
            if key[2].end_ms <= complete_ms
        }
