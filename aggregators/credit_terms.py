"""The pools of a catalog in ledger mode, and what plans give of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Final

from aggregators.account_grants import Commerce
from schemas.catalog import Catalog, Plan
from schemas.credits import Included, Pool, Terms
from schemas.upgrades import Billed

# Who owes something still has what the plan gives, until dunning takes the plan away.
_GIVING: Final = frozenset({"active", "trialing", "past_due"})


def pools_of(catalog: Catalog) -> Sequence[Pool]:
    """The pools that are ours, in the order in which usage draws from them."""
    found = [
        Pool(
            name, pool.unit or name, pool.order, pool.overdraft,
            {meter: Fraction(rate) for meter, rate in pool.covers.items()},
        )
        for name, pool in catalog.credit_pools.items()
        if pool.mode == "ledger"
    ]  # fmt: skip
    return sorted(found, key=lambda pool: (pool.order, pool.name))


def terms_of(commerce: Commerce, catalog_sha256: str) -> Terms:
    """The terms of the active catalog."""
    pools = pools_of(commerce.catalog)
    names = {pool.name for pool in pools}

    def included(billed: Billed) -> Mapping[str, Included]:
        found: dict[str, Included] = {}
        for subscription in billed.subscriptions:
            if subscription.status not in _GIVING:
                continue
            plans = {pin.plan for item in subscription.items if (pin := commerce.pins.get(item.price))}
            sold = [commerce.sold[plan] for plan in sorted(plans) if plan in commerce.sold]
            for gives in (each for plan in sold if isinstance(plan, Plan) for each in plan.credits):
                if gives.pool in names:
                    before = found.get(gives.pool, Included(0, 0, subscription.anchor_ms))
                    found[gives.pool] = Included(
                        before.credits + gives.amount,
                        before.rollover_max + gives.rollover_max,
                        min(before.since_ms, subscription.anchor_ms),
                    )
        return found

    return Terms(catalog_sha256, pools, included)


def blocked_meters(catalog: Catalog) -> Mapping[str, Mapping[str, Fraction]]:
    """The meters whose usage is refused beyond the credits, because their last pool has `overdraft: block`. By meter,
    what one unit costs in each of its pools. A meter that costs nothing somewhere is never refused."""
    found: dict[str, dict[str, Fraction]] = {}
    last: dict[str, str] = {}
    for pool in pools_of(catalog):
        for meter, rate in pool.rates.items():
            found.setdefault(meter, {})[pool.name] = rate
            last[meter] = pool.overdraft
    return {meter: rates for meter, rates in found.items() if last[meter] == "block" and all(rates.values())}
