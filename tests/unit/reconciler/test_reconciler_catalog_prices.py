"""Invoices of prices that `catalog apply` made: the reconciler rates tiers, packages and volume as Stripe does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

import pytest
import pytest_asyncio

from aggregators.binding_timeline import timeline
from reconciler.causes import Cause, Pair, Verdict
from reconciler.report import Row
from schemas.clock import DAY_MS, HOUR_MS, MINUTE_MS
from sinks.sql.fake import FakeSideTables
from tests.worlds.billed import BilledDeployment, billed_deployment
from tests.worlds.reconciler import DECEMBER_MS, NOVEMBER_MS
from tests.worlds.sold import bill_totals, catalog_file, sell

PLANS: Final = """\
  graduated:
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
  volume:
    version: 1
    prices:
      - component: calls
        meter: calls
        mode: volume
        tiers:
          - {up_to: 5, price: {usd: "7"}}
          - {up_to: 10, price: {usd: "6.50"}, flat: {usd: "1"}}
          - {up_to: inf, price: {usd: "6"}}
  package:
    version: 1
    prices:
      - {component: calls, meter: calls, package: 60, month: {usd: "10"}}
  unit:
    version: 1
    prices:
      - {component: calls, meter: calls, month: {usd: "0.0005"}}
"""


@pytest_asyncio.fixture
async def billed() -> AsyncIterator[BilledDeployment]:
    """A deployment on the simulator."""
    async with billed_deployment(BilledDeployment) as deployment:
        yield deployment


async def reconciled(billed: BilledDeployment, plan: str, calls: str, late: str = "") -> tuple[Verdict, Row]:
    """What the reconciler says of November, in which an account of a plan used so many calls, and
    `late` more that were reported after the invoice was final."""
    tables = FakeSideTables(timeline)
    await tables.migrate("test:acct_simulator", billed.world.log_id)
    prices = await sell(billed, tables, catalog_file(PLANS))
    own = [identifier for key, identifier in prices.items() if key.startswith(f"tm.{plan}.")]
    await billed.subscribe("ada", *own)
    await billed.until(NOVEMBER_MS + 9 * DAY_MS)
    await billed.use("ada", calls)
    await billed.settle()
    if late:
        await billed.until(DECEMBER_MS + 30 * MINUTE_MS)
        await billed.use("ada", late, DECEMBER_MS - 10 * MINUTE_MS)
    await billed.until(DECEMBER_MS + 3 * HOUR_MS)
    await billed.settle()
    report = await billed.reconcile()
    november = [row for row in (*report.confirmed, *report.rows) if row.pair is Pair.INVOICES and row.period]
    return report.verdict, next(row for row in november if row.period and row.period.end_ms == DECEMBER_MS)


@pytest.mark.parametrize(
    ("plan", "calls", "cents"),
    [
        pytest.param("graduated", "137510", 4_900 + 18_000 + 3_751, id="graduated, with what is included"),
        pytest.param("graduated", "9999.5", 4_900, id="less than what is included"),
        pytest.param("volume", "25", 15_000, id="volume"),
        pytest.param("volume", "6", 3_900 + 100, id="volume with a flat amount"),
        pytest.param("package", "61", 2_000, id="a begun package"),
        pytest.param("package", "120", 2_000, id="whole packages"),
        pytest.param("unit", "12344", 617, id="617.2"),
    ],
)
async def test_a_month_is_confirmed(billed: BilledDeployment, plan: str, calls: str, cents: int) -> None:
    verdict, row = await reconciled(billed, plan, calls)

    assert cents == (await bill_totals(billed, "ada"))[-1]
    assert (Verdict.EQUAL, Cause.CONFIRMED, calls) == (verdict, row.cause, row.expected)


@pytest.mark.parametrize(
    ("plan", "calls", "late", "cause"),
    [
        pytest.param("package", "61", "59", Cause.CONFIRMED, id="the rest of a package that is paid"),
        pytest.param("package", "61", "60", Cause.UNBILLED, id="another package"),
        pytest.param("graduated", "100", "9900", Cause.CONFIRMED, id="what is included"),
        pytest.param("graduated", "100", "9909.5", Cause.UNBILLED, id="beyond what is included"),
        pytest.param("volume", "5", "5", Cause.UNBILLED, id="another tier"),
    ],
)
async def test_late_usage_is_unbilled_if_it_costs_something(
    billed: BilledDeployment, plan: str, calls: str, late: str, cause: Cause
) -> None:
    """The invoice is final when the usage comes; what is left of a paid package or of what is included is free."""
    _, row = await reconciled(billed, plan, calls, late)

    assert cause is row.cause, row
