"""What the role `mirror` shows of dunning, and how many cases recovered in each month."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from aggregators.instants import civil_from_days, days_from_civil
from pipeline.metrics import MetricName, Metrics
from schemas.clock import DAY_MS, Clock
from schemas.dunning import DunningCounts, DunningState, DunningStore, Recovery

# How long a case has until it counts as not recovered, and the span of the cases that are judged.
JUDGED_DAYS: Final = 30
GAUGES: Final[tuple[MetricName, ...]] = (
    "tidemark_dunning_open_cases",
    "tidemark_dunning_canceled_cases",
    "tidemark_dunning_judged_cases",
    "tidemark_dunning_recovered_ratio",
)


class DunningGauges:
    """The gauges of dunning, counted now and then because a scrape cannot wait for SQL."""

    def __init__(self, store: DunningStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._counts: DunningCounts | None = None
        self._recoveries: Sequence[Recovery] = ()

    async def count(self) -> None:
        """Count. Raises `Transient`; repeatable."""
        now_ms = self._clock.now_ms()
        self._counts = await self._store.counts()
        span = [now_ms - 2 * JUDGED_DAYS * DAY_MS, now_ms - JUDGED_DAYS * DAY_MS]
        self._recoveries = await self._store.recoveries(span)

    def show(self, metrics: Metrics, *, is_owner: bool) -> None:
        """Set the gauges; only one process shows them, and none before the first count."""
        for name in GAUGES:
            metrics.clear(name)
        if not is_owner or self._counts is None:
            return
        for state in DunningState:
            if state is not DunningState.CLOSED:
                metrics.set("tidemark_dunning_open_cases", self._counts.open.get(state, 0), state=state.value)
        metrics.set("tidemark_dunning_canceled_cases", self._counts.canceled)
        judged = sum(each.opened for each in self._recoveries)
        metrics.set("tidemark_dunning_judged_cases", judged)
        if judged:
            recovered = sum(each.recovered for each in self._recoveries)
            metrics.set("tidemark_dunning_recovered_ratio", recovered / judged, of="cases")
        for each in self._recoveries:
            if each.opened_minor:
                ratio = each.recovered_minor / each.opened_minor
                metrics.set("tidemark_dunning_recovered_ratio", ratio, of=each.currency)


def month_starts(now_ms: int, months: int) -> list[int]:
    """The starts of so many months in UTC, the last of them that of now, and the start of the next one."""
    year, month, _ = civil_from_days(now_ms // DAY_MS)
    last = 12 * year + month - 1
    numbers = range(last - months + 1, last + 2)
    return [days_from_civil(number // 12, number % 12 + 1, 1) * DAY_MS for number in numbers]
