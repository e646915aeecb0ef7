"""Invoice items of late usage, and the prices that say what the usage costs (`schemas.bills.StripeInvoiceItems`)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import quote

from schemas.billing_events import cursor_of
from schemas.bills import BilledPrice, InvoiceItem, InvoiceItemState
from schemas.clock import SECOND_MS
from schemas.errors import InvalidInput
from schemas.invoices import ITEM_FROM_KEY, ITEM_KEY, ITEM_METER_KEY, ITEM_TO_KEY
from sinks.stripe.answers import Malformed
from sinks.stripe.connection import connected, json_of, read
from sinks.stripe.listing import PAGE_ROWS, check_list, page_after

T = TypeVar("T")

PAGES_MAX: Final = 20
# Beside those of `schemas.invoices`: the span and the place in the chain.
_SPAN_KEY: Final = "tidemark_span"
_NUMBER_KEY: Final = "tidemark_number"
# Between our clock and Stripe's.
_SKEW_S: Final = 86_400
_TERMS: Final = (
    "currency", "billing_scheme", "unit_amount", "unit_amount_decimal", "tiers_mode", "tiers", "transform_quantity",
)  # fmt: skip


class StripeClientInvoiceItems:
    """Creates invoice items with one API key. For use in one event loop."""

    def __init__(self, api_key: str, api_base: str | None = None, *, timeout_s: float = 20.0) -> None:
        """`api_base` is the URL of a simulator; None means Stripe. Raises `InvalidInput` for a key without a mode."""
        self._stripe, self._transport = connected(api_key, api_base, timeout_s)
        self._event_names: dict[str, str] = {}

    async def price(self, identifier: str) -> BilledPrice:
        """See `StripeInvoiceItems`."""
        path, options = f"/v1/prices/{quote(identifier, safe='')}", {"expand": ["tiers", "product"]}
        price, meter = await self._get(path, options, _price)
        if meter and meter not in self._event_names:
            # The event name of a meter never changes.
            path = f"/v1/billing/meters/{quote(meter, safe='')}"
            self._event_names[meter] = await self._get(path, {}, lambda found: _text(found, "event_name"))
        return price._replace(event_name=self._event_names[meter] if meter else "")

    async def create(self, item: InvoiceItem) -> str:
        """See `StripeInvoiceItems`. The same item gives the same bytes, as an Idempotency-Key demands."""

        def parse(made: Mapping[str, Any]) -> str:
            if made.get("amount") != item.amount_minor:
                raise Malformed("not an answer to this invoice item")
            return _text(made, "id")

        return await self._post("/v1/invoiceitems", _params(item), item.idempotency_key, parse)

    async def made(self, item: InvoiceItem) -> Sequence[InvoiceItem]:
        """See `StripeInvoiceItems`. Raises `InvalidInput` beyond `PAGES_MAX` pages."""
        options: dict[str, object] = {"customer": item.stripe_customer, "limit": PAGE_ROWS}
        found: list[InvoiceItem] = []
        after = ""
        for _ in range(PAGES_MAX):
            page = await page_after(self._list, "/v1/invoiceitems", options, after)
            found += [each for row in page.rows if (each := _made(row, item))]
            # The newest come first, and none of the chain is older than the end of its span.
            if not page.has_more or page.oldest_s < item.end_ms // SECOND_MS - _SKEW_S:
                return sorted(found, key=lambda each: each.number)
            after = page.after
        raise InvalidInput("invoiceitems", f"{item.stripe_customer} has too many to look for {item.identifier} in them")

    async def close(self) -> None:
        """Close all connections. Safe to call twice."""
        await self._transport.close_async()

    async def _list(self, path: str, options: Mapping[str, object]) -> _Page:
        return await self._get(path, options, _page)

    async def _get(self, path: str, options: Mapping[str, object], parse: Callable[[dict[str, Any]], T]) -> T:
        return await read(
            lambda: self._stripe.raw_request_async("get", path, **options), lambda answer: parse(json_of(answer))
        )

    async def _post(self, path: str, params: Mapping[str, object], key: str, parse: Callable[[dict[str, Any]], T]) -> T:
        return await read(
            lambda: self._stripe.raw_request_async("post", path, **params, idempotency_key=key),
            lambda answer: parse(json_of(answer)),
        )


class _Page(NamedTuple):
    """A page of a list. `oldest_s` is the time of its last row, and `after` the place after that."""

    rows: Sequence[Mapping[str, Any]]
    has_more: bool
    oldest_s: int
    after: str


def _page(found: Mapping[str, Any]) -> _Page:
    check_list(found)
    rows = found["data"]
    oldest_s = int(rows[-1]["date"]) if rows else 0
    return _Page(rows, bool(rows) and found["has_more"], oldest_s, cursor_of([row["id"] for row in rows]))


def _text(found: Mapping[str, Any], name: str) -> str:
    value = found.get(name)
    if not isinstance(value, str) or not value:
        raise Malformed(f"{name} is not a text")
    return value


def _price(found: Mapping[str, Any]) -> tuple[BilledPrice, str]:
    """A price without the event name, and its meter or ""."""
    terms = json.dumps({name: found.get(name) for name in _TERMS}, sort_keys=True, separators=(",", ":"))
    meter = (found.get("recurring") or {}).get("meter")
    title = (found.get("product") or {}).get("name") or ""
    return BilledPrice(_text(found, "id"), "", str(title), terms), str(meter or "")


def _params(item: InvoiceItem) -> dict[str, Any]:
    """The parameters that create an item (docs.stripe.com/api/invoiceitems/create)."""
    return {
        "customer": item.stripe_customer,
        "amount": item.amount_minor,
        "currency": item.currency,
        "description": item.description,
        "period": {"start": item.start_ms // SECOND_MS, "end": item.end_ms // SECOND_MS},
        "metadata": _metadata(item),
        **({"subscription": item.subscription} if item.subscription else {}),
    }


def _metadata(item: InvoiceItem) -> dict[str, str]:
    """What makes the item known again: its identifier, its chain and its place in the chain."""
    return {
        ITEM_KEY: item.identifier,
        ITEM_METER_KEY: item.event_name,
        _SPAN_KEY: f"{item.start_ms}-{item.end_ms}",
        _NUMBER_KEY: str(item.number),
        ITEM_FROM_KEY: format(item.from_quantity, "f"),
        ITEM_TO_KEY: format(item.to_quantity, "f"),
    }


def _made(row: Mapping[str, Any], like: InvoiceItem) -> InvoiceItem | None:
    """An item at Stripe that belongs to the chain of `like`, or None."""
    noted = row.get("metadata") or {}
    wanted = _metadata(like)
    if any(noted.get(name) != wanted[name] for name in (ITEM_METER_KEY, _SPAN_KEY)):
        return None
    try:
        return like._replace(
            identifier=str(noted[ITEM_KEY]),
            number=int(noted[_NUMBER_KEY]),
            from_quantity=Decimal(noted[ITEM_FROM_KEY]),
            to_quantity=Decimal(noted[ITEM_TO_KEY]),
            amount_minor=int(row["amount"]),
            description=str(row.get("description") or ""),
            state=InvoiceItemState.CREATED,
            stripe_item=str(row["id"]),
            created_ms=int(row["date"]) * SECOND_MS,
            sent_ms=None,
            attempt=0,
        )
    except (LookupError, ValueError, TypeError, ArithmeticError) as error:
        raise InvalidInput("metadata", f"of the invoice item {row.get('id')} were changed: {error}") from error
