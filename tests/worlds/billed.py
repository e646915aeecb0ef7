"""A deployment on fakes whose Stripe is the simulator over HTTP: invoices are real ones, on one clock with the log."""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator
from typing import Any, Final, TypeVar

from aggregators.binding_timeline import overlaps, timeline
from aggregators.mirror import mirror_rows
from pipeline.billing.customers import BindingResolver
from pipeline.billing.sender import StripeSender
from pipeline.logs.control_records import ensure_deployment
from pipeline.settings import Settings
from reconciler.views import Views
from schemas.billing_events import ObjectKind, StripeEvent, Via
from schemas.clock import HOUR_MS, MINUTE_MS
from schemas.invoices import ITEM_FROM_KEY, ITEM_KEY, ITEM_METER_KEY, ITEM_TO_KEY
from schemas.reports import StripeMeters
from schemas.side_tables import Arrived, Fetched, SideTables, Step
from sinks.sql.fake import FakeSideTables
from sinks.stripe.client import StripeClientMeters
from sinks.stripe.invoices import StripeClientInvoices
from stripe_simulator import SimulatorSettings
from tests.services.stripe import TEST_KEY, ServedSimulator, serve_simulator
from tests.services.stripe_sdk import Sdk
from tests.worlds.clock import ManualClock
from tests.worlds.deployment import SECRET
from tests.worlds.reconciler import NOVEMBER_MS, Deployment

CALLS: Final[dict[str, Any]] = {
    "version": 1,
    "meters": [
        {"slug": "calls", "event_type": "calls", "aggregation": "sum", "value_path": "$.calls", "scale": 3,
         "stripe_event_name": "calls"},
    ],
}  # fmt: skip


