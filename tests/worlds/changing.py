"""A business whose accounts change their plans: a catalog applied at the simulator, quotes, and operations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx

from aggregators.catalog_plan import catalog_hash
from aggregators.catalog_prices import all_prices, pack_prices
from pipeline.changes.operating import accept
from pipeline.changes.parts import Parts
from pipeline.changes.quoting import make_quote
from pipeline.commands.catalog import Parts as CatalogParts
from pipeline.commands.catalog import apply_plan, plan_content
from schemas.catalog import Catalog, Price
from schemas.catalog_changes import CatalogKind, CatalogPlan, KnownPlan, PlanState, StripeRecord
from schemas.meters import MeterSet
from schemas.plan_changes import ChangeKind, ChangeRequest, Operation, Quote, Refusal
from sinks.stripe.catalog import StripeClientCatalog
from sinks.stripe.client import StripeClientMeters
from sinks.stripe.plan_changes import StripeClientChanges
from stripe_simulator import Simulator
from stripe_simulator.resources import sessions
from tests.services.stripe import TEST_KEY
from tests.services.stripe_requests import application
from tests.worlds.business import Business
from tests.worlds.ending import Ending
from tests.worlds.sold import parsed

ACME = "acme"
BACK = "https://app.example/billing"
WRITING = (
    "intend", "sent", "stepped", "doubt", "settle", "update", "subscribe", "cancel", "create", "plan", "release",
    "open_checkout", "expire_session", "promote", "resume", "pay", "add_quote", "grant", "followed", "postpone",
)  # fmt: skip
CATALOG = """\
version: 1
meters:
  - {slug: calls, event_type: call, aggregation: count, unit: calls, stripe_event_name: calls}
currencies: {usd: 2, eur: 2}
defaults: {plan: free, automatic_tax: false}
features:
  locations: {type: seat, merge: sum}
  pos: {type: flag}
plans:
  free:
    version: 1
    prices: none
    grants: {locations: 1}
    over_limit: {locations: block_downgrade}
  essential:
    version: 1
    name: Essential
    rank: 10
    prices:
      - {component: location, quantity: locations, month: {usd: "79.00"}}
    grants: {locations: quantity}
    over_limit: {locations: read_only_excess}
  pro:
    version: 1
    name: Pro
    rank: 20
    prices:
      - {component: location, quantity: locations, month: {usd: "149.00"}, year: {usd: "1548.00"}}
    grants: {locations: quantity, pos: true}
    trial: {family: paid, days: 30, once_per: [account, email]}
  metered:
    version: 1
    name: Metered
    rank: 15
    prices:
      - {component: location, quantity: locations, month: {usd: "20.00"}}
      - {component: calls, meter: calls, unit: calls, month: {usd: "0.01"}}
    grants: {locations: quantity}
  scale:
    version: 1
    name: Scale
    rank: 40
    prices:
      - {component: location, quantity: locations, month: {usd: "300.00"}}
      - {component: calls, meter: calls, unit: calls, month: {usd: "0.005"}}
    grants: {locations: quantity, pos: true}
dunning: {fallback_plan: free}
"""


KEYS = "once_per: [account, email]"
# The same with a discount for who buys within the trial, and with cards that count.
EARLY = CATALOG.replace(KEYS, f'{KEYS}, early_discount: {{max_percent: "50"}}')
CARDS = EARLY.replace(KEYS, "once_per: [account, email, card]")


def is_writing(name: str) -> bool:
    """Whether a call of a store changes something."""
    return name in WRITING


async def apply_catalog(business: Business, simulator: Simulator, text: str) -> Mapping[str, str]:
    """Plan and apply a catalog file; returns the price ids by lookup key."""
    meters = StripeClientMeters(TEST_KEY, "http://stripe.test", nonce="test")
    objects = StripeClientCatalog(TEST_KEY, "http://stripe.test", scope="test:acct_1", nonce="test")
    for client in (meters, objects):
        in_this_process(client, simulator)
    store = business.sql.catalog
    checked = await plan_content(
        CatalogParts(business.clock, store, objects, meters, _no_meter_set, _applied), text.encode()
    )
    assert checked.plan is not None, checked.problems
    parts = CatalogParts(business.clock, store, objects, meters, _no_meter_set, _applied)
    await apply_plan(parts, checked.plan, "ann", "a scenario", lambda _: None)
    await objects.close()
    await meters.close()
    records = (await store.standing()).records
    return {key: record.stripe_id for (kind, key), record in records.items() if kind is CatalogKind.PRICE}


def changes_client(simulator: Simulator) -> StripeClientChanges:
    """The product's client of a simulator in this process."""
    client = StripeClientChanges(TEST_KEY, "http://stripe.test", timeout_s=5)
    in_this_process(client, simulator)
    return client


