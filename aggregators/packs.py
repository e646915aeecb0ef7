"""Which pack is meant, what it costs, and whether one may be bought by itself. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from aggregators.catalog_prices import pack_prices
from schemas.catalog import Catalog, TopUp
from schemas.catalog_changes import CatalogKind, Standing
from schemas.clock import DAY_MS, SECOND_MS
from schemas.errors import InvalidInput
from schemas.packs import PURCHASE_KEY, QUANTITY_MAX, PackLine, Purchase, PurchaseState, SoldPack

BACK_OFF_MS: Final = DAY_MS
_KEY_PARTS: Final = 6
_IN_FLIGHT: Final = (PurchaseState.WANTED, PurchaseState.OPEN)


class PackName(NamedTuple):
    """A version of a pack, as its lookup key says it."""

    pool: str
    pack: str
    version: int


def packs_on_sale(standing: Standing) -> list[SoldPack]:
    """All packs of the active catalog that Stripe has a price of, by pool and pack."""
    found = []
    for key, price in pack_prices(standing.catalog).items() if standing.catalog else ():
        if record := standing.records.get((CatalogKind.PRICE, key)):
            found.append(SoldPack(price, record.stripe_id))
    return sorted(found, key=lambda each: (each.price.pool, each.price.pack, each.price.terms.currency))


def chosen(standing: Standing, pool: str, pack: str, currency: str, quantity: int) -> SoldPack:
    """The pack that somebody wants. `pack` "": the only one of the pool. `currency` "": any, the first by name.

    Raises `InvalidInput` with the field.
    """
    if not 1 <= quantity <= QUANTITY_MAX:
        raise InvalidInput("quantity", f"must be a whole number from 1 to {QUANTITY_MAX}")
    on_sale = packs_on_sale(standing)
    of_pool = [each for each in on_sale if each.price.pool == pool]
    if not of_pool:
        pools = sorted({each.price.pool for each in on_sale})
        raise InvalidInput("pool", f"no packs of {pool} are sold; {', '.join(pools) or 'no pool'} has some")
    names = sorted({each.price.pack for each in of_pool})
    if not pack and len(names) > 1:
        raise InvalidInput("pack", f"say which one: {', '.join(names)}")
    wanted = [each for each in of_pool if each.price.pack == (pack or names[0])]
    if not wanted:
        raise InvalidInput("pack", f"{pool} has no pack {pack}: it has {', '.join(names)}")
    for each in wanted:
        if currency in ("", each.price.terms.currency):
            return each
    raise InvalidInput("currency", f"the pack is not sold in {currency}")


def name_of(key: str) -> PackName | None:
    """The pack of a price's lookup key, `tm.pack.POOL.PACK.vVERSION.CURRENCY`."""
    parts = key.split(".")
    if len(parts) != _KEY_PARTS or not parts[4][1:].isdigit():
        return None
    return PackName(parts[2], parts[3], int(parts[4][1:]))


def grant_key(line: PackLine) -> str:
    """What names the grant of a paid line. After a payment was taken back, the next one makes another grant."""
    again = f":{line.number + 1}" if line.number else ""
    return f"invoice:{line.invoice}:{line.line}{again}"


def page_params(purchase: Purchase, page_ms: int, *, is_taxed: bool) -> dict[str, Any]:
    """The parameters of the page on which a pack is paid. The same purchase gives the same parameters."""
    marks = {PURCHASE_KEY: purchase.id}
    params: dict[str, Any] = {
        "mode": "payment", "customer": purchase.customer, "client_reference_id": purchase.account,
        "line_items": [{"price": purchase.price, "quantity": purchase.quantity}], "metadata": marks,
        "invoice_creation": {"enabled": True, "invoice_data": {"metadata": marks}},
        "success_url": purchase.return_url, "cancel_url": purchase.return_url,
        "expires_at": (purchase.made_ms + page_ms) // SECOND_MS,
    }  # fmt: skip
    if is_taxed:
        params |= {"automatic_tax": {"enabled": True}, "customer_update": {"address": "auto"}}
    return params


def invoice_params(purchase: Purchase, *, is_taxed: bool) -> dict[str, Any]:
    """The parameters of the draft of a top-up's invoice. Nothing else is billed with it."""
    return {
        "customer": purchase.customer, "currency": purchase.currency, "auto_advance": False,
        "pending_invoice_items_behavior": "exclude", "metadata": {PURCHASE_KEY: purchase.id},
        "automatic_tax": {"enabled": is_taxed},
    }  # fmt: skip


def item_params(purchase: Purchase, invoice: str) -> dict[str, Any]:
    """The parameters of the one line of that invoice."""
    return {
        "customer": purchase.customer, "invoice": invoice, "pricing": {"price": purchase.price},
        "quantity": purchase.quantity,
    }  # fmt: skip


def month_start_ms(now_ms: int) -> int:
    """When the calendar month began, in UTC."""
    now = datetime.fromtimestamp(now_ms // SECOND_MS, UTC)
    return int(datetime(now.year, now.month, 1, tzinfo=UTC).timestamp()) * SECOND_MS


def may_top_up(terms: TopUp, made: Sequence[Purchase], now_ms: int) -> bool:
    """Whether one more pack may be bought by itself. `made`: the top-ups of this month, and those of the last day.

    One at a time, so many in a calendar month, and none within a day after one that failed.
    """
    if any(each.state in _IN_FLIGHT for each in made):
        return False
    since_ms = month_start_ms(now_ms)
    paid = [each for each in made if each.state is PurchaseState.PAID and each.made_ms >= since_ms]
    failed_ms = [each.ended_ms or each.made_ms for each in made if each.state is PurchaseState.FAILED]
    return len(paid) < terms.month_max and all(ms + BACK_OFF_MS <= now_ms for ms in failed_ms)


def taxed(catalog: Catalog | None) -> bool:
    """Whether Stripe adds tax to what is sold."""
    return catalog is not None and catalog.defaults.automatic_tax
