"""Whatever the mirror says that an account pays, a denied check gets an upgrade that can be bought, or none."""

from __future__ import annotations

import random
from decimal import Decimal
from pathlib import Path
from typing import Final

import pytest

import schemas
from aggregators.account_grants import Commerce
from aggregators.catalog_prices import all_prices
from aggregators.price_list import price_list
from aggregators.upgrade import Denied, upgrade_of
from schemas.catalog_changes import Pin
from schemas.clock import DAY_MS
from schemas.entitlements import Feature, Resolved, Value
from schemas.periods import Interval
from schemas.upgrades import Billed, BilledItem, BilledSubscription
from tests.unit.catalog.files import catalog_of

CATALOG: Final = catalog_of((Path(schemas.__file__).parent / "catalog.default.yaml").read_text())
PINS: Final = {key: Pin(price.plan, price.component) for key, price in all_prices(CATALOG).items()}
COMMERCE: Final = Commerce(CATALOG, CATALOG.sold(), PINS)
PRICES: Final = price_list(COMMERCE)
NOTHING: Final[dict[str, Value]] = {"flag": False, "config": "null"}
NOW_MS: Final = 1_795_262_400_321


def item(chance: random.Random, key: str) -> BilledItem:
    """An item of any price, also one that the catalog never made, whose period may have ended, may be to
    come, and may be empty."""
    interval = Interval(key.split(".")[-2]) if key in PINS else Interval.MONTH
    start_ms = NOW_MS // 1_000 * 1_000 - chance.randrange(-5, 60) * DAY_MS
    end_ms = start_ms + chance.randrange(40) * DAY_MS
    return BilledItem(key, chance.choice([None, 0, 1, 3]), interval, start_ms, end_ms)


def subscription(chance: random.Random, number: int) -> BilledSubscription:
    items = tuple(item(chance, key) for key in chance.sample([*PINS, "foreign"], chance.randint(0, 4)))
    status = chance.choice(["active", "trialing", "past_due", "unpaid", "paused"])
    anchor_ms, ends_ms = NOW_MS - chance.randrange(90) * DAY_MS, chance.choice([None, NOW_MS + DAY_MS])
    return BilledSubscription(f"sub_{number}", status, chance.choice(["usd", "eur", "chf"]), anchor_ms, ends_ms, items)


@pytest.mark.parametrize("seed", range(10))
def test_any_account(seed: int) -> None:
    chance, found = random.Random(seed), 0
    for _ in range(300):
        own = tuple(subscription(chance, number) for number in range(chance.randint(0, 2)))
        billed = Billed(chance.choice(["", "usd", "eur", "chf"]), own)
        name, term = chance.choice(list(CATALOG.features.items()))
        value = NOTHING.get(term.type.value, Decimal(chance.randint(0, 5)))
        wanted = Decimal(chance.choice(["6", "6.5", "1000000", "1000000000000"]))
        denied = Denied(Feature(name, term.type, term.merged_by), Resolved(value), wanted, term.soft)
        upgrade = upgrade_of(COMMERCE, PRICES, billed, denied, NOW_MS)
        if upgrade is None:
            continue
        found += 1
        currencies = {each.currency for each in own if each.status in ("active", "trialing")} | {
            billed.currency or "usd"
        }
        assert upgrade.due_now.currency in currencies & {"usd", "eur"}
        assert name in COMMERCE.sold[upgrade.offer].grants
        assert upgrade.words.endswith(".")
    assert found > 50


# Three plans whose base fees rise and whose overage falls, and an add-on that raises the limit of the first.
METERED: Final = """\
version: 1
meters:
  - {slug: calls, event_type: call, aggregation: count, unit: calls, stripe_event_name: calls}
currencies: {usd: 2}
defaults: {plan: free}
features:
  calls: {type: limit, merge: sum, meter: calls}
plans:
  free: {version: 1, prices: none, grants: {calls: 10}}
  small:
    version: 1
    rank: 1
    usage_interval: month
    prices:
      - {component: base, month: {usd: 10}, year: {usd: 100}}
      - {component: calls, meter: calls, unit: calls, month: {usd: "1.00"}}
    included: {calls: 100}
    spend_cap: {calls: {usd: 900}}
    grants: {calls: 500}
  middle:
    version: 1
    rank: 2
    extends: small@1
    prices:
      - {component: base, month: {usd: 50}, year: {usd: 600}}
      - {component: calls, meter: calls, unit: calls, month: {usd: "0.50"}}
    grants: {calls: 5000}
  large:
    version: 1
    rank: 3
    extends: small@1
    prices:
      - {component: base, month: {usd: 400}, year: {usd: 4000}}
      - {component: calls, meter: calls, unit: calls, month: {usd: "0.10"}}
    grants: {calls: unlimited}
addons:
  more: {version: 1, for: [small], price: {month: {usd: 20}, year: {usd: 200}}, grants: {calls: {add: 5000}}}
"""


@pytest.mark.parametrize(
    ("plan", "interval", "wanted", "offer", "usage"),
    [
        ("", "month", 100, "small@1", ""),
        ("", "month", 120, "small@1", "$20.00"),
        # 10 + 190 for small, 50 + 95 for middle.
        ("", "month", 290, "middle@1", "$95.00"),
        # 50 + 450 for middle, 400 + 90 for large.
        ("", "month", 1_000, "large@1", "$90.00"),
        # The add-on leaves the overage at a dollar: 30 + 500; 50 + 250 for middle.
        ("small", "month", 600, "middle@1", "$250.00"),
        # 100 + 20 for the add-on in a year, and 12 x 401; middle has 600 and 12 x 200.50.
        ("small", "year", 501, "middle@1", "$200.50"),
        # 1800 are below the cap of middle, 1901 would be above it.
        ("", "month", 9_100, "large@1", "$900.00"),
        ("", "month", 9_101, None, ""),
    ],
)
def test_the_cheapest_is_the_one_whose_usage_is_cheap_too(
    plan: str, interval: str, wanted: int, offer: str | None, usage: str
) -> None:
    """A low base fee with dear overage is no upgrade for who uses much, and one above its spend cap allows nothing."""
    catalog = catalog_of(METERED)
    pins = {key: Pin(price.plan, price.component) for key, price in all_prices(catalog).items()}
    commerce = Commerce(catalog, catalog.sold(), pins)
    items = tuple(
        BilledItem(f"tm.{plan}.v1.{key}.usd", quantity, Interval(key.split(".")[1]), NOW_MS, NOW_MS + 30 * DAY_MS)
        for key, quantity in ((f"base.{interval}", 1), ("calls.month", None))
    )
    own = (BilledSubscription("sub_1", "active", "usd", NOW_MS, None, items),) if plan else ()
    feature = catalog.features["calls"]
    denied = Denied(Feature("calls", feature.type, feature.merged_by), Resolved(Decimal(500)), Decimal(wanted))

    found = upgrade_of(commerce, price_list(commerce), Billed("usd", own), denied, NOW_MS)

    assert offer == (str(found.offer) if found else None)
    said = f" As much usage as in this month, with what was asked, costs {usage}."
    assert found is None or found.words.endswith(said) == bool(usage), found
