"""What the role `mirror` shows of trials, of second subscriptions, and of invoices that cannot become final."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pipeline.metrics import MetricName, Metrics
from schemas.duplicates import DuplicateState, DuplicateStore
from schemas.invoices import UnfinalizedInvoices
from schemas.trials import TrialState, TrialStore

GAUGES: Final[tuple[MetricName, ...]] = (
    "tidemark_trials",
    "tidemark_trials_flagged",
    "tidemark_duplicate_subscriptions",
    "tidemark_unfinalized_invoices",
)


class BoughtGauges:
    """The gauges, counted now and then because a scrape cannot wait for SQL."""

    def __init__(self, trials: TrialStore, duplicates: DuplicateStore, invoices: UnfinalizedInvoices) -> None:
        self._trials = trials
        self._duplicates = duplicates
        self._invoices = invoices
        self._states: Mapping[TrialState, int] | None = None
        self._second: Mapping[DuplicateState, int] = {}
        self._flagged = 0
        self._unfinalized = 0

    async def count(self) -> None:
        """Count. Raises `Transient`; repeatable."""
        self._second = await self._duplicates.counts()
        self._unfinalized = await self._invoices.count()
        self._flagged = await self._trials.flagged()
        self._states = await self._trials.counts()

    def show(self, metrics: Metrics, *, is_owner: bool) -> None:
        """Set the gauges; only one process shows them, and none before the first count."""
        for name in GAUGES:
            metrics.clear(name)
        if not is_owner or self._states is None:
            return
        for state in TrialState:
            metrics.set("tidemark_trials", self._states.get(state, 0), state=state.value)
        metrics.set("tidemark_trials_flagged", self._flagged)
        for found in DuplicateState:
            if found is not DuplicateState.SETTLED:
                metrics.set("tidemark_duplicate_subscriptions", self._second.get(found, 0), state=found.value)
        metrics.set("tidemark_unfinalized_invoices", self._unfinalized)
