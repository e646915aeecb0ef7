"""Stripe's objects as plain JSON, for the side tables (`StripeObjects`)."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from schemas.billing_events import MIRRORED_TYPES, ObjectKind, ObjectName
from schemas.errors import InvalidInput, Refused, Transient
from sinks.stripe.answers import Malformed
from sinks.stripe.connection import SHAPE_ERRORS, connected, json_of, read
from sinks.stripe.listing import GONE, PAGE_ROWS, check_list, list_of, listed, page_after

Parse = Callable[[Any], dict[str, Any]]

PART_PAGES_MAX: Final = 1_000
EVENT_PAGES_MAX: Final = 5_000
# The most that Stripe takes (docs.stripe.com/api/events/list).
TYPES_AT_ONCE_MAX: Final = 20
_SUMMARY: Final = "/v1/billing/credit_balance_summary"
BEAT: Final = "tidemark_beat"
# Stripe allows 16 endpoints (docs.stripe.com/webhooks).
ENDPOINT_PAGES_MAX: Final = 10
ALL_TYPES: Final = "*"

PATHS: Final[Mapping[ObjectKind, str]] = {
    ObjectKind.CUSTOMER: "/v1/customers",
    ObjectKind.SUBSCRIPTION: "/v1/subscriptions",
    ObjectKind.SCHEDULE: "/v1/subscription_schedules",
    ObjectKind.INVOICE: "/v1/invoices",
    ObjectKind.CREDIT_GRANT: "/v1/billing/credit_grants",
    ObjectKind.CREDIT_NOTE: "/v1/credit_notes",
    ObjectKind.REFUND: "/v1/refunds",
    ObjectKind.DISPUTE: "/v1/disputes",
}
# The nested list of an object, of which Stripe shows the first ten.
_PARTS: Final[Mapping[ObjectKind, str]] = {
    ObjectKind.SUBSCRIPTION: "items",
    ObjectKind.INVOICE: "lines",
    ObjectKind.CREDIT_NOTE: "lines",
}
# Those of a payment, which name neither the invoice that was paid nor, in part, the customer.
OF_PAYMENTS: Final = frozenset({ObjectKind.REFUND, ObjectKind.DISPUTE})
GIVEN_BACK: Final = OF_PAYMENTS | {ObjectKind.CREDIT_NOTE}
_DISCOUNTS: Final[Mapping[str, object]] = {"expand": ["discounts.source.coupon"]}


class WebhookEndpoint(NamedTuple):
    """An endpoint to which Stripe delivers snapshot events. `missing` are the mirrored types that it does not get."""

    id: str
    url: str
    is_enabled: bool
    missing: tuple[str, ...]


class StripeClientObjects:
    """Reads Stripe's objects with one API key. For use in one event loop."""

    def __init__(self, api_key: str, api_base: str | None = None, *, timeout_s: float = 20.0) -> None:
        """`api_base` is the URL of a simulator; None means Stripe. Raises `InvalidInput` for a key without a mode."""
        self._stripe, self._transport = connected(api_key, api_base, timeout_s)

    async def fetch(self, name: ObjectName) -> dict[str, object] | None:
        """See `StripeObjects`. Costs one call, and one more per 100 parts beyond the first ten; of a customer two, and
        one more per 100 payment methods beyond the first 100; of an invoice whose payment failed and of a refund
        or dispute three; of a credit grant two."""
        try:
            found = await self._own(name)
        except InvalidInput as error:
            if error.field == GONE:
                return None
            raise
        except Refused as error:
            if name.kind not in GIVEN_BACK:
                raise
            # A key from before the mirror kept these must not stop it: the event is set aside, and read again later.
            message = f"the key may not read {PATHS[name.kind]}: allow it, then run `tidemark billing resync`"
            raise InvalidInput(name.id, message) from error
        return await self._with_parts(name, found)

    async def _own(self, name: ObjectName) -> dict[str, Any]:
        """An object with the first page of its nested list."""
        path, parse = f"{PATHS[name.kind]}/{quote(name.id, safe='')}", _object(_PARTS.get(name.kind))
        if name.kind is ObjectKind.SUBSCRIPTION:
            # A restricted key may not read coupons: then what the discounts take off stays unknown.
            with contextlib.suppress(Refused):
                return await self._get(path, _DISCOUNTS, parse)
        return await self._get(path, None, parse)

    async def _with_parts(self, name: ObjectName, body: dict[str, Any]) -> dict[str, Any]:
        """An object with all rows of its nested list."""
        part = _PARTS.get(name.kind)
        # A restricted key may not read what follows: then it stays unknown, and the object is as good as before.
        if name.kind is ObjectKind.CUSTOMER and not body.get("deleted"):
            with contextlib.suppress(Refused):
                # The list is not nested: no list of customers shows what they pay with.
                methods = self._rows("/v1/payment_methods", {"customer": name.id}, PART_PAGES_MAX)
                body["payment_methods"] = {"data": [row async for row in methods]}
        if name.kind is ObjectKind.INVOICE and body.get("status") == "open" and body.get("attempt_count"):
            with contextlib.suppress(Refused):
                body["last_payment_error"] = await self._payment_error(name)
        if name.kind is ObjectKind.CREDIT_GRANT:
            with contextlib.suppress(Refused):
                body["available"] = await self._available(body)
        if name.kind in OF_PAYMENTS and isinstance(body.get("payment_intent"), str):
            with contextlib.suppress(Refused):
                body |= await self._paid(body["payment_intent"], body.get("customer"))
        if part and not body.get("deleted"):
            path = f"{PATHS[name.kind]}/{quote(name.id, safe='')}"
            body[part] = {**body[part], "data": await self._whole(name, path, body[part]), "has_more": False}
        return body

    async def _available(self, grant: Mapping[str, Any]) -> int:
        """What is left of a credit grant, which does not say it itself."""
        wanted = {"type": "credit_grant", "credit_grant": grant["id"]}
        found = await self._get(_SUMMARY, {"customer": grant["customer"], "filter": wanted})
        return sum(int(each["ledger_balance"]["monetary"]["value"]) for each in found["balances"])

    async def _payment_error(self, invoice: ObjectName) -> dict[str, Any] | None:
        """Why the last payment of an invoice failed; an invoice does not say it itself. None if nobody says."""
        payments = await self._list("/v1/invoice_payments", {"invoice": invoice.id, "limit": 1})
        for row in payments["data"]:
            payment = row.get("payment")
            intent = payment.get("payment_intent") if isinstance(payment, dict) else None
            if isinstance(intent, str) and intent:
                found = await self._get(f"/v1/payment_intents/{quote(intent, safe='')}", None, _object(None))
                error: dict[str, Any] | None = found.get("last_payment_error")
                return error
        return None

    async def _paid(self, intent: str, customer: str | None) -> dict[str, Any]:
        """The invoice that a payment paid, and whose it was. A payment without an invoice has None."""
        payment = {"type": "payment_intent", "payment_intent": intent}
        payments = await self._list("/v1/invoice_payments", {"payment": payment, "limit": 1})
        if not customer:
            customer = (await self._get(f"/v1/payment_intents/{quote(intent, safe='')}", None, _object(None))).get(
                "customer"
            )
        return {"invoice": next((row.get("invoice") for row in payments["data"]), None), "customer": customer}

    async def _whole(self, name: ObjectName, path: str, listed: Mapping[str, Any]) -> list[Any]:
        """All rows of a nested list. If Stripe shows a part only, the whole list is read: the part's order is not
        documented, so a list that begins after its last row might leave rows out."""
        if not listed["has_more"]:
            return list(listed["data"])
        options: dict[str, object] = {}
        if name.kind is ObjectKind.SUBSCRIPTION:
            path, options = "/v1/subscription_items", {"subscription": name.id}
        else:
            path = f"{path}/lines"
        return [row async for row in self._rows(path, options, PART_PAGES_MAX)]

    async def events(self, since_s: int, until_s: int) -> list[dict[str, object]]:
        """See `StripeObjects`. Costs one call if there are up to 100 events of all types, or else two more, and one per
        further 100 events of the types. Raises `OperatorNeeded` beyond `EVENT_PAGES_MAX` pages."""
        span = {"created": {"gte": since_s, "lt": until_s}}
        page = await self._list("/v1/events", {**span, "limit": PAGE_ROWS})
        if not page["has_more"]:
            return [event for event in reversed(page["data"]) if event.get("type") in MIRRORED_TYPES]
        events: list[dict[str, object]] = []
        for first in range(0, len(MIRRORED_TYPES), TYPES_AT_ONCE_MAX):
            types = list(MIRRORED_TYPES[first : first + TYPES_AT_ONCE_MAX])
            listed = [event async for event in self._rows("/v1/events", {**span, "types": types}, EVENT_PAGES_MAX)]
            events += reversed(listed)
        return sorted(events, key=_created_s)

    async def names(self, kind: ObjectKind, after: str = "", customer: str = "") -> list[tuple[ObjectName, str]]:
        """See `StripeObjects`. Costs one call, and one more for each object of `after` that is gone."""
        if customer and kind is ObjectKind.CUSTOMER:
            name = ObjectName(kind, customer)
            return [] if after or await self.fetch(name) is None else [(name, customer)]
        options: dict[str, object] = {"limit": PAGE_ROWS}
        if customer and kind in OF_PAYMENTS:
            return []
        options |= {"customer": customer} if customer else {}
        if kind is ObjectKind.SUBSCRIPTION:
            options["status"] = "all"
        page = await page_after(self._list, PATHS[kind], options, after)
        return [(ObjectName(kind, row["id"]), _customer(row)) for row in page["data"]]

    async def touch(self, customer: str, beat: str) -> None:
        """See `StripeObjects`. Costs one call."""
        await read(lambda: self._stripe.v1.customers.update_async(customer, {"metadata": {BEAT: beat}}), bool)

    async def endpoints(self) -> list[WebhookEndpoint]:
        """The webhook endpoints of the key's mode (docs.stripe.com/api/webhook_endpoints/list). Costs one call. Raises
        `Refused` if the key may not read them, `Transient` if no answer came, `InvalidInput`."""
        try:
            return [_endpoint(row) async for row in self._rows("/v1/webhook_endpoints", {}, ENDPOINT_PAGES_MAX)]
        except SHAPE_ERRORS as error:
            raise Transient(f"not an answer of Stripe: {error}") from error

    async def close(self) -> None:
        """Close all connections. Safe to call twice."""
        await self._transport.close_async()

    def _rows(self, path: str, options: Mapping[str, object], pages_max: int) -> AsyncIterator[Any]:
        """The rows of all pages of a list."""
        return listed(self._list, path, options, pages_max)

    async def _list(self, path: str, options: Mapping[str, object]) -> dict[str, Any]:
        return await self._get(path, options, list_of)

    async def _get(
        self, path: str, options: Mapping[str, object] | None = None, parse: Parse = json_of
    ) -> dict[str, Any]:
        # The library would turn some texts into numbers; the mirror keeps what Stripe said.
        return await read(lambda: self._stripe.raw_request_async("get", path, **(options or {})), parse)


def _object(part: str | None) -> Parse:
    """Reads an object with its nested list. Raises `Malformed` if either has not Stripe's form."""

    def parse(response: Any) -> dict[str, Any]:
        body = json_of(response)
        if not isinstance(body.get("id"), str):
            raise Malformed("not an object of Stripe: it has no id")
        if part and not body.get("deleted"):
            check_list(body.get(part))
        return body

    return parse


def _created_s(event: Mapping[str, Any]) -> int:
    created_s = event.get("created")
    return created_s if isinstance(created_s, int) else 0


def _customer(row: Mapping[str, Any]) -> str:
    customer = row["id"] if row.get("object") == "customer" else row.get("customer")
    return customer if isinstance(customer, str) else ""


def _endpoint(row: Mapping[str, Any]) -> WebhookEndpoint:
    types = set(row["enabled_events"])
    missing = () if ALL_TYPES in types else tuple(each for each in MIRRORED_TYPES if each not in types)
    return WebhookEndpoint(str(row["id"]), str(row["url"]), row["status"] == "enabled", missing)
