"""What of the catalog SQL and Stripe hold, the plan of a change, and the protocols of the two stores.

Stripe holds products, prices, features and meters. SQL holds each catalog version, each version of a plan with its
terms, and which object at Stripe is which: a price id names the plan, its version and the component for ever (`Pin`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Final, NamedTuple, Protocol

from schemas.catalog import AddOn, Catalog, Plan, PlanId, Price
from schemas.prices import CouponTerms, PackPrice, PortalTerms, PriceTerms

# There is one configuration of the customer portal.
PORTAL_KEY: Final = "default"
# The audit has the catalog's rows under no account's name.
NO_ACCOUNT: Final = ""


class PlanState(StrEnum):
    """Of a version of a plan. `OPEN`: it is sold. `CLOSED`: who has it keeps it. `RETIRED`: nobody has it; its prices
    are archived."""

    OPEN = "open"
    CLOSED = "closed"
    RETIRED = "retired"


class CatalogKind(StrEnum):
    """What a catalog makes at Stripe. A key is a meter's event name, the id of a product or coupon, a lookup key, or
    `PORTAL_KEY`."""

    METER = "meter"
    PRODUCT = "product"
    FEATURE = "feature"
    PRICE = "price"
    COUPON = "coupon"
    PORTAL = "portal"


class KnownPlan(NamedTuple):
    """A version of a plan or an add-on that was applied."""

    sold: Plan | AddOn
    state: PlanState


class StripeRecord(NamedTuple):
    """Which object at Stripe a key names. `plan` and what follows are those of a price or product, else None and ""."""

    key: str
    kind: CatalogKind
    stripe_id: str
    plan: PlanId | None = None
    component: str = ""
    interval: str = ""
    currency: str = ""


class Pin(NamedTuple):
    """What a price is the price of. A subscription with the price has this version's grants."""

    plan: PlanId
    component: str


class Standing(NamedTuple):
    """What SQL holds. `catalog` is the active one, None before the first; `applying` is the hash of a catalog whose
    application has begun and not ended, "" if none."""

    catalog: Catalog | None = None
    sha256: str = ""
    applying: str = ""
    applied_ms: int = 0
    applied_by: str = ""
    reason: str = ""
    plans: Mapping[PlanId, KnownPlan] = {}
    records: Mapping[tuple[CatalogKind, str], StripeRecord] = {}

    def pins(self) -> dict[str, Pin]:
        """What each price that was ever made is the price of, by price id."""
        return {
            record.stripe_id: Pin(record.plan, record.component)
            for record in self.records.values()
            if record.kind is CatalogKind.PRICE and record.plan is not None
        }

    def sold(self) -> dict[PlanId, Plan | AddOn]:
        """The terms of every version that was ever applied."""
        return {plan: known.sold for plan, known in self.plans.items()}


class StripeMeter(NamedTuple):
    """A meter. `fault` says why it takes no usage of ours; "" if it does."""

    id: str
    event_name: str
    fault: str = ""


class StripeProduct(NamedTuple):
    """A product, whose id we choose. These fields may change."""

    id: str
    name: str
    description: str = ""
    tax_code: str = ""
    is_active: bool = True


class StripeFeature(NamedTuple):
    """A feature of Stripe's entitlements."""

    id: str
    key: str
    name: str
    is_active: bool = True


class StripePrice(NamedTuple):
    """A price. `key` is its lookup key, "" if it has none. `made_for`: the plan and the component, or the pack and its
    credits, in the price's metadata, with a space between them."""

    id: str
    key: str
    terms: PriceTerms
    is_active: bool = True
    made_for: str = ""


class StripeCoupon(NamedTuple):
    """A coupon, whose id we choose. Its name may change."""

    id: str
    name: str
    terms: CouponTerms


class StripePortal(NamedTuple):
    """The configuration of the customer portal that has our mark."""

    id: str
    terms: PortalTerms
    is_active: bool = True


class AtStripe(NamedTuple):
    """What Stripe holds: meters by event name, products, prices and coupons by id, features by lookup key."""

    meters: Mapping[str, StripeMeter] = {}
    products: Mapping[str, StripeProduct] = {}
    features: Mapping[str, StripeFeature] = {}
    prices: Mapping[str, StripePrice] = {}
    attached: Mapping[str, frozenset[str]] = {}
    coupons: Mapping[str, StripeCoupon] = {}
    portal: StripePortal | None = None


class Verb(StrEnum):
    """What an action does, in the order in which actions are executed."""

    METER_SET = "meter_set"
    CREATE = "create"
    UPDATE = "update"
    ATTACH = "attach"
    OPEN = "open"
    CLOSE = "close"
    RETIRE = "retire"
    ARCHIVE = "archive"


