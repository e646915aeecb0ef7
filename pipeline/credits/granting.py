"""Has Stripe make and end the credit grants of pools of mode `stripe`, and goes on wherever a process ended.

A grant is ordered in SQL before Stripe is asked. Stripe is asked under a key that never changes; after a first try, the
grant is looked for by its metadata before Stripe is asked again.
"""

from __future__ import annotations

import hashlib
import logging
from typing import Final, NamedTuple

from aggregators.stripe_grants import giving_prices, grant_params, included
from pipeline.credits.stores import PackParts
from schemas.catalog_changes import CatalogStore
from schemas.clock import Clock
from schemas.errors import InvalidInput, TidemarkError
from schemas.stripe_credits import GrantOrder, GrantOrders, OrderState, StripeCredits

AT_ONCE: Final = 100
DETAIL_CHARACTERS_MAX: Final = 500
_FAILED: Final = "Stripe failed by itself and did not make the grant: order another one"

_log: Final = logging.getLogger(__name__)


class GrantParts(NamedTuple):
    """The stores. `scope` keeps the keys of two Stripe accounts apart."""

    clock: Clock
    catalog: CatalogStore
    orders: GrantOrders
    stripe: StripeCredits
    scope: str


def parts_of(parts: PackParts) -> GrantParts:
    """The stores that grants need, of those of packs."""
    return GrantParts(parts.clock, parts.catalog, parts.orders, parts.stripe, parts.scope)


async def turn(parts: GrantParts) -> int:
    """Order what plans include in their running periods, and carry out what waits. Returns how many orders waited. A
    failure of one keeps no other. Raises `Transient` only if SQL does not answer."""
    standing = await parts.catalog.standing()
    if prices := giving_prices(standing):
        periods = await parts.orders.periods(sorted(prices))
        await parts.orders.order(included(standing, periods, parts.clock.now_ms()))
    waiting = await parts.orders.waiting(AT_ONCE)
    for order in waiting:
        try:
            await carry_out(parts, order)
        except TidemarkError as error:
            _log.warning("credit grant %s waits: %s", order.key, error)
        # Such as a row that an older program cannot read. There are other accounts.
        except Exception:  # noqa: BLE001
            _log.exception("credit grant %s cannot be handled; it is tried again later", order.key)
    return len(waiting)


async def carry_out(parts: GrantParts, order: GrantOrder) -> GrantOrder:
    """Have one grant made or ended, as far as Stripe answers. Safe to repeat, also from several processes. Raises
    `Transient`."""
    is_repeated = order.sent_ms is not None
    order = await parts.orders.sent(order.key, parts.clock.now_ms())
    try:
        if order.state is OrderState.WANTED:
            identifier = await _made(parts, order, is_repeated=is_repeated)
            state, detail = (OrderState.MADE, "") if identifier else (OrderState.REFUSED, _FAILED)
            return await _settled(parts, order, state, identifier, detail)
        if order.state is OrderState.ENDING:
            identifier = order.stripe_id or await parts.stripe.grant_of(order.customer, order.key)
            if identifier:
                await parts.stripe.end_grant(identifier)
            return await _settled(parts, order, OrderState.ENDED, identifier)
    except InvalidInput as error:
        _log.error("Stripe refuses the credit grant %s: %s", order.key, error)
        ended = OrderState.REFUSED if order.state is OrderState.WANTED else OrderState.ENDED
        return await _settled(parts, order, ended, order.stripe_id, str(error))
    return order


async def _made(parts: GrantParts, order: GrantOrder, *, is_repeated: bool) -> str:
    """The grant of an order, which is made if Stripe does not have it; "" if Stripe failed by itself."""
    identifier = await parts.stripe.grant_of(order.customer, order.key) if is_repeated else ""
    if not identifier:
        identifier = await parts.stripe.make_grant(grant_params(order), _key(parts, order))
    # A failure of its own Stripe repeats for ever under the key; it may have made the grant.
    return identifier or await parts.stripe.grant_of(order.customer, order.key)


async def _settled(
    parts: GrantParts, order: GrantOrder, state: OrderState, identifier: str, detail: str = ""
) -> GrantOrder:
    now_ms = parts.clock.now_ms()
    return await parts.orders.settle(order, state, now_ms, identifier, detail[:DETAIL_CHARACTERS_MAX])


def _key(parts: GrantParts, order: GrantOrder) -> str:
    return hashlib.sha256(f"{parts.scope} grant {order.key}".encode()).hexdigest()
