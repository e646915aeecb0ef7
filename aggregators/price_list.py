"""What each version of a plan or an add-on costs by interval and currency, ready to be computed with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import NamedTuple

from aggregators.account_grants import Commerce
from aggregators.catalog_prices import prices_of, usage_interval_of
from aggregators.rating import Rating, rating_of_terms
from schemas.catalog import AddOn, Catalog, Plan, PlanId, Price
from schemas.periods import Interval


class Terms(NamedTuple):
    """The terms of one component. `feature`: the seats whose number is paid, of which `included` cost nothing; ""
    without. `meter`: the meter whose usage is billed, and nothing is paid ahead; "" without."""

    rating: Rating
    exponent: int
    feature: str = ""
    included: int = 0
    meter: str = ""

    @property
    def is_metered(self) -> bool:
        """Whether usage is billed."""
        return bool(self.meter)

    @property
    def is_free(self) -> bool:
        """Whether no quantity costs anything."""
        rating = self.rating
        return not rating.unit_amount and not any(tier.unit_amount or tier.flat_amount for tier in rating.tiers)


class Sale(NamedTuple):
    """A plan or an add-on, as it is bought for an interval in a currency."""

    id: PlanId
    interval: Interval
    currency: str


# The components of each sale by name. What lacks a component in an interval and currency is not sold there.
PriceList = Mapping[Sale, Mapping[str, Terms]]


def price_list(commerce: Commerce) -> PriceList:
    """The price list of every version that was ever sold. One whose meters or currencies have left the catalog is left
    out: nobody has it."""
    found: dict[Sale, Mapping[str, Terms]] = {}
    for plan, sold in commerce.sold.items():
        with suppress(KeyError):
            found |= dict(_sales(commerce.catalog, plan, sold))
    return found


def _sales(catalog: Catalog, plan: PlanId, sold: Plan | AddOn) -> Iterator[tuple[Sale, Mapping[str, Terms]]]:
    prices = prices_of(catalog, plan, sold)
    lines = {line.component: line for line in sold.prices} if isinstance(sold, Plan) else {}
    components = {price.component for price in prices}
    intervals = {Interval(price.terms.interval) for price in prices if not price.meter}
    if not intervals and prices and isinstance(sold, Plan):
        intervals = {usage_interval_of(sold)}
    for interval in sorted(intervals):
        for currency in {price.terms.currency: None for price in prices}:
            offered = {
                price.component: _terms(price, lines[price.component].included or 0 if lines else 0)
                for price in prices
                if price.terms.currency == currency and (price.meter or price.terms.interval == interval)
            }
            if offered.keys() == components:
                yield Sale(plan, interval, currency), offered


def _terms(price: Price, included: int) -> Terms:
    return Terms(rating_of_terms(price.terms), price.exponent, price.feature, included, price.meter)
