"""Customers at Stripe, who sign up, change, pause and cancel, and an operator who links the customers to accounts.

Stripe delivers what happens to the gateway; which deliveries are lost is none of this module's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import httpx

from pipeline.webhooks.held import append_held
from schemas.clock import MINUTE_MS
from schemas.errors import InvalidInput, Transient
from tests.torture.deployment import Tortured
from tests.torture.stripe import KEY, TIMEOUT_S, form

PAUSE_S: Final = (0.1, 0.8)
RETRY_S: Final = 0.3
TRIES_MAX: Final = 200
SIGN_UPS_MIN: Final = 4
SIGN_UP_SHARE: Final = 0.15
# Each account's first binding has the archive recounted, so many accounts would take long to come to rest.
BUYERS_MAX: Final = 16
NEVER_LINKED: Final = 0.15
LINKS_WAITING_MAX: Final = 200


@dataclass
class Buyer:
    """A customer with at most one subscription and one schedule. `account` is "" for a customer that nobody links."""

    account: str
    customer: str
    subscription: str = ""
    schedule: str = ""


class Wanted(NamedTuple):
    """A link that the operator is asked for. From 0 on: for all usage that nobody was named for."""

    account: str
    customer: str
    from_ms: int = 0


class Refused(Exception):
    """Stripe refuses a change, which then does not happen."""


class Shop:
    """Runs until `stop`; then all links are made. `linked` is the account of each linked customer."""

    def __init__(self, deployment: Tortured, seed: int) -> None:
        self._deployment = deployment
        self._dice = random.Random(f"shop {seed}")
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._links: asyncio.Queue[Wanted] = asyncio.Queue(LINKS_WAITING_MAX)
        self._client: httpx.AsyncClient
        self._calls = 0
        self._prices: list[str] = []
        self._buyers: list[Buyer] = []
        self.linked: dict[str, str] = {}
        self.done: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()

    def start(self) -> None:
        """Begin."""
        self._tasks = [asyncio.create_task(run()) for run in (self._trade, self._link_all)]

    async def stop(self) -> None:
        """End after one more sign-up, which the faults of deliveries that still wait befall, and return when all links
        are made. Raises what a task raised."""
        self._stop.set()
        trade, operator = self._tasks
        await trade
        made = asyncio.create_task(self._links.join())
        await asyncio.wait([made, operator], return_when=asyncio.FIRST_COMPLETED)
        self.check()
        operator.cancel()

    def check(self) -> None:
        """Raise what ended a task before its time."""
        for task in self._tasks:
            if task.done() and not task.cancelled():
                task.result()

    def cancel(self) -> None:
        """End at once."""
        for task in self._tasks:
            task.cancel()

    async def _trade(self) -> None:
        headers = {"Authorization": f"Bearer {KEY}"}
        url = self._deployment.stripe.url
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=TIMEOUT_S) as self._client:
            await self._open()
            while not self._stop.is_set():
                await self._turn()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stop.wait(), self._dice.uniform(*PAUSE_S))
            await self._sign_up()

    async def _open(self) -> None:
        """The prices: two of a meter each month, one each year, and a flat one."""
        body = {"display_name": "Rides", "event_name": "rides", "default_aggregation": {"formula": "sum"}}
        meter = (await self._call("POST", "billing/meters", body))["id"]
        metered = {"usage_type": "metered", "meter": meter}
        for amount, recurring in (
            (10, {"interval": "month", **metered}),
            (7, {"interval": "month", **metered}),
            (5, {"interval": "year", **metered}),
            (900, {"interval": "month"}),
        ):
            price = {"currency": "usd", "unit_amount": amount, "product_data": {"name": "x"}, "recurring": recurring}
            self._prices.append((await self._call("POST", "prices", price))["id"])

    async def _turn(self) -> None:
        """One thing that happens, or that Stripe refuses."""
        number = len(self._buyers)
        if number < SIGN_UPS_MIN or (number < BUYERS_MAX and self._dice.random() < SIGN_UP_SHARE):
            await self._sign_up()
            return
        buyer, act = self._dice.choice(self._buyers), self._dice.choice(self.ACTS)
        if not buyer.subscription:
            act = Shop._subscribe
        what = act.__name__.strip("_").replace("_", " ")
        try:
            await act(self, buyer)
            self.done[what] += 1
        except Refused:
            self.refused[what] += 1

    async def _sign_up(self) -> None:
        """A customer with a card and a subscription, linked before, after, or never."""
        dice = self._dice
        customer = (await self._call("POST", "customers", {"email": "a@example.com"}))["id"]
        card = (await self._call("POST", "payment_methods/pm_card_visa/attach", {"customer": customer}))["id"]
        account = "" if dice.random() < NEVER_LINKED else f"shop-{len(self._buyers) + 1}"
        buyer = Buyer(account, customer)
        is_early = dice.random() < 0.5
        if account and is_early:
            await self._ask_for_link(account, customer)
        await self._call("POST", f"customers/{customer}", {"invoice_settings": {"default_payment_method": card}})
        await self._subscribe(buyer)
        if account and not is_early:
            await self._ask_for_link(account, customer)
        self._buyers.append(buyer)
        self.done["sign up"] += 1

    async def _subscribe(self, buyer: Buyer) -> None:
        """A subscription with or without a trial and a second, flat price."""
        dice = self._dice
        prices = [dice.choice(self._prices[:2]), *([self._prices[3]] if dice.random() < 0.3 else [])]
        trial = {"trial_period_days": dice.randint(1, 20)} if dice.random() < 0.4 else {}
        body = {"customer": buyer.customer, "items": [{"price": price} for price in prices], **trial}
        buyer.subscription = (await self._call("POST", "subscriptions", body))["id"]
        buyer.schedule = ""

    async def _cancel(self, buyer: Buyer) -> None:
        await self._call("DELETE", f"subscriptions/{buyer.subscription}")
        buyer.subscription = ""

    async def _cancel_at_the_end(self, buyer: Buyer) -> None:
        """Cancel at the period's end, or think better of it."""
        await self._change(buyer, cancel_at_period_end=self._dice.random() < 0.7)

    async def _pause(self, buyer: Buyer) -> None:
        await self._call("POST", f"subscriptions/{buyer.subscription}/pause")

    async def _resume(self, buyer: Buyer) -> None:
        await self._call("POST", f"subscriptions/{buyer.subscription}/resume")

    async def _change_price(self, buyer: Buyer) -> None:
        """Another price of the same month, or one of a year."""
        body = await self._call("GET", f"subscriptions/{buyer.subscription}")
        price = self._dice.choice(self._prices[:3])
        await self._change(buyer, items=[{"id": body["items"]["data"][0]["id"], "price": price}])

    async def _end_trial(self, buyer: Buyer) -> None:
        await self._change(buyer, trial_end="now")

    async def _schedule(self, buyer: Buyer) -> None:
        """A change at the period's end; the next time, it is called off."""
        if buyer.schedule:
            await self._call("POST", f"subscription_schedules/{buyer.schedule}/release")
            buyer.schedule = ""
            return
        made = await self._call("POST", "subscription_schedules", {"from_subscription": buyer.subscription})
        buyer.schedule = made["id"]
        first = {name: made["phases"][0][name] for name in ("start_date", "end_date")}
        names = ("price", "quantity")
        first["items"] = [{name: item[name] for name in names if name in item} for item in made["phases"][0]["items"]]
        phases = [first, {"items": [{"price": self._dice.choice(self._prices[:3])}]}]
        await self._call("POST", f"subscription_schedules/{buyer.schedule}", {"phases": phases})

    async def _delete(self, buyer: Buyer) -> None:
        """The customer is deleted; another one takes the account from the next minute on."""
        await self._call("DELETE", f"customers/{buyer.customer}")
        buyer.subscription = buyer.schedule = ""
        buyer.customer = (await self._call("POST", "customers", {"email": "b@example.com"}))["id"]
        card = (await self._call("POST", "payment_methods/pm_card_visa/attach", {"customer": buyer.customer}))["id"]
        default = {"invoice_settings": {"default_payment_method": card}}
        await self._call("POST", f"customers/{buyer.customer}", default)
        if buyer.account:
            now_ms = self._deployment.base.clock.now_ms()
            await self._ask_for_link(buyer.account, buyer.customer, (now_ms // MINUTE_MS + 1) * MINUTE_MS)

    ACTS: Final[tuple[Callable[[Shop, Buyer], Awaitable[None]], ...]] = (
        *(2 * (_cancel, _cancel_at_the_end, _end_trial)), *(3 * (_pause, _resume, _change_price, _schedule)), _delete,
    )  # fmt: skip

    async def _change(self, buyer: Buyer, **fields: Any) -> None:
        await self._call("POST", f"subscriptions/{buyer.subscription}", fields)

    async def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """One call, repeated under its key until there is an answer. Raises `Refused`, also for what the simulator does
        not implement."""
        self._calls += 1
        headers = {"Idempotency-Key": f"shop-{self._calls}"} if method == "POST" else {}
        for _ in range(TRIES_MAX):
            try:
                answer = await self._client.request(
                    method, f"/v1/{path}", data=dict(form(body or {})) or None, headers=headers
                )
            except httpx.TransportError:
                answer = None
            if answer is not None and answer.status_code not in (409, 429, 500, 502, 503):
                break
            await asyncio.sleep(RETRY_S)
        else:
            raise AssertionError(f"{method} {path}: {answer and answer.text}")
        if answer.status_code >= 400:
            raise Refused(answer.text)
        return dict(answer.json())

    async def _ask_for_link(self, account: str, customer: str, from_ms: int = 0) -> None:
        await self._links.put(Wanted(account, customer, from_ms))

    async def _link_all(self) -> None:
        """As `tidemark account link`, which a person repeats until it says that it is done."""
        base, tables = self._deployment.base, self._deployment.tables
        while True:
            wanted = await self._links.get()
            while True:
                try:
                    await tables.link(*wanted, "torture", "a customer signed up", base.clock.now_ms())
                    await append_held(base.log, tables, wanted.customer)
                    break
                except Transient:
                    self.refused["link"] += 1
                    await asyncio.sleep(RETRY_S)
                except InvalidInput as error:
                    # The account got another customer within the same minute.
                    if error.field != "starts_ms":
                        raise
                    wanted = wanted._replace(from_ms=wanted.from_ms + MINUTE_MS)
            self.linked[wanted.customer] = wanted.account
            self.done["link"] += 1
            self._links.task_done()
