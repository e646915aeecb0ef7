"""A business whose customers have credits: grants at Stripe that pay for calls."""

from __future__ import annotations

from typing import Any, Final

from pipeline.access.credits import CreditParts
from pipeline.credits.buying import PackWish, buy
from pipeline.credits.granting import GrantParts, turn
from pipeline.credits.packs import unpack
from pipeline.credits.stores import PackParts
from pipeline.http.dependencies import CreditStores
from schemas.packs import Purchase
from schemas.stripe_credits import GrantOrder, OrderState
from tests.worlds.changing import ACME, BACK, Changing
from tests.worlds.ending import Ending

# One cent a call.
MONEY: Final = """\
version: 1
meters:
  - {slug: calls, event_type: call, aggregation: count, unit: calls, stripe_event_name: calls}
currencies: {usd: 2}
defaults: {plan: free, automatic_tax: false}
features:
  locations: {type: seat, merge: sum}
plans:
  free: {version: 1, prices: none, grants: {locations: 1}}
  metered:
    version: 1
    name: Metered
    rank: 15
    prices:
      - {component: fee, month: {usd: "20.00"}}
      - {component: calls, meter: calls, unit: calls, month: {usd: "0.01"}}
    credits: [{pool: prepaid, amount: 700}]
credit_pools:
  prepaid: {unit: usd, mode: stripe, covers: {calls: 1}, packs: {p50: {credits: 5000, usd: "45.00"}}}
dunning: {fallback_plan: free}
"""
CALLS: Final = "metered.v1.calls.month.usd"
FEE: Final = "metered.v1.fee.month.usd"


WRITES: Final = frozenset(
    {
        "order", "settle", "sent", "end", "make_grant", "end_grant", "buy", "granted", "taken_back", "grant", "void",
        "open_checkout", "draft_invoice", "add_item", "pay", "close_invoice",
    }
)  # fmt: skip
# The same, with credits of ours: 25 dollars for a hundred calls, and a hundred more as soon as fewer than 20 are left.
LEDGER: Final = MONEY.replace("    credits: [{pool: prepaid, amount: 700}]\n", "").replace(
    '  prepaid: {unit: usd, mode: stripe, covers: {calls: 1}, packs: {p50: {credits: 5000, usd: "45.00"}}}\n',
    '  prepaid: {unit: call, covers: {calls: 1}, packs: {p100: {credits: 100, usd: "25.00"}},\n'
    "            top_up: {below: 20, pack: p100, month_max: 2}}\n",
)


def credit_stores(business: Changing) -> CreditStores:
    """The stores of a gateway over a business."""
    sql, usage = business.sql, business.usage
    packs = PackParts(
        business.clock, sql.catalog, sql.links, sql.packs, sql.credits, sql.grant_orders, business.client, "test:acct_1"
    )
    ledger = CreditParts(sql.credits, sql.catalog, sql.holds, usage, business.clock)  # type: ignore[arg-type]  # names
    return CreditStores(packs, ledger)


class Credited(Changing):
    """A business with credits. All words are about its pool."""

    pool = "prepaid"

    def granting(self, countdown: list[int] | None = None, *, after: bool = False) -> GrantParts:
        """What grants need. With a countdown the process ends at one of the writing calls."""
        orders, client = self.sql.grant_orders, self.client
        if countdown:
            wrapped = [Ending(each, countdown, lambda name: name in WRITES, after=after) for each in (orders, client)]
            return GrantParts(self.clock, self.sql.catalog, wrapped[0], wrapped[1], "test:acct_1")
        return GrantParts(self.clock, self.sql.catalog, orders, client, "test:acct_1")

    async def granted(self) -> None:
        """Orders are carried out, and Stripe's events reach the mirror."""
        await turn(self.granting())
        await self.settle()

    async def orders(self, *states: OrderState) -> list[GrantOrder]:
        """The account's orders in any state or in these, oldest first."""
        found = await self.sql.grant_orders.of_account(self.account)
        return [each for each in reversed(found) if not states or each.state in states]

    def pack_parts(self, countdown: list[int] | None = None, *, after: bool = False) -> PackParts:
        """What packs need. With a countdown the process ends at one of the writing calls."""

        def ending(inner: Any) -> Any:
            return Ending(inner, countdown, lambda name: name in WRITES, after=after) if countdown else inner

        sql = self.sql
        return PackParts(
            self.clock, sql.catalog, sql.links, ending(sql.packs), ending(sql.credits), sql.grant_orders,
            ending(self.client), "test:acct_1",
        )  # fmt: skip

    def stores(self) -> CreditStores:
        """The stores of a gateway."""
        return credit_stores(self)

    async def buys(self, key: str = "K", *, quantity: int = 1, pool: str = "", **more: Any) -> Purchase:
        """Ask for the page of a pack."""
        wish = PackWish(self.account, pool or self.pool, "", quantity, "", BACK, "ann", key)
        return await buy(self.pack_parts(), wish._replace(**more))

    def pays_pack(self, purchase: Purchase) -> None:
        """The customer pays on the page."""
        self.pays(purchase.session)

    async def unpacked(self) -> None:
        """Stripe's events reach the mirror, and what is paid becomes grants."""
        await self.settle()
        await unpack(self.pack_parts())
        await turn(self.granting())
        await self.settle()

    async def left(self) -> list[tuple[str, int, int]]:
        """The grants of the account in the ledger: key, credits, and what is left."""
        found = (await self.sql.credits.of_account(self.account)).grants
        return [(each.source_key, each.credits, each.remaining) for each in found]

    def uses(self, calls: int) -> None:
        """Report calls of the customer."""
        payload = {"stripe_customer_id": self.customer, "value": str(calls)}
        self.stripe.call("POST /v1/billing/meter_events", {"event_name": "calls", "payload": payload})

    def passes(self, for_ms: int) -> None:
        """Let time pass at Stripe and here."""
        self.clock.ms += for_ms
        self.stripe.simulator.catch_up()

    def newest_invoice(self) -> dict[str, object]:
        """The customer's newest invoice."""
        return next(self.stripe.pages("GET /v1/invoices", {"customer": self.customer}))


__all__ = ["ACME", "CALLS", "FEE", "LEDGER", "MONEY", "Credited"]
