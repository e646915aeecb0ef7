"""What usage beyond the included quantity costs, and whether it may cost more."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import NamedTuple

from aggregators.account_grants import Commerce
from aggregators.catalog_prices import minor_text
from aggregators.price_list import PriceList, Sale, Terms
from aggregators.rating import Rating, amount_of
from schemas.access import Spending
from schemas.catalog import Plan, PlanId
from schemas.entitlements import Resolved
from schemas.periods import Interval
from schemas.upgrades import Billed, Money


class Tariff(NamedTuple):
    """The price of a meter's usage. `cap_minor`: what overage may cost in a period at most; None without a cap."""

    rating: Rating
    included: Decimal
    exponent: int
    cap_minor: int | None

    def cost_minor(self, quantity: Decimal) -> int:
        """What the usage of a period costs beyond its included quantity."""
        if quantity <= self.included:
            return 0
        covered = amount_of(self.rating, min(quantity, self.included))
        return max(0, amount_of(self.rating, quantity) - covered)

    def spending(self, used: Decimal) -> Spending:
        """What the usage so far costs, and the cap."""
        currency = self.rating.currency
        cap = None if self.cap_minor is None else Money(self.cap_minor, currency, self.exponent)
        return Spending(Money(self.cost_minor(used), currency, self.exponent), cap)


def is_capped(commerce: Commerce, covered: Resolved, meter: str) -> bool:
    """Whether a plan in force caps what overage of the meter costs. `covered`: the included quantity of the meter."""
    return any(meter in sold.spend_cap for sold in _plans(commerce, covered).values())


def tariff_of(commerce: Commerce, prices: PriceList, billed: Billed, covered: Resolved, meter: str) -> Tariff | None:
    """The price of a meter's usage by the plan in force. None if no plan sells the meter, if more than one does, or if
    it is not known in which currency the plan is paid."""
    causes = {grant.cause for grant in covered.gives}
    currencies = {each.currency for each in billed.subscriptions if each.id in causes}
    return _tariff(commerce, prices, currencies, covered, meter)


def tariff_of_sole_currency(
    commerce: Commerce, prices: PriceList, sole: Mapping[PlanId, str], covered: Resolved, meter: str
) -> Tariff | None:
    """The same without knowing what the account pays, if the plan in force is sold in one currency. `sole`: see
    `sole_currencies`."""
    currencies = {sole[plan] for plan in _plans(commerce, covered) if plan in sole}
    return _tariff(commerce, prices, currencies, covered, meter)


def sole_currencies(prices: PriceList) -> dict[PlanId, str]:
    """The currency of each version that is sold in one currency only."""
    found: dict[PlanId, set[str]] = {}
    for sale in prices:
        found.setdefault(sale.id, set()).add(sale.currency)
    return {plan: min(currencies) for plan, currencies in found.items() if len(currencies) == 1}


def _tariff(
    commerce: Commerce, prices: PriceList, currencies: set[str], covered: Resolved, meter: str
) -> Tariff | None:
    plans = _plans(commerce, covered)
    if len(plans) != 1 or len(currencies) != 1 or not isinstance(covered.value, Decimal):
        return None
    ((plan, sold),) = plans.items()
    (currency,) = currencies
    components = [line.component for line in sold.prices if line.meter == meter]
    terms = _terms(prices, plan, currency, components)
    if terms is None:
        return None
    cap = sold.spend_cap.get(meter, {}).get(currency)
    cap_minor = None if cap is None else int(Decimal(minor_text(cap, terms.exponent)))
    return Tariff(terms.rating, covered.value, terms.exponent, cap_minor)


def _plans(commerce: Commerce, covered: Resolved) -> Mapping[PlanId, Plan]:
    found: dict[PlanId, Plan] = {}
    for grant in covered.gives:
        name, _, version = grant.source.partition("@")
        sold = commerce.sold.get(PlanId(name, int(version))) if version.isdigit() else None
        if isinstance(sold, Plan):
            found[PlanId(name, int(version))] = sold
    return found


def _terms(prices: PriceList, plan: PlanId, currency: str, components: list[str]) -> Terms | None:
    """The terms of the plan's one component for the meter, which are the same for each interval of the plan."""
    for interval in Interval:
        offered = prices.get(Sale(plan, interval, currency))
        if offered is not None:
            return offered[components[0]] if len(components) == 1 else None
    return None
