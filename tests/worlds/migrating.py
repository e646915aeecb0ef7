"""A business with customers on a flat price who are moved to a price for usage, on the simulator's clock.

What was counted, reported and recounted comes from the usage that the world made, and not from the product.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

from aggregators.periods import anchored_period
from pipeline.changes.comparing import compare
from pipeline.changes.migrating import Loaded, Stores, load
from pipeline.changes.promoting import approve, begin, promote, revert, shadow
from schemas.bills import BilledPrice
from schemas.catalog import PlanId
from schemas.clock import HOUR_MS, MINUTE_MS, SECOND_MS
from schemas.flat_to_metered import Counted, Item, ItemState, Migration, TotalKey, WaveRule, Who
from schemas.intent_ledger import IntentTotals
from schemas.periods import Interval, Period
from tests.worlds.changing import Changing, changing_parts
from tests.worlds.ending import Ending
from tests.worlds.sold import parsed

PERIODS: Final = 8
NAME: Final = "metered-2027"
ANN: Final = Who("ann", "usage is fairer")
CATALOG: Final = """\
version: 1
meters:
  - slug: calls
    event_type: calls
    aggregation: sum
    value_path: $.calls
    unit: calls
    stripe_event_name: calls
currencies: {usd: 2}
defaults: {plan: free, automatic_tax: false}
features:
  pos: {type: flag}
plans:
  free: {version: 1, prices: none, grants: {}}
  flat:
    version: 1
    name: Flat
    rank: 10
    prices:
      - {component: fee, month: {usd: "99.00"}}
    grants: {pos: true}
  shadow:
    version: 1
    name: Usage at no charge
    rank: 1
    prices:
      - {component: calls, meter: calls, unit: calls, month: {usd: "0"}}
    grants: {}
  metered:
    version: 1
    name: Metered
    rank: 10
    prices:
      - component: calls
        meter: calls
        unit: calls
        tiers: [{up_to: included, price: {usd: "0"}}, {up_to: inf, price: {usd: "0.0006"}}]
    included: {calls: 100000}
    grants: {pos: true}
"""
FLAT: Final = "flat.v1.fee.month.usd"
ZERO: Final = "shadow.v1.calls.month.usd"
METERED: Final = "metered.v1.calls.month.usd"


def at_ms(text: str) -> int:
    """An instant from `2027-02-01` or `2027-02-01 10:30`."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * SECOND_MS


