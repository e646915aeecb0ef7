"""What an upgrade of the catalog that ships costs now, against the preview of the Stripe simulator for the same change.

Random subscriptions to random plans, quantities, currencies and intervals, at random instants of their periods.
"""

from __future__ import annotations

import random
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import pytest

import schemas
from aggregators.account_grants import Commerce, granted
from aggregators.billed import billed_of
from aggregators.catalog_prices import all_prices
from aggregators.entitlements import resolve, segment_at
from aggregators.mirror import mirror_rows
from aggregators.price_list import price_list
from aggregators.upgrade import Denied, upgrade_of
from schemas.billing_events import ObjectKind, ObjectName
from schemas.catalog import Price
from schemas.catalog_changes import Pin
from schemas.clock import DAY_MS
from schemas.entitlements import UNLIMITED, Feature
from schemas.side_tables import Link
from schemas.upgrades import Upgrade
from simulation.stripe_account import StripeAccount
from tests.unit.catalog.files import catalog_of
from tests.worlds.clock import ManualClock

START_MS: Final = 1_795_262_400_000
CATALOG: Final = catalog_of((Path(schemas.__file__).parent / "catalog.default.yaml").read_text())


class World:
    """A customer with a random subscription, as the mirror sees it."""

    def __init__(self, seed: int, *, in_full: bool = False) -> None:
        self.in_full = in_full
        self.chance = random.Random(seed)
        self.clock = ManualClock(START_MS + self.chance.randrange(400 * DAY_MS // 1_000) * 1_000)
        self.stripe = StripeAccount(self.clock)
        self.meter = self.stripe.meter("tidemark_tokens")
        prices = all_prices(CATALOG)
        self.ids = {key: self._made(price) for key, price in prices.items()}
        pins = {self.ids[key]: Pin(price.plan, price.component) for key, price in prices.items()}
        changes = CATALOG.changes.model_copy(update={"upgrade": "full_price" if in_full else "now"})
        self.commerce = Commerce(CATALOG.model_copy(update={"changes": changes}), CATALOG.sold(), pins)
        self.prices = price_list(self.commerce)
        self.plan = self.chance.choice(["essential", "professional"])
        self.interval = self.chance.choice(["month", "year"])
        self.currency = self.chance.choice(["usd", "usd", "eur", "jpy"])
        self.paid = {"location": self.chance.randint(1, 5)}
        if self.plan == "professional":
            self.paid["member"] = self.chance.randint(5, 9)
        self.addons = self.chance.choice([0, 0, 2]) if self.currency == "usd" else 0
        self.customer = self.stripe.customer()
        items = [{"price": self.id(self.plan, name), "quantity": number} for name, number in self.paid.items()]
        items += [{"price": self.id("extra_calls", "addon"), "quantity": self.addons}] if self.addons else []
        body = {"customer": self.customer, "items": items}
        self.subscription = str(self.stripe.call("POST /v1/subscriptions", body)["id"])
        self.clock.advance(self.chance.randrange(80 * DAY_MS // 1_000) * 1_000 + 321)

    def _made(self, price: Price) -> str:
        """The price at the simulator."""
        terms = price.terms
        recurring: dict[str, Any] = {"interval": terms.interval}
        recurring |= {"usage_type": "metered", "meter": self.meter} if terms.event_name else {}
        body: dict[str, Any] = {"currency": terms.currency, "product_data": {"name": "x"}, "recurring": recurring}
        if terms.tiers:
            tiers = [{"up_to": tier.up_to or "inf", "unit_amount_decimal": tier.unit_minor} for tier in terms.tiers]
            body |= {"billing_scheme": "tiered", "tiers_mode": terms.mode, "tiers": tiers}
        else:
            body["unit_amount_decimal"] = terms.unit_minor
        return str(self.stripe.call("POST /v1/prices", body)["id"])

    def id(self, plan: str, component: str, interval: str = "") -> str:
        return self.ids[f"tm.{plan}.v1.{component}.{interval or self.interval}.{self.currency}"]

    def upgrade(self, feature: str) -> Upgrade | None:
        """What the product offers, if some more than the account has is denied."""
        names = [ObjectName(ObjectKind.SUBSCRIPTION, self.subscription), ObjectName(ObjectKind.CUSTOMER, self.customer)]
        rows: dict[str, Any] = {}
        for name in names:
            rows |= mirror_rows(name, self.stripe.read(name))
        links, now_ms = [Link("acme", self.customer, 0)], self.clock.now_ms()
        found = granted(self.commerce, links, rows, ())
        resolved = segment_at(resolve(found.features, found.entitled), now_ms).features[feature]
        if resolved.value in (True, UNLIMITED):
            return None
        more = self.chance.choice([1, 2, 4, 9_000, 40_000]) if feature == "api_calls" else self.chance.randint(1, 4)
        wanted = resolved.value + more if isinstance(resolved.value, Decimal) else Decimal(1)
        term = CATALOG.features[feature]
        denied = Denied(Feature(feature, term.type, term.merged_by), resolved, wanted)
        return upgrade_of(self.commerce, self.prices, billed_of(links, rows, now_ms), denied, now_ms)

    def previewed(self, feature: str, upgrade: Upgrade) -> int:
        """What the simulator's invoice would have now for the change that docs/entitlements.md describes."""
        body = self.stripe.call("GET /v1/subscriptions/{subscription_exposed_id}", {}, self.subscription)
        of_price = {row["price"]["id"]: row["id"] for row in body["items"]["data"]}
        changes: list[dict[str, Any]] = []
        if upgrade.is_addon:
            price = self.id("extra_calls", "addon")
            item = {"id": of_price[price]} if self.addons else {"price": price}
            changes.append({**item, "quantity": upgrade.quantity})
        else:
            plan = upgrade.offer.name
            if plan == "scale":
                after: dict[str, int | None] = {"base": 1, "tokens": None}
            else:
                after = {"location": self.paid["location"]}
                after |= {"member": max(5, self.paid.get("member", 0))} if plan == "professional" else {}
                after |= {feature[:-1]: upgrade.quantity} if upgrade.quantity else {}
            changes += [{"id": of_price[self.id(self.plan, name)], "deleted": True} for name in self.paid]
            changes += [
                {"price": self.id(plan, name, "" if number else "month")} | ({"quantity": number} if number else {})
                for name, number in after.items()
            ]
            if self.addons and plan == "scale":
                changes.append({"id": of_price[self.id("extra_calls", "addon")], "deleted": True})
        details: dict[str, Any] = {"items": changes, "proration_behavior": "always_invoice"}
        if self.in_full and not upgrade.is_addon and upgrade.offer.name != self.plan:
            details |= {"proration_behavior": "none", "billing_cycle_anchor": {"type": "now"}}
        shown = self.stripe.call(
            "POST /v1/invoices/create_preview", {"subscription": self.subscription, "subscription_details": details}
        )
        return sum(line["amount"] for line in shown["lines"]["data"])


@pytest.mark.parametrize("in_full", [False, True], ids=["prorated", "in full"])
@pytest.mark.parametrize("seed", range(20))
def test_an_upgrade_costs_what_the_simulator_previews(seed: int, in_full: bool) -> None:
    world, compared = World(seed, in_full=in_full), 0
    for feature in ["pos", "locations", "members", "api_calls", "ai_tokens"] * 3:
        if upgrade := world.upgrade(feature):
            assert upgrade.due_now.minor == world.previewed(feature, upgrade), (feature, upgrade)
            compared += 1
    assert compared
