"""Which credit grants Stripe is to have, and what they can pay. Pure functions.

A credit of a pool of mode `stripe` is one minor unit of money: `unit` names the currency. Stripe takes grants off an
invoice when the invoice becomes final, which is after its period has ended. So the credits of a period begin and end
later than the period: they pay for the invoice of that period, and not for that of the period before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from schemas.catalog import Catalog, CreditPool, Plan, PlanId
from schemas.catalog_changes import Standing
from schemas.clock import HOUR_MS, SECOND_MS
from schemas.errors import InvalidInput
from schemas.stripe_credits import GRANT_KEY, BilledPeriod, GrantOrder, MirroredGrant, Source

# An invoice becomes final at most 72 hours after its period (docs.stripe.com/billing, grace periods).
FINAL_AFTER_MS: Final = 73 * HOUR_MS
# docs.stripe.com/api/billing/credit-grant: 0 is the highest, and 50 if nothing is said.
PRIORITIES: Final = range(101)
PRIORITY: Final = 50
NAME_CHARACTERS_MAX: Final = 100


def stripe_pools(catalog: Catalog) -> Mapping[str, CreditPool]:
    """The pools whose credits are grants at Stripe."""
    return {name: pool for name, pool in catalog.credit_pools.items() if pool.mode == "stripe"}


def prices_for(standing: Standing, pool: CreditPool) -> tuple[str, ...]:
    """The ids of all prices whose usage a pool pays: those of its meters in its currency, of every version of a plan
    that somebody may have."""
    found = []
    for record in standing.records.values():
        known = standing.plans.get(record.plan) if record.plan else None
        sold = known.sold if known else None
        if record.currency == pool.unit and isinstance(sold, Plan):
            meters = {line.meter for line in sold.prices if line.component == record.component}
            if meters & pool.covers.keys():
                found.append(record.stripe_id)
    return tuple(sorted(found))


def giving_prices(standing: Standing) -> Mapping[str, PlanId]:
    """The metered prices of the plans that include credits of a pool of mode `stripe`, each with its plan."""
    found: dict[str, PlanId] = {}
    pools = stripe_pools(standing.catalog) if standing.catalog else {}
    for price, pin in standing.pins().items():
        sold = standing.plans[pin.plan].sold if pin.plan in standing.plans else None
        lines = sold.prices if isinstance(sold, Plan) and any(each.pool in pools for each in sold.credits) else ()
        if any(line.meter for line in lines if line.component == pin.component):
            found[price] = pin.plan
    return found


def included(standing: Standing, periods: Sequence[BilledPeriod], now_ms: int) -> list[GrantOrder]:
    """The orders for what plans include in their running periods, one for each subscription, pool and period.

    The key names no plan: who changes to another plan within a period has that plan's credits from the next period on.
    """
    orders: dict[str, GrantOrder] = {}
    pools = stripe_pools(standing.catalog) if standing.catalog else {}
    plans = giving_prices(standing)
    for period in periods:
        plan = plans.get(period.price)
        sold = standing.plans[plan].sold if plan else None
        if not isinstance(sold, Plan) or not period.start_ms <= now_ms < period.end_ms:
            continue
        for credit in sold.credits:
            if pool := pools.get(credit.pool):
                effective_ms, expires_ms = grant_window(period.start_ms, period.end_ms)
                key = f"included:{credit.pool}:{period.subscription}:{period.start_ms}"
                orders[key] = GrantOrder(
                    key, period.account, period.customer, credit.pool, Source.INCLUDED, credit.amount, pool.unit,
                    prices_for(standing, pool), PRIORITY, effective_ms, expires_ms, now_ms, "tidemark",
                    f"included in {plan}",
                )  # fmt: skip
    return list(orders.values())


def grant_window(start_ms: int, end_ms: int) -> tuple[int, int]:
    """When the credits of a period begin and end at Stripe: after the invoice of the period before is final, and after
    the period's own one is."""
    shift_ms = min(FINAL_AFTER_MS, (end_ms - start_ms) // 2)
    return start_ms + shift_ms, end_ms + shift_ms


def checked_pool(standing: Standing, name: str) -> CreditPool:
    """A pool of mode `stripe` of the active catalog. Raises `InvalidInput`."""
    pools = stripe_pools(standing.catalog) if standing.catalog else {}
    if name not in pools:
        known = f": it has {', '.join(sorted(pools))}" if pools else ""
        raise InvalidInput("pool", f"the catalog has no pool {name} of mode stripe{known}")
    return pools[name]


def grant_params(order: GrantOrder) -> dict[str, Any]:
    """The parameters that make a grant (docs.stripe.com/api/billing/credit-grant/create)."""
    scope: dict[str, Any] = {"price_type": "metered"}
    if order.prices:
        scope = {"prices": [{"id": price} for price in order.prices]}
    params: dict[str, Any] = {
        "customer": order.customer,
        "amount": {"type": "monetary", "monetary": {"currency": order.currency, "value": order.amount_minor}},
        "applicability_config": {"scope": scope},
        "category": "paid" if order.source is Source.PAID else "promotional",
        "priority": order.priority,
        "name": f"{order.pool}: {order.reason}"[:NAME_CHARACTERS_MAX],
        "metadata": {GRANT_KEY: order.key},
    }
    # Stripe refuses an instant that has passed, and takes the present one then.
    if order.effective_ms > order.made_ms:
        params["effective_at"] = order.effective_ms // SECOND_MS
    if order.expires_ms is not None:
        params["expires_at"] = order.expires_ms // SECOND_MS
    return params


def drawn_order(grants: Sequence[MirroredGrant]) -> list[MirroredGrant]:
    """Grants in the order in which Stripe draws them: priority, soonest expiry, promotional first, effective, age."""
    return sorted(
        grants,
        key=lambda each: (
            each.priority, each.expires_ms is None, each.expires_ms or 0, each.category != "promotional",
            each.effective_ms, each.created_ms, each.id,
        ),
    )  # fmt: skip


def is_open(grant: MirroredGrant, now_ms: int) -> bool:
    """Whether a grant can still pay for something, now or later."""
    has_ended = grant.voided_ms is not None or (grant.expires_ms is not None and grant.expires_ms <= now_ms)
    return not has_ended and grant.available_minor != 0


def conflicts(standing: Standing, grants: Sequence[MirroredGrant], now_ms: int) -> list[tuple[MirroredGrant, str]]:
    """The open grants that would pay for the usage of a meter that a pool of ours pays too, each with the meter."""
    if standing.catalog is None:
        return []
    ours = {
        meter for pool in standing.catalog.credit_pools.values() if pool.mode == "ledger" for meter in pool.covers
    }  # fmt: skip
    meters = {}
    for price, pin in standing.pins().items():
        sold = standing.plans[pin.plan].sold if pin.plan in standing.plans else None
        for line in sold.prices if isinstance(sold, Plan) else ():
            if line.component == pin.component and line.meter in ours:
                meters[price] = line.meter
    found = []
    for grant in grants:
        paid = {meters[price] for price in grant.prices if price in meters} if grant.prices else set(meters.values())
        if is_open(grant, now_ms) and paid:
            found.append((grant, min(paid)))
    return found
