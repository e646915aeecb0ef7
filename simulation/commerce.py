"""What the simulated business sells: three catalogs, one after the other, and the prices at Stripe that they made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

from aggregators.catalog import read_catalog
from oracle.entitlements import PriceOf, Shop
from schemas.catalog import Catalog, PlanId
from schemas.catalog_changes import CatalogKind, StripeRecord
from simulation.invoicing import SOLD
from simulation.stripe_account import StripeAccount

Document = dict[str, Any]

# Prices that a subscription has beside its metered one. More than a nested list of Stripe's shows.
WIDE_ITEMS: Final = 12
METER: Final = "requests"
_DAY: Final = {"day": {"usd": "1"}}
_SEATS: Final = {"component": "seat", "quantity": "seats", **_DAY}


def _usage(interval: str, included: int) -> Document:
    tiers = [{"up_to": "included", "price": {"usd": "0"}}, {"up_to": "inf", "price": {"usd": "0.01"}}]
    return {
        "usage_interval": interval,
        "included": {METER: included},
        "usage": {"component": "usage", "meter": METER, "unit": "requests", "tiers": tiers},
    }


def _plan(version: int, rank: int, interval: str, included: int, *others: Document, **more: Any) -> Document:
    usage = _usage(interval, included)
    return {"version": version, "rank": rank, "prices": [*others, usage.pop("usage")], **usage, **more}


def _none(version: int, **grants: Any) -> Document:
    return {"version": version, "prices": "none", "grants": grants}


def _addon(version: int, **grants: Any) -> Document:
    return {"version": version, "for": ["basic", "team"], "price": _DAY, "grants": grants, "stack": 9}


def _catalogs() -> tuple[Document, ...]:
    """The second sells new versions and a new feature; the third gives more within a version.

    By the second, who does not pay loses the plan at once; by the third, such a customer keeps the add-ons."""
    team = {"seats": "quantity", "desks": 5, "sso": True, METER: 20_000, "reporting": {"days": 30}}
    first: Document = {
        "version": 1,
        "meters": [
            {"slug": METER, "event_type": "request", "aggregation": "count", "unit": "requests",
             "stripe_event_name": METER},
        ],
        "currencies": {"usd": 2},
        "defaults": {"plan": "free"},
        "dunning": {"fallback_plan": "frozen"},
        "features": {
            "seats": {"type": "seat", "merge": "sum"}, "desks": {"type": "seat", "merge": "max"},
            "sso": {"type": "flag"}, METER: {"type": "limit", "merge": "sum", "meter": METER},
            "reporting": {"type": "config"},
        },
        "plans": {
            "free": _none(1, seats=1, requests=1_000),
            "frozen": _none(1, seats=1, requests=10, reporting={"days": 1}),
            "basic": _plan(
                1, 5, "month", 500, grants={"seats": 3, "desks": 2, METER: 5_000, "reporting": {"days": 7}}
            ),
            "team": _plan(
                1, 10, "day", 2_000, _SEATS, grants=team,
                trial={"family": "paid", "days": 14, "grants": {METER: 50, "desks": 9, "sso": False}},
            ),
        },
        "addons": {
            "support": _addon(1, reporting={"days": 60, "phone": True}),
            "boost": _addon(1, requests={"add": 1_000}, seats={"add": 2}),
            "rooms": _addon(1, desks=4),
            "lights": _addon(1, sso=True),
        },
    }  # fmt: skip
    second = json.loads(json.dumps(first))
    second["version"] = 2
    second["features"]["theme"] = {"type": "config"}
    second["plans"]["free"] = _none(2, seats=2, requests=2_000, theme={"color": "grey"})
    more = {"desks": 7, METER: "unlimited", "theme": {"color": "any"}}
    second["plans"]["team"] = _plan(
        2, 20, "day", 3_000, _SEATS, grants=team | more,
        trial={"family": "paid", "days": 14, "grants": {METER: 70, "desks": 11}},
    )  # fmt: skip
    second["addons"]["boost"] = _addon(2, requests={"add": 5_000})
    days = ("urgent_days", "final_days", "downgrade_after_final_days", "win_back_days")
    second["dunning"] |= dict.fromkeys(days, 0)
    third = json.loads(json.dumps(second))
    third["version"] = 3
    third["plans"]["team"]["grants"]["desks"] = 8
    third["plans"]["frozen"]["version"] = 2
    third["plans"]["frozen"]["grants"]["seats"] = 0
    third["dunning"]["suspend_addons"] = False
    return first, second, third


CATALOGS: Final = _catalogs()
# The version and the component that each price is of. Those of the second catalog are at Stripe before it is active.
# Nothing made the other prices that subscriptions have.
_FLAT: Final = (
    PriceOf("support", 1, "addon"), PriceOf("boost", 1, "addon"), PriceOf("rooms", 1, "addon"),
    PriceOf("lights", 1, "addon"), PriceOf("team", 1, "seat"), PriceOf("team", 2, "seat"), PriceOf("boost", 2, "addon"),
)  # fmt: skip
_METERED: Final = (PriceOf("basic", 1, "usage"), PriceOf("team", 1, "usage"), PriceOf("team", 2, "usage"))


class Commerce:
    """The prices at Stripe, and which catalogs were active so far.

    `monthly`, `daily`, `more` and `flat` are the prices that customers subscribe to. `units`: what each metered price
    bills, and what a unit costs.
    """

    def __init__(self, account: StripeAccount) -> None:
        meter, other = (account.meter(name) for name in SOLD)
        self.daily = [account.price(meter=meter, interval="day", amount=1 + number) for number in range(2)]
        self.monthly = account.price(meter=meter)
        self.more = account.price(meter=other, interval="day", amount=1000)
        self.units = {
            self.monthly: (SOLD[0], Decimal(1000)),
            self.more: (SOLD[1], Decimal(1000)),
            **{price: (SOLD[0], Decimal(1 + number)) for number, price in enumerate(self.daily)},
        }
        self.flat = [account.price(interval="day", amount=100 + number) for number in range(WIDE_ITEMS)]
        self.prices: Mapping[str, PriceOf] = dict(
            zip((self.monthly, *self.daily, *self.flat), (*_METERED, *_FLAT), strict=False)
        )
        self.applied = 0

    def shop(self) -> Shop:
        """What the oracle must know."""
        catalogs = CATALOGS[: self.applied]
        sold = {
            (name, each["version"])
            for catalog in catalogs
            for part in ("plans", "addons")
            for name, each in catalog[part].items()
        }
        return Shop(catalogs, {price: of for price, of in self.prices.items() if (of.plan, of.version) in sold})

    def records(self, catalog: Catalog) -> list[StripeRecord]:
        """The prices of the versions that a catalog sells."""
        return [
            StripeRecord(
                f"tm.{of.plan}.v{of.version}.{of.component}", CatalogKind.PRICE, price, PlanId(of.plan, of.version),
                of.component, "day", "usd",
            )
            for price, of in self.prices.items()
            if PlanId(of.plan, of.version) in catalog.sold()
        ]  # fmt: skip


def catalog_of(number: int) -> Catalog:
    """A catalog as the product reads its file. Raises `ValueError` if the file is wrong."""
    catalog, problems = read_catalog(json.dumps(CATALOGS[number]).encode(), {})
    if catalog is None:
        raise ValueError(problems)
    return catalog
