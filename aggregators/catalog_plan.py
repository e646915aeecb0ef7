"""What an application of a catalog will do: the difference of the file, SQL and Stripe. Nothing else decides it.

A price is never changed at Stripe. Other terms are another version of the plan, with prices of its own; who has the old
version keeps it. The actions come in the order in which they are executed, so that nobody can buy half a plan: what is
sold changes in SQL after everything is at Stripe.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from aggregators.catalog_additions import added_sales, as_sold_before
from aggregators.catalog_prices import (
    components_of,
    coupon_id,
    coupon_terms,
    pack_prices,
    portal_terms,
    prices_of,
    product_id,
)
from aggregators.catalog_words import (
    amounts_text,
    change_text,
    coupon_text,
    differences_text,
    gives_lines,
    portal_differences,
)
from schemas.catalog import UNLIMITED, VERSIONED, Add, AddOn, Catalog, Coupon, GrantValue, Pack, Plan, PlanId, Price
from schemas.catalog_changes import (
    PORTAL_KEY,
    Action,
    AtStripe,
    CatalogKind,
    CatalogPlan,
    KnownPlan,
    PlanState,
    Standing,
    StripeCoupon,
    StripeProduct,
    StripeRecord,
    Verb,
)
from schemas.prices import PackPrice, PortalTerms

# What an action is about that SQL alone does, in the transaction that makes the catalog active.
IN_SQL: Final = "plan"
PORTAL: Final = (CatalogKind.PORTAL, PORTAL_KEY)


class Wanted(NamedTuple):
    """What Stripe must have for a catalog. `features` are by product, of which only a plan's first one has any.

    A product has the plan and the component that it is of; that of a pack of credits has no plan.
    """

    products: Mapping[str, tuple[StripeProduct, PlanId | None, str]]
    features: Mapping[str, str]
    attached: Mapping[str, frozenset[str]]
    prices: Mapping[str, Price | PackPrice]
    meters: Mapping[str, str]
    coupons: Mapping[str, StripeCoupon]
    portal: PortalTerms | None


class World(NamedTuple):
    """What a plan is made from, besides the file. `usage` has the subscriptions by price id."""

    standing: Standing
    stripe: AtStripe
    usage: Mapping[str, frozenset[str]]


def catalog_hash(catalog: Catalog) -> str:
    """The hash by which a catalog is recognised."""
    return sha256(catalog.model_dump_json().encode()).hexdigest()


def wanted(catalog: Catalog, kept: Mapping[PlanId, Plan | AddOn] = MappingProxyType({})) -> Wanted:
    """The objects that Stripe must have. Of `kept`, the versions that customers keep, the prices are there already."""
    products: dict[str, tuple[StripeProduct, PlanId | None, str]] = {}
    attached: dict[str, frozenset[str]] = {}
    tax_code = catalog.defaults.tax_code or ""
    for plan, sold in {**kept, **catalog.sold()}.items():
        components = components_of(sold)
        for component in components:
            name = _product_name(plan, sold, component)
            product = StripeProduct(product_id(plan, component), name, sold.description, tax_code)
            products[product.id] = (product, plan, component)
        if components:
            attached[product_id(plan, components[0])] = flags_of(catalog, sold)
    prices: dict[str, Price | PackPrice] = {
        price.key: price for plan, sold in catalog.sold().items() for price in prices_of(catalog, plan, sold)
    }
    for key, price in pack_prices(catalog).items():
        prices[key] = price
        pool = catalog.credit_pools[price.pool]
        name = pool.packs[price.pack].name or f"{pool.unit or price.pool.replace('_', ' ')}: {price.credits}"
        product = StripeProduct(price.terms.product, name, tax_code=tax_code)
        products[product.id] = (product, None, price.component)
    features = {
        feature.stripe_feature: feature.description or name
        for name, feature in catalog.features.items()
        if feature.stripe_feature
    }
    meters = {meter.stripe_event_name: meter.slug for meter in catalog.meters if meter.stripe_event_name}
    portal = portal_terms(catalog, catalog.portal) if catalog.portal else None
    return Wanted(products, features, attached, prices, meters, _coupons(catalog), portal)


def _coupons(catalog: Catalog) -> dict[str, StripeCoupon]:
    found: dict[str, StripeCoupon] = {}
    for name, coupon in catalog.coupons.items():
        identifier = coupon_id(name, coupon.version)
        shown = coupon.name or name.replace("_", " ").capitalize()[:40]
        found[identifier] = StripeCoupon(identifier, shown, coupon_terms(catalog, coupon))
    return found


def kept_versions(states: Mapping[PlanId, KnownPlan]) -> dict[PlanId, Plan | AddOn]:
    """The versions that are sold no more and kept by subscriptions."""
    return {plan: known.sold for plan, known in states.items() if known.state is PlanState.CLOSED}


def _product_name(plan: PlanId, sold: Plan | AddOn, component: str) -> str:
    """What an invoice shows: the plan, and the component if the plan has several."""
    name = sold.name or plan.name.replace("_", " ").capitalize()
    if isinstance(sold, AddOn) or len(sold.prices) == 1:
        return name
    own = next(line.name for line in sold.prices if line.component == component)
    return f"{name}: {own or component.replace('_', ' ')}"


def flags_of(catalog: Catalog, sold: Plan | AddOn) -> frozenset[str]:
    """The lookup keys of the features that a plan or an add-on has at Stripe."""
    return frozenset(
        feature.stripe_feature
        for name, feature in catalog.features.items()
        if feature.stripe_feature and sold.grants.get(name) is True
    )


def with_features(catalog: Catalog, world: World) -> list[str]:
    """The products that exist and must have features, of versions that are sold or kept."""
    found = wanted(catalog, kept_versions(states_after(catalog, world))).attached
    return [product for product, features in found.items() if features and product in world.stripe.products]


def coupons_to_read(*catalogs: Catalog | None) -> list[str]:
    """The ids of the coupons of some catalogs."""
    return list(dict.fromkeys(key for catalog in catalogs if catalog for key in _coupons(catalog)))


def plan_catalog(catalog: Catalog, world: World, *, in_place: bool = False, drift: Sequence[str] = ()) -> CatalogPlan:
    """The plan, without the actions and refusals of the meter set, which the log decides. `drift` is what
    `aggregators.catalog_drift` finds."""
    # A file that spells the active catalog otherwise, such as 35 for 35.00, is the active catalog.
    is_active = catalog == world.standing.catalog
    digest = world.standing.sha256 if is_active else catalog_hash(catalog)
    states, touched = states_after(catalog, world), touched_by(world)
    want = wanted(catalog, kept_versions(states))
    refusals = [
        *_version(catalog, digest, world.standing), *_terms_kept(catalog, world.standing, in_place=in_place),
        *_offers_kept(catalog, world.standing), *_still_granted(catalog, world.standing), *_unlike(want, world),
    ]  # fmt: skip
    actions = [
        *_at_stripe(want, world), *_offers_at_stripe(want, world.stripe), *_states(catalog, states, world),
        *_archives(want, states, world),
    ]  # fmt: skip
    return CatalogPlan(
        catalog, digest, world.standing.sha256, world.standing.applying, in_place, actions, refusals,
        list(drift), {str(plan): count for plan, count in sorted(touched.items())},
        gives=_gives(catalog, world.standing),
    )  # fmt: skip


def states_after(catalog: Catalog, world: World) -> dict[PlanId, KnownPlan]:
    """Every version, with its state after the application."""
    touched, sold = touched_by(world), catalog.sold()
    after = {plan: KnownPlan(each, PlanState.OPEN) for plan, each in sold.items()}
    for plan, known in world.standing.plans.items():
        if plan not in sold:
            is_kept = touched.get(plan, 0) > 0
            after[plan] = KnownPlan(known.sold, PlanState.CLOSED if is_kept else PlanState.RETIRED)
    return after


def records_of(catalog: Catalog, stripe: AtStripe) -> list[StripeRecord]:
    """Which object at Stripe each key names, once all of them exist."""
    want = wanted(catalog)
    by_key = {price.key: price.id for price in stripe.prices.values() if price.key}
    records = [
        *(StripeRecord(name, CatalogKind.METER, stripe.meters[name].id) for name in want.meters),
        *(StripeRecord(key, CatalogKind.FEATURE, stripe.features[key].id) for key in want.features),
        *(StripeRecord(key, CatalogKind.PRODUCT, key, plan, part) for key, (_, plan, part) in want.products.items()),
        *(
            StripeRecord(
                key, CatalogKind.PRICE, by_key[key], price.plan if isinstance(price, Price) else None,
                price.component, price.terms.interval, price.terms.currency,
            )
            for key, price in want.prices.items()
        ),
        *(StripeRecord(key, CatalogKind.COUPON, key) for key in want.coupons),
    ]  # fmt: skip
    if want.portal and stripe.portal:
        records.append(StripeRecord(PORTAL_KEY, CatalogKind.PORTAL, stripe.portal.id))
    return records


def touched_by(world: World) -> dict[PlanId, int]:
    """How many subscriptions have each version."""
    touched: dict[PlanId, set[str]] = {}
    for price, pin in world.standing.pins().items():
        if subscriptions := world.usage.get(price):
            touched.setdefault(pin.plan, set()).update(subscriptions)
    return {plan: len(subscriptions) for plan, subscriptions in touched.items()}


def _version(catalog: Catalog, digest: str, standing: Standing) -> Iterator[str]:
    if standing.catalog and digest != standing.sha256 and catalog.version <= standing.catalog.version:
        active = standing.catalog.version
        yield f"version: must be above {active}, the version that is active: write `version: {active + 1}`"
    for plan in catalog.sold():
        newest = max((known.version for known in standing.plans if known.name == plan.name), default=0)
        if plan.version < newest:
            yield f"{plan}: version {newest} was applied already, so the version must be {newest} or above"


def _terms_kept(catalog: Catalog, standing: Standing, *, in_place: bool) -> Iterator[str]:
    """A version's terms are those of its customers, so they stay."""
    for plan, sold in catalog.sold().items():
        known = standing.plans.get(plan)
        if known is None:
            continue
        if type(known.sold) is not type(sold):
            yield f"{plan}: was {'a plan' if isinstance(known.sold, Plan) else 'an add-on'}; take another name"
            continue
        kept = as_sold_before(known.sold, sold)
        changed = [field for field in VERSIONED if _bought(known.sold, field) != _bought(kept, field)]
        if changed == ["grants"]:
            lower = lower_grants(known.sold.grants, sold.grants)
            if in_place and not lower:
                continue
            hint = "add --in-place, for nobody loses anything, or" if not lower else f"{', '.join(lower)} would fall:"
            yield f"{plan}: grants were applied otherwise; {hint} raise the version to {plan.version + 1}"
        elif changed:
            were = "were" if len(changed) > 1 or changed[0] in ("prices", "credits") else "was"
            yield f"{plan}: {', '.join(changed)} {were} applied otherwise; raise the version to {plan.version + 1}"


