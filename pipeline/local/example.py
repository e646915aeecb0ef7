"""The example business of `tidemark dev`: 34 accounts on the plans of the catalog that ships.

A developer who starts for the first time finds plans, subscriptions, links and usage, and can ask what an account may
do. Every step may be repeated: a start that was killed in the middle goes on at the next one.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple

import httpx

from aggregators.instants import format_instant_ms
from pipeline.access.overriding import Wish as GrantWish
from pipeline.clock import SystemClock
from pipeline.commands import access, billing, catalog
from pipeline.commands import credits as credits_
from pipeline.commands.credits import GrantWish as CreditWish
from pipeline.open import DEFAULT_CATALOG
from pipeline.settings import Settings
from pipeline.webhooks.linking import Wish
from schemas.clock import HOUR_MS, MINUTE_MS
from schemas.entitlements import Operation

ACTOR: Final = "tidemark dev"
REASON: Final = "the example business"
CARD: Final = "pm_card_visa"
# The simulator answers one request at a time.
AT_ONCE: Final = 4
EVENTS_AT_ONCE: Final = 500


class Sold(NamedTuple):
    """A price of the catalog by its lookup key without `tm.`, and the quantity; 0 for metered prices."""

    price: str
    quantity: int = 1


class Account(NamedTuple):
    """An account with what its customer subscribes to; nothing: the default plan. `requests` and `scans` are emitted
    once. `disk_gb`: of a disk that it has had for three hours, and that is half as large since an hour ago;
    `task_minutes`: how long a task ran that ended now."""

    name: str
    sold: tuple[Sold, ...] = ()
    trial_days: int = 0
    requests: int = 0
    scans: int = 0
    disk_gb: int = 0
    task_minutes: int = 0


def _essential(
    name: str, locations: int, interval: str = "month", currency: str = "usd", requests: int = 40
) -> Account:
    return Account(name, (Sold(f"essential.v1.location.{interval}.{currency}", locations),), requests=requests)


def _professional(name: str, locations: int, members: int, interval: str = "month", trial_days: int = 0) -> Account:
    sold = (
        Sold(f"professional.v1.location.{interval}.usd", locations),
        Sold(f"professional.v1.member.{interval}.usd", members),
    )
    return Account(name, sold, trial_days, 60)


def _scale(name: str, interval: str = "month") -> Account:
    return Account(name, (Sold(f"scale.v1.base.{interval}.usd"), Sold("scale.v1.tokens.month.usd", 0)), requests=200)


FREE: Final = ("barber", "bookshop", "butcher", "cinema", "florist", "gallery", "garage", "kiosk", "library")
ACCOUNTS: Final = (
    # One account is close to the limit of its plan, and one is beyond it.
    Account("arcade", requests=850),
    Account("atelier", requests=1_000),
    Account("bakery", requests=10, disk_gb=20, task_minutes=150),
    *(Account(name, requests=10) for name in FREE),
    _essential("brewery", 1),
    _essential("cafe", 2),
    _essential("clinic", 3),
    _essential("creamery", 1, "year"),
    _essential("dairy", 4, "year"),
    _essential("dentist", 1, currency="eur"),
    _essential("diner", 2, currency="eur"),
    _essential("izakaya", 2, currency="jpy"),
    _essential("laundry", 1),
    Account(
        "market",
        (Sold("essential.v1.location.month.usd", 5), Sold("extra_calls.v1.addon.month.usd", 2)),
        requests=90,
    ),
    # Its plan includes 500 scans.
    _professional("museum", 1, 12)._replace(scans=180, disk_gb=100, task_minutes=240),
    _professional("newsagent", 2, 8),
    _professional("optician", 3, 5),
    _professional("pharmacy", 6, 30),
    _professional("pizzeria", 2, 9, "year"),
    _professional("printer", 1, 6, "year"),
    _professional("salon", 1, 7, trial_days=30),
    _professional("school", 4, 40, trial_days=30),
    _scale("shipyard"),
    _scale("stadium"),
    _scale("station", "year"),
    _scale("theatre"),
)
# What a person granted: the account, the feature, and the operation with its value.
OVERRIDES: Final = (
    ("cafe", "pos", Operation.SET, "true", "a trial of the point of sale"),
    ("library", "api_calls", Operation.ADD, "4000", "a public library"),
)


class Example:
    """Makes the example business. `settings` are those of the running deployment."""

    def __init__(self, settings: Settings, gateway_url: str, api_key: str, told: Callable[[str], None]) -> None:
        self._settings = settings
        self._gateway_url = gateway_url
        self._api_key = api_key
        self._told = told

    async def make(self) -> None:
        """Apply the catalog, make customers and subscriptions, link the accounts, and emit usage. Repeatable."""
        await self._apply()
        async with self._stripe() as post:
            found = await post("GET", "/v1/prices", limit="100", active="true")
            prices = {price["lookup_key"]: price["id"] for price in found["data"]}
            waiting = asyncio.Semaphore(AT_ONCE)

            async def sign_up(account: Account) -> str:
                async with waiting:
                    return await _signed_up(post, account, prices)

            customers = await asyncio.gather(*(sign_up(account) for account in ACCOUNTS))
        wishes = [
            Wish(account.name, customer, None, ACTOR, REASON)
            for account, customer in zip(ACCOUNTS, customers, strict=True)
        ]
        await billing.link(self._settings, wishes)
        for name, feature, operation, value, reason in OVERRIDES:
            await access.override(self._settings, GrantWish(name, feature, operation, value, None, ACTOR, reason))
        gift = CreditWish("museum", "scans_purchased", 100, "example", "a welcome gift")
        await credits_.make_grant(self._settings, gift, ACTOR)
        await self._emit()
        self._told(f"The example business is there: {len(ACCOUNTS)} accounts on four plans")

    async def _apply(self) -> None:
        checked = await catalog.plan_file(self._settings, DEFAULT_CATALOG)
        assert checked.plan is not None, f"the catalog that ships has problems: {checked.problems}"  # noqa: S101
        await catalog.apply_file(self._settings, checked.plan, ACTOR, REASON, lambda _: None)

    @asynccontextmanager
    async def _stripe(self) -> AsyncIterator[Callable[..., Any]]:
        headers = {"Authorization": f"Bearer {self._settings.stripe_api_key.get_secret_value()}"}
        async with httpx.AsyncClient(base_url=self._settings.stripe_api_base, headers=headers, timeout=30.0) as api:

            async def call(method: str, path: str, *, key: str = "", **fields: str) -> Any:
                if method == "GET":
                    answer = await api.get(path, params=fields)
                else:
                    answer = await api.post(path, data=fields, headers={"Idempotency-Key": key})
                answer.raise_for_status()
                return answer.json()

            yield call

    async def _emit(self) -> None:
        events = usage(SystemClock().now_ms())
        headers = {"Authorization": f"Bearer {self._api_key}", "content-type": "application/cloudevents-batch+json"}
        async with httpx.AsyncClient(base_url=self._gateway_url, headers=headers, timeout=30.0) as gateway:
            for start in range(0, len(events), EVENTS_AT_ONCE):
                body = json.dumps(events[start : start + EVENTS_AT_ONCE])
                (await gateway.post("/v1/events", content=body)).raise_for_status()


def usage(now_ms: int) -> list[dict[str, Any]]:
    """The usage of all accounts, under ids that say which: what is emitted again counts once."""
    shared = {"specversion": "1.0", "source": "example", "time": format_instant_ms(now_ms)}
    request: dict[str, Any] = {**shared, "type": "api.request", "data": {"method": "GET", "region": "eu"}}
    scan: dict[str, Any] = {**shared, "type": "scan.completed", "data": {}}
    events = [
        {**kind, "id": f"{name}-{number}", "subject": account.name}
        for account in ACCOUNTS
        for kind, name, count in ((request, "example", account.requests), (scan, "example-scan", account.scans))
        for number in range(count)
    ]
    return events + [sample for account in ACCOUNTS for sample in _samples(account, shared, now_ms)]


def _samples(account: Account, shared: dict[str, str], now_ms: int) -> Iterator[dict[str, Any]]:
    """What the measured meters read: the sizes of a disk, and a task. Tidemark adds each hour once it has ended."""
    own = {**shared, "subject": account.name}
    sizes = ((3, account.disk_gb), (1, account.disk_gb // 2)) if account.disk_gb else ()
    for hours, gigabytes in sizes:
        at = format_instant_ms(now_ms - hours * HOUR_MS)
        data = {"disk": "main", "gigabytes": gigabytes}
        yield {**own, "id": f"example-disk-{hours}", "type": "disk.resized", "time": at, "data": data}
    if account.task_minutes:
        began = format_instant_ms(now_ms - account.task_minutes * MINUTE_MS)
        yield {**own, "id": "example-task", "type": "task.finished", "data": {"started_at": began}}


async def _signed_up(post: Callable[..., Any], account: Account, prices: dict[str, str]) -> str:
    """A customer with a card and, if the account pays, a subscription; the same ones if they exist. Stripe keeps an
    Idempotency-Key for a day, so a start that was killed goes on for that long."""

    async def made(what: str, path: str, **fields: str) -> dict[str, Any]:
        document: dict[str, Any] = await post("POST", path, key=f"example-{account.name}-{what}", **fields)
        return document

    email = f"owner@{account.name}.example"
    customer = (await made("customer", "/v1/customers", name=account.name.title(), email=email))["id"]
    if not account.sold:
        return str(customer)
    card = (await made("card", f"/v1/payment_methods/{CARD}/attach", customer=customer))["id"]
    default = {"invoice_settings[default_payment_method]": card}
    await made("default", f"/v1/customers/{customer}", **default)
    fields = _items(account.sold, prices)
    if account.trial_days:
        fields["trial_period_days"] = str(account.trial_days)
    await made("subscription", "/v1/subscriptions", customer=customer, **fields)
    return str(customer)


def _items(sold: Sequence[Sold], prices: dict[str, str]) -> dict[str, str]:
    fields = {f"items[{number}][price]": prices[f"tm.{each.price}"] for number, each in enumerate(sold)}
    quantities = {f"items[{number}][quantity]": str(each.quantity) for number, each in enumerate(sold) if each.quantity}
    return fields | quantities
