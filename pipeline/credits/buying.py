"""Buys packs of credits: on a page of checkout, or by the card on file when few credits are left.

A purchase is in SQL before Stripe is asked. It gives no credits: the invoice does, once it is paid (`packs.py`).
"""

from __future__ import annotations

import hashlib
import logging
from typing import Final, NamedTuple

from aggregators.credit_terms import terms_of
from aggregators.credits import available
from aggregators.packs import (
    chosen,
    invoice_params,
    item_params,
    may_top_up,
    month_start_ms,
    page_params,
    taxed,
)
from pipeline.access.renewal import commerce_of
from pipeline.changes.pages import PAGE_MS
from pipeline.credits.giving import customer_now
from pipeline.credits.stores import PackParts
from schemas.catalog_changes import Standing
from schemas.checkout import check_return_url
from schemas.clock import DAY_MS, MINUTE_MS
from schemas.errors import InvalidInput, TidemarkError
from schemas.events import check_account
from schemas.packs import PURCHASE_KEY, How, Purchase, PurchaseState, SoldPack

AT_ONCE: Final = 100
PATIENCE_MS: Final = MINUTE_MS
DETAIL_CHARACTERS_MAX: Final = 500
TOPPER: Final = "tidemark top-up"

_log: Final = logging.getLogger(__name__)


class PackWish(NamedTuple):
    """What somebody wants to buy. `pack` and `currency` may be "". `request_key` names the request: the same again is
    one purchase."""

    account: str
    pool: str
    pack: str
    quantity: int
    currency: str
    return_url: str
    by: str
    request_key: str


async def buy(parts: PackParts, wish: PackWish, *, names_itself: bool = False) -> Purchase:
    """Make the page of checkout for a pack, as far as Stripe answers. The same request again goes on, and gets the same
    page. With `names_itself`, the customer comes back to the address with the purchase's id after it.

    Raises `InvalidInput` with the field, and `Transient`.
    """
    check_account(wish.account)
    check_return_url(wish.return_url)
    if not wish.request_key:
        raise InvalidInput("Idempotency-Key", "send the header, so that a repeated request is one purchase")
    identifier = f"buy_{hashlib.sha256(f'{wish.account} {wish.request_key}'.encode()).hexdigest()[:32]}"
    known = await parts.packs.purchase(wish.account, identifier)
    if known is None:
        standing = await parts.catalog.standing()
        wish = wish._replace(return_url=f"{wish.return_url}{identifier}") if names_itself else wish
        known = await parts.packs.buy(await _purchase(parts, standing, wish, identifier, How.PAGE))
    elif (known.pool, known.quantity) != (wish.pool, wish.quantity) or (
        wish.pack not in ("", known.pack) or wish.currency not in ("", known.currency)
    ):
        raise InvalidInput("Idempotency-Key", "was used for another purchase: take a new one")
    return await carry_out(parts, known)


async def _purchase(parts: PackParts, standing: Standing, wish: PackWish, identifier: str, how: How) -> Purchase:
    now_ms = parts.clock.now_ms()
    customer = customer_now(wish.account, await parts.links(wish.account), now_ms)
    sold = await _sold(parts, standing, wish, customer)
    price = sold.price
    return Purchase(
        identifier, wish.account, customer, price.pool, price.pack, price.version, sold.stripe_price,
        price.terms.currency, price.credits, wish.quantity, how, wish.return_url, wish.by, now_ms,
    )  # fmt: skip


async def _sold(parts: PackParts, standing: Standing, wish: PackWish, customer: str) -> SoldPack:
    """The pack in the wanted currency, or else in that of the customer, or else in any."""
    if not wish.currency and (own := await parts.packs.currency(customer)):
        try:
            return chosen(standing, wish.pool, wish.pack, own, wish.quantity)
        except InvalidInput as error:
            if error.field != "currency":
                raise
    return chosen(standing, wish.pool, wish.pack, wish.currency, wish.quantity)


async def carry_out(parts: PackParts, purchase: Purchase) -> Purchase:
    """Go on with a purchase as far as Stripe answers. Safe to repeat, also from several processes.

    Raises `Transient`."""
    if purchase.state is PurchaseState.OPEN:
        return await _looked_at(parts, purchase)
    if purchase.state is not PurchaseState.WANTED:
        return purchase
    is_repeated = purchase.sent_ms is not None
    purchase = await parts.packs.sent(purchase.id, parts.clock.now_ms())
    try:
        if purchase.how is How.TOP_UP:
            return await _charged(parts, purchase, is_repeated=is_repeated)
        return await _opened(parts, purchase)
    except InvalidInput as error:
        return await _settled(parts, purchase, PurchaseState.FAILED, detail=str(error))


async def _opened(parts: PackParts, purchase: Purchase) -> Purchase:
    catalog = (await parts.catalog.standing()).catalog
    params = page_params(purchase, PAGE_MS, is_taxed=taxed(catalog))
    session = await parts.stripe.open_checkout(params, _key(parts, purchase, "page"))
    if session is None:
        detail = "got no page of checkout, because Stripe failed: buy again under another Idempotency-Key"
        return await _settled(parts, purchase, PurchaseState.FAILED, detail=detail)
    return await _settled(parts, purchase, PurchaseState.OPEN, session=session.id, url=session.url)


async def _looked_at(parts: PackParts, purchase: Purchase) -> Purchase:
    """Whether a page was paid or has ended."""
    session = await parts.stripe.session(purchase.session)
    if session.status == "complete":
        return await _settled(parts, purchase, PurchaseState.PAID, invoice=session.invoice)
    if session.status == "expired":
        return await _settled(parts, purchase, PurchaseState.ENDED)
    return purchase


