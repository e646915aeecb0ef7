"""A customer of the Stripe simulator on a test clock, with the steps of the golden scenarios."""

from __future__ import annotations

import calendar
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.services.stripe_sdk import Sdk


def at(text: str) -> int:
    """The UTC second of a moment such as `2027-02-10` or `2027-01-12 10:30:17`."""
    return calendar.timegm(datetime.fromisoformat(text).replace(tzinfo=UTC).timetuple())


class Shop:
    """A customer on a test clock, prices, and one subscription."""

    def __init__(self, sdk: Sdk) -> None:
        self.sdk = sdk
        self.clock = self.customer = self.subscription = ""

    async def open(self, start: str, card: str = "pm_card_visa") -> None:
        """Freeze a clock at `start`, and give a new customer a card."""
        clock = await self.sdk("v1.test_helpers.test_clocks.create", {"frozen_time": at(start)})
        self.clock = clock["id"]
        self.customer = (await self.sdk("v1.customers.create", {"test_clock": self.clock}))["id"]
        if card:
            await self.use_card(card)

    async def use_card(self, card: str) -> str:
        """Attach a card and make it the default."""
        method = await self.sdk("v1.payment_methods.attach", card, {"customer": self.customer})
        settings = {"invoice_settings": {"default_payment_method": method["id"]}}
        await self.sdk("v1.customers.update", self.customer, settings)
        return str(method["id"])

    async def price(self, amount: int, interval: str = "month", **fields: Any) -> str:
        """A price of a new product."""
        recurring = {"interval": interval, **fields.pop("recurring", {})}
        params = {"currency": "usd", "product_data": {"name": "Plan"}, "recurring": recurring, **fields}
        if not {"tiers", "unit_amount_decimal"} & fields.keys():
            params["unit_amount"] = amount
        return str((await self.sdk("v1.prices.create", params))["id"])

    async def subscribe(self, *items: dict[str, Any], **params: Any) -> dict[str, Any]:
        """Subscribe the customer."""
        body = {"customer": self.customer, "items": list(items), **params}
        subscription: dict[str, Any] = await self.sdk("v1.subscriptions.create", body)
        self.subscription = subscription["id"]
        return subscription

    async def get(self) -> dict[str, Any]:
        """The subscription as it is now."""
        subscription: dict[str, Any] = await self.sdk("v1.subscriptions.retrieve", self.subscription)
        return subscription

    async def change(self, **params: Any) -> dict[str, Any]:
        """Update the subscription; `price` and `quantity` change its first item."""
        item = {name: params.pop(name) for name in ("price", "quantity") if name in params}
        if item:
            params["items"] = [{"id": (await self.get())["items"]["data"][0]["id"], **item}]
        changed: dict[str, Any] = await self.sdk("v1.subscriptions.update", self.subscription, params)
        return changed

    async def meter(self, event_name: str = "calls") -> str:
        """A new meter that adds up."""
        params = {"display_name": "Calls", "event_name": event_name, "default_aggregation": {"formula": "sum"}}
        return str((await self.sdk("v1.billing.meters.create", params))["id"])

    async def metered(self, meter: str, amount: int = 0, **fields: Any) -> str:
        """A monthly price of a meter."""
        return await self.price(amount, recurring={"usage_type": "metered", "meter": meter}, **fields)

    async def use(self, value: int, moment: str, event_name: str = "calls") -> None:
        """Report usage of the customer."""
        payload = {"stripe_customer_id": self.customer, "value": str(value)}
        event = {"event_name": event_name, "payload": payload, "timestamp": at(moment)}
        await self.sdk("v1.billing.meter_events.create", event)

    async def advance(self, to: str) -> None:
        """Advance the clock."""
        answer = await self.sdk("v1.test_helpers.test_clocks.advance", self.clock, {"frozen_time": at(to)})
        assert answer["status"] == "advancing"
        clock = await self.sdk("v1.test_helpers.test_clocks.retrieve", self.clock)
        assert (clock["status"], clock["frozen_time"]) == ("ready", at(to))

    async def invoices(self) -> list[dict[str, Any]]:
        """All invoices, oldest first."""
        page = await self.sdk("v1.invoices.list", {"customer": self.customer, "limit": 100})
        return list(page["data"][::-1])

    async def amounts(self) -> list[tuple[str, int]]:
        """Status and amount due of all invoices."""
        return [(invoice["status"], invoice["amount_due"]) for invoice in await self.invoices()]

    async def pending(self) -> list[int]:
        """The amounts of the pending invoice items, oldest first."""
        page = await self.sdk("v1.invoice_items.list", {"customer": self.customer, "pending": True, "limit": 100})
        return [item["amount"] for item in page["data"][::-1]]

    async def schedule(self, price: str, quantity: int = 1) -> str:
        """Change the first item at the end of the current period by a schedule."""
        schedule = await self.sdk("v1.subscription_schedules.create", {"from_subscription": self.subscription})
        (now,) = schedule["phases"]
        first = {name: now[name] for name in ("start_date", "end_date")}
        first["items"] = [{"price": item["price"], "quantity": item["quantity"]} for item in now["items"]]
        phases = [first, {"items": [{"price": price} | ({"quantity": quantity} if quantity else {})]}]
        await self.sdk("v1.subscription_schedules.update", schedule["id"], {"phases": phases})
        return str(schedule["id"])


@pytest.fixture
def shop(sdk: Sdk) -> Shop:
    """A shop without a customer yet."""
    return Shop(sdk)


def lines(invoice: dict[str, Any]) -> list[int]:
    """The amounts of an invoice's lines."""
    return [line["amount"] for line in invoice["lines"]["data"]]
