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
