"""A deployment with an active catalog, whose accounts' entitlements follow from Stripe's events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal

from aggregators.catalog_plan import catalog_hash
from pipeline.access.checks import AccessChecks, Counted
from pipeline.access.renewal import Renewal
from schemas.access import Reason
from schemas.catalog import Catalog, PlanId
from schemas.catalog_changes import CatalogKind, CatalogPlan, KnownPlan, PlanState, StripeRecord
from schemas.clock import MINUTE_MS
from schemas.errors import Transient
from sinks.sql.fake import FakeSideTables
from sinks.sql.side_tables import SqlSideTables
from tests.worlds.billing import BillingWorld
from tests.worlds.reconciler import START_MS

TEAM = PlanId("team", 1)
ONE = Decimal(1)


class Business(BillingWorld):
    """A deployment whose catalog is active, with the checks of one gateway."""

    def __init__(self) -> None:
        super().__init__(START_MS)
        assert isinstance(self.tables, FakeSideTables)
        self.sql = self.tables
        self.used = Decimal(0)
        self.price = self.customer = ""
        self.away = False
        self.complete_up_to_ms = START_MS
        self.a_minute: Decimal | None = None
        self.fresh_reads = 0
        self.period_start_ms: int | None = None
        self.renewal = Renewal(self.sql.catalog, self.sql.entitlements, self.clock)
        self.checks = self.gateway()

    def gateway(self) -> AccessChecks:
        """The checks of another gateway."""
        return AccessChecks(self.sql.catalog, self.sql.entitlements, self.usage, self.clock, holds=self.sql.holds)

    async def usage(self, _account: str, _meter: str, *, fresh: bool = False) -> Counted:
        self.fresh_reads += fresh
        if self.away:
            raise Transient("Redis does not answer")
        return Counted(
            self.used, START_MS + MINUTE_MS, self.complete_up_to_ms, self.a_minute, is_cached=not fresh,
            period_start_ms=self.period_start_ms,
        )  # fmt: skip

    async def apply(self, catalog: Catalog, prices: Mapping[str, str]) -> None:
        """Make a catalog active. `prices` has the price ids by component of the team's plan."""
        records = [
            StripeRecord(f"tm.{component}.{price}", CatalogKind.PRICE, price, TEAM, component, "month", "usd")
            for component, price in prices.items()
        ]
        await make_active(self.sql, catalog, records, self.clock.now_ms())

    async def settle(self) -> None:
        """Stripe's events reach the mirror, the entitlements and the gateway."""
        unknown = await self.tables.unknown([event["id"] for event in self.stripe.happened()])
        await self.deliver([event for event in self.stripe.happened() if event["id"] in unknown])
        await self.process()
        while await self.renewal.turn():
            pass
        await self.checks.refresh()

    async def reason(self, feature: str, quantity: Decimal = ONE, account: str = "acme") -> Reason:
        return (await self.checks.check(account, feature, quantity)).decision.reason


async def make_active(tables: SqlSideTables, catalog: Catalog, records: Sequence[StripeRecord], now_ms: int) -> None:
    """Make a catalog active, as `catalog apply` does once everything is made at Stripe."""
    standing = await tables.catalog.standing()
    plan = CatalogPlan(catalog, catalog_hash(catalog), standing.sha256, "", False, (), (), (), {})
    states = {name: KnownPlan(sold, PlanState.OPEN) for name, sold in catalog.sold().items()}
    await tables.catalog.begin_catalog(plan, "ann", "a test", now_ms)
    await tables.catalog.activate_catalog(plan, states, records, now_ms)


def subscribe(business: Business) -> str:
    return business.stripe.subscribe(business.customer, business.price)
