"""The stores of credits."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from schemas.catalog_changes import CatalogStore
from schemas.clock import Clock
from schemas.credits import Credits
from schemas.packs import Packs
from schemas.side_tables import Link
from schemas.stripe_changes import StripeChanges
from schemas.stripe_credits import GrantOrders


class PackParts(NamedTuple):
    """The stores. `links` lists the links of an account. `scope` keeps the keys of two Stripe accounts apart."""

    clock: Clock
    catalog: CatalogStore
    links: Callable[[str], Awaitable[Sequence[Link]]]
    packs: Packs
    credits: Credits
    orders: GrantOrders
    stripe: StripeChanges
    scope: str
