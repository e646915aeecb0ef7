"""What a catalog may mean and probably does not: it is said, and forbids nothing. Each finding has the path of its
field."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from aggregators.catalog_prices import metered_currencies, usage_interval_of
from aggregators.yaml_lines import Path
from schemas.catalog import AddOn, Catalog, Plan

# How a plan can be paid: an interval and a currency.
Sale = tuple[str, str]


def warnings_of(catalog: Catalog) -> list[tuple[Path, str]]:
    """Add-ons, packs and coupons that customers of some currency or interval cannot buy or use. `catalog` must have
    passed `aggregators.catalog_rules`."""
    sales = {name: _sales(plan) for name, plan in catalog.plans.items()}
    found = [each for name, addon in catalog.addons.items() for each in _addon(name, addon, sales)]
    paid = {currency for each in sales.values() for _, currency in each}
    for pool_name, pool in catalog.credit_pools.items():
        for name, pack in pool.packs.items():
            if lacking := sorted(paid - pack.amounts.keys()):
                who = f"customers who pay in {_listed(lacking)} cannot buy the pack"
                found.append((("credit_pools", pool_name, "packs", name), f"{who}: {_amounts_to_add(lacking)}"))
    for name, coupon in catalog.coupons.items():
        if paid and coupon.amount_off and not paid & coupon.amount_off.keys():
            words = f"no plan is sold in {_listed(coupon.amount_off)}, so nobody can use the coupon"
            found.append((("coupons", name, "amount_off"), f"{words}: take {_listed(sorted(paid), 'or')}"))
    return found


def _addon(name: str, addon: AddOn, sales: Mapping[str, set[Sale]]) -> Iterator[tuple[Path, str]]:
    own = {(interval.value, currency) for interval, amounts in addon.price.amounts() for currency in amounts}
    intervals = {interval for interval, _ in own}
    for plan in addon.plans:
        lacking = sorted(sales[plan] - own)
        if not lacking:
            continue
        who = _listed([f"in {currency} by the {interval}" for interval, currency in lacking], "or")
        by_interval: dict[str, list[str]] = {}
        for interval, currency in lacking:
            by_interval.setdefault(interval, []).append(currency)
        remedy = _listed(
            [
                f"{_amounts_to_add(currencies)} to {interval}"
                if interval in intervals
                else f"add `{interval}: {{{', '.join(f'{each}: …' for each in currencies)}}}`"
                for interval, currencies in by_interval.items()
            ]
        )
        yield ("addons", name, "price"), f"customers of {plan} who pay {who} cannot buy the add-on: {remedy}"


def _sales(plan: Plan) -> set[Sale]:
    """How a plan is sold: as its first component that is paid ahead, or else as its usage is billed."""
    for line in plan.prices:
        if not line.meter:
            return {(interval.value, currency) for interval, amounts in line.amounts() for currency in amounts}
    return {(usage_interval_of(plan).value, each) for line in plan.prices for each in metered_currencies(line)}


def _amounts_to_add(currencies: Iterable[str]) -> str:
    return f"add {_listed([f'`{currency}:`' for currency in currencies])}"


def _listed(words: Iterable[str], last: str = "and") -> str:
    """Words as people list them."""
    *most, final = words
    return f"{', '.join(most)} {last} {final}" if most else final
