"""Invoice items of late usage, and the prices that say what the usage costs (`schemas.bills.StripeInvoiceItems`)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

from schemas.bills import BilledPrice, InvoiceItem, InvoiceItemState
from schemas.clock import SECOND_MS
from schemas.errors import InvalidInput
from sinks.stripe.answers import Malformed, text_of
from sinks.stripe.connection import connected, read
from sinks.stripe.objects import json_of

PAGE_ROWS: Final = 100
PAGES_MAX: Final = 20
# The metadata key of an item, by which the item is found when the answer was lost long ago.
ITEM_KEY: Final = "tidemark_item"
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
        path = f"/v1/prices/{identifier}"
        found = await self._get(path, {"expand": ["tiers", "product"]})
        recurring = found.get("recurring") or {}
        event_name = await self._event_name(recurring["meter"]) if recurring.get("meter") else ""
        product = found.get("product")
        title = product.get("name") if isinstance(product, Mapping) else ""
        terms = json.dumps({name: found.get(name) for name in _TERMS}, sort_keys=True, separators=(",", ":"))
        return BilledPrice(identifier, event_name, str(title or ""), terms)

    async def create(self, item: InvoiceItem) -> str:
        """See `StripeInvoiceItems`. The same item gives the same bytes, as an Idempotency-Key demands."""
        params: Any = {
            "customer": item.stripe_customer,
            "amount": item.amount_minor,
            "currency": item.currency,
            "description": item.description,
            "period": {"start": item.start_ms // SECOND_MS, "end": item.end_ms // SECOND_MS},
            "metadata": _metadata(item),
        }
        if item.subscription:
            params["subscription"] = item.subscription
        options: Any = {"idempotency_key": item.idempotency_key}
        return await read(
            lambda: self._stripe.v1.invoice_items.create_async(params, options), lambda made: _id_of(made, item)
        )

    async def made(self, item: InvoiceItem) -> Sequence[InvoiceItem]:
        """See `StripeInvoiceItems`. Raises `InvalidInput` beyond `PAGES_MAX` pages."""
        options: dict[str, object] = {"customer": item.stripe_customer, "limit": PAGE_ROWS}
        found: list[InvoiceItem] = []
        for _ in range(PAGES_MAX):
            page = await self._get("/v1/invoiceitems", options)
            found += [each for row in page["data"] if (each := _item_of(row, item))]
            # The newest come first, and none of the chain is older than the end of its span.
            if not page["has_more"] or page["data"][-1]["date"] < item.end_ms // SECOND_MS - _SKEW_S:
                return sorted(found, key=lambda each: each.number)
            options["starting_after"] = page["data"][-1]["id"]
        raise InvalidInput("invoiceitems", f"{item.stripe_customer} has too many to look for {item.identifier} in them")

    async def close(self) -> None:
        """Close all connections. Safe to call twice."""
        await self._transport.close_async()

    async def _event_name(self, meter: str) -> str:
        """The event name of a meter, which never changes."""
        if meter not in self._event_names:
            found = await self._get(f"/v1/billing/meters/{meter}", {})
            if not isinstance(found.get("event_name"), str):
                raise InvalidInput("event_name", f"the meter {meter} has none")
            self._event_names[meter] = found["event_name"]
        return self._event_names[meter]

    async def _get(self, path: str, options: Mapping[str, object]) -> dict[str, Any]:
        return await read(lambda: self._stripe.raw_request_async("get", path, **options), json_of)


def _metadata(item: InvoiceItem) -> dict[str, str]:
    """What makes the item known again: its identifier, its chain and its place in the chain."""
    return {
        ITEM_KEY: item.identifier,
        "tidemark_meter": item.event_name,
        "tidemark_span": f"{item.start_ms}-{item.end_ms}",
        "tidemark_number": str(item.number),
        "tidemark_from": format(item.from_quantity, "f"),
        "tidemark_to": format(item.to_quantity, "f"),
    }


def _item_of(row: Mapping[str, Any], like: InvoiceItem) -> InvoiceItem | None:
    """An item at Stripe that belongs to the chain of `like`, or None."""
    noted = row.get("metadata") or {}
    wanted = _metadata(like)
    if any(noted.get(name) != wanted[name] for name in ("tidemark_meter", "tidemark_span")):
        return None
    try:
        return like._replace(
            identifier=str(noted[ITEM_KEY]),
            number=int(noted["tidemark_number"]),
            from_quantity=Decimal(noted["tidemark_from"]),
            to_quantity=Decimal(noted["tidemark_to"]),
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


def _id_of(made: object, item: InvoiceItem) -> str:
    if getattr(made, "amount", None) != item.amount_minor:
        raise Malformed("not an answer to this invoice item")
    return text_of(made, "id")
