"""Amounts, quantities and prices in the words of the page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import NamedTuple

from aggregators.billed import INTERVALS
from aggregators.plan_offer import Shop, interval_of
from aggregators.price_list import Sale, Terms
from aggregators.rating import exact_amount, rounded
from aggregators.upgrade_words import money_text
from schemas.catalog import AddOn, PlanId, Price
from schemas.clock import MINUTE_MS
from schemas.periods import Interval
from schemas.upgrades import Money


def signed_money(money: Money) -> str:
    """An amount with its sign."""
    return f"{'−' if money.minor < 0 else ''}{money_text(money)}"


def number_text(number: Decimal) -> str:
    """A quantity for people: digits in groups of three, and no more decimals than there are."""
    text = f"{number:,f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def quantity_head(unit: str) -> str:
    """The head of a column of quantities."""
    return unit.capitalize() or "Quantity"


def minute_text(instant_ms: int) -> str:
    """An instant for people, such as `10:32 UTC`."""
    minutes = instant_ms // MINUTE_MS % (24 * 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d} UTC"


def plan_name(shop: Shop, plan: PlanId | None) -> str:
    """What a customer calls a plan."""
    sold = shop.commerce.sold.get(plan) if plan else None
    if sold is None:
        name = shop.commerce.catalog.defaults.plan
        default = shop.commerce.catalog.plans.get(name) if name else None
        return (default.name or name or "") if default else "no plan"
    return sold.name or (plan.name if plan else "")


class SoldPrice(NamedTuple):
    """What a price is the price of, and its terms."""

    plan: PlanId
    component: str
    interval: Interval | None
    terms: Terms


def terms_of(shop: Shop, price: str, currency: str) -> SoldPrice | None:
    """What a price is; None if no catalog made it. Usage may have another interval than its plan."""
    pin = shop.commerce.pins.get(price)
    if pin is None:
        return None
    interval = interval_of(shop, price)
    for each in (interval, *INTERVALS):
        terms = shop.prices.get(Sale(pin.plan, each, currency), {}).get(pin.component) if each else None
        if terms is not None and (each == interval or terms.is_metered):
            return SoldPrice(pin.plan, pin.component, interval, terms)
    return None


def price_words(shop: Shop, items: Iterable[tuple[str, int | None]], currency: str) -> Iterator[str]:
    """What each item costs, such as `2 locations: $298.00 a month`."""
    for price, quantity in items:
        found = terms_of(shop, price, currency)
        if found is None:
            yield "a price outside the catalog"
            continue
        plan, component, interval, terms = found
        sold = shop.commerce.sold[plan]
        if terms.is_metered or interval is None:
            yield f"{terms.meter or component}: by usage"
            continue
        money = paid_for(shop, price, quantity or 0, currency)
        what = sold.name or plan.name
        if isinstance(sold, AddOn):
            what = f"{quantity} × {what}" if (quantity or 1) > 1 else what
        elif terms.feature:
            what = f"{quantity} {terms.feature if quantity != 1 else terms.feature.removesuffix('s')}"
        yield f"{what}: {money_text(money)} a {interval}"


def paid_for(shop: Shop, price: str, quantity: int, currency: str) -> Money:
    """What so many of a price cost for a period; 0 of usage and of what no catalog made."""
    found = terms_of(shop, price, currency)
    if found is None or found.terms.is_metered:
        return Money(0, currency, shop.commerce.catalog.currencies.get(currency, 2))
    return Money(rounded(exact_amount(found.terms.rating, quantity)), currency, found.terms.exponent)


def price_text(price: Price) -> str:
    """What one component of a plan costs, such as `member: 5 included, then $12.00 each`."""
    terms = price.terms
    what = price.component.replace("_", " ")
    if not terms.tiers:
        package = f" for each {number_text(Decimal(terms.package))}" if terms.package > 1 else ""
        if price.meter or package:
            return f"{what}: {_exact(terms.unit_minor or '0', price)}{package or ' each'}"
        each = f" for each {what}" if price.feature else ""
        return f"{_exact(terms.unit_minor or '0', price)}{each}"
    parts = []
    for tier in terms.tiers:
        up_to = "" if tier.up_to is None else number_text(Decimal(tier.up_to))
        flat = f"{_exact(tier.flat_minor, price)} and " if Decimal(tier.flat_minor) else ""
        if not flat and Decimal(tier.unit_minor) == 0:
            parts.append(f"{up_to or 'all'} included")
        else:
            parts.append(f"{flat}{_exact(tier.unit_minor, price)} each{f' up to {up_to}' if up_to else ''}")
    return f"{what}: {', then '.join(parts)}"


def _exact(minor: str, price: Price) -> str:
    """An amount of minor units with all its decimals."""
    exact = Decimal(minor)
    if exact == exact.to_integral_value():
        return money_text(Money(int(exact), price.terms.currency, price.exponent))
    places = max(0, -int(exact.normalize().as_tuple().exponent))
    return money_text(Money(int(exact.scaleb(places)), price.terms.currency, price.exponent + places))
