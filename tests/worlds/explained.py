"""A business whose usage is archived in ClickHouse and billed by the simulator, for tests that explain its invoices."""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, cast

from aggregators.binding_timeline import overlaps, timeline
from pipeline.billing.customers import BindingResolver
from pipeline.billing.sender import StripeSender
from pipeline.explaining.quarantine import in_quarantine
from pipeline.explaining.stores import ExplainStores
from pipeline.http.operator_stores import OperatorStores
from pipeline.roles.operating import operator_tables
from pipeline.webhooks.walker import CURSOR
from portal.tokens import OPERATOR, signed
from schemas.clock import DAY_MS, HOUR_MS
from schemas.meters import MeterSet
from sinks.clickhouse.client import ClickHouse
from sinks.clickhouse.corrections import ClickHouseCorrections
from sinks.clickhouse.evidence import ClickHouseEvidence
from sinks.clickhouse.fake import FakeClickHouse
from sinks.clickhouse.fake_reconciliations import FakeReconciliations
from sinks.clickhouse.reader import ClickHouseReader
from sinks.clickhouse.writer import ClickHouseStore
from sinks.sql.fake import FakeSideTables
from sinks.stripe.invoice_items import StripeClientInvoiceItems
from tests.services.stripe import TEST_KEY
from tests.worlds.billed import CALLS, BilledDeployment, billed_deployment, remirror
from tests.worlds.gateway import running
from tests.worlds.paged import SECRET as PAGE_SECRET
from tests.worlds.paged import serving
from tests.worlds.reconciler import DECEMBER_MS, NOVEMBER_MS
from tests.worlds.sold import catalog_file, sell

PLANS: Final = """\
  api:
    version: 1
    prices:
      - {component: base, month: {usd: "49"}}
      - component: calls
        meter: calls
        tiers:
          - {up_to: included, price: {usd: "0"}}
          - {up_to: 100000, price: {usd: "0.002"}}
          - {up_to: inf, price: {usd: "0.001"}}
    included: {calls: 10000}
  team:
    version: 1
    prices:
      - {component: seat, quantity: seats, included: 10, month: {usd: "15"}}
"""
SCOPE: Final = "test:acct_simulator"


class Explained(BilledDeployment):
    """A deployment whose invoices and events are explained."""

    tables: FakeSideTables
    stores: ExplainStores
    prices: Mapping[str, str]

    async def open_stores(self, clickhouse: ClickHouse) -> None:
        """Use the real archive, side tables with the ledger of intents, and the catalog's prices."""
        store, reader = ClickHouseStore(clickhouse), ClickHouseReader(clickhouse)
        self.clickhouse = cast("FakeClickHouse", store)
        self.views = replace(self.views, reader=reader, hourly=store)
        self.tables = FakeSideTables(timeline, overlaps)
        await self.tables.migrate(SCOPE, self.world.log_id)
        payers = BindingResolver(self.store.accounts, self.world.partitions)
        self._sender = StripeSender(self.log, self.tables.intents, self.meters, payers, self.clock, random.Random(1))
        for partition in range(self.world.partitions):
            self._reports_read_to[partition] = await self._sender.start_offset(partition) or 0
        self.prices = await sell(self, self.tables, catalog_file(PLANS))
        evidence = ClickHouseEvidence(clickhouse)
        looked, corrections = in_quarantine(self.log), ClickHouseCorrections(clickhouse)
        self.stores = ExplainStores(self.clock, self.tables, evidence, reader, _in_force, looked, corrections)

    async def buy(self, account: str, *keys: str, quantity: int = 1, **params: Any) -> str:
        """Subscribe a new customer to prices of the catalog, and link the account."""
        items: list[dict[str, Any]] = []
        for key in keys:
            item: dict[str, Any] = {"price": self.prices[f"tm.{key}.month.usd"]}
            items.append(item if key.endswith("calls") else {**item, "quantity": quantity})
        subscription = await self.subscribe(account, items=items, **params)
        await self.tables.link(account, self.customers[account], NOVEMBER_MS, "ann", "", self.clock.ms)
        return subscription

    async def november(self, *uses: tuple[str, str, int, str]) -> None:
        """Let November pass with events (account, calls, day, id; an id may come again), and have it billed."""
        for account, calls, day, name in sorted(uses, key=lambda use: use[2]):
            await self.until(NOVEMBER_MS + day * DAY_MS)
            await self.emit(account, type_="calls", calls=calls, id=name)
        await self.settle()
        await self.until(DECEMBER_MS + 3 * HOUR_MS)
        await self.settle()
        await self.mirror()

    async def mirror(self) -> None:
        """Bring Stripe's objects and prices into the side tables."""
        await remirror(self, self.tables)
        items = StripeClientInvoiceItems(TEST_KEY, self.url)
        unknown = {
            *await self.tables.bills.unknown_prices([]),
            *await self.tables.bills.unknown_prices(
                [str(row["id"]) for row in (await self.tables.mirror())["invoices"]]
            ),
        }
        await self.tables.bills.add_prices([await items.price(price) for price in sorted(unknown)])
        await items.close()

    async def billed(self, account: str) -> list[tuple[str, int]]:
        """The ids and totals of an account's invoices, oldest first."""
        rows = await self.tables.account_records.invoices(account, 100)
        return [(str(row["id"]), int(row["total_minor"] or 0)) for row in reversed(rows)]


async def _in_force() -> MeterSet:
    return MeterSet.model_validate(CALLS)


@contextlib.asynccontextmanager
async def explained_business(clickhouse: ClickHouse) -> AsyncIterator[Explained]:
    """A business that opens on November 1 and sells `PLANS`."""
    async with billed_deployment(Explained) as business:
        await business.open_stores(clickhouse)
        yield business


@contextlib.asynccontextmanager
async def pages_of(business: Explained, account: str, folder: Path) -> AsyncIterator[tuple[str, str]]:
    """The addresses of the account's page and of the operator's page, on a port of this machine."""
    secrets = folder / "page_secrets"
    secrets.write_text(f"{PAGE_SECRET}\n")

    async def given(what: Any) -> Any:
        return what

    async def no_redrive(_report: str, _by: str, _reason: str) -> str:
        return ""

    tables = business.tables
    operator = OperatorStores(lambda: given(operator_tables(tables)), FakeReconciliations(), CURSOR, no_redrive)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        stores = {
            "meter_set": _in_force,
            "catalog": lambda: given(tables.catalog),
            "records": lambda: given(tables.account_records),
            "evidence": business.stores.evidence,
            "explain": lambda: given(business.stores),
            "operator": operator,
        }
        settings = {"page_url": url, "page_secrets": secrets}
        async with (
            running(folder, business.world, settings, **stores) as gateway,
            serving(gateway.app, listening),
        ):
            until_ms = business.clock.now_ms() + DAY_MS
            yield (
                f"{url}/page/{signed(account, until_ms, PAGE_SECRET)}/",
                f"{url}/operator/{signed('ann', until_ms, PAGE_SECRET, OPERATOR)}/",
            )