class Action(NamedTuple):
    """One step of an application. `what` is the kind of the object, or `plan`; `detail` is for people."""

    verb: Verb
    what: str
    key: str
    detail: str = ""


class CatalogPlan(NamedTuple):
    """What an application of `catalog` will do. Equal inputs give an equal plan.

    `base` and `applying` are those of the standing that the plan was made from. `refusals` forbid the application,
    `drift` is what differs at Stripe and stays so. `touched` counts the subscriptions of each known version by its
    name. `is_final`: usage is counted or reported no more as before. `gives` says what new versions give, in lines.
    """

    catalog: Catalog
    sha256: str
    base: str
    applying: str
    in_place: bool
    actions: Sequence[Action]
    refusals: Sequence[str]
    drift: Sequence[str]
    touched: Mapping[str, int]
    is_final: bool = False
    gives: Sequence[str] = ()


class CatalogStore(Protocol):
    """The catalog in SQL. Every call may raise `Transient`; no call holds a lock when it returns."""

    async def standing(self) -> Standing:
        """Everything that is known of the catalog."""
        ...

    async def active_sha256(self) -> str:
        """The hash of the active catalog, "" before the first: cheap enough to ask again and again."""
        ...

    async def subscriptions_by_price(self, *, with_planned: bool = True) -> Mapping[str, frozenset[str]]:
        """The subscriptions of the mirror that have not ended, by the id of each price that they have, or, with
        `with_planned`, that a schedule will give them."""
        ...

    async def begin_catalog(self, plan: CatalogPlan, actor: str, reason: str, now_ms: int) -> None:
        """Note that the plan's catalog is being applied. The same catalog again changes nothing.

        Raises `InvalidInput` if another catalog was applied or begun since the plan was made.
        """
        ...

    async def activate_catalog(
        self, plan: CatalogPlan, states: Mapping[PlanId, KnownPlan], records: Sequence[StripeRecord], now_ms: int
    ) -> None:
        """Make the catalog that was begun the active one, with its versions, objects and an audit row.

        One transaction; of a catalog that is active already, only the ids of its objects are noted. Raises
        `InvalidInput` if another application was begun since.
        """
        ...


class CatalogObjects(Protocol):
    """What the catalog needs of Stripe. Every call may raise `Transient`, `Refused` and `InvalidInput`."""

    async def read(self) -> AtStripe:
        """Everything but `attached` and `coupons`. Costs a call for each hundred objects of a kind. Raises
        `OperatorNeeded` if there are more than it reads."""
        ...

    async def attached(self, product: str) -> frozenset[str]:
        """The lookup keys of a product's features. Costs one call."""
        ...

    async def coupon(self, identifier: str) -> StripeCoupon | None:
        """A coupon, None if Stripe has none of the id. Costs one call; an account may have very many coupons."""
        ...

    async def create_product(self, product: StripeProduct) -> str:
        """Create a product, or find the one that was created before; returns its id."""
        ...

    async def update_product(self, product: StripeProduct) -> None:
        """Bring the product's fields in line."""
        ...

    async def create_feature(self, key: str, name: str) -> str:
        """Create a feature, or find the one that was created before; returns its id."""
        ...

    async def attach(self, product: str, feature_id: str) -> None:
        """Attach a feature to a product that does not have it."""
        ...

    async def create_price(self, price: Price | PackPrice, meter_id: str) -> str:
        """Create a price, or find the one that was created before; returns its id. Raises `InvalidInput` if the lookup
        key names a price with other terms."""
        ...

    async def set_active(self, kind: CatalogKind, identifier: str, is_active: bool) -> None:
        """Archive a price, a product, a feature or the portal's configuration, or activate it again."""
        ...

    async def create_coupon(self, coupon: StripeCoupon) -> str:
        """Create a coupon, or find the one that was created before; returns its id."""
        ...

    async def rename_coupon(self, identifier: str, name: str) -> None:
        """Change what customers see of a coupon."""
        ...

    async def create_portal(self, terms: PortalTerms, prices: Mapping[str, str]) -> str:
        """Create the portal's configuration, or find the one that has our mark; returns its id. `prices` are ids by
        lookup key."""
        ...

    async def update_portal(self, identifier: str, terms: PortalTerms, prices: Mapping[str, str]) -> None:
        """Bring the portal's configuration in line."""
        ...

    async def close(self) -> None:
        """Close all connections. Safe to call twice."""
        ...
