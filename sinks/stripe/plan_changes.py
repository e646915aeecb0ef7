"""What plan changes need of Stripe (`schemas.plan_changes.StripeChanges`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

from schemas.billing_events import ObjectKind, ObjectName
from schemas.checkout import OPERATION_KEY
from schemas.clock import HOUR_MS, SECOND_MS
from schemas.errors import Transient
from schemas.plan_changes import InvoicePreview, PreviewLine
from schemas.stripe_changes import Charge, Charges, StripeInvoice, StripeItem, StripeSubscription
from sinks.stripe.connection import SHAPE_ERRORS, json_of, read
from sinks.stripe.credits import StripeClientCredits
from sinks.stripe.objects import PART_PAGES_MAX

_SUBSCRIPTIONS: Final = "/v1/subscriptions"
_ENDED: Final = ("canceled", "incomplete_expired")
_CHANGED: Final = ("subscription", "subscription_schedule")
_OPEN: Final = ("not_started", "active")
# The whole part alone, where Stripe gives no decimal.
_QUANTITIES: Final = ("quantity_decimal", "quantity")


class StripeClientChanges(StripeClientCredits):
    """Previews and changes subscriptions, with one API key. For use in one event loop."""

    async def subscriptions(self, customer: str) -> Sequence[StripeSubscription]:
        """See `StripeChanges`. Costs one call, one more per schedule, and one per 100 items beyond the first ten."""
        rows = [row async for row in self._rows(_SUBSCRIPTIONS, {"customer": customer}, PART_PAGES_MAX)]
        found = []
        for row in rows:
            if row["status"] not in _ENDED:
                body = await self._with_parts(ObjectName(ObjectKind.SUBSCRIPTION, str(row["id"])), row)
                found.append(await self._whole_subscription(body))
        return found[::-1]

    async def _whole_subscription(self, body: Mapping[str, Any]) -> StripeSubscription:
        seen = _subscription(body)
        if not body["schedule"]:
            return seen
        name = ObjectName(ObjectKind.SCHEDULE, _id(body["schedule"]))
        schedule: Any = await self.fetch(name)
        if schedule is None or schedule["status"] not in _OPEN:
            return seen
        ends = schedule["end_behavior"] == "cancel"
        return seen._replace(schedule=await self.schedule(name.id), ends=ends)

    async def has_card(self, customer: str) -> bool:
        """See `StripeChanges`. Costs one call."""
        body = await self._get(f"/v1/customers/{quote(customer, safe='')}")
        return bool((body.get("invoice_settings") or {}).get("default_payment_method") or body.get("default_source"))

    async def invoice(self, identifier: str) -> StripeInvoice:
        """See `StripeChanges`. Costs one call."""
        path = f"/v1/invoices/{quote(identifier, safe='')}"
        return await read(lambda: self._stripe.raw_request_async("get", path), lambda found: _invoice(json_of(found)))

    async def charges(self, customer: str, subscription: str, since_ms: int) -> Charges:
        """See `StripeChanges`. Costs two calls, one more per 100 rows of a list beyond the first 100, and one per 100
        lines of an invoice beyond the first ten."""
        options = {"subscription": subscription, "created": {"gte": since_ms // SECOND_MS}}
        bodies = [row async for row in self._rows("/v1/invoices", options, PART_PAGES_MAX)]
        pending = {"customer": customer, "pending": True}
        items = [row async for row in self._rows("/v1/invoiceitems", pending, PART_PAGES_MAX)]
        found: list[Charge] = []
        try:
            for body in bodies[::-1]:
                if body["status"] != "void":
                    whole = await self._with_parts(ObjectName(ObjectKind.INVOICE, str(body["id"])), body)
                    found += _charges(whole["lines"]["data"])
            waiting = [row for row in items if _details(row["parent"]).get("subscription") in (None, subscription)]
            for row in waiting[::-1]:
                found += _charges([row])
            return Charges(tuple(found), sum(int(row["amount"]) for row in waiting))
        except SHAPE_ERRORS as error:
            raise Transient(f"not an answer of Stripe: {error}") from error

    async def preview(self, params: Mapping[str, Any]) -> InvoicePreview:
        """See `StripeChanges`. Costs one call, and one more per 100 lines beyond the first ten."""
        path = "/v1/invoices/create_preview"
        return await read(
            lambda: self._stripe.raw_request_async("post", path, **params), lambda found: _preview(json_of(found))
        )

    async def update(self, subscription: str, params: Mapping[str, Any], key: str) -> str | None:
        """See `StripeChanges`. Costs one call."""
        return await self._write(f"{_SUBSCRIPTIONS}/{quote(subscription, safe='')}", params, key)

    async def subscribe(self, params: Mapping[str, Any], key: str) -> str | None:
        """See `StripeChanges`. Costs one call."""
        return await self._write(_SUBSCRIPTIONS, params, key)

    async def cancel(self, subscription: str, params: Mapping[str, Any]) -> None:
        """See `StripeChanges`. Costs one call."""
        path = f"{_SUBSCRIPTIONS}/{quote(subscription, safe='')}"
        await read(lambda: self._stripe.raw_request_async("delete", path, **params), json_of)

    async def resume(self, subscription: str, params: Mapping[str, Any], key: str) -> str | None:
        """See `StripeChanges`. Costs one call."""
        return await self._write(f"{_SUBSCRIPTIONS}/{quote(subscription, safe='')}/resume", params, key)

    async def pay(self, invoice: str, key: str) -> str | None:
        """See `StripeChanges`. Costs one call."""
        return await self._write(f"/v1/invoices/{quote(invoice, safe='')}/pay", {}, key)

    async def close_invoice(self, invoice: str, how: str, key: str) -> str | None:
        """See `StripeChanges`. Costs one call."""
        return await self._write(f"/v1/invoices/{quote(invoice, safe='')}/{how}", {}, key)

    async def open_invoices(self, subscription: str) -> Sequence[str]:
        """See `StripeChanges`. Costs one call for 100 invoices."""
        wanted = {"subscription": subscription, "status": "open"}
        rows = [row async for row in self._rows("/v1/invoices", wanted, PART_PAGES_MAX)]
        return [str(row["id"]) for row in rows][::-1]

    async def carried_out(self, key: str, since_ms: int, until_ms: int) -> str | None:
        """See `StripeChanges`. Costs as many calls as `StripeObjects.events`."""
        # The machine's clock and Stripe's need not agree.
        found = await self.events((since_ms - HOUR_MS) // SECOND_MS, (until_ms + HOUR_MS) // SECOND_MS)
        for event in found:
            about: Any = event
            body = about["data"]["object"]
            # One call causes several events, such as those of its invoice, and Stripe promises no order of them.
            if ((about.get("request") or {}).get("idempotency_key")) == key and body["object"] in _CHANGED:
                return str(body["id"])
        return None

    async def _write(self, path: str, params: Mapping[str, Any], key: str) -> str | None:
        """A call that changes something; None if Stripe has stored that it failed by itself."""
        found = await self._written("post", path, params, key)
        return None if found is None else str(found["id"])


def _subscription(body: Mapping[str, Any]) -> StripeSubscription:
    rows: Sequence[Any] = body["items"]["data"]
    return StripeSubscription(
        str(body["id"]),
        _id(body["customer"]),
        str(body["status"]),
        str(body["currency"]),
        str(body["collection_method"]),
        bool(body["default_payment_method"] or body["default_source"]),
        int(body["billing_cycle_anchor"]) * SECOND_MS,
        None if body["cancel_at"] is None else int(body["cancel_at"]) * SECOND_MS,
        bool(body["cancel_at_period_end"]),
        body["pending_update"] is not None,
        bool(body["discounts"]) or any(row["discounts"] for row in rows),
        any(row["discounts"] for row in rows),
        bool((body["automatic_tax"] or {}).get("enabled")),
        _id(body["latest_invoice"]),
        tuple(
            StripeItem(
                str(row["id"]), _id(row["price"]), row.get("quantity"), str(row["price"]["recurring"]["interval"]),
                int(row["current_period_start"]) * SECOND_MS, int(row["current_period_end"]) * SECOND_MS,
            )
            for row in rows
        ),
        discounts=tuple(_id(each) for each in body["discounts"]),
        operation=str((body.get("metadata") or {}).get(OPERATION_KEY, "")),
        start_ms=int(body["start_date"]) * SECOND_MS,
    )  # fmt: skip


def _invoice(body: Mapping[str, Any]) -> StripeInvoice:
    pay_url = str(body["hosted_invoice_url"] or "") if body["status"] == "open" else ""
    remaining = int(body["amount_remaining"])
    return StripeInvoice(str(body["id"]), str(body["status"]), int(body["total"]), pay_url, remaining)


def _preview(body: Mapping[str, Any]) -> InvoicePreview:
    """An invoice to come. The sums are Stripe's own; of more than ten lines the first ten are kept."""
    lines = tuple(
        PreviewLine(
            str(row["description"] or ""), int(row["amount"]), _is_proration(row["parent"]),
            int(row["period"]["start"]) * SECOND_MS, int(row["period"]["end"]) * SECOND_MS,
            str(((row.get("pricing") or {}).get("price_details") or {}).get("price") or ""),
            str(next((row[name] for name in _QUANTITIES if row.get(name) is not None), "")),
        )
        for row in body["lines"]["data"]
    )  # fmt: skip
    tax = sum(int(each["amount"]) for each in body["total_taxes"] or ())
    sums = int(body["subtotal"]), int(body["total"]), int(body["amount_due"])
    return InvoicePreview(str(body["currency"]), *sums, tax, lines)


def _charges(lines: Sequence[Mapping[str, Any]]) -> list[Charge]:
    """What the lines of one invoice, or one pending item, charge; of several lines of an item the greatest quantity,
    because a credit of 0 looks like a charge."""
    found: dict[str, Charge] = {}
    for line in lines:
        details = _details(line["parent"])
        item = str(details.get("subscription_item") or "")
        if item and int(line["amount"]) >= 0 and line["quantity"] is not None:
            charge = Charge(item, int(line["quantity"]), int(line["period"]["end"]) * SECOND_MS)
            found[item] = max(charge, found.get(item, charge))
    return list(found.values())


def _details(parent: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """What a line or an invoice item says of where it comes from."""
    for name in ("subscription_item_details", "invoice_item_details", "subscription_details"):
        if found := (parent or {}).get(name):
            return dict(found)
    return {}


def _is_proration(parent: Mapping[str, Any] | None) -> bool:
    return bool(_details(parent).get("proration"))


def _id(value: Any) -> str:
    return str(value["id"]) if isinstance(value, Mapping) else str(value or "")
