"""The product beside a customer: a catalog applied at the simulator, the mirror of its events, and the checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal

from pipeline.access.checks import Answer
from pipeline.webhooks.appending import append_events
from pipeline.webhooks.resync import resync
from schemas.billing_events import Via
from schemas.clock import Clock
from sinks.sql.fake import FakeSideTables
from tests.scenarios.vocabulary import Account, at
from tests.worlds.business import Business
from tests.worlds.changing import apply_catalog

ACME = "acme"

# Two plans for the scenarios of finance.
BASIC_AND_PRO = """\
version: 1
meters: []
currencies: {usd: 2}
defaults: {plan: free}
features:
  pos: {type: flag}
plans:
  free: {version: 1, prices: none, grants: {}}
  basic:
    version: 1
    rank: 10
    prices: [{component: base, month: {usd: "79.00"}}]
    grants: {}
  pro:
    version: 1
    rank: 20
    prices: [{component: base, month: {usd: "149.00"}, year: {usd: "1548.00"}}]
    grants: {pos: true}
"""


class Seller:
    """A deployment whose clock is the customer's test clock."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._business = Business()
        self._business.stripe.simulator = account.sdk.simulator
        self.prices: Mapping[str, str] = {}

    async def open(self, catalog: str, on: str, card: str = "pm_card_visa") -> None:
        """Apply a catalog, and link a new customer to the account."""
        await self._account.open(on, card)
        self._business.clock.ms = at(on) * 1_000
        await self._business.open()
        self.prices = await apply_catalog(self._business, self._account.sdk.simulator, catalog)
        await self._business.link(ACME, self._account.customer)
        await self._business.settle()

    @property
    def tables(self) -> FakeSideTables:
        """The side tables."""
        return self._business.sql

    @property
    def clock(self) -> Clock:
        """The product's clock."""
        return self._business.clock

    async def link(self, name: str) -> None:
        """Link another account to the customer, for all time."""
        await self._business.link(name, self._account.customer)
        await self._business.settle()

    def price(self, name: str) -> str:
        """The price id of a lookup key without its prefix: `pro.v1.location.month.usd`."""
        return self.prices[f"tm.{name}"]

    async def reach(self, moment: str) -> None:
        """Let time pass at Stripe and for the product, which hears of everything."""
        await self._account.advance(moment)
        await self.hear(moment)

    async def hear(self, moment: str) -> None:
        """The product hears at a moment of what has happened at Stripe."""
        self.wait(moment)
        await self._business.settle()

    async def resync(self, run: str) -> None:
        """Have all objects of Stripe fetched again."""
        business = self._business

        async def feed(values: Sequence[bytes]) -> int:
            return await append_events(business.log, values, Via.RESYNC)

        now_s = business.clock.now_ms() // 1_000
        await resync(feed, business.stripe, self.tables, run, now_s)
        await business.process()

    def wait(self, moment: str, before_ms: int = 0) -> None:
        """Let time pass for the product alone, until so many milliseconds before a moment: no event comes."""
        self._business.clock.ms = at(moment) * 1_000 - before_ms

    async def check(self, feature: str, quantity: int = 1, used: int = 0) -> Answer:
        """May the account use so much more?"""
        self._business.used = Decimal(used)
        return await self._business.checks.check(ACME, feature, Decimal(quantity), Decimal(used))

    async def reason(self, feature: str, quantity: int = 1, used: int = 0) -> str:
        """Why it may or may not."""
        return str((await self.check(feature, quantity, used)).decision.reason)

    async def dunning(self) -> str:
        """The state of the account's newest dunning case, or how it was closed; "" if there is none."""
        cases = [listed.case for listed in await self._business.sql.dunning.listed(account=ACME, limit=1)]
        return "".join(str(case.outcome or case.state) for case in cases)

    async def costs(self, feature: str, quantity: int = 1, used: int = 0) -> tuple[str, int]:
        """The plan or add-on that a denied check names, and the minor units that are due now."""
        upgrade = (await self.check(feature, quantity, used)).upgrade
        assert upgrade is not None
        return str(upgrade.offer), upgrade.due_now.minor
