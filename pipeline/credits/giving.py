"""What a person grants to an account, and takes back."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final, NamedTuple

from aggregators.stripe_grants import PRIORITIES, checked_pool, prices_for
from pipeline.credits.stores import PackParts
from schemas.catalog_changes import Standing
from schemas.credit_balances import GrantBalance
from schemas.credits import Category, CreditGrant, NewGrant
from schemas.errors import InvalidInput
from schemas.events import check_account
from schemas.side_tables import Link
from schemas.stripe_credits import REASON_CHARACTERS_MAX, GrantOrder, OrderState, Source

CREDITS_MAX: Final = 10**12


def of_ledger(grant: CreditGrant, now_ms: int) -> GrantBalance:
    """A grant of ours."""
    state = "coming" if grant.effective_ms > now_ms else "open"
    return GrantBalance(
        grant.id, grant.category.value, grant.credits, grant.remaining, grant.priority, grant.effective_ms,
        grant.expires_ms, state,
    )  # fmt: skip


def ordered(order: GrantOrder) -> GrantBalance:
    """A grant that Stripe was asked for, or to take back."""
    is_kept = order.state in (OrderState.WANTED, OrderState.MADE)
    return GrantBalance(
        order.key, order.source.value, order.amount_minor, order.amount_minor if is_kept else 0, order.priority,
        order.effective_ms, order.expires_ms, "ordered",
    )  # fmt: skip


class Gift(NamedTuple):
    """What a person grants. `request_key` names the request: the same again is one grant. `expires_ms` None: never."""

    account: str
    pool: str
    credits: int
    source: Source
    priority: int
    effective_ms: int
    expires_ms: int | None
    by: str
    reason: str
    request_key: str


def check_gift(gift: Gift, now_ms: int) -> None:
    """Raise `InvalidInput` with the field for what nobody can be granted."""
    check_account(gift.account)
    if not 1 <= gift.credits <= CREDITS_MAX:
        raise InvalidInput("credits", f"must be a whole number from 1 to {CREDITS_MAX}")
    if gift.priority not in PRIORITIES:
        raise InvalidInput("priority", "must be from 0, which is drawn first, to 100")
    if gift.source is Source.INCLUDED:
        raise InvalidInput("category", "only a plan includes credits: say promotional or paid")
    if gift.expires_ms is not None and gift.expires_ms <= max(now_ms, gift.effective_ms):
        raise InvalidInput("expires", "must be in the future, and after the grant begins")
    if not gift.reason.strip() or len(gift.reason) > REASON_CHARACTERS_MAX or "\0" in gift.reason:
        raise InvalidInput("reason", f"must say in 1 to {REASON_CHARACTERS_MAX} characters why")


def gift_key(gift: Gift) -> str:
    """What names the grant of a request."""
    return f"operator:{hashlib.sha256(f'{gift.account} {gift.request_key}'.encode()).hexdigest()[:32]}"


def order_of(standing: Standing, gift: Gift, customer: str, now_ms: int) -> GrantOrder:
    """The order for a grant at Stripe. Raises `InvalidInput` for a pool of another mode."""
    check_gift(gift, now_ms)
    pool = checked_pool(standing, gift.pool)
    return GrantOrder(
        gift_key(gift), gift.account, customer, gift.pool, gift.source, gift.credits, pool.unit,
        prices_for(standing, pool), gift.priority, gift.effective_ms, gift.expires_ms, now_ms, gift.by, gift.reason,
    )  # fmt: skip


async def give(parts: PackParts, gift: Gift) -> tuple[GrantBalance, bool]:
    """Grant credits in the mode of their pool; returns the grant, and whether it is new. The same request again changes
    nothing. Raises `InvalidInput` with the field, and `Transient`."""
    standing, now_ms = await parts.catalog.standing(), parts.clock.now_ms()
    check_gift(gift, now_ms)
    pools = standing.catalog.credit_pools if standing.catalog else {}
    if gift.pool not in pools:
        raise InvalidInput("pool", f"the catalog has no pool {gift.pool}: it has {', '.join(sorted(pools)) or 'none'}")
    links = await parts.links(gift.account)
    if not links:
        raise InvalidInput("account", f"{gift.account} was never linked to a customer: link it first")
    if pools[gift.pool].mode == "stripe":
        order = order_of(standing, gift, customer_now(gift.account, links, now_ms), now_ms)
        is_new = bool(await parts.orders.order([order]))
        known = next(each for each in await parts.orders.of_account(gift.account) if each.key == order.key)
        if (known.pool, known.amount_minor) != (order.pool, order.amount_minor):
            raise InvalidInput("Idempotency-Key", "was used for another grant: take a new one")
        return ordered(known), is_new
    new = NewGrant(
        gift.account, gift.pool, Category(gift.source.value), gift.credits, gift.effective_ms, gift_key(gift),
        gift.expires_ms, gift.priority,
    )  # fmt: skip
    made = await parts.credits.grant(new, gift.by, gift.reason, now_ms)
    return of_ledger(made.grant, now_ms), made.is_new


async def take(
    parts: PackParts, account: str, grant: str, by: str, reason: str, *, owes: bool
) -> tuple[str, GrantBalance] | None:
    """Take back what is left of a grant; returns its pool and the grant, None if the account has none such. With `owes`
    what was used is owed. Raises `InvalidInput`, and `Transient`."""
    now_ms = parts.clock.now_ms()
    if any(each.id == grant for each in (await parts.credits.of_account(account)).grants):
        found = await parts.credits.void(account, grant, by, reason, now_ms, owes=owes)
        return found.pool, of_ledger(found, now_ms)
    if owes and any(each.key == grant for each in await parts.orders.of_account(account)):
        raise InvalidInput("owes", "what Stripe drew is on invoices, and stays there: leave it out")
    order = await parts.orders.end(account, grant, by, reason, now_ms)
    return None if order is None else (order.pool, ordered(order))


def customer_now(account: str, links: Sequence[Link], now_ms: int) -> str:
    """The customer that an account is linked to, who has the account's grants at Stripe. Raises `InvalidInput`."""
    found = [link.customer for link in links if link.starts_ms <= now_ms and (link.ends_ms or now_ms + 1) > now_ms]
    if not found or not found[-1]:
        message = f"account {account} belongs to no Stripe customer: link it first (`tidemark account link`)"
        raise InvalidInput("account", message)
    return found[-1]
