"""Heals second subscriptions: the newer one of a page of checkout is canceled with a credit, and a refund is proposed.

Nothing happens in silence: each is a row that a person settles. One that no checkout of ours made is only shown.
"""

from __future__ import annotations

import logging
from typing import Final

from pipeline.changes.parts import Parts
from schemas.duplicates import Duplicate, DuplicateState, DuplicateStore
from schemas.errors import TidemarkError
from schemas.stripe_changes import StripeSubscription

AT_ONCE: Final = 100
_SETTLER: Final = "tidemark"

_log: Final = logging.getLogger(__name__)


async def heal(parts: Parts, store: DuplicateStore) -> int:
    """Look for second subscriptions, and cancel those that a checkout of ours made. Returns how many were looked at. A
    failure of one keeps no other. Raises `Transient` only if SQL does not answer."""
    now_ms = parts.clock.now_ms()
    new = await store.suspects(now_ms, AT_ONCE)
    for each in new:
        await _tried(parts, store, each, is_noted=False)
    known = {each.subscription for each in new}
    left = [each for each in await store.listed([DuplicateState.FOUND], AT_ONCE) if each.subscription not in known]
    for each in left:
        await _tried(parts, store, each, is_noted=True)
    return len(new) + len(left)


async def _tried(parts: Parts, store: DuplicateStore, duplicate: Duplicate, *, is_noted: bool) -> None:
    try:
        await _healed(parts, store, duplicate, is_noted=is_noted)
    except TidemarkError as error:
        _log.warning("second subscription %s waits: %s", duplicate.subscription, error)
    # Such as a row that an older program cannot read. There are other customers.
    except Exception:  # noqa: BLE001
        _log.exception("second subscription %s cannot be handled; it is tried again later", duplicate.subscription)


async def _healed(parts: Parts, store: DuplicateStore, duplicate: Duplicate, *, is_noted: bool) -> None:
    """Read both at Stripe, note what is to be done, and do it."""
    now_ms = parts.clock.now_ms()
    open_ = {each.id: each for each in await parts.stripe.subscriptions(duplicate.customer)}
    newer = open_.get(duplicate.subscription)
    if newer is None and not is_noted:
        # The mirror is behind: one of the two has ended.
        return
    if newer is not None and duplicate.kept not in open_:
        # The older one has ended meanwhile, so this one is the only one.
        if is_noted:
            await _settled(store, duplicate, "the older subscription has ended", now_ms)
        return
    if newer is not None and not newer.operation:
        _log.error("account %r has two subscriptions, %s and %s", duplicate.account, duplicate.kept, newer.id)
        await store.note(duplicate._replace(state=DuplicateState.FOREIGN), now_ms)
        return
    if newer is not None:
        duplicate = await _with_payment(parts, duplicate, newer)
        # Noted before the call, so that a lost process leaves the row.
        await store.note(duplicate, now_ms)
        await parts.stripe.cancel(newer.id, {"prorate": True, "invoice_now": True})
        _log.error("account %r had a second subscription, %s: it is canceled", duplicate.account, newer.id)
    if duplicate.amount_minor:
        await store.note(duplicate._replace(state=DuplicateState.REFUND_PROPOSED), now_ms)
    else:
        await _settled(store, duplicate, "nothing was paid for it", now_ms)


async def _with_payment(parts: Parts, duplicate: Duplicate, newer: StripeSubscription) -> Duplicate:
    """What was paid for a subscription. The invoice of its end comes later."""
    if not newer.latest_invoice:
        return duplicate
    invoice = await parts.stripe.invoice(newer.latest_invoice)
    catalog = (await parts.catalog.standing()).catalog
    exponent = catalog.currencies.get(newer.currency, 2) if catalog else 2
    paid = invoice.total_minor if invoice.status == "paid" else 0
    return duplicate._replace(invoice=invoice.id, amount_minor=paid, currency=newer.currency, exponent=exponent)


async def _settled(store: DuplicateStore, duplicate: Duplicate, reason: str, now_ms: int) -> None:
    settled = duplicate._replace(state=DuplicateState.SETTLED, settled_by=_SETTLER, reason=reason, settled_ms=now_ms)
    await store.note(settled, now_ms)