async def _charged(parts: PackParts, purchase: Purchase, *, is_repeated: bool) -> Purchase:
    """Have the card pay an invoice of its own. Each step looks at what Stripe has before it is repeated. What the card
    refuses is voided, so that nobody owes it."""
    stripe, invoice = parts.stripe, ""
    if is_repeated:
        invoice = await stripe.marked_invoice(purchase.customer, PURCHASE_KEY, purchase.id)
    if not invoice:
        catalog = (await parts.catalog.standing()).catalog
        params = invoice_params(purchase, is_taxed=taxed(catalog))
        invoice = await stripe.draft_invoice(params, _key(parts, purchase, "draft"))
    found = await stripe.invoice(invoice) if invoice else None
    if found is None:
        return await _settled(parts, purchase, PurchaseState.FAILED, detail="Stripe failed by itself")
    if found.status == "draft" and not found.total_minor:
        await stripe.add_item(item_params(purchase, invoice), _key(parts, purchase, "item"))
    if found.status in ("draft", "open"):
        try:
            await stripe.pay(invoice, _key(parts, purchase, "pay"))
        except InvalidInput as error:
            return await _declined(parts, purchase, invoice, str(error))
        found = await stripe.invoice(invoice)
    if found.status == "paid":
        return await _settled(parts, purchase, PurchaseState.PAID, invoice=invoice)
    return await _declined(parts, purchase, invoice, f"the invoice is {found.status}")


async def _declined(parts: PackParts, purchase: Purchase, invoice: str, detail: str) -> Purchase:
    status = (await parts.stripe.invoice(invoice)).status
    if status == "paid":
        return await _settled(parts, purchase, PurchaseState.PAID, invoice=invoice)
    if status == "open":
        await parts.stripe.close_invoice(invoice, "void", _key(parts, purchase, "void"))
    return await _settled(parts, purchase, PurchaseState.FAILED, invoice=invoice, detail=detail)


async def follow(parts: PackParts) -> int:
    """Go on with purchases whose process was lost, and look at pages that are over. Returns how many there were. A
    failure of one keeps no other. Raises `Transient` only if SQL does not answer."""
    now_ms = parts.clock.now_ms()
    found = await parts.packs.due(now_ms - PATIENCE_MS, now_ms - PAGE_MS - PATIENCE_MS, AT_ONCE)
    for purchase in found:
        await _tried(parts, purchase)
    return len(found)


async def top_up(parts: PackParts) -> int:
    """Buy a pack for each account that has too few credits left and bought one itself before. Returns how many. Raises
    `Transient` only if SQL does not answer."""
    standing, now_ms, bought = await parts.catalog.standing(), parts.clock.now_ms(), 0
    commerce = await commerce_of(parts.catalog)
    for name, pool in standing.catalog.credit_pools.items() if standing.catalog else ():
        if pool.top_up is None or commerce is None:
            continue
        terms = terms_of(commerce[1], commerce[0])
        for account in await parts.packs.low(name, pool.top_up.below, now_ms, AT_ONCE):
            # A card must not pay for what the plan gives with the period's first usage, or for what rolled over.
            if await parts.credits.lacks_included(account, name, terms, now_ms):
                continue
            known = (await parts.credits.of_account(account)).grants
            if sum(available(grant, now_ms) for grant in known if grant.pool == name) >= pool.top_up.below:
                continue
            since_ms = min(month_start_ms(now_ms), now_ms - DAY_MS)
            made = await parts.packs.topped(account, name, since_ms)
            if may_top_up(pool.top_up, made, now_ms):
                # Of this month alone: those of the month before are soon older than a day, and a number comes once.
                month_ms = month_start_ms(now_ms)
                named = f"{account} {name} {month_ms} {sum(each.made_ms >= month_ms for each in made)}"
                bought += await _topped(parts, standing, account, name, pool.top_up.pack, named)
    return bought


async def _topped(parts: PackParts, standing: Standing, account: str, pool: str, pack: str, named: str) -> bool:
    identifier = f"auto_{hashlib.sha256(named.encode()).hexdigest()[:32]}"
    wish = PackWish(account, pool, pack, 1, "", "", TOPPER, "")
    try:
        purchase = await parts.packs.buy(await _purchase(parts, standing, wish, identifier, How.TOP_UP))
    except InvalidInput as error:
        _log.warning("account %r cannot get a pack of %s: %s", account, pool, error)
        return False
    return await _tried(parts, purchase)


async def _tried(parts: PackParts, purchase: Purchase) -> bool:
    try:
        await carry_out(parts, purchase)
    except TidemarkError as error:
        _log.warning("purchase %s waits: %s", purchase.id, error)
    # Such as a row that an older program cannot read. There are other accounts.
    except Exception:  # noqa: BLE001
        _log.exception("purchase %s cannot be handled; it is tried again later", purchase.id)
        return False
    return True


async def _settled(
    parts: PackParts, purchase: Purchase, state: PurchaseState, *, session: str = "", url: str = "", invoice: str = "",
    detail: str = "",
) -> Purchase:  # fmt: skip
    return await parts.packs.settle(
        purchase, state, parts.clock.now_ms(), session=session, url=url, invoice=invoice,
        detail=detail[:DETAIL_CHARACTERS_MAX],
    )  # fmt: skip


def _key(parts: PackParts, purchase: Purchase, step: str) -> str:
    return hashlib.sha256(f"{parts.scope} {purchase.id} {step}".encode()).hexdigest()
