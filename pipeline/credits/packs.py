"""Grants the credits of packs whose invoices are paid, and takes them back when a payment is gone.

Each turn looks at what the mirror has, so a webhook that comes twice, or late, or is found in Stripe's list, makes no
difference. A grant is keyed by the line of the invoice: the same line is one grant.
"""

from __future__ import annotations

import logging
from typing import Final

from aggregators.packs import grant_key, name_of
from aggregators.stripe_grants import PRIORITY, prices_for, stripe_pools
from pipeline.credits.stores import PackParts
from schemas.catalog_changes import Standing
from schemas.credits import Category, Money, NewGrant
from schemas.errors import TidemarkError
from schemas.packs import LostLine, PackLine
from schemas.stripe_credits import GrantOrder, Source

AT_ONCE: Final = 100
ACTOR: Final = "stripe"

_log: Final = logging.getLogger(__name__)


async def unpack(parts: PackParts) -> int:
    """Grant the credits of lines that are paid, and take back those of lines that are not any more. Returns how many
    lines were looked at. A failure of one keeps no other. Raises `Transient` only if SQL does not answer."""
    paid, lost = await parts.packs.unpacked(AT_ONCE), await parts.packs.lost(AT_ONCE)
    standing = await parts.catalog.standing() if paid else Standing()
    for line in paid:
        try:
            await _granted(parts, standing, line)
        except TidemarkError as error:
            _log.error("the credits of invoice %s, line %s, are not granted yet: %s", line.invoice, line.line, error)
    for gone in lost:
        try:
            await _taken_back(parts, gone)
        except TidemarkError as error:
            _log.error("the credits of invoice %s are not taken back yet: %s", gone.invoice, error)
    return len(paid) + len(lost)


async def _granted(parts: PackParts, standing: Standing, line: PackLine) -> None:
    named = name_of(line.key)
    each = await parts.packs.pack_credits(*named) if named else None
    if named is None or each is None:
        _log.error("invoice %s sells %s, which no catalog has: nobody gets credits for it", line.invoice, line.key)
        return
    key, number, now_ms = grant_key(line), each * line.quantity, parts.clock.now_ms()
    reason = f"{line.quantity} x {named.pool}.{named.pack}, invoice {line.invoice}"
    if pool := stripe_pools(standing.catalog).get(named.pool) if standing.catalog else None:
        order = GrantOrder(
            key, line.account, line.customer, named.pool, Source.PAID, number, pool.unit, prices_for(standing, pool),
            PRIORITY, line.paid_ms, None, now_ms, ACTOR, reason,
        )  # fmt: skip
        await parts.orders.order([order])
    else:
        paid = Money(line.paid_minor, line.currency, line.exponent)
        new = NewGrant(line.account, named.pool, Category.PAID, number, line.paid_ms, key, paid=paid)
        await parts.credits.grant(new, ACTOR, reason, now_ms)
    # A crash before this grants again under the same key, which changes nothing.
    await parts.packs.granted(line, named.pool, key)


async def _taken_back(parts: PackParts, line: LostLine) -> None:
    now_ms = parts.clock.now_ms()
    orders = await parts.orders.of_account(line.account)
    if any(order.key == line.grant for order in orders):
        # What Stripe drew from the grant is on invoices, and stays there: the reason says how much.
        reason = await _with_use(parts, line)
        await parts.orders.end(line.account, line.grant, ACTOR, reason, now_ms)
    else:
        for grant in (await parts.credits.of_account(line.account)).grants:
            if grant.source_key == line.grant:
                await parts.credits.void(line.account, grant.id, ACTOR, line.reason, now_ms, owes=True)
    await parts.packs.taken_back(line)


async def _with_use(parts: PackParts, line: LostLine) -> str:
    customers = [link.customer for link in await parts.links(line.account) if link.customer]
    for grant in await parts.orders.mirrored(customers) if customers else ():
        if grant.source == line.grant and grant.available_minor is not None:
            return f"{line.reason}; {grant.amount_minor - grant.available_minor} of {grant.amount_minor} were used"
    return line.reason