def _offers_kept(catalog: Catalog, standing: Standing) -> Iterator[str]:
    """What a coupon takes off and what a pack holds is what customers were told, so it stays."""
    before = _offers(standing.catalog) if standing.catalog else {}
    for path, offer in _offers(catalog).items():
        known = before.get(path)
        if known is None or known == offer.model_copy(update={"name": known.name}):
            continue
        if offer.version < known.version:
            yield f"{path}: version {known.version} was applied already: take it, or a higher one"
        elif offer.version == known.version:
            yield f"{path}: was applied otherwise; raise its version to {offer.version + 1}"


def _offers(catalog: Catalog) -> dict[str, Coupon | Pack]:
    coupons: dict[str, Coupon | Pack] = {f"coupons.{name}": coupon for name, coupon in catalog.coupons.items()}
    return coupons | {
        f"credit_pools.{pool_name}.packs.{name}": pack
        for pool_name, pool in catalog.credit_pools.items()
        for name, pack in pool.packs.items()
    }


def _bought(sold: Plan | AddOn, field: str) -> object:
    """A field without the names that people see."""
    value = getattr(sold, field, None)
    return [line.model_copy(update={"name": ""}) for line in value or ()] if field == "prices" else value


def lower_grants(before: Mapping[str, GrantValue], after: Mapping[str, GrantValue]) -> list[str]:
    """The grants that fall, or of which nobody can say that they do not."""
    return [name for name, value in before.items() if not _is_kept(value, after.get(name))]


