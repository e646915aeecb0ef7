"""The words of the scenarios. Each word is one or two calls of stripe-python; amounts are in cents, moments are UTC.

`Account.sign_up`, `use`, `change_plan`, `advance`, `decline_next`, `replace_card`, `deliver`, `invoice`, `balance` …
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import pytest

from stripe_simulator import payments
from stripe_simulator.faults import Fault, FaultKind
from tests.scenarios.receiver import Receiver
from tests.services.stripe_sdk import Sdk
from tests.services.stripe_shop import Shop, at

# A sandbox gives a delivery up after three retries, which end after this many hours.
GIVEN_UP_H: Final = 4
INVOICE_NOW: Final = "always_invoice"
ON_NEXT_INVOICE: Final = "create_prorations"


@dataclass(frozen=True)
class Invoice:
    """An invoice as an accountant reads it: status, amounts of the lines, tax, and what the customer owes."""

    id: str
    status: str
    lines: list[int]
    tax: int
    total: int
    due: int


class Account:
    """One customer on a test clock, with at most one subscription at a time."""

    def __init__(self, sdk: Sdk, receiver: Receiver) -> None:
        self.sdk = sdk
        self.receiver = receiver
        self._shop = Shop(sdk)

    async def open(self, on: str, card: str = "pm_card_visa", *, country: str = "") -> None:
        """A new customer on a clock that stands at `on`."""
        await self._shop.open(on, card)
        if country:
            await self.sdk("v1.customers.update", self.customer, {"address": {"country": country}})

    async def another_customer(self) -> None:
        """A further customer on the same clock, to whom the words apply from now on."""
        self._shop.customer = (await self.sdk("v1.customers.create", {"test_clock": self._shop.clock}))["id"]
        await self._shop.use_card("pm_card_visa")

    @property
    def customer(self) -> str:
        """The customer's id."""
        return self._shop.customer

    # What is sold.

    async def plan(self, cents: int | str, every: str = "month", **fields: Any) -> str:
        """A price of a new product; `cents` as text for fractions of a cent."""
        if isinstance(cents, str):
            return await self._shop.price(0, every, unit_amount_decimal=cents, **fields)
        return await self._shop.price(cents, every, **fields)

    async def meter(self) -> str:
        """The meter of calls."""
        return await self._shop.meter()

    async def per_call(self, meter: str, cents: str) -> str:
        """A monthly price for each call."""
        return await self._shop.metered(meter, unit_amount_decimal=cents)

    async def tiered(self, meter: str, mode: str, *tiers: tuple[int | str, str]) -> str:
        """A monthly price of calls in tiers of (last unit, cents for each unit)."""
        rows = [{"up_to": up_to, "unit_amount_decimal": cents} for up_to, cents in tiers]
        return await self._shop.metered(meter, billing_scheme="tiered", tiers_mode=mode, tiers=rows)

    async def grants(self, price: str, feature: str) -> None:
        """Entitle whoever pays the price to a feature."""
        body = {"lookup_key": feature, "name": feature}
        created = await self.sdk("v1.entitlements.features.create", body)
        product = (await self.sdk("v1.prices.retrieve", price))["product"]
        await self.sdk("v1.products.features.create", product, {"entitlement_feature": created["id"]})

    async def coupon(self, **params: Any) -> str:
        """A coupon for ever, in USD."""
        params = {"duration": "forever", **params} | ({"currency": "usd"} if "amount_off" in params else {})
        return str((await self.sdk("v1.coupons.create", params))["id"])

    async def grant_credit(self, cents: int, **params: Any) -> str:
        """A credit grant for metered prices."""
        amount = {"type": "monetary", "monetary": {"currency": "usd", "value": cents}}
        scope = {"applicability_config": {"scope": {"price_type": "metered"}}}
        body = {"customer": self.customer, "name": "credit", "amount": amount, "category": "paid", **scope, **params}
        return str((await self.sdk("v1.billing.credit_grants.create", body))["id"])

    # What the customer does.

    async def sign_up(self, *prices: str, seats: int = 1, **params: Any) -> str:
        """Subscribe to prices and return the subscription's status. Metered prices have no seats."""
        items = []
        for price in prices:
            recurring = (await self.sdk("v1.prices.retrieve", price))["recurring"]
            items.append({"price": price} | ({} if recurring["meter"] else {"quantity": seats}))
        return str((await self._shop.subscribe(*items, **params))["status"])

    async def use(self, calls: int | str, moment: str) -> None:
        """Report calls that the customer made."""
        await self._shop.use(calls, moment)  # type: ignore[arg-type]  # decimals are reported as text

    async def change_plan(self, price: str = "", *, seats: int = 0, billed: str = INVOICE_NOW, **params: Any) -> None:
        """Change price or seats now; `billed` is Stripe's `proration_behavior`."""
        change: dict[str, Any] = ({"price": price} if price else {}) | ({"quantity": seats} if seats else {})
        await self._shop.change(proration_behavior=billed, **change, **params)

    async def add(self, price: str, **params: Any) -> None:
        """Add a price to the subscription."""
        await self.sdk("v1.subscription_items.create", {"subscription": self.subscription, "price": price, **params})

    async def schedule_plan(self, price: str, seats: int = 1) -> str:
        """Change the price at the end of the period. Returns the schedule."""
        return await self._shop.schedule(price, seats)

    async def schedule_metered(self, price: str) -> str:
        """Change to a metered price, which has no seats, at the end of the period. Returns the schedule."""
        return await self._shop.schedule(price, 0)

    async def release(self, schedule: str) -> None:
        """Give a scheduled change up."""
        await self.sdk("v1.subscription_schedules.release", schedule)

    async def replace_card(self, card: str = "pm_card_visa") -> None:
        """Pay with another card from now on."""
        await self._shop.use_card(card)

    async def use_card_number(self, number: str, *, expires: tuple[int, int]) -> None:
        """Pay with a card that expires at the end of (year, month)."""
        card = {"number": number, "exp_year": expires[0], "exp_month": expires[1]}
        method = await self.sdk("v1.payment_methods.create", {"type": "card", "card": card})
        await self._shop.use_card(method["id"])

    async def cancel(self, **params: Any) -> None:
        """Cancel the subscription now."""
        await self.sdk("v1.subscriptions.cancel", self.subscription, params)

    async def void(self, invoice: Invoice) -> None:
        """Void an invoice."""
        await self.sdk("v1.invoices.void_invoice", invoice.id)

    async def pay(self) -> None:
        """Pay the last invoice now."""
        await self.sdk("v1.invoices.pay", (await self.invoice()).id)

    # What happens to the customer.

    async def advance(self, to: str) -> None:
        """Let time pass."""
        await self._shop.advance(to)

    async def decline_next(self, reason: str, times: int = 1) -> None:
        """Decline the customer's next charges with a decline code."""
        payments.decline_next(self.sdk.simulator.test, self.customer, reason, times)

    # What one can see.

    @property
    def subscription(self) -> str:
        """The subscription's id."""
        return self._shop.subscription

    async def state(self) -> dict[str, Any]:
        """The subscription at Stripe."""
        return await self._shop.get()

    async def status(self) -> str:
        """The subscription's status."""
        return str((await self.state())["status"])

    async def price(self) -> str:
        """The price of the first item."""
        return str((await self.state())["items"]["data"][0]["price"]["id"])

    async def period_end(self) -> int:
        """The end of the current period."""
        return int((await self.state())["items"]["data"][0]["current_period_end"])

    async def invoices(self) -> list[Invoice]:
        """All invoices, oldest first."""
        return [await self._read(body) for body in await self._shop.invoices()]

    async def invoice(self) -> Invoice:
        """The last invoice."""
        return (await self.invoices())[-1]

    async def bills(self) -> list[tuple[str, int]]:
        """Status and amount due of all invoices, oldest first."""
        return [(invoice.status, invoice.due) for invoice in await self.invoices()]

    async def preview(self, **params: Any) -> Invoice:
        """The next invoice after a change that is not made. `price` and `seats` change the first item."""
        item = {"id": (await self.state())["items"]["data"][0]["id"]}
        item |= {name: params.pop(key) for key, name in (("price", "price"), ("seats", "quantity")) if key in params}
        details = {"items": [item], **params} if len(item) > 1 else params
        body = {"subscription": self.subscription} | ({"subscription_details": details} if details else {})
        return await self._read(await self.sdk("v1.invoices.create_preview", body))

    async def preview_new(self, price: str, seats: int) -> Invoice:
        """The first invoice of a subscription that does not exist."""
        details = {"items": [{"price": price, "quantity": seats}]}
        body = {"customer": self.customer, "subscription_details": details}
        return await self._read(await self.sdk("v1.invoices.create_preview", body))

    async def all_paid(self, reason: str) -> list[Invoice]:
        """The paid invoices of all customers with a `billing_reason`, by their events."""
        bodies: list[Any] = [body for body in self.receiver.events.values() if body["type"] == "invoice.paid"]
        invoices = [body["data"]["object"] for body in bodies]
        return [await self._read(body) for body in invoices if body["billing_reason"] == reason]

    async def quantities(self, price: str) -> list[int]:
        """The quantities of a price's lines on the last invoice."""
        rows = (await self._shop.invoices())[-1]["lines"]["data"]
        return [row["quantity"] for row in rows if row["pricing"]["price_details"]["price"] == price]

    async def discounts(self) -> list[int]:
        """The discount of each line of the last invoice."""
        rows = (await self._shop.invoices())[-1]["lines"]["data"]
        return [sum(cut["amount"] for cut in row["discount_amounts"]) for row in rows]

    async def counted(self, meter: str, start: str, end: str) -> float:
        """What Stripe's meter has counted of the customer."""
        body = {"customer": self.customer, "start_time": at(start), "end_time": at(end)}
        page = await self.sdk("v1.billing.meters.event_summaries.list", meter, body)
        return float(page["data"][0]["aggregated_value"])

    async def credits_used(self) -> list[tuple[str, int]]:
        """What invoices took from credit grants, in order."""
        page = await self.sdk("v1.billing.credit_balance_transactions.list", {"customer": self.customer, "limit": 100})
        debits = [row for row in page["data"][::-1] if row["type"] == "debit"]
        return [(row["credit_grant"], row["debit"]["amount"]["monetary"]["value"]) for row in debits]

    async def pending(self) -> list[int]:
        """The amounts that wait for the next invoice."""
        return await self._shop.pending()

    async def credit_left(self) -> int:
        """What is left of all credit grants."""
        scope = {"type": "applicability_scope", "applicability_scope": {"price_type": "metered"}}
        body = {"customer": self.customer, "filter": scope}
        summary = await self.sdk("v1.billing.credit_balance_summary.retrieve", body)
        return int(summary["balances"][0]["available_balance"]["monetary"]["value"])

    async def balance(self) -> int:
        """The customer's balance: negative is a credit."""
        return int((await self.sdk("v1.customers.retrieve", self.customer))["balance"])

    async def features(self) -> list[str]:
        """The lookup keys of what the customer is entitled to."""
        page = await self.sdk("v1.entitlements.active_entitlements.list", {"customer": self.customer})
        return sorted(row["lookup_key"] for row in page["data"])

    async def happened(self, kind: str) -> list[dict[str, Any]]:
        """The events of a type, oldest first."""
        page = await self.sdk("v1.events.list", {"type": kind, "limit": 100})
        return list(page["data"][::-1])

    async def _read(self, body: dict[str, Any]) -> Invoice:
        rows = body["lines"]["data"]
        if body["lines"]["has_more"]:
            rows = (await self.sdk("v1.invoices.line_items.list", body["id"], {"limit": 100}))["data"]
        tax = sum(entry["amount"] for entry in body["total_taxes"])
        return Invoice(
            body["id"], body["status"], [row["amount"] for row in rows], tax, body["total"], body["amount_due"]
        )

    # Webhooks.

    def disturb(self, seed: int) -> None:
        """Disturb deliveries: for two hours half of the attempts are lost, and many arrive late or three times."""
        now_ms = self.sdk.simulator.now_ms()
        for kind, probability, reason in (
            (FaultKind.DELIVERY_DROPPED, 0.5, ""),
            (FaultKind.DELIVERY_DUPLICATED, 0.3, "3"),
            (FaultKind.DELIVERY_DELAYED, 0.5, f"0-{60 + seed}"),
        ):
            fault = Fault(kind, count=-1, probability=probability, reason=reason, until_ms=now_ms + 2 * 3_600_000)
            self.sdk.simulator.faults.add(fault)

    async def deliver(self) -> None:
        """Wait until all webhooks have arrived, and compare them with Stripe's own list of events."""
        for _ in range(GIVEN_UP_H * 4):
            await self.sdk.simulator.delivered()
            self.sdk.clock.advance(900_000)
        await self.sdk.simulator.delivered()
        journal: dict[str, Any] = {}
        cursor: dict[str, Any] = {}
        while True:
            page = await self.sdk("v1.events.list", {"limit": 100, **cursor})
            journal |= {event["id"]: event for event in page["data"]}
            if not page["has_more"]:
                break
            cursor = {"starting_after": page["data"][-1]["id"]}
        received = self.receiver.events

        assert received.keys() == journal.keys()
        assert {key: event["type"] for key, event in received.items()} == {
            key: event["type"] for key, event in journal.items()
        }


# For a scenario in which webhooks matter: once without faults, and with two seeds of delivery faults.
with_delivery_faults = pytest.mark.parametrize(
    "account", [0, 1, 2], ids=["no faults", "delivery faults 1", "delivery faults 2"], indirect=True
)

__all__ = ["INVOICE_NOW", "ON_NEXT_INVOICE", "Account", "Invoice", "at", "with_delivery_faults"]
