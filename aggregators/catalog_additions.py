"""Whether a version that is sold would only be sold in more ways: each currency and interval is a price of its own at
Stripe, so another one changes nothing for who has bought already."""

from __future__ import annotations

from typing import TypeVar

from aggregators.catalog_prices import metered_currencies
from schemas.catalog import AddOn, Amounts, ByInterval, Plan, PriceLine
from schemas.periods import Interval

_Priced = TypeVar("_Priced", bound=ByInterval)


def as_sold_before(before: Plan | AddOn, after: Plan | AddOn) -> Plan | AddOn:
    """`after` without the currencies and intervals in which `before` was not sold. A version that is only sold in more
    of them is `before` then."""
    if isinstance(before, AddOn) and isinstance(after, AddOn):
        return after.model_copy(update={"price": _cut(before.price, after.price)})
    if not (isinstance(before, Plan) and isinstance(after, Plan)) or len(before.prices) != len(after.prices):
        return after
    currencies = {currency for line in before.prices for currency in _currencies(line)}
    caps = {
        meter: _only(amounts, currencies | before.spend_cap.get(meter, {}).keys())
        for meter, amounts in after.spend_cap.items()
    }
    lines = tuple(_line(old, new) for old, new in zip(before.prices, after.prices, strict=True))
    # A meter that had no cap has none in the currencies of before.
    caps = {meter: amounts for meter, amounts in caps.items() if amounts or meter in before.spend_cap}
    return after.model_copy(update={"prices": lines, "spend_cap": caps})


def added_sales(before: Plan | AddOn, after: Plan | AddOn) -> list[str]:
    """The intervals and currencies in which only `after` is sold, such as `month eur`."""
    return sorted(_sales(after) - _sales(before))


def _sales(sold: Plan | AddOn) -> set[str]:
    priced = [sold.price] if isinstance(sold, AddOn) else sold.prices
    found = {
        f"{interval.value} {currency}"
        for each in priced
        for interval, amounts in each.amounts()
        for currency in amounts
    }
    return found | {f"usage {tier}" for each in priced if isinstance(each, PriceLine) for tier in _tiered(each)}


def _line(before: PriceLine, after: PriceLine) -> PriceLine:
    cut, currencies = _cut(before, after), _currencies(before)
    tiers = tuple(
        tier.model_copy(update={"price": _only(tier.price, currencies), "flat": _only(tier.flat, currencies)})
        for tier in after.tiers
    )
    return cut.model_copy(update={"tiers": tiers})


def _cut(before: ByInterval, after: _Priced) -> _Priced:
    amounts = {
        interval.value: _only(getattr(after, interval.value), getattr(before, interval.value)) for interval in Interval
    }
    return after.model_copy(update=amounts)


def _tiered(line: PriceLine) -> list[str]:
    return metered_currencies(line) if line.tiers else []


def _currencies(line: PriceLine) -> set[str]:
    return {currency for _, amounts in line.amounts() for currency in amounts} | set(_tiered(line))


def _only(amounts: Amounts, currencies: set[str] | Amounts) -> Amounts:
    return {currency: amount for currency, amount in amounts.items() if currency in currencies}
