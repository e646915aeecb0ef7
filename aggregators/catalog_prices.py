"""The prices of a plan or an add-on: each component, interval and currency with its exact terms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from decimal import Decimal, localcontext
from typing import Final

from schemas.catalog import AddOn, Amounts, ByInterval, Catalog, Coupon, Pack, Plan, PlanId, Portal, Price, PriceLine
from schemas.periods import Interval
from schemas.prices import CouponTerms, PackPrice, PortalTerms, PriceTerms, PriceTier

# Stripe takes whole amounts below a million of most currencies, and 12 decimals of the minor unit
# (docs.stripe.com/api/prices/create, unit_amount_decimal).
MINOR_PLACES_MAX: Final = 12
MINOR_MAX: Final = 99_999_999
ADDON_COMPONENT: Final = "addon"
_FREE: Final = "0"


def minor_text(amount: str, exponent: int) -> str:
    """An amount in major units as exact decimal text in minor units, without needless zeros.

    Raises `ValueError` with what is wrong if Stripe takes no such amount.
    """
    with localcontext(prec=60):
        minor = Decimal(amount).scaleb(exponent).normalize()
    if minor > MINOR_MAX:
        raise ValueError(f"{amount} is more than Stripe's highest amount, {MINOR_MAX} minor units")
    if -int(minor.as_tuple().exponent) > MINOR_PLACES_MAX:
        raise ValueError(f"{amount} has more decimals than the {MINOR_PLACES_MAX + exponent} that Stripe takes")
    return f"{minor:f}"


def product_id(plan: PlanId, component: str) -> str:
    """The id of a component's product at Stripe. A version has products of its own, because Stripe's features hang on
    products and every version keeps its features."""
    return f"tm-{plan.name}-v{plan.version}-{component}"


def lookup_key(plan: PlanId, component: str, interval: Interval, currency: str) -> str:
    """The lookup key of a price, for ever."""
    return f"tm.{plan.name}.v{plan.version}.{component}.{interval.value}.{currency}"


def components_of(sold: Plan | AddOn) -> list[str]:
    """The components of a plan or an add-on, each with a product of its own."""
    return [ADDON_COMPONENT] if isinstance(sold, AddOn) else [line.component for line in sold.prices]


def usage_interval_of(plan: Plan) -> Interval:
    """The interval at which a plan's usage is billed."""
    named = [interval for line in plan.prices if line.meter for interval, _ in line.amounts()]
    return plan.usage_interval or (named[0] if named else Interval.MONTH)


def prices_of(catalog: Catalog, plan_id: PlanId, sold: Plan | AddOn) -> list[Price]:
    """All prices of a plan or an add-on. `catalog` must have passed `aggregators.catalog`."""
    if isinstance(sold, AddOn):
        return list(_licensed(catalog, plan_id, ADDON_COMPONENT, sold.price, included=None, feature="", package=1))
    event_names = {meter.slug: meter.stripe_event_name or "" for meter in catalog.meters}
    prices: list[Price] = []
    for line in sold.prices:
        if line.meter:
            included = sold.included.meters.get(line.meter)
            prices += _metered(catalog, plan_id, line, usage_interval_of(sold), event_names[line.meter], included)
        else:
            prices += _licensed(
                catalog, plan_id, line.component, line, line.included, line.quantity or "", line.package or 1
            )
    return prices


def _licensed(
    catalog: Catalog,
    plan: PlanId,
    component: str,
    amounts: ByInterval,
    included: int | None,
    feature: str,
    package: int,
) -> Iterator[Price]:
    for interval, by_currency in amounts.amounts():
        for currency, amount in by_currency.items():
            exponent = catalog.currencies[currency]
            unit = minor_text(amount, exponent)
            tiers = (PriceTier(included, _FREE), PriceTier(None, unit)) if included else ()
            yield Price(
                lookup_key(plan, component, interval, currency), plan, component, exponent,
                _terms(catalog, plan, component, interval, currency, "", unit, tiers, "graduated", package), feature,
            )  # fmt: skip


def _metered(
    catalog: Catalog, plan: PlanId, line: PriceLine, interval: Interval, event_name: str, included: int | None
) -> Iterator[Price]:
    for currency in metered_currencies(line):
        exponent = catalog.currencies[currency]
        unit, tiers = _metered_amounts(line, currency, exponent, included)
        yield Price(
            lookup_key(plan, line.component, interval, currency), plan, line.component, exponent,
            _terms(
                catalog, plan, line.component, interval, currency, event_name, unit, tiers, line.mode.value,
                line.package or 1,
            ),
            meter=line.meter or "",
        )  # fmt: skip


