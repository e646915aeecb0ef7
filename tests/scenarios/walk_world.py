"""One business with many accounts on one clock: the simulator's events reach the product at once, in any order."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, select

from pipeline.changes.operating import accept
from pipeline.changes.quoting import make_quote
from pipeline.changes.trials import follow
from schemas.entitlements import UNLIMITED
from schemas.plan_changes import ChangeRequest, Operation, Quote, Refusal
from sinks.sql.tables import mirror
from stripe_simulator.engine.collection import RetryPolicy
from tests.scenarios import walk_model as model
from tests.worlds.changing import BACK, Changing
from tests.worlds.sold import parsed

CATALOG: Final = """\
version: 1
meters:
  - {slug: calls, event_type: call, aggregation: count, unit: calls, stripe_event_name: calls}
currencies: {usd: 2, jpy: 0}
defaults: {plan: free, automatic_tax: false}
features:
  locations: {type: seat, merge: sum}
  pos: {type: flag}
  api_calls: {type: limit, merge: sum, meter: calls}
plans:
  free: {version: 1, prices: none, grants: {locations: 1, api_calls: 1000}}
  limited: {version: 1, prices: none, grants: {locations: 2, api_calls: 200}}
  essential:
    version: 1
    rank: 10
    prices:
      - component: location
        quantity: locations
        month: {usd: "79.00", jpy: "11800"}
        year: {usd: "790.00", jpy: "118000"}
    grants: {locations: quantity, api_calls: 20000}
    over_limit: {locations: block_downgrade}
  professional:
    version: 1
    rank: 20
    prices:
      - {component: base, month: {usd: "50.00", jpy: "7501"}, year: {usd: "500.01", jpy: "75000"}}
      - component: location
        quantity: locations
        month: {usd: "99.00", jpy: "14900"}
        year: {usd: "1048.00", jpy: "150007"}
    grants: {locations: quantity, pos: true, api_calls: 50000}
    trial: {family: paid, days: 14, once_per: [account], grants: {api_calls: 5000}}
    over_limit: {locations: block_downgrade}
  scale:
    version: 1
    rank: 30
    prices:
      - {component: base, month: {usd: "400.00", jpy: "60001"}, year: {usd: "4000.00", jpy: "600011"}}
    grants: {locations: unlimited, pos: true, api_calls: 200000}
addons:
  extra:
    version: 1
    for: [essential, professional]
    price: {month: {usd: "20.00", jpy: "3000"}, year: {usd: "192.00", jpy: "28800"}}
    grants: {api_calls: {add: 10000}}
    stack: 5
dunning: {fallback_plan: limited}
"""
BAD_CARD: Final = "pm_card_chargeCustomerFail"
REASONS: Final = {
    "included": "plan", "within_limit": "plan", "unlimited": "plan", "payment_failed_grace": "grace",
    "trial": "trial", "not_in_plan": "none", "trial_over": "none", "no_account": "none",
    "downgraded_unpaid": "fallback",
}  # fmt: skip


class Access(NamedTuple):
    """What the checks say of the flag, the limit and the seats, and why: see `REASONS`."""

    pos: bool
    pos_why: str
    calls: int
    calls_why: str
    locations: int


class WalkWorld(Changing):
    """A business whose accounts share one clock. Events come out of order, and some of them twice."""

    def __init__(self, now_ms: int, seed: int) -> None:
        super().__init__(now_ms)
        self.draw = random.Random(f"deliveries {seed}")
        self.customers: dict[str, str] = {}
        self.names: dict[str, str] = {}
        self._happened: list[str] = []
        mode = self.stripe.simulator.test
        mode.settings = replace(mode.settings, retry_policy=RetryPolicy(model.RETRY_DAYS, "unpaid"))

    async def sell(self) -> None:
        """Open the stores and apply the catalog."""
        await self.open()
        await self._sell(parsed(CATALOG))
        self.names = {price: key.removeprefix("tm.") for key, price in self.prices.items()}
        self.stripe.simulator.test.store.subscribers.append(lambda event: self._happened.append(event["id"]))
        await self.renewal.turn()
        await self.checks.refresh()

    async def new_account(self, account: str) -> None:
        """Link an account to a new customer with a card."""
        await self.join(account)
        self.customers[account] = self.customer
        await self.settle()

    def choose(self, account: str) -> None:
        """All words of `Changing` are about this account from now on."""
        self.account, self.customer = account, self.customers[account]

    async def settle(self) -> None:
        """What happened at Stripe reaches the mirror, the entitlements and the gateway."""
        store = self.stripe.simulator.test.store
        events = [event for identifier in self._happened if (event := store.get("event", identifier))]
        self._happened.clear()
        events += [event for event in events if self.draw.random() < 0.05]
        self.draw.shuffle(events)
        await self.deliver(events)
        await self.process()
        while await self.renewal.turn():
            pass
        await self.checks.refresh()
        await follow(self.parts(), self.sql.trials)

    def happened_to(self) -> set[str]:
        """The customers of the events that the product has not heard of yet."""
        store = self.stripe.simulator.test.store
        bodies = [event["data"]["object"] for each in self._happened if (event := store.get("event", each))]
        return {body["id"] if body["object"] == "customer" else body.get("customer") or "" for body in bodies}

    async def quote_of(self, account: str, request: ChangeRequest) -> Quote | Refusal:
        """A quote, or why there is none."""
        return await make_quote(self.parts(), account, request, "ann")

    async def accept(self, account: str, quote: str) -> tuple[Quote, Operation] | Refusal:
        """Accept a quote."""
        return await accept(self.parts(), account, quote, "ann", BACK)

    async def access(self, account: str) -> Access:
        """The answers of three checks."""
        flag, limit, seats = [
            (await self.checks.check(account, name, Decimal(1), Decimal(0))).decision
            for name in ("pos", "api_calls", "locations")
        ]
        assert limit.allowed, limit
        assert seats.allowed, seats
        assert isinstance(limit.limit, Decimal)
        assert seats.limit is not None
        places = model.UNLIMITED if seats.limit is UNLIMITED else int(seats.limit)
        return Access(flag.allowed, REASONS[flag.reason], int(limit.limit), REASONS[limit.reason], places)

    async def rows_of(self, account: str) -> dict[str, list[dict[str, Any]]]:
        """The mirror's subscriptions, items and invoices of an account, in any order."""
        customer = self.customers[account]

        def body(connection: Connection) -> dict[str, list[dict[str, Any]]]:
            rows: dict[str, list[dict[str, Any]]] = {}
            for name in ("subscriptions", "invoices"):
                found = connection.execute(select(mirror[name]).where(mirror[name].c.customer_id == customer))
                rows[name] = [dict(row) for row in found.mappings()]
            items, names = mirror["subscription_items"], [row["id"] for row in rows["subscriptions"]]
            found = connection.execute(select(items).where(items.c.subscription_id.in_(names)))
            return rows | {"subscription_items": [dict(row) for row in found.mappings()]}

        return await self.sql._run(body)

    def invoices_of(self, account: str) -> list[dict[str, Any]]:
        """The invoices at Stripe, oldest first."""
        rows = list(self.stripe.pages("GET /v1/invoices", {"customer": self.customers[account]}))
        return rows[::-1]

    def charged(self, account: str) -> Mapping[str, list[int]]:
        """What was taken from the customer's cards, by invoice."""
        found: dict[str, list[int]] = {}
        for body in self.stripe.simulator.test.store.newest("payment_intent", "customer", self.customers[account]):
            if body["status"] == "succeeded":
                found.setdefault(body["payment_details"]["order_reference"], []).append(body["amount_received"])
        return found