class BilledDeployment(Deployment):
    """Accounts whose usage is billed by the simulator. `subscribe` makes an account pay for calls."""

    def __init__(self, served: ServedSimulator) -> None:
        super().__init__()
        self.world.clock = self.clock = served.clock
        self.log = self.world.log = type(self.log)(served.clock)
        self.simulator = served.simulator
        self.url = served.url
        self.sdk = Sdk(served.simulator, served.clock)
        self.meters: StripeMeters = StripeClientMeters(TEST_KEY, served.url, nonce="t")
        self.invoices = StripeClientInvoices(TEST_KEY, served.url)
        self.views = Views(self.store, self.clickhouse, self.clickhouse, self.log, self.meters, None, self.invoices)
        payers = BindingResolver(self.store.accounts, self.world.partitions)
        self._sender = StripeSender(self.log, self.ledger, self.meters, payers, self.clock, random.Random(1))
        self.customers: dict[str, str] = {}
        self.meter = ""

    async def open(self) -> None:
        """Make the log, and the meter at Stripe."""
        self.clock.ms = NOVEMBER_MS
        topics = Settings(partitions=self.world.partitions, retention_days=3650).topics()
        _, account = await self.meters.identity()
        await ensure_deployment(self.log, SECRET, topics, stripe_account=account)
        await self.world.start(CALLS)
        for partition in range(self.world.partitions):
            self._reports_read_to[partition] = await self._sender.start_offset(partition) or 0
        params = {"display_name": "Calls", "event_name": "calls", "default_aggregation": {"formula": "sum"}}
        self.meter = (await self.sdk("v1.billing.meters.create", params))["id"]

    async def price(self, *tiers: tuple[int | str, str], meter: str = "") -> str:
        """A monthly price of calls, in graduated tiers of (last unit, cents for each)."""
        rows = [{"up_to": up_to, "unit_amount_decimal": cents} for up_to, cents in tiers]
        recurring = {"interval": "month", "usage_type": "metered", "meter": meter or self.meter}
        params = {"currency": "usd", "product_data": {"name": "Calls"}, "recurring": recurring}
        tiered = {"billing_scheme": "tiered", "tiers_mode": "graduated", "tiers": rows}
        return str((await self.sdk("v1.prices.create", {**params, **tiered}))["id"])

    async def customer(self, account: str, card: str = "pm_card_visa") -> str:
        """A customer of the account, with a card."""
        customer = (await self.sdk("v1.customers.create", {}))["id"]
        method = await self.sdk("v1.payment_methods.attach", card, {"customer": customer})
        await self.sdk(
            "v1.customers.update", customer, {"invoice_settings": {"default_payment_method": method["id"]}}
        )  # fmt: skip
        self.customers[account] = customer
        return str(customer)

    async def subscribe(self, account: str, *prices: str, **params: Any) -> str:
        """Bind an account to a new customer who subscribes to prices now."""
        customer = self.customers.get(account) or await self.customer(account)
        body = {"customer": customer, "items": [{"price": price} for price in prices], **params}
        subscription = (await self.sdk("v1.subscriptions.create", body))["id"]
        await self.bind(account, stripe_customer=customer)
        return str(subscription)

    async def use(self, account: str, calls: str, at_ms: int | None = None) -> None:
        """Usage, now or at another time."""
        await self.emit(account, type_="calls", at_ms=at_ms, calls=calls)

    async def until(self, at_ms: int) -> None:
        """Let time pass at Stripe and in the log, hour by hour as its ticks do."""
        while self.clock.ms < at_ms:
            await self.advance(min(6 * HOUR_MS, at_ms - self.clock.ms))
            self.simulator.catch_up()

    async def flow(self) -> None:
        """Bring what is in the log to every view."""
        await self.advance(0)
        await self.fold()
        await self.archive()
        await self.relay()
        await self.publish()
        await self.send()
        self.simulator.catch_up()

    async def settle(self) -> None:
        """As in the base, also at Stripe."""
        await self.advance(HOUR_MS)
        await self.flow()
        self.clock.ms += 20 * MINUTE_MS
        self.simulator.catch_up()

    async def add_item(
        self, account: str, start_ms: int, end_ms: int, quantities: tuple[str, str], cents: int, name: str = "tmi_1"
    ) -> str:
        """An invoice item of late usage, as the period-close controller makes it."""
        period = {"start": start_ms // 1_000, "end": end_ms // 1_000}
        metadata = {
            ITEM_KEY: name, ITEM_METER_KEY: "calls", ITEM_FROM_KEY: quantities[0], ITEM_TO_KEY: quantities[1],
        }  # fmt: skip
        params = {
            "customer": self.customers[account], "amount": cents, "currency": "usd", "period": period,
            "metadata": metadata,
        }  # fmt: skip
        return str((await self.sdk("v1.invoice_items.create", params))["id"])

    async def close(self) -> None:
        """Close all connections."""
        await self.sdk.close()
        await self.meters.close()
        await self.invoices.close()


Kind = TypeVar("Kind", bound=BilledDeployment)


@contextlib.asynccontextmanager
async def billed_deployment(kind: type[Kind], **settings: Any) -> AsyncIterator[Kind]:
    """A deployment that begins on November 1."""
    simulated = SimulatorSettings(summary_lag_s=0, validation_window_s=10, **settings)
    async with serve_simulator(ManualClock(NOVEMBER_MS), simulated) as served:
        deployment = kind(served)
        await deployment.open()
        try:
            yield deployment
        finally:
            await deployment.close()


async def mirrored(deployment: BilledDeployment) -> SideTables:
    """Side tables with everything that the simulator has, as the role mirror would write it."""
    tables = FakeSideTables(timeline, overlaps)
    await tables.migrate("test:acct_simulator", deployment.world.log_id)
    await remirror(deployment, tables)
    return tables


async def remirror(deployment: BilledDeployment, tables: SideTables) -> None:
    """Fetch every object again."""
    objects, fetched = deployment.invoices, []
    for kind in ObjectKind:
        names = [name for name, _ in await objects.names(kind)]
        seqs = await tables.fetch_seqs(names)
        fetched += [Fetched(name, seqs[name], mirror_rows(name, await objects.fetch(name))) for name in names]
    offset = await tables.position(0) or 0
    events = [
        Arrived(
            StripeEvent(f"read_{offset}_{place}", "read", deployment.clock.ms // 1_000, "", (each.name,)),
            Via.RESYNC,
            offset,
        )
        for place, each in enumerate(fetched)
    ]
    await tables.commit(Step(0, offset, offset + 1, deployment.clock.ms, events, fetched))