def metered_currencies(line: PriceLine) -> list[str]:
    """The currencies of a metered component: those of its last tier, which every price has, or of its amounts."""
    if line.tiers:
        return list({**line.tiers[-1].price, **line.tiers[-1].flat})
    return [currency for _, amounts in line.amounts() for currency in amounts]


def _metered_amounts(
    line: PriceLine, currency: str, exponent: int, included: int | None
) -> tuple[str, tuple[PriceTier, ...]]:
    """The amount of a unit, and the tiers if there are any."""
    if line.tiers:
        return "", tuple(
            PriceTier(
                included if tier.up_to == "included" else None if tier.up_to == "inf" else int(tier.up_to),
                minor_text(tier.price.get(currency, _FREE), exponent),
                minor_text(tier.flat.get(currency, _FREE), exponent),
            )
            for tier in line.tiers
        )
    (amounts,) = (amounts for _, amounts in line.amounts())
    unit = minor_text(amounts[currency], exponent)
    return unit, (PriceTier(included, _FREE), PriceTier(None, unit)) if included else ()


def _terms(
    catalog: Catalog,
    plan: PlanId,
    component: str,
    interval: Interval,
    currency: str,
    event_name: str,
    unit: str,
    tiers: tuple[PriceTier, ...],
    mode: str,
    package: int,
) -> PriceTerms:
    return PriceTerms(
        product_id(plan, component), currency, interval.value, event_name, catalog.defaults.tax_behavior,
        None if tiers else unit, tiers, mode if tiers else "", package,
    )  # fmt: skip


def amounts_of(line: PriceLine) -> Iterator[tuple[tuple[str | int, ...], Amounts]]:
    """Every map of amounts of a component, with its path within the component."""
    for interval, amounts in line.amounts():
        yield (interval.value,), amounts
    for index, tier in enumerate(line.tiers):
        yield ("tiers", index, "price"), tier.price
        yield ("tiers", index, "flat"), tier.flat


def all_prices(catalog: Catalog) -> Mapping[str, Price]:
    """The prices of all plans and add-ons of the file, by lookup key."""
    return {price.key: price for plan, sold in catalog.sold().items() for price in prices_of(catalog, plan, sold)}


def pack_product_id(pool: str, pack: str, version: int) -> str:
    """The id of the product of a pack of credits; no component of a plan has one of this form."""
    return f"tm-pack-{pool}-{pack}-v{version}"


def pack_prices(catalog: Catalog) -> Mapping[str, PackPrice]:
    """The prices of all packs of credits, by lookup key. `catalog` must have passed `aggregators.catalog`."""
    return {
        price.key: price
        for pool_name, pool in catalog.credit_pools.items()
        for name, pack in pool.packs.items()
        for currency, amount in pack.amounts.items()
        for price in [_pack_price(catalog, pool_name, name, pack, currency, amount)]
    }


def _pack_price(catalog: Catalog, pool: str, name: str, pack: Pack, currency: str, amount: str) -> PackPrice:
    exponent = catalog.currencies[currency]
    terms = PriceTerms(
        pack_product_id(pool, name, pack.version), currency, "", "", catalog.defaults.tax_behavior,
        minor_text(amount, exponent),
    )  # fmt: skip
    key = f"tm.pack.{pool}.{name}.v{pack.version}.{currency}"
    return PackPrice(key, pool, name, pack.version, pack.credits, exponent, terms)


def coupon_id(name: str, version: int) -> str:
    """The id of a coupon at Stripe, for ever."""
    return f"tm-{name}-v{version}"


def coupon_terms(catalog: Catalog, coupon: Coupon) -> CouponTerms:
    """What a coupon takes off. `catalog` must have passed `aggregators.catalog`."""
    months = coupon.duration_months or 0
    if coupon.percent_off is not None:
        return CouponTerms(f"{Decimal(coupon.percent_off).normalize():f}", 0, "", coupon.duration, months)
    ((currency, amount),) = coupon.amount_off.items()
    minor = int(minor_text(amount, catalog.currencies[currency]))
    return CouponTerms("", minor, currency, coupon.duration, months)


def portal_terms(catalog: Catalog, portal: Portal) -> PortalTerms:
    """What the customer portal lets a customer do. `catalog` must have passed `aggregators.catalog`."""
    products: dict[str, list[str]] = {}
    for name in portal.change_to:
        plan = catalog.plans[name]
        for price in prices_of(catalog, PlanId(name, plan.version), plan):
            products.setdefault(price.terms.product, []).append(price.key)
    return PortalTerms(
        portal.cancel,
        portal.payment_method,
        catalog.changes.upgrade if products else "",
        tuple(sorted((product, tuple(sorted(keys))) for product, keys in products.items())),
    )
