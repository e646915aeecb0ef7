"""The backtest on real stores: usage that was counted and billed by the simulator, against cents computed by hand."""

from __future__ import annotations

import csv
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, cast

import pytest_asyncio

from aggregators.backtest import Span, price_change
from aggregators.binding_timeline import overlaps, timeline
from pipeline.commands.backtest import Backtest, backtest_document, backtest_lines, bills_file, run_backtest
from schemas.backtest import LeftOut
from schemas.clock import DAY_MS, HOUR_MS
from sinks.clickhouse.client import ClickHouse
from sinks.clickhouse.fake import FakeClickHouse
from sinks.clickhouse.period_totals import ClickHousePeriodTotals
from sinks.clickhouse.reader import ClickHouseReader
from sinks.clickhouse.writer import ClickHouseStore
from sinks.sql.store import PostgresSideTables
from tests.worlds.billed import BilledDeployment, billed_deployment, remirror
from tests.worlds.reconciler import DECEMBER_MS, NOVEMBER_MS
from tests.worlds.sold import bill_totals, catalog_file, parsed, sell

BEFORE: Final = """\
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
      - {component: seat, quantity: seats, included: 10, month: {usd: "15", jpy: 2250}}
  hours:
    version: 1
    prices:
      - {component: hours, meter: calls, package: 60, month: {usd: "10"}}
  small:
    version: 1
    prices:
      - {component: small, meter: calls, month: {usd: "0.0005"}}
  same:
    version: 1
    prices:
      - {component: base, month: {usd: "1"}}
"""
AFTER: Final = """\
  api:
    version: 2
    prices:
      - {component: base, month: {usd: "55"}}
      - component: calls
        meter: calls
        tiers:
          - {up_to: included, price: {usd: "0"}}
          - {up_to: 100000, price: {usd: "0.002"}}
          - {up_to: inf, price: {usd: "0.001"}}
    included: {calls: 20000}
  team:
    version: 2
    prices:
      - {component: seat, quantity: seats, included: 12, month: {usd: "16", jpy: 2400}}
  hours:
    version: 2
    prices:
      - component: hours
        meter: calls
        mode: volume
        tiers:
          - {up_to: 5, price: {usd: "7"}}
          - {up_to: 10, price: {usd: "6.50"}}
          - {up_to: inf, price: {usd: "6"}}
  small:
    version: 2
    prices:
      - component: small
        meter: calls
        tiers:
          - {up_to: 5, price: {usd: "7"}}
          - {up_to: 10, price: {usd: "6.50"}}
          - {up_to: inf, price: {usd: "6"}}
  same:
    version: 1
    prices:
      - {component: base, month: {usd: "1"}}
"""
# By account: the plans, currency, and the minor units of two invoices by the old and by the new prices. The first
# invoice, of November 1, has only the fees; the second one has the fees of December and the usage of November.
GOLDEN: Final = {
    # 137 510 calls: 4900 + (4900 + 18000 + 3751); 5500 + (5500 + 80000 * 0.2 + 37510 * 0.1).
    "ada": ("api@1 → api@2", "usd", 31_551, 30_751),
    # 5 000 calls, which both include.
    "bob": ("api@1 → api@2", "usd", 9_800, 11_000),
    # 13 seats: 3 * 1500 twice; 1 * 1600 twice. In yen without decimals: 3 * 2250, 1 * 2400.
    "cyd": ("team@1 → team@2", "usd", 9_000, 3_200),
    "dora": ("team@1 → team@2", "jpy", 13_500, 4_800),
    # 61 minutes: two begun hours; 61 * 600 by volume.
    "gus": ("hours@1 → hours@2", "usd", 2_000, 36_600),
    # 12 344 * 0.05 = 617.2; graduated 5 * 700 + 5 * 650 + 12 334 * 600.
    "hal": ("small@1 → small@2", "usd", 617, 7_407_150),
}
USED: Final = {"ada": ("100000", "37510"), "bob": ("5000", "0"), "gus": ("60.5", "0.5"), "hal": ("12000", "344")}


class Shop(BilledDeployment):
    """A deployment whose usage is relayed into ClickHouse and whose mirror is in PostgreSQL."""

    tables: PostgresSideTables
    period_totals: ClickHousePeriodTotals
    prices: dict[str, str]

    async def buy(self, account: str, *keys: str, quantity: int = 1, currency: str = "usd", link: bool = True) -> None:
        """Subscribe a new customer to prices of the catalog, and link the account."""
        metered = ("calls", "hours", "small")
        items: list[dict[str, Any]] = []
        for key in keys:
            item: dict[str, Any] = {"price": self.prices[f"tm.{key}.month.{currency}"]}
            items.append(item if key.endswith(metered) else {**item, "quantity": quantity})
        await self.subscribe(account, items=items)
        if link:
            await self.tables.link(account, self.customers[account], NOVEMBER_MS, "ann", "", self.clock.ms)

    async def backtest(self, plans: str, write: Any = lambda _: None) -> Backtest:
        """The backtest of a file on what was billed since November 1, as the command makes it."""
        catalog = parsed(catalog_file(plans, version=2))
        complete_ms = await self.period_totals.complete_up_to_ms(self.world.partitions) - catalog.policy.grace_ms
        change = price_change(await self.tables.catalog.standing(), catalog)
        span = Span(NOVEMBER_MS, self.clock.ms, complete_ms)
        return await run_backtest(self.tables.payers, self.period_totals, change, span, write)


