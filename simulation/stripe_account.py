"""The Stripe simulator without HTTP: its routes as calls, and the product's driver on these calls.

The histories of `tests/unit/webhooks` use it too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from schemas.billing_events import MIRRORED_TYPES, ObjectKind, ObjectName
from schemas.clock import Clock
from schemas.errors import InvalidInput
from sinks.stripe.connection import json_of
from sinks.stripe.objects import Parse, StripeClientObjects
from stripe_simulator import Simulator, SimulatorSettings
from stripe_simulator.errors import ApiError
from stripe_simulator.expansion import expand
from stripe_simulator.mode import Call
from stripe_simulator.registry import ROUTES, Router

ROUTER: Final = Router(ROUTES)
RUN: Final = {route.name: route.run for route in ROUTES}
_SUMMARY: Final = "GET /v1/billing/credit_balance_summary"
READ: Final = {
    ObjectKind.CUSTOMER: "GET /v1/customers/{customer}",
    ObjectKind.SUBSCRIPTION: "GET /v1/subscriptions/{subscription_exposed_id}",
    ObjectKind.SCHEDULE: "GET /v1/subscription_schedules/{schedule}",
    ObjectKind.INVOICE: "GET /v1/invoices/{invoice}",
    ObjectKind.CREDIT_GRANT: "GET /v1/billing/credit_grants/{id}",
    ObjectKind.CREDIT_NOTE: "GET /v1/credit_notes/{id}",
    ObjectKind.REFUND: "GET /v1/refunds/{refund}",
    ObjectKind.DISPUTE: "GET /v1/disputes/{dispute}",
}
LIST: Final[dict[ObjectKind, tuple[str, dict[str, Any]]]] = {
    ObjectKind.CUSTOMER: ("GET /v1/customers", {}),
    ObjectKind.SUBSCRIPTION: ("GET /v1/subscriptions", {"status": "all"}),
    ObjectKind.SCHEDULE: ("GET /v1/subscription_schedules", {}),
    ObjectKind.INVOICE: ("GET /v1/invoices", {}),
    ObjectKind.CREDIT_GRANT: ("GET /v1/billing/credit_grants", {}),
    ObjectKind.CREDIT_NOTE: ("GET /v1/credit_notes", {}),
    ObjectKind.REFUND: ("GET /v1/refunds", {}),
    ObjectKind.DISPUTE: ("GET /v1/disputes", {}),
}


# What an answer has in full only if it is asked for.
EXPANDED: Final[dict[ObjectKind, dict[str, Any]]] = {ObjectKind.SUBSCRIPTION: {"expand": ["discounts.source.coupon"]}}


class StripeAccount:
    """One account in test mode, whose clock is passed in. Implements `StripeObjects`."""

    def __init__(self, clock: Clock, seed: int = 0, *, grace_s: int = 3_600) -> None:
        """`grace_s`: how long a cycle's invoice stays a draft."""
        self.clock = clock
        self.simulator = Simulator(clock, SimulatorSettings(seed=seed, invoice_grace_s=grace_s))
        self.fetched: list[ObjectName] = []

    def call(self, route: str, params: dict[str, Any] | None = None, *ids: str) -> dict[str, Any]:
        """Execute a route with converted parameters, after the jobs that are due."""
        self.simulator.catch_up()
        mode, options = self.simulator.test, dict(params or {})
        paths = options.pop("expand", ())
        with mode.journal.transaction():
            body = RUN[route](mode, Call("/", options, ids))
        return expand(route, body, paths, mode.store.find) if paths else body

    def pages(self, route: str, params: dict[str, Any], *ids: str) -> Iterator[dict[str, Any]]:
        """The rows of all pages of a list."""
        after: dict[str, Any] = {}
        while True:
            page = self.call(route, {**params, **after, "limit": 100}, *ids)
            yield from page["data"]
            if not page["has_more"]:
                return
            after = {"starting_after": page["data"][-1]["id"]}

    def read(self, name: ObjectName) -> dict[str, Any] | None:
        """The object with all rows of its nested list, and with what pays or did not pay beside it."""
        try:
            body = self.call(READ[name.kind], {**EXPANDED.get(name.kind, {})}, name.id)
        except ApiError as error:
            if error.status != 404:
                raise
            return None
        if name.kind is ObjectKind.SUBSCRIPTION:
            rows = list(self.pages("GET /v1/subscription_items", {"subscription": name.id}))
            return {**body, "items": {**body["items"], "data": rows, "has_more": False}}
        if name.kind is ObjectKind.INVOICE:
            rows = list(self.pages("GET /v1/invoices/{invoice}/lines", {}, name.id))
            whole = {**body, "lines": {**body["lines"], "data": rows, "has_more": False}}
            is_declined = body["status"] == "open" and body["attempt_count"]
            return {**whole, "last_payment_error": self._payment_error(name.id)} if is_declined else whole
        if name.kind is ObjectKind.CREDIT_GRANT:
            wanted = {"type": "credit_grant", "credit_grant": name.id}
            balances = self.call(_SUMMARY, {"customer": body["customer"], "filter": wanted})["balances"]
            return {**body, "available": sum(each["ledger_balance"]["monetary"]["value"] for each in balances)}
        if name.kind is ObjectKind.CUSTOMER and not body.get("deleted"):
            return {
                **body,
                "payment_methods": {"data": [*self.pages("GET /v1/payment_methods", {"customer": name.id})]},
            }
        if name.kind in (ObjectKind.REFUND, ObjectKind.DISPUTE):
            intent = self.call("GET /v1/payment_intents/{intent}", {}, body["payment_intent"])
            invoice = intent["payment_details"]["order_reference"]
            return {**body, "customer": intent["customer"], "invoice": invoice}
        return body

    def _payment_error(self, invoice: str) -> Any:
        """Why the last payment of an invoice failed."""
        for row in self.pages("GET /v1/invoice_payments", {"invoice": invoice}):
            intent = row["payment"]["payment_intent"]
            return self.call("GET /v1/payment_intents/{intent}", {}, intent)["last_payment_error"]
        return None

    def listing(self) -> list[ObjectName]:
        """All objects that Stripe lists."""
        return [
            ObjectName(kind, body["id"]) for kind, (route, params) in LIST.items() for body in self.pages(route, params)
        ]

    def happened(self) -> list[dict[str, Any]]:
        """All events that Stripe keeps, oldest first."""
        return list(self.pages("GET /v1/events", {}))[::-1]

    async def fetch(self, name: ObjectName) -> dict[str, object] | None:
        """The object, as the driver reads it."""
        self.fetched.append(name)
        return self.read(name)

    async def events(self, since_s: int, until_s: int) -> list[dict[str, object]]:
        """The events of the types that are mirrored, created in `[since_s, until_s)`."""
        events = (event for event in self.happened() if event["type"] in MIRRORED_TYPES)
        return [event for event in events if since_s <= event["created"] < until_s]

    async def names(self, kind: ObjectKind, after: str = "", customer: str = "") -> list[tuple[ObjectName, str]]:
        """All objects of a kind, or of one customer's, as one page."""
        if after:
            return []
        named = [name for name in self.listing() if name.kind is kind]
        bodies = [(name, self.read(name) or {}) for name in named]
        pairs = [(name, str(body.get("customer") or name.id)) for name, body in bodies]
        return [(name, owner) for name, owner in pairs if customer in ("", owner)]

    async def touch(self, customer: str, beat: str) -> None:
        """Make an event."""
        self.call("POST /v1/customers/{customer}", {"metadata": {"tidemark_beat": beat}}, customer)

    async def close(self) -> None:
        """Keep the state, as Stripe does."""

    # Words for histories.

    def meter(self, name: str = "calls") -> str:
        """A new meter."""
        params = {"display_name": name, "event_name": name, "default_aggregation": {"formula": "sum"}}
        return str(self.call("POST /v1/billing/meters", params)["id"])

    def price(self, *, meter: str = "", amount: int = 1000, interval: str = "month", count: int = 1) -> str:
        """A price of a new product; metered with a meter."""
        recurring: dict[str, Any] = {"interval": interval, "interval_count": count}
        if meter:
            recurring |= {"usage_type": "metered", "meter": meter}
        params = {"currency": "usd", "unit_amount": amount, "product_data": {"name": "x"}, "recurring": recurring}
        return str(self.call("POST /v1/prices", params)["id"])

    def customer(self, card: str = "pm_card_visa") -> str:
        """A new customer, with a card if one is named."""
        customer = str(self.call("POST /v1/customers", {"email": "a@example.com"})["id"])
        if card:
            self.use_card(customer, card)
        return customer

    def use_card(self, customer: str, card: str) -> None:
        """Make a card the customer's default one."""
        method = self.call("POST /v1/payment_methods/{payment_method}/attach", {"customer": customer}, card)
        settings = {"invoice_settings": {"default_payment_method": method["id"]}}
        self.call("POST /v1/customers/{customer}", settings, customer)

    def subscribe(self, customer: str, *prices: str, **params: Any) -> str:
        """A new subscription to prices."""
        body = {"customer": customer, "items": [{"price": price} for price in prices], **params}
        return str(self.call("POST /v1/subscriptions", body)["id"])

    def change(self, subscription: str, **params: Any) -> None:
        """Update a subscription."""
        self.call("POST /v1/subscriptions/{subscription_exposed_id}", params, subscription)

    def pause(self, subscription: str) -> None:
        """Pause a subscription now."""
        self.call("POST /v1/subscriptions/{subscription}/pause", {}, subscription)

    def resume(self, subscription: str) -> None:
        """Resume a paused subscription now."""
        self.call("POST /v1/subscriptions/{subscription}/resume", {}, subscription)

    def cancel(self, subscription: str) -> None:
        """Cancel a subscription now."""
        self.call("DELETE /v1/subscriptions/{subscription_exposed_id}", {}, subscription)

    def schedule(self, subscription: str, *prices: str, ends_s: int = 0, **params: Any) -> str:
        """Change to other prices at `ends_s`, or at the end of the current period."""
        schedule = self.call("POST /v1/subscription_schedules", {"from_subscription": subscription})
        (now,) = schedule["phases"]
        first = {name: now[name] for name in ("start_date", "end_date")}
        first["items"] = [{name: item[name] for name in ("price", "quantity") if name in item} for item in now["items"]]
        first |= {"end_date": ends_s} if ends_s else {}
        first |= {"trial": True} if now["trial_end"] else {}
        phases = [first, {"items": [{"price": price} for price in prices]}]
        path = "POST /v1/subscription_schedules/{schedule}"
        self.call(path, {"phases": phases, **params}, schedule["id"])
        return str(schedule["id"])

    def delete(self, customer: str) -> None:
        """Delete a customer."""
        self.call("DELETE /v1/customers/{customer}", {}, customer)


class DrivenObjects(StripeClientObjects):
    """Stripe's objects as the product's driver reads them, with its pages and nested lists, but without HTTP."""

    def __init__(self, account: StripeAccount) -> None:
        self._account = account

    async def touch(self, customer: str, beat: str) -> None:
        """See `StripeObjects`."""
        await self._account.touch(customer, beat)

    async def close(self) -> None:
        """Nothing to release."""

    async def _get(
        self, path: str, options: Mapping[str, object] | None = None, _parse: Parse = json_of
    ) -> dict[str, Any]:
        route, ids = ROUTER.find("GET", path)
        try:
            return self._account.call(route.name, dict(options or {}), *ids)
        except ApiError as error:
            if error.status != 404:
                raise
            raise InvalidInput("resource_missing", str(error)) from error
