"""Scenario 26 through the product: usage is counted and reported by Tidemark, and billed by the simulator."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from schemas.clock import DAY_MS, HOUR_MS, MINUTE_MS
from tests.scenarios.product import Product, meters_of
from tests.scenarios.vocabulary import Account

INTERVALS = pytest.mark.parametrize(
    "interval_ms", [5 * MINUTE_MS, HOUR_MS, DAY_MS], ids=["5 minutes", "an hour", "a day"]
)


@pytest_asyncio.fixture
async def product(account: Account) -> AsyncIterator[Product]:
    """The product beside an account that has just signed up for calls at 0.05 cents."""
    await account.open("2027-12-01")
    async with meters_of(account) as meters:
        yield Product(account, meters)


@INTERVALS
@pytest.mark.parametrize("moment", ["2027-12-11 10:30:00", "2027-12-11 10:32:17"], ids=["10:30:00", "10:32:17"])
async def test_26_a_flush_before_the_price_is_swapped(
    account: Account, product: Product, interval_ms: int, moment: str
) -> None:
    """400 000 at 0.05 until then and 350 000 at 0.04 afterwards are 34000, whatever the report interval."""
    meter = await account.meter()
    await account.sign_up(await account.per_call(meter, "0.05"), billing_mode={"type": "flexible"})
    await product.start(interval_ms)
    await product.use(300_000, "2027-12-05")
    await product.use(100_000, "2027-12-11 10:29:59")
    await product.flush(moment)
    await account.change_plan(await account.per_call(meter, "0.04"), billed="create_prorations")
    await product.use(50_000, moment)
    await product.use(300_000, "2027-12-20 23:59:59")
    await product.reach("2028-01-01 00:00:30")
    assert await account.counted(meter, "2027-12-01", "2028-01-01") == 750_000
    await product.reach("2028-01-01 01:00:00")

    billed = await account.invoice()
    assert (sorted(billed.lines), billed.due) == ([14000, 20000], 34000)


@INTERVALS
async def test_26_a_flush_before_a_cancellation_at_once(account: Account, product: Product, interval_ms: int) -> None:
    """The final invoice bills all usage."""
    await account.sign_up(await account.per_call(await account.meter(), "0.05"))
    await product.start(interval_ms)
    await product.use(300_000, "2027-12-11 10:01:00")
    await product.use(100_000, "2027-12-11 10:29:59")
    await product.flush("2027-12-11 10:30:00")
    await account.cancel(invoice_now=True)

    billed = await account.invoice()
    assert (billed.due, await account.status()) == (20000, "canceled")
