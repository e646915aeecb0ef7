"""What the role `mirror` shows of trials, of second subscriptions, of invoices that cannot become final, of
migrations, and of credit grants that Stripe does not have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pipeline.metrics import MetricName, Metrics
from schemas.clock import DAY_MS, HOUR_MS, Clock
from schemas.duplicates import DuplicateState, DuplicateStore
from schemas.flat_to_metered import Migrations
from schemas.invoices import UnfinalizedInvoices
from schemas.stripe_credits import GrantOrders
from schemas.trials import TrialState, TrialStore

GAUGES: Final[tuple[MetricName, ...]] = (
    "tidemark_trials",
    "tidemark_trials_flagged",
    "tidemark_duplicate_subscriptions",
    "tidemark_unfinalized_invoices",
    "tidemark_migrations_halted",
    "tidemark_credits_stuck_orders",
)
# A grant that Stripe refused is shown for so long, and one that waits from so long on.
REFUSED_SHOWN_MS: Final = 7 * DAY_MS
WAITS_MS: Final = HOUR_MS


class BoughtGauges:
    """The gauges, counted now and then because a scrape cannot wait for SQL."""

    def __init__(
        self,
        trials: TrialStore,
        duplicates: DuplicateStore,
        invoices: UnfinalizedInvoices,
        migrations: Migrations,
        orders: GrantOrders,
        clock: Clock,
    ) -> None:
        self._orders = orders
        self._clock = clock
        self._stuck = 0, 0
        self._migrations = migrations
        self._trials = trials
        self._duplicates = duplicates
        self._invoices = invoices
        self._states: Mapping[TrialState, int] | None = None
        self._second: Mapping[DuplicateState, int] = {}
        self._flagged = 0
        self._unfinalized = 0
        self._halted = 0

    async def count(self) -> None:
        """Count. Raises `Transient`; repeatable."""
        self._second = await self._duplicates.counts()
        self._unfinalized = await self._invoices.count()
        self._halted = sum(bool(each.halted) for each in await self._migrations.listed())
        now_ms = self._clock.now_ms()
        self._stuck = await self._orders.stuck(now_ms - REFUSED_SHOWN_MS, now_ms - WAITS_MS)
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
        metrics.set("tidemark_migrations_halted", self._halted)
        for state_of_order, orders in zip(("refused", "waiting"), self._stuck, strict=True):
            metrics.set("tidemark_credits_stuck_orders", orders, state=state_of_order)