def _is_kept(before: GrantValue, after: GrantValue | None) -> bool:
    if after in (before, UNLIMITED) or before is False:
        return True
    if isinstance(before, Add) and isinstance(after, Add):
        return after.add >= before.add
    is_number = [isinstance(each, int) and not isinstance(each, bool) for each in (before, after)]
    return all(is_number) and after >= before  # type: ignore[operator]  # both are numbers


def _still_granted(catalog: Catalog, standing: Standing) -> Iterator[str]:
    """Who keeps a version keeps what it grants and counts, so the catalog must still know those words."""
    meters = {meter.slug for meter in catalog.meters}
    before = standing.catalog.features if standing.catalog else {}
    for plan, known in standing.plans.items():
        if known.state is PlanState.RETIRED:
            continue
        for name in known.sold.grants:
            feature = catalog.features.get(name)
            if feature is None or (name in before and before[name].type is not feature.type):
                yield f"features.{name}: {plan} grants it, so it must stay with its type"
        for line in known.sold.prices if isinstance(known.sold, Plan) else ():
            if line.meter and line.meter not in meters:
                yield f"meters: {plan} bills {line.meter}, so the meter must stay"


def _unlike(want: Wanted, world: World) -> Iterator[str]:
    """Prices and meters at Stripe that are not what the catalog says, and cannot be made so."""
    by_key = {price.key: price for price in world.stripe.prices.values() if price.key}
    for key, price in want.prices.items():
        found, record = by_key.get(key), world.standing.records.get((CatalogKind.PRICE, key))
        if found and found.terms != price.terms:
            yield (
                f"{key}: Stripe's price {found.id} would change: {differences_text(found.terms, price.terms)}; a price "
                f"never changes: {_raised(price)}"
            )
        elif record and (found is None or found.id != record.stripe_id):
            moved = f"names {found.id} at Stripe" if found else "names no price at Stripe"
            yield (
                f"{key}: {moved}, and was {record.stripe_id}: give {record.stripe_id} its lookup key again, or "
                f"{_raised(price)}"
            )
    for event_name in want.meters:
        if (meter := world.stripe.meters.get(event_name)) and meter.fault:
            yield f"meters: {meter.fault}"
    for key, coupon in want.coupons.items():
        if (at_stripe := world.stripe.coupons.get(key)) and at_stripe.terms != coupon.terms:
            differences = differences_text(at_stripe.terms, coupon.terms)
            yield f"{key}: Stripe's coupon would change: {differences}; a coupon never changes: raise its version"