def in_this_process(client: Any, simulator: Simulator) -> None:
    """Have a client of Stripe ask a simulator in this process."""
    transport = httpx.ASGITransport(application(simulator))
    client._transport._client = httpx.AsyncClient(transport=transport)


async def _no_meter_set() -> MeterSet | None:
    return None


async def _applied(_meter_set: MeterSet) -> None:
    """The log counts nothing."""


def changing_parts(
    business: Business, stripe: StripeClientChanges, countdown: list[int] | None = None, *, after: bool = False
) -> Parts:
    """What quotes and operations need. With a countdown the process ends at one of the writing calls."""

    def ending(inner: Any) -> Any:
        return Ending(inner, countdown, is_writing, after=after) if countdown else inner

    sql = business.sql
    changes, client = ending(sql.plan_changes), ending(stripe)
    entitlements, seats = ending(sql.entitlements), ending(sql.seats)
    return Parts(
        business.clock,
        sql.catalog,
        entitlements,
        sql.links,
        changes,
        client,
        "test:acct_1",
        seats,
        b"a secret of a test",
    )


class Changing(Business):
    """Accounts on the simulator's clock, whose customers have cards. All words are about `account`, first acme."""

    def __init__(self, now_ms: int) -> None:
        super().__init__()
        self.clock.ms = now_ms
        self.client = changes_client(self.stripe.simulator)
        self.prices: dict[str, str] = {}
        self.account, self.subscription = ACME, ""

    async def begin(self, catalog: str = CATALOG, card: str = "pm_card_visa") -> None:
        """Apply the catalog and link a new customer."""
        await self.open()
        await self._sell(parsed(catalog))
        await self.join(ACME, card)
        await self.settle()

    async def _sell(self, catalog: Catalog) -> None:
        """Make a catalog active: its prices at the simulator without HTTP, and their records in SQL."""
        meter = self.stripe.meter("calls")
        records = []
        for key, price in all_prices(catalog).items():
            self.prices[key] = self._price(price, key, meter)
            terms = price.terms
            records.append(
                StripeRecord(
                    key,
                    CatalogKind.PRICE,
                    self.prices[key],
                    price.plan,
                    price.component,
                    terms.interval,
                    terms.currency,
                )
            )
        records += self._packs(catalog)
        plan = CatalogPlan(catalog, catalog_hash(catalog), "", "", False, (), (), (), {})
        states = {name: KnownPlan(sold, PlanState.OPEN) for name, sold in catalog.sold().items()}
        await self.sql.catalog.begin_catalog(plan, "ann", "a test", self.clock.now_ms())
        await self.sql.catalog.activate_catalog(plan, states, records, self.clock.now_ms())

    def _packs(self, catalog: Catalog) -> list[StripeRecord]:
        """The packs of credits: their prices at the simulator, and their records."""
        records = []
        for key, price in pack_prices(catalog).items():
            currency, product = price.terms.currency, {"name": price.component}
            body = {"currency": currency, "unit_amount_decimal": price.terms.unit_minor, "product_data": product}
            self.prices[key] = str(self.stripe.call("POST /v1/prices", body | {"lookup_key": key})["id"])
            records.append(StripeRecord(key, CatalogKind.PRICE, self.prices[key], None, price.component, "", currency))
        return records

    def _price(self, price: Price, key: str, meter: str) -> str:
        terms = price.terms
        recurring = {"interval": terms.interval}
        recurring |= {"usage_type": "metered", "meter": meter} if terms.event_name else {}
        body: dict[str, Any] = {"currency": terms.currency, "product_data": {"name": price.plan.name}}
        body |= {"recurring": recurring, "lookup_key": key}
        if terms.tiers:
            tiers = [
                {"up_to": tier.up_to or "inf", "unit_amount_decimal": tier.unit_minor, "flat_amount_decimal": "0"}
                for tier in terms.tiers
            ]
            body |= {"billing_scheme": "tiered", "tiers_mode": terms.mode, "tiers": tiers}
        else:
            body["unit_amount_decimal"] = terms.unit_minor
        return str(self.stripe.call("POST /v1/prices", body)["id"])

    async def join(self, account: str, card: str = "pm_card_visa") -> None:
        """Link an account to a new customer. All words are about this account from now on."""
        self.account, self.subscription = account, ""
        self.customer = str(self.stripe.call("POST /v1/customers")["id"])
        await self.link(account, self.customer)
        if card:
            self.use_card(card)

    async def name_customer(self, email: str) -> None:
        """Give the customer an e-mail address."""
        self.stripe.call("POST /v1/customers/{customer}", {"email": email}, self.customer)

    def use_card(self, card: str) -> None:
        """Pay with another card from now on."""
        route = "POST /v1/payment_methods/{payment_method}/attach"
        method = self.stripe.call(route, {"customer": self.customer}, card)["id"]
        settings = {"invoice_settings": {"default_payment_method": method}}
        self.stripe.call("POST /v1/customers/{customer}", settings, self.customer)

    async def subscribed(self, *keys: str, quantity: int = 1, **params: Any) -> str:
        """Acme subscribes at Stripe to prices, by their lookup keys without `tm.`."""
        items = [
            {"price": self.prices[f"tm.{key}"]} | ({} if ".calls." in key or ".fee." in key else {"quantity": quantity})
            for key in keys
        ]
        made = self.stripe.call("POST /v1/subscriptions", {"customer": self.customer, "items": items, **params})
        self.subscription = str(made["id"])
        return self.subscription

    def parts(self, countdown: list[int] | None = None, *, after: bool = False) -> Parts:
        """See `changing_parts`."""
        return changing_parts(self, self.client, countdown, after=after)

    async def ask(self, plan: str = "", kind: ChangeKind = ChangeKind.PLAN, **more: Any) -> Quote | Refusal:
        """Ask for a quote."""
        key = more.pop("key", "")
        return await make_quote(self.parts(), self.account, ChangeRequest(kind, plan, **more), "ann", key)

    async def quoted(self, plan: str = "", kind: ChangeKind = ChangeKind.PLAN, **more: Any) -> Quote:
        """A quote that must be made."""
        found = await self.ask(plan, kind, **more)
        assert isinstance(found, Quote), found
        return found

    async def accepted(self, quote: Quote) -> tuple[Quote, Operation]:
        """Accept a quote, which must be accepted."""
        found = await accept(self.parts(), self.account, quote.id, "ann", BACK, by_operator=True)
        assert not isinstance(found, Refusal), found
        return found

    async def changed(self, plan: str = "", kind: ChangeKind = ChangeKind.PLAN, **more: Any) -> tuple[Quote, Operation]:
        """Quote and accept."""
        return await self.accepted(await self.quoted(plan, kind, **more))

    async def page(self, plan: str, kind: ChangeKind = ChangeKind.PLAN, **more: Any) -> Operation:
        """The operation that makes a page of checkout."""
        operation = (await self.changed(plan, kind, by_page=True, **more))[1]
        assert operation.url, operation
        return operation

    def pays(self, session: str, card: str = "4242424242424242") -> str:
        """The customer completes a page; without a card if `card` is "". Returns the subscription."""
        mode = self.stripe.simulator.test
        method = None
        if card:
            body = {"type": "card", "card": {"number": card, "exp_month": 12, "exp_year": 2034}}
            method = mode.fetch("payment_method", self.stripe.call("POST /v1/payment_methods", body)["id"])
        with mode.journal.transaction():
            done = sessions.complete(mode, mode.fetch(sessions.KIND, session), method, {})
        self.subscription = str(done["subscription"])
        return self.subscription

    def subscriptions(self) -> list[dict[str, Any]]:
        """All subscriptions of the customer, newest first."""
        wanted = {"customer": self.customer, "status": "all"}
        return list(self.stripe.pages("GET /v1/subscriptions", wanted))

    def at_stripe(self) -> dict[str, Any]:
        """The subscription as Stripe has it."""
        return self.stripe.call("GET /v1/subscriptions/{subscription_exposed_id}", {}, self.subscription)

    def bought(self) -> set[tuple[str, int | None]]:
        """The lookup keys without `tm.` of the subscription's prices, with their quantities."""
        rows = self.at_stripe()["items"]["data"]
        return {(row["price"]["lookup_key"].removeprefix("tm."), row.get("quantity")) for row in rows}

    def invoices(self) -> list[int]:
        """The totals of the customer's invoices, oldest first."""
        rows = list(self.stripe.pages("GET /v1/invoices", {"customer": self.customer}))
        return [row["total"] for row in reversed(rows)]

    def schedules(self) -> list[tuple[str, int]]:
        """The status of each schedule and the number of its phases."""
        rows = self.stripe.pages("GET /v1/subscription_schedules", {"customer": self.customer})
        return [(row["status"], len(row["phases"])) for row in rows]
