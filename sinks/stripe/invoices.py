"""Stripe's lists of invoices, invoice items and subscriptions, for the reconciler (`StripeInvoices`)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from decimal import Decimal, InvalidOperation
from typing import Any, Final
from urllib.parse import quote

from schemas.billing_events import OLD_CHANGE_NO_MORE, ObjectKind, ObjectName, cursor_of
from schemas.clock import SECOND_MS
from schemas.errors import InvalidInput
from schemas.invoices import (
    ITEM_FROM_KEY,
    ITEM_KEY,
    ITEM_METER_KEY,
    ITEM_TO_KEY,
    CustomerBilling,
    ListedInvoice,
    ListedItem,
    ListedPage,
    MeteredLine,
    RunningItem,
)
from sinks.stripe.answers import Malformed
from sinks.stripe.connection import SHAPE_ERRORS, json_of
from sinks.stripe.listing import PAGE_ROWS, page_after
from sinks.stripe.objects import OF_PAYMENTS, PART_PAGES_MAX, PATHS, Parse, StripeClientObjects

LIST_PAGES_MAX: Final = 100
_TERMS: Final = (
    "currency", "billing_scheme", "unit_amount", "unit_amount_decimal", "tiers_mode", "tiers", "transform_quantity",
)  # fmt: skip
# Subscriptions that bill nothing any more, or nothing yet.
_ENDED: Final = frozenset({"canceled", "incomplete", "incomplete_expired"})


class StripeClientInvoices(StripeClientObjects):
    """Reads what Stripe bills, with one API key, and counts its calls. For use in one event loop.

    Meters and prices are read once: the meter of a price never changes.
    """

    def __init__(self, api_key: str, api_base: str | None = None, *, timeout_s: float = 20.0) -> None:
        super().__init__(api_key, api_base, timeout_s=timeout_s)
        self._reads = 0
        self._event_names: dict[str, str] | None = None
        self._meters: dict[str, str] = {}
        self._terms: dict[str, str] = {}

    @property
    def reads(self) -> int:
        """See `StripeInvoices`."""
        return self._reads

    async def billing_of(self, stripe_customer: str, from_ms: int) -> CustomerBilling:
        """See `StripeInvoices`."""
        owner = {"customer": stripe_customer}
        since = {"created": {"gte": max(0, from_ms) // SECOND_MS}}
        invoices = await self._all("/v1/invoices", {**owner, **since})
        # An invoice item has no `created`, and there are few.
        items = await self._all("/v1/invoiceitems", owner)
        subscriptions = await self._all("/v1/subscriptions", {**owner, "status": "all"})
        try:
            running = [item for each in subscriptions for item in await self._running(each)]
            listed = [await self._invoice(each) for each in invoices]
            ours = [_item(each) for each in items if ITEM_KEY in (each.get("metadata") or {})]
        except SHAPE_ERRORS as error:
            raise InvalidInput(stripe_customer, f"its invoices are not in Stripe's form: {error}") from error
        prices = {line.price for invoice in listed for line in invoice.lines}
        return CustomerBilling(listed, ours, running, {price: self._terms[price] for price in prices})

    async def page(self, kind: ObjectKind, after: str, from_ms: int) -> ListedPage:
        """See `StripeInvoices`."""
        options: dict[str, object] = {"limit": PAGE_ROWS}
        if kind is ObjectKind.SUBSCRIPTION:
            options["status"] = "all"
        if kind in OLD_CHANGE_NO_MORE:
            options["created"] = {"gte": max(0, from_ms) // SECOND_MS}
        listed = await page_after(self._list, PATHS[kind], options, after)
        bodies = listed["data"]
        if kind not in OF_PAYMENTS:
            bodies = [await self._with_parts(ObjectName(kind, str(body["id"])), body) for body in bodies]
        return ListedPage(bodies, cursor_of([body["id"] for body in bodies]) if listed["has_more"] else "")

    async def active_features(self, stripe_customer: str) -> frozenset[str]:
        """See `StripeInvoices`."""
        rows = await self._all("/v1/entitlements/active_entitlements", {"customer": stripe_customer})
        try:
            return frozenset(str(row["lookup_key"]) for row in rows)
        except SHAPE_ERRORS as error:
            raise InvalidInput(stripe_customer, f"its features are not in Stripe's form: {error}") from error

    async def changed_since(self, since_ms: int) -> AbstractSet[str]:
        """See `StripeInvoices`."""
        # An event may be dated a little after our clock.
        events = await self.events(since_ms // SECOND_MS, 2**40)
        bodies: list[Any] = [event["data"]["object"] for event in events]  # type: ignore[index]  # JSON of any shape
        return {_id(body.get(name)) for body in bodies for name in ("id", "customer", "subscription", "invoice")} - {""}

    async def _all(self, path: str, options: Mapping[str, object]) -> list[Any]:
        return [row async for row in self._rows(path, options, LIST_PAGES_MAX)]

    async def _get(
        self, path: str, options: Mapping[str, object] | None = None, parse: Parse = json_of
    ) -> dict[str, Any]:
        self._reads += 1
        return await super()._get(path, options, parse)

    async def _invoice(self, body: Mapping[str, Any]) -> ListedInvoice:
        rows: Sequence[Any] = body["lines"]["data"]
        if body["lines"]["has_more"]:
            path = f"/v1/invoices/{quote(body['id'], safe='')}/lines"
            rows = [row async for row in self._rows(path, {}, PART_PAGES_MAX)]
        lines = [line for row in rows if (line := await self._line(row)) is not None]
        finalizes_s = body["automatically_finalizes_at"]
        return ListedInvoice(
            str(body["id"]),
            str(body["status"]),
            str(body["currency"]),
            _ms(body["created"]),
            None if finalizes_s is None else _ms(finalizes_s),
            lines,
        )

    async def _line(self, row: Mapping[str, Any]) -> MeteredLine | None:
        details = (row["pricing"] or {}).get("price_details") or {}
        price = _id(details.get("price"))
        meter = await self._meter_of(price) if price else ""
        if not meter:
            return None
        parent = row["parent"] or {}
        kind = parent.get("subscription_item_details") or parent.get("invoice_item_details") or {}
        return MeteredLine(
            _id(kind.get("subscription")),
            price,
            await self._event_name(meter),
            _ms(row["period"]["start"]),
            _ms(row["period"]["end"]),
            _decimal(row.get("quantity_decimal") or row["quantity"] or 0),
            int(row["amount"]),
        )

    async def _running(self, body: Mapping[str, Any]) -> list[RunningItem]:
        if body["status"] in _ENDED:
            return []
        rows: Sequence[Any] = body["items"]["data"]
        if body["items"]["has_more"]:
            path, options = "/v1/subscription_items", {"subscription": body["id"]}
            rows = [row async for row in self._rows(path, options, PART_PAGES_MAX)]
        running = []
        for row in rows:
            meter = str((row["price"]["recurring"] or {}).get("meter") or "")
            if not meter:
                self._meters[str(row["price"]["id"])] = ""
            else:
                name = await self._event_name(meter)
                span = (_ms(row["current_period_start"]), _ms(row["current_period_end"]))
                running.append(RunningItem(str(body["id"]), name, *span))
        return running

    async def _meter_of(self, price: str) -> str:
        if price not in self._meters:
            # The prices of a list are without their tiers.
            body = await self._get(f"/v1/prices/{quote(price, safe='')}", {"expand": ["tiers"]})
            self._terms[price] = json.dumps({name: body.get(name) for name in _TERMS})
            self._meters[price] = str((body["recurring"] or {}).get("meter") or "")
        return self._meters[price]

    async def _event_name(self, meter: str) -> str:
        if self._event_names is None or meter not in self._event_names:
            rows = await self._all("/v1/billing/meters", {})
            self._event_names = {str(row["id"]): str(row["event_name"]) for row in rows}
            self._event_names.setdefault(meter, "")
        return self._event_names[meter]


def _item(body: Mapping[str, Any]) -> ListedItem:
    metadata = body["metadata"]
    try:
        quantity = _decimal(metadata[ITEM_TO_KEY]) - _decimal(metadata[ITEM_FROM_KEY])
    except (KeyError, Malformed):
        quantity = None
    return ListedItem(
        str(body["id"]),
        str(metadata[ITEM_KEY]),
        str(metadata.get(ITEM_METER_KEY, "")),
        _ms(body["period"]["start"]),
        _ms(body["period"]["end"]),
        quantity,
        int(body["amount"]),
        str(body["currency"]),
        _id(body["invoice"]),
    )


def _id(value: Any) -> str:
    """An id, whether the object is expanded or not."""
    return str(value["id"]) if isinstance(value, dict) else str(value or "")


def _ms(second: Any) -> int:
    return int(second) * SECOND_MS


def _decimal(value: Any) -> Decimal:
    try:
        number = Decimal(str(value))
    except InvalidOperation as error:
        raise Malformed(f"{value!r} is no decimal") from error
    if not number.is_finite():
        raise Malformed(f"{value!r} is no decimal")
    return number