def _raised(price: Price | PackPrice) -> str:
    name, version = price.plan if isinstance(price, Price) else (price.component, price.version)
    return f"raise the version of {name} to {version + 1}"


def _at_stripe(want: Wanted, world: World) -> Iterator[Action]:
    """The creations and changes in the order meters, products, features, prices."""
    stripe = world.stripe
    for event_name, slug in want.meters.items():
        if event_name not in stripe.meters:
            yield Action(Verb.CREATE, CatalogKind.METER, event_name, f"for the meter {slug}")
    for key, (product, _, _) in want.products.items():
        if (found := stripe.products.get(key)) is None:
            yield Action(Verb.CREATE, CatalogKind.PRODUCT, key, product.name)
        elif found != product:
            note = "; the tax code changes the tax of future invoices" if found.tax_code != product.tax_code else ""
            yield Action(Verb.UPDATE, CatalogKind.PRODUCT, key, f"{differences_text(found, product)}{note}")
    for key, name in want.features.items():
        if (feature := stripe.features.get(key)) is None:
            yield Action(Verb.CREATE, CatalogKind.FEATURE, key, name)
        elif not feature.is_active:
            yield Action(Verb.UPDATE, CatalogKind.FEATURE, key, "active again")
    for product_key, features in want.attached.items():
        if product_key in stripe.products and product_key not in stripe.attached:
            continue
        for lacking in sorted(features - stripe.attached.get(product_key, frozenset())):
            yield Action(Verb.ATTACH, CatalogKind.FEATURE, f"{lacking} {product_key}")
    by_key = {price.key: price for price in stripe.prices.values() if price.key}
    for key, price in want.prices.items():
        if (at_stripe := by_key.get(key)) is None:
            yield Action(Verb.CREATE, CatalogKind.PRICE, key, amounts_text(price))
        elif not at_stripe.is_active:
            yield Action(Verb.UPDATE, CatalogKind.PRICE, key, "active again")