@pytest_asyncio.fixture
async def shop(clickhouse: ClickHouse, postgres_url: str) -> AsyncIterator[Shop]:
    """A shop that opens on November 1 with the prices in force."""
    async with billed_deployment(Shop) as shop:
        store = ClickHouseStore(clickhouse)
        shop.clickhouse = cast("FakeClickHouse", store)
        shop.views = replace(shop.views, reader=ClickHouseReader(clickhouse), hourly=store)
        shop.period_totals = ClickHousePeriodTotals(clickhouse)
        shop.tables = PostgresSideTables(postgres_url, timeline, overlaps=overlaps)
        try:
            await shop.tables.migrate("test:acct_simulator", shop.world.log_id)
            shop.prices = dict(await sell(shop, shop.tables, catalog_file(BEFORE)))
            yield shop
        finally:
            await shop.tables.close()


async def sell_november(shop: Shop) -> None:
    """The month of `GOLDEN`, and customers whom the backtest cannot compare."""
    await shop.buy("ada", "api.v1.base", "api.v1.calls")
    await shop.buy("bob", "api.v1.base", "api.v1.calls")
    await shop.buy("cyd", "team.v1.seat", quantity=13)
    await shop.buy("dora", "team.v1.seat", quantity=13, currency="jpy")
    await shop.buy("gus", "hours.v1.hours")
    await shop.buy("hal", "small.v1.small")
    await shop.buy("ivy", "same.v1.base")
    await shop.buy("joe", "api.v1.base", "api.v1.calls", link=False)
    await shop.subscribe("kim", await shop.price(("inf", "2")))
    for day, place in ((4, 0), (19, 1)):
        await shop.until(NOVEMBER_MS + day * DAY_MS)
        for account, quantities in USED.items():
            await shop.use(account, quantities[place])
        await shop.settle()
    await shop.until(DECEMBER_MS + 3 * HOUR_MS)
    await shop.settle()
    await remirror(shop, shop.tables)


async def test_the_bills_of_a_month_to_the_cent(shop: Shop, tmp_path: Path) -> None:
    """Scenarios 1, 2 and 24: what the prices in force bill is what Stripe billed; the rest was computed by hand."""
    await sell_november(shop)
    with bills_file(tmp_path / "bills.csv") as write:
        result = await shop.backtest(AFTER, write)

    found = {bill.account: bill for bill in result.bills()}
    assert {
        account: (bill.plans, bill.currency, bill.before_minor, bill.after_minor) for account, bill in found.items()
    } == GOLDEN
    for account, bill in found.items():
        assert bill.before_minor == sum(await bill_totals(shop, account)), account
        assert (shop.customers[account], 1 if account in ("gus", "hal") else 2) == (bill.customer, bill.invoices)
    assert [4_900, 26_651] == await bill_totals(shop, "ada")
    assert ["dora", "hal", "gus", "cyd", "bob", "ada"] == [bill.account for bill in result.bills()]
    assert (9, 1) == (result.payers, result.unchanged)
    assert {
        LeftOut.RUNNING: 4, LeftOut.NO_ACCOUNT: 1, LeftOut.OTHER_PRICE: 1,
    } == {reason: omitted.count for reason, omitted in result.omitted.items()}  # fmt: skip
    usd = result.totals["usd"]
    assert (3, 2, 0) == (usd.more, usd.less, usd.same)
    assert (1_200 + 34_600 + 7_406_533, -800 - 5_800) == (usd.more_minor, usd.less_minor)
    rows = list(csv.DictReader((tmp_path / "bills.csv").read_text().splitlines()))
    assert {"ada": "-8.00", "dora": "-8700"}.items() <= {row["account"]: row["difference"] for row in rows}.items()
    lines = backtest_lines(result)
    assert lines[1] == (
        "jpy: paying more: 0 (0), paying less: 1 (-8700), paying the same: 0; 13500 by the prices in force, 4800 by "
        "the new ones, -8700"
    )
    assert any(line.startswith("left out: 1 customers belong to no account: cus_") for line in lines)
    document = backtest_document(result)
    assert {"currency": "jpy", "difference": "-8700", "pay_less": 1}.items() <= document["totals"][0].items()


async def test_prices_that_were_applied_bill_what_the_backtest_said(shop: Shop) -> None:
    """The new prices are applied, customers buy them, and the same usage is billed: by Stripe, not by our rating."""
    shop.prices |= await sell(shop, shop.tables, catalog_file(AFTER, version=2))
    await shop.buy("ada", "api.v2.base", "api.v2.calls")
    await shop.buy("cyd", "team.v2.seat", quantity=13)
    await shop.buy("gus", "hours.v2.hours")
    await shop.until(NOVEMBER_MS + 4 * DAY_MS)
    await shop.use("ada", "137510")
    await shop.use("gus", "61")
    await shop.settle()
    await shop.until(DECEMBER_MS + 3 * HOUR_MS)

    assert {account: GOLDEN[account][3] for account in ("ada", "cyd", "gus")} == {
        account: sum(await bill_totals(shop, account)) for account in ("ada", "cyd", "gus")
    }
