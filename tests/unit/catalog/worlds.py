"""What SQL and Stripe hold after a catalog was applied, without either."""

from __future__ import annotations

from typing import Final

from aggregators.catalog_plan import World, catalog_hash, records_of, states_after, wanted
from schemas.catalog import Catalog
from schemas.catalog_changes import AtStripe, Standing, StripeFeature, StripeMeter, StripePortal, StripePrice

EMPTY: Final = World(Standing(), AtStripe(), {})


def applied(catalog: Catalog, before: World = EMPTY) -> World:
    """The world after an application."""
    want = wanted(catalog)
    prices = {
        f"price_{key}": StripePrice(f"price_{key}", key, price.terms, made_for=price.made_for)
        for key, price in want.prices.items()
    }
    stripe = AtStripe(
        {name: StripeMeter(f"mtr_{name}", name) for name in want.meters},
        {**before.stripe.products, **{key: product for key, (product, _, _) in want.products.items()}},
        {key: StripeFeature(f"feat_{key}", key, name) for key, name in want.features.items()},
        {**before.stripe.prices, **prices},
        want.attached,
        {**before.stripe.coupons, **want.coupons},
        StripePortal("bpc_1", want.portal) if want.portal else before.stripe.portal,
    )
    records = {(record.kind, record.key): record for record in records_of(catalog, stripe)}
    standing = Standing(
        catalog, catalog_hash(catalog), plans=states_after(catalog, before),
        records={**before.standing.records, **records},
    )  # fmt: skip
    return World(standing, stripe, before.usage)