def _offers_at_stripe(want: Wanted, stripe: AtStripe) -> Iterator[Action]:
    """Coupons, then the portal, which needs the prices."""
    for key, coupon in want.coupons.items():
        if (found := stripe.coupons.get(key)) is None:
            yield Action(Verb.CREATE, CatalogKind.COUPON, key, coupon_text(coupon.terms))
        elif found.name != coupon.name:
            yield Action(Verb.UPDATE, CatalogKind.COUPON, key, change_text("name", found.name, coupon.name))
    if want.portal is None:
        return
    if stripe.portal is None:
        yield Action(Verb.CREATE, CatalogKind.PORTAL, PORTAL_KEY)
    elif not stripe.portal.is_active or stripe.portal.terms != want.portal:
        yield Action(Verb.UPDATE, CatalogKind.PORTAL, PORTAL_KEY, portal_differences(stripe.portal, want.portal))


def _states(catalog: Catalog, states: Mapping[PlanId, KnownPlan], world: World) -> Iterator[Action]:
    known, sold = world.standing.plans, catalog.sold()
    for plan in sold:
        if plan not in known or known[plan].state is not PlanState.OPEN:
            yield Action(Verb.OPEN, IN_SQL, str(plan), "sold from now on")
        elif known[plan].sold != sold[plan]:
            added = ", ".join(added_sales(known[plan].sold, sold[plan]))
            yield Action(
                Verb.UPDATE, IN_SQL, str(plan), f"within the version{f', now also sold by {added}' if added else ''}"
            )
    for plan, after in states.items():
        if plan in sold or known[plan].state is after.state:
            continue
        if after.state is PlanState.CLOSED:
            yield Action(Verb.CLOSE, IN_SQL, str(plan), "sold no more, kept by its subscriptions")
        else:
            yield Action(Verb.RETIRE, IN_SQL, str(plan), "no subscription has it; its prices are archived")


def _gives(catalog: Catalog, standing: Standing) -> list[str]:
    """What each new version gives, and each one whose grants change, beside the version before."""
    lines: list[str] = []
    for plan, sold in catalog.sold().items():
        known = standing.plans.get(plan)
        if known and known.sold.grants == sold.grants:
            continue
        before = max((each for each in standing.plans if each.name == plan.name and each <= plan), default=None)
        lines += gives_lines(plan, sold, (before, standing.plans[before].sold) if before else None)
    return lines


def _archives(want: Wanted, states: Mapping[PlanId, KnownPlan], world: World) -> Iterator[Action]:
    """What is sold no more and kept by nobody. Nobody keeps a pack of credits: it is bought once."""
    portal = world.stripe.portal
    if want.portal is None and portal and portal.is_active and PORTAL in world.standing.records:
        yield Action(Verb.ARCHIVE, CatalogKind.PORTAL, PORTAL_KEY)
    at_stripe: Mapping[CatalogKind, Mapping[str, Any]] = {
        CatalogKind.PRICE: world.stripe.prices, CatalogKind.PRODUCT: world.stripe.products,
    }  # fmt: skip
    for record in world.standing.records.values():
        if record.kind not in at_stripe or record.key in want.prices or record.key in want.products:
            continue
        if record.plan is not None and states[record.plan].state is not PlanState.RETIRED:
            continue
        found = at_stripe[record.kind].get(record.stripe_id)
        if found and found.is_active:
            yield Action(Verb.ARCHIVE, record.kind, record.key)