class Used:
    """What each customer used: implements `UsageTotals`, and the ledger's totals. `lost`: by account, calls that the
    reconciler does not find."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, int, int]] = []
        self.lost: dict[str, int] = {}
        self.periods: dict[str, list[Period]] = {}

    async def totals(self, accounts: Collection[str] | str, *rest: Any) -> Any:
        """Both protocols have one name for it."""
        if isinstance(accounts, str):
            return self._reported(*rest)
        return self._counted(accounts)

    def _counted(self, accounts: Collection[str]) -> Mapping[TotalKey, Counted]:
        found = {}
        for account in accounts:
            for period in self.periods[account]:
                total = Decimal(self._sum(lambda row, of=account: row[0] == of, *period))
                found[account, "calls", period] = Counted(total, total - self.lost.get(account, 0))
        return found

    def _reported(self, customer: str, start_ms: int, end_ms: int) -> IntentTotals:
        total = Decimal(self._sum(lambda row: row[1] == customer, start_ms, end_ms))
        return IntentTotals(total, Decimal(0), Decimal(0), Decimal(0))

    def _sum(self, is_own: Any, start_ms: int, end_ms: int) -> int:
        return sum(row[3] for row in self.calls if is_own(row) and start_ms <= row[2] < end_ms)


class Migrating(Changing):
    """Customers with the flat price, each with an account of its own."""

    def __init__(self, now: str = "2026-12-01") -> None:
        super().__init__(at_ms(now))
        self.usages = Used()
        self.customers: dict[str, str] = {}
        self.subscriptions_of: dict[str, str] = {}
        self.told: list[str] = []

    async def customers_join(self, number: int, **params: Any) -> None:
        """So many customers subscribe to the flat price now."""
        await self.open()
        await self._sell(parsed(CATALOG))
        for place in range(number):
            account = f"account{place:03d}"
            await self.join(account)
            await self.subscribed(FLAT, **params)
            self.customers[account], self.subscriptions_of[account] = self.customer, self.subscription
            anchor_ms = int(params.get("billing_cycle_anchor", 0)) * SECOND_MS or self.clock.now_ms()
            anchor_ms -= anchor_ms % MINUTE_MS
            periods = [anchored_period(anchor_ms, Interval.MONTH, 1, anchor_ms)]
            while len(periods) < PERIODS:
                periods.append(anchored_period(anchor_ms, Interval.MONTH, 1, periods[-1].end_ms))
            self.usages.periods[account] = periods
        await self.settle()
        rows = [BilledPrice(self.prices[f"tm.{key}"], "calls", "Calls", "") for key in (ZERO, METERED)]
        await self.sql.bills.add_prices(rows)

    def stores(self, countdown: list[int] | None = None, *, after: bool = False) -> Stores:
        """The stores of one process, which ends at one of its writing calls if there is a countdown."""
        kept: Any = self.sql.migrations
        if countdown:
            kept = Ending(kept, countdown, lambda name: name in ("add", "change", "halt"), after=after)
        parts = changing_parts(self, self.client, countdown, after=after)
        used: Any = self.usages
        return Stores(parts, self.sql.plan_moves, self.sql.bills, used, used, kept)

    def migration(self, rule: WaveRule = WaveRule.SCHEDULED) -> Migration:
        plans = PlanId("flat", 1), PlanId("shadow", 1), PlanId("metered", 1)
        return Migration(NAME, *plans, 30, rule, self.clock.now_ms(), ANN.by, ANN.why)

    async def plan(self, **options: Any) -> Loaded:
        found, left = await begin(self.stores(**options), self.migration())
        assert left == {}
        return found

    async def shadow(self, **options: Any) -> Loaded:
        return await shadow(self.stores(**options), NAME, ANN, self.told.append)

    async def compare(self, **options: Any) -> Loaded:
        return await compare(self.stores(**options), NAME, ANN, self.told.append)

    async def approve(self, wave: int, minor: int, notified: str, **options: Any) -> Loaded:
        return await approve(self.stores(**options), NAME, wave, {"usd": minor}, at_ms(notified), ANN)

    async def promote(self, wave: int, **options: Any) -> Loaded:
        return await promote(self.stores(**options), NAME, wave, ANN, self.told.append)

    async def revert(self, *subscriptions: str, **options: Any) -> Loaded:
        return await revert(self.stores(**options), NAME, subscriptions, ANN, self.told.append)

    async def status(self) -> Loaded:
        return await load(self.stores(), NAME)

    async def until(self, text: str) -> None:
        """Let time pass, with all that Stripe does at its own instants."""
        while self.clock.ms < at_ms(text):
            self.clock.ms = min(at_ms(text), self.clock.ms + 6 * HOUR_MS)
            self.stripe.simulator.catch_up()
        await self.settle()

    async def use(self, account: str, calls: int, billed: int | None = None) -> None:
        """Usage of an account now. `billed`: what Stripe gets to know of it, all if unset."""
        customer = self.customers[account]
        payload = {"value": str(calls if billed is None else billed), "stripe_customer_id": customer}
        name = f"{account} {len(self.usages.calls)}"
        params = {"event_name": "calls", "payload": payload, "identifier": name, "timestamp": self.clock.ms // 1_000}
        self.stripe.call("POST /v1/billing/meter_events", params)
        self.usages.calls.append((account, customer, self.clock.ms, calls))

    def bills_of(self, account: str) -> list[tuple[str, int]]:
        """The status and total of each invoice of an account, oldest first."""
        rows = list(self.stripe.pages("GET /v1/invoices", {"customer": self.customers[account]}))
        return [(row["status"], row["total"]) for row in reversed(rows)]

    def has(self, account: str) -> set[str]:
        """The lookup keys without `tm.` of what an account has."""
        self.customer, self.subscription = self.customers[account], self.subscriptions_of[account]
        return {key for key, _ in self.bought()}

    async def items(self) -> Sequence[Item]:
        return await self.sql.migrations.items(NAME)

    async def states(self) -> dict[ItemState, int]:
        """How many subscriptions are in each state."""
        found: dict[ItemState, int] = {}
        for item in await self.items():
            found[item.state] = found.get(item.state, 0) + 1
        return found
