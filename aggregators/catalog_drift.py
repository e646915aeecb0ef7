"""What Stripe has otherwise than it was applied, and what is sold there past the catalog."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from aggregators.catalog_plan import Wanted, World, kept_versions, touched_by, wanted
from aggregators.catalog_words import change_text, count_text, differences_text, portal_differences
from schemas.catalog import PlanId
from schemas.catalog_changes import CatalogKind, PlanState, Standing, StripeRecord

OURS: Final = "tm."


def drift_of(world: World) -> list[str]:
    """Every difference, in words. Features are compared for the products whose features were read."""
    standing = world.standing
    want = wanted(standing.catalog, kept_versions(standing.plans)) if standing.catalog else None
    touched = touched_by(world)
    found: list[str] = []
    for record in standing.records.values():
        match record.kind:
            case CatalogKind.PRICE:
                found += _price(world, want, record, touched)
            case CatalogKind.PRODUCT:
                found += _product(world, want, record, touched)
            case CatalogKind.METER:
                found += _meter(world, record)
            case CatalogKind.FEATURE:
                found += _feature(world, want, record)
            case CatalogKind.COUPON:
                found += _coupon(world, want, record)
            case CatalogKind.PORTAL:
                found += _portal(world, want)
    return [*found, *_attached(world), *_unmanaged(world)]


def attachable(standing: Standing) -> Mapping[str, frozenset[str]]:
    """The features that each product of a plan must have, also of versions that are sold no more and kept."""
    return wanted(standing.catalog, kept_versions(standing.plans)).attached if standing.catalog else {}


def _price(world: World, want: Wanted | None, record: StripeRecord, touched: Mapping[PlanId, int]) -> Iterator[str]:
    price, key = world.stripe.prices.get(record.stripe_id), record.key
    name = f"price {record.stripe_id}"
    if price is None:
        yield f"{name} ({key}) is not at Stripe"
        return
    users = touched.get(record.plan, 0) if record.plan else 0
    if price.key != key:
        yield f"{name} was changed: {change_text('lookup key', key, price.key)}"
    elif not price.is_active and (users or not _is_retired(world, want, record)):
        yield f"{name} ({key}) is archived; its plan has {count_text(users)}"
    elif want and key in want.prices and price.terms != want.prices[key].terms:
        yield f"{name} ({key}) was changed: {differences_text(want.prices[key].terms, price.terms)}"
    made_for = want.prices[key].made_for if want and key in want.prices else f"{record.plan} {record.component}"
    if price.made_for != made_for and (record.plan or not _is_retired(world, want, record)):
        yield f"{name} ({key}) was changed: {change_text('metadata', made_for, price.made_for.strip())}"


def _product(world: World, want: Wanted | None, record: StripeRecord, touched: Mapping[PlanId, int]) -> Iterator[str]:
    product, key = world.stripe.products.get(record.key), record.key
    users = touched.get(record.plan, 0) if record.plan else 0
    if product is None:
        yield f"product {key} is not at Stripe"
    elif not product.is_active and (users or not _is_retired(world, want, record)):
        yield f"product {key} is archived; its plan has {count_text(users)}"
    elif product.is_active and want and key in want.products and product != want.products[key][0]:
        yield f"product {key} was changed: {differences_text(want.products[key][0], product)}"


def _meter(world: World, record: StripeRecord) -> Iterator[str]:
    meter = world.stripe.meters.get(record.key)
    if meter is None or meter.fault:
        yield f"meter {record.key}: {meter.fault if meter else 'is not at Stripe'}"
    elif meter.id != record.stripe_id:
        yield f"meter {record.key} is {meter.id}, and was {record.stripe_id}: the prices of the old one bill no usage"


def _feature(world: World, want: Wanted | None, record: StripeRecord) -> Iterator[str]:
    feature = world.stripe.features.get(record.key)
    if feature is None:
        yield f"feature {record.key} is not at Stripe"
    elif not feature.is_active and want and record.key in want.features:
        yield f"feature {record.key} is archived"


def _coupon(world: World, want: Wanted | None, record: StripeRecord) -> Iterator[str]:
    """Versions that are offered no more are not looked at: who has the discount keeps it."""
    coupon = want.coupons.get(record.key) if want else None
    found = world.stripe.coupons.get(record.key)
    if coupon and found is None:
        yield f"coupon {record.key} is not at Stripe"
    elif coupon and found and found != coupon:
        differences = differences_text(coupon.terms, found.terms) or change_text("name", coupon.name, found.name)
        yield f"coupon {record.key} was changed: {differences}"


def _portal(world: World, want: Wanted | None) -> Iterator[str]:
    found = world.stripe.portal
    if want is None or want.portal is None:
        return
    if found is None:
        yield "the portal's configuration is not at Stripe"
    elif differences := portal_differences(found, want.portal, is_drift=True):
        yield f"the portal's configuration {found.id} was changed: {differences}"


def _is_retired(world: World, want: Wanted | None, record: StripeRecord) -> bool:
    """Whether nobody has it and nobody can buy it."""
    if record.plan is None:
        return want is None or (record.key not in want.prices and record.key not in want.products)
    return world.standing.plans[record.plan].state is PlanState.RETIRED


def _attached(world: World) -> Iterator[str]:
    attached = world.stripe.attached
    for product, features in attachable(world.standing).items():
        if product in attached and attached[product] != features:
            old, new = (", ".join(sorted(each)) for each in (features, attached[product]))
            yield f"product {product} was changed: {change_text('features', old, new)}"


def _unmanaged(world: World) -> Iterator[str]:
    pins = world.standing.pins()
    for price, subscriptions in sorted(world.usage.items()):
        if price not in pins:
            yield f"price {price} is in {count_text(len(subscriptions))} and no plan of the catalog has it"
    applied = {record.stripe_id for record in world.standing.records.values()}
    for at_stripe in world.stripe.prices.values():
        if at_stripe.key.startswith(OURS) and at_stripe.id not in applied and at_stripe.is_active:
            yield f"price {at_stripe.id} has the lookup key {at_stripe.key} and was never applied"
