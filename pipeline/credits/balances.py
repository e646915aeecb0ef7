"""What an account has left, of our pools and of grants at Stripe, with the packs that are sold.

A pool of ours is exact. Of a grant at Stripe, what is left is what Stripe said last: usage is taken off when its
invoice becomes final, so the balance is an estimate until then.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from aggregators.packs import packs_on_sale
from aggregators.stripe_grants import conflicts, drawn_order, is_open
from pipeline.access.credits import CreditBalance, CreditParts, PoolBalance, balance_of
from pipeline.credits.giving import of_ledger, ordered
from pipeline.credits.stores import PackParts
from schemas.catalog import CreditPool
from schemas.catalog_changes import CatalogStore, Standing
from schemas.credit_balances import AccountBalance, CreditsOfPool, GrantBalance
from schemas.credits import CreditGrant
from schemas.packs import SoldPack
from schemas.stripe_credits import GrantOrder, GrantOrders, MirroredGrant, OrderState

PURCHASES_SHOWN: Final = 10
REFUSED_SHOWN: Final = 50


async def account_balance(parts: PackParts, of_ledger: CreditParts, account: str) -> AccountBalance:
    """The balance of an account. Raises `Transient` if a store does not answer, or if nothing was counted yet."""
    standing = await parts.catalog.standing()
    ours = await balance_of(of_ledger, account)
    known = await parts.credits.of_account(account) if ours.pools else None
    past = known.grants if known else ()
    customers = [link.customer for link in await parts.links(account) if link.customer]
    mirrored = await parts.orders.mirrored(customers) if customers else ()
    orders, purchases = await parts.orders.of_account(account), await parts.packs.of_account(account, PURCHASES_SHOWN)
    return AccountBalance(
        account, ours.at_ms, ours.complete_up_to_ms, tuple(pools_of(standing, ours, past, mirrored, orders)),
        tuple(purchases),
    )  # fmt: skip


def pools_of(
    standing: Standing,
    ours: CreditBalance,
    past: Sequence[CreditGrant],
    mirrored: Sequence[MirroredGrant],
    orders: Sequence[GrantOrder],
) -> list[CreditsOfPool]:
    """The pools of the active catalog, in its order of pools."""
    catalog = standing.catalog
    if catalog is None:
        return []
    on_sale, found = packs_on_sale(standing), []
    of_ours = {each.pool: each for each in ours.pools}
    for name, pool in sorted(catalog.credit_pools.items(), key=lambda each: (each[1].order, each[0])):
        packs = tuple(each for each in on_sale if each.price.pool == name)
        if pool.mode == "stripe":
            exponent = catalog.currencies.get(pool.unit, 2)
            at_stripe = _at_stripe(name, pool, mirrored, orders, packs, ours.at_ms)
            found.append(at_stripe._replace(exponent=exponent))
        elif name in of_ours:
            found.append(_of_ours(of_ours[name], pool, past, packs, ours.at_ms))
    return found


def _of_ours(
    balance: PoolBalance, pool: CreditPool, past: Sequence[CreditGrant], packs: tuple[SoldPack, ...], now_ms: int
) -> CreditsOfPool:
    grants = [of_ledger(grant, now_ms) for grant in balance.grants]
    # A pool that was emptied is shown as empty, and not as one that the account never had.
    spent = [grant for grant in past if grant.pool == balance.pool and not grant.remaining and not grant.voided_ms]
    if not grants and spent:
        grants = [of_ledger(spent[-1], now_ms)]
    below = pool.top_up.below if pool.top_up else None
    return CreditsOfPool(
        balance.pool, balance.unit, 0, "ledger", pool.overdraft, balance.left, False, None, balance.owed,
        balance.undrawn, balance.held, tuple(grants), packs, below,
    )  # fmt: skip


def _at_stripe(
    name: str,
    pool: CreditPool,
    mirrored: Sequence[MirroredGrant],
    orders: Sequence[GrantOrder],
    packs: tuple[SoldPack, ...],
    now_ms: int,
) -> CreditsOfPool:
    of_pool = {order.key: order for order in orders if order.pool == name}
    grants, as_of = [], []
    for grant in drawn_order(mirrored):
        order = of_pool.pop(grant.source, None)
        # What somebody made in the dashboard pays for the same usage, if its currency is that of the pool.
        is_others = not grant.source and grant.currency == pool.unit
        if (order or is_others) and is_open(grant, now_ms):
            state = "coming" if grant.effective_ms > now_ms else "open"
            category = order.source.value if order else grant.category
            as_of.append(grant.fetched_ms)
            name_of_it = order.key if order else grant.id
            grants.append(
                GrantBalance(
                    name_of_it, category, grant.amount_minor, grant.available_minor, grant.priority,
                    grant.effective_ms, grant.expires_ms, state, by_us=order is not None,
                )
            )  # fmt: skip
    seen = {grant.source for grant in mirrored}
    grants += [
        ordered(order)
        for order in of_pool.values()
        if order.state in (OrderState.WANTED, OrderState.MADE)
        and order.key not in seen
        and (order.expires_ms is None or order.expires_ms > now_ms)
    ]
    known = [grant.remaining for grant in grants if grant.state == "open"]
    left = None if None in known else sum(each for each in known if each is not None)
    return CreditsOfPool(
        name, pool.unit, 0, "stripe", pool.overdraft, left, True, min(as_of, default=None), 0, 0, 0, tuple(grants),
        packs, None,
    )  # fmt: skip


async def credit_problems(catalog: CatalogStore, orders: GrantOrders, now_ms: int) -> list[str]:
    """What is wrong with grants at Stripe, in words: those that pay for what a pool of ours pays too, and those that
    Stripe refused. Raises `Transient`."""
    standing = await catalog.standing()
    found = [
        f"grant {grant.id} of {grant.customer} at Stripe pays for {meter}, and so does a pool of ours: expire it there"
        for grant, meter in conflicts(standing, await orders.mirrored(()), now_ms)
    ]
    refused = [
        f"Stripe refuses grant {order.key} of account {order.account}: {order.detail}"
        for order in await orders.refused(REFUSED_SHOWN)
    ]
    return found + refused
