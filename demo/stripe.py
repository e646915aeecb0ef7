"""The demo's Stripe: customers sign up, faults hit the deliveries of webhooks, and invoices are read.

Everything is read from Stripe's own API, and nothing from Tidemark: so the demo can compare both.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import httpx

from demo import plan
from pipeline.local.dev import SIMULATOR_KEY
from schemas.clock import SECOND_MS

SIGN_UPS_AT_ONCE: Final = 8
DROPPED: Final = "delivery_dropped"
DOUBLED: Final = "delivery_duplicated"
DELAYED: Final = "delivery_delayed"
_FAULTS: Final = (
    {"kind": DROPPED, "count": -1, "probability": 0.15},
    {"kind": DOUBLED, "count": -1, "probability": 0.1},
    {"kind": DELAYED, "count": -1, "probability": 0.3, "reason": "0-60"},
)


class Invoice(NamedTuple):
    """An invoice at Stripe, in cents."""

    customer: str
    reason: str
    status: str
    total: int


class StripeAccount:
    """The account at Stripe, by Stripe's API. `close()` releases the connections."""

    def __init__(self, url: str) -> None:
        self._api = httpx.AsyncClient(base_url=url, timeout=60, headers={"Authorization": f"Bearer {SIMULATOR_KEY}"})
        self._slots = asyncio.Semaphore(SIGN_UPS_AT_ONCE)

    async def close(self) -> None:
        """Close all connections."""
        await self._api.aclose()

    async def begin_faults(self) -> None:
        """Drop, double and delay some deliveries of webhooks from now on."""
        for fault in _FAULTS:
            (await self._api.post("/_simulator/faults", json=fault)).raise_for_status()

    async def end_faults(self) -> None:
        """Deliver all webhooks from now on."""
        (await self._api.delete("/_simulator/faults")).raise_for_status()

    async def happened(self) -> dict[str, int]:
        """How many faults happened, by kind."""
        faults: dict[str, int] = (await self._api.get("/_simulator/faults")).json()["happened"]
        return faults

    async def prices(self) -> list[str]:
        """Create the product; returns the ids of its prices: the base, the units of one meter, and the usage of all
        other meters, which the base covers. `dev` has made the meters."""
        meters = await self._rows("billing/meters", {})
        product = await self._post("products", {"name": "The demo's application"})
        common = {"product": product["id"], "currency": plan.CURRENCY, "recurring[interval]": "month"}
        base = await self._post("prices", {**common, "unit_amount": str(plan.BASE_CENTS)})
        prices = [str(base["id"])]
        for meter in meters:
            cents = plan.UNIT_CENTS if meter["event_name"] == f"tidemark_{plan.METER}" else 0
            metered = {**common, "unit_amount": str(cents), "recurring[usage_type]": "metered"}
            prices.append((await self._post("prices", {**metered, "recurring[meter]": meter["id"]}))["id"])
        return prices

    async def customer(self, account: str) -> tuple[str, str]:
        """Create an account's customer with a card; returns the ids of both."""
        async with self._slots:
            customer = await self._post("customers", {"name": account})
            card = await self._post("payment_methods/pm_card_visa/attach", {"customer": customer["id"]})
            return customer["id"], card["id"]

    async def subscribe(self, account: str, customer: str, card: str, prices: Sequence[str]) -> None:
        """Create the subscription of an account's customer."""
        async with self._slots:
            await self._post(
                "subscriptions",
                {
                    "customer": customer,
                    "default_payment_method": card,
                    **{f"items[{number}][price]": price for number, price in enumerate(prices)},
                    "billing_cycle_anchor": str(plan.anchor_ms(account) // SECOND_MS),
                    # The time until the anchor is free: the first invoice that is not 0 comes at the anchor.
                    "proration_behavior": "none",
                },
            )

    async def price_of(self, lookup_key: str) -> str:
        """The id of a price of the catalog."""
        return str((await self._get("prices", {"lookup_keys[]": lookup_key}))["data"][0]["id"])

    async def buy(self, customer: str, card: str, price: str) -> dict[str, Any]:
        """Create a subscription to one price."""
        return await self._post(
            "subscriptions", {"customer": customer, "default_payment_method": card, "items[0][price]": price}
        )

    async def change_price(self, subscription: dict[str, Any], price: str) -> None:
        """Move a subscription of one item to another price."""
        item = subscription["items"]["data"][0]["id"]
        await self._post(f"subscriptions/{subscription['id']}", {"items[0][id]": item, "items[0][price]": price})

    async def has_drafts(self) -> bool:
        """Whether an invoice is not final yet."""
        return bool((await self._get("invoices", {"status": "draft", "limit": "1"}))["data"])

    async def invoices(self) -> list[Invoice]:
        """All invoices, newest first."""
        return [
            Invoice(row["customer"], row["billing_reason"], row["status"], row["total"])
            for row in await self._rows("invoices", {})
        ]

    async def event_ids(self, event_type: str) -> list[str]:
        """The ids of all events of a type."""
        return [row["id"] for row in await self._rows("events", {"type": event_type})]

    async def _rows(self, path: str, query: dict[str, str]) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        query = {**query, "limit": "100"}
        while True:
            page = await self._get(path, query)
            rows += page["data"]
            if not page["has_more"]:
                return rows
            query = {**query, "starting_after": rows[-1]["id"]}

    async def _post(self, path: str, fields: dict[str, str]) -> dict[str, Any]:
        return _answer(await self._api.post(f"/v1/{path}", data=fields))

    async def _get(self, path: str, query: dict[str, str]) -> dict[str, Any]:
        return _answer(await self._api.get(f"/v1/{path}", params=query))


def _answer(response: httpx.Response) -> dict[str, Any]:
    if response.is_error:
        raise RuntimeError(f"{response.request.url}: {response.text}")
    answer: dict[str, Any] = response.json()
    return answer
