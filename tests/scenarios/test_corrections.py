"""Corrections at Stripe: while the period is open, and after its invoice. Amounts are cents.

A month of 4900, and calls: 10 000 included, up to 100 000 at 0.2, then at 0.1. So 157 510 calls cost 18000 + 5751.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from pipeline.rollup.corrector import Corrector
from schemas.clock import DAY_MS, HOUR_MS
from sinks.clickhouse.client import ClickHouse
from sinks.clickhouse.corrections import ClickHouseCorrections
from tests.worlds.explained import Explained, explained_business
from tests.worlds.gateway import Gateway, running
from tests.worlds.reconciler import DECEMBER_MS, NOVEMBER_MS

USES = (("op-1", 100_000, 3), ("op-2", 37_000, 9), ("op-3", 510, 20), ("op-4", 20_000, 21))


class Shop:
    """A customer of November who used 157 510 calls by the 21st, a corrector, and the gateway."""

    def __init__(self, business: Explained, door: Gateway, archive: ClickHouseCorrections) -> None:
        self.business, self.door = business, door
        self.corrector = Corrector(business.log, business.clickhouse, archive)

    async def use(self) -> None:
        """The events of November."""
        for name, calls, day in USES:
            await self.business.until(NOVEMBER_MS + day * DAY_MS)
            await self.business.emit("ada", type_="calls", calls=str(calls), id=name)
        await self.flow()

    async def flow(self) -> None:
        """Bring what is in the log to every view and to Stripe, correct, and bring that there too."""
        await self.business.settle()
        for partition in range(self.business.world.partitions):
            await self.corrector.correct(partition)
        # An adjustment has the time of its event, which may be older than the dedup window.
        await self.business.catch_up()
        await self.business.settle()

    async def close(self) -> None:
        """Let Stripe make the invoice of November."""
        await self.business.until(DECEMBER_MS + 3 * HOUR_MS)
        await self.flow()
        await self.business.mirror()

    async def correct(self, name: str, **wish: Any) -> dict[str, Any]:
        """The answer to a correction."""
        body = {"correction": name, "account": "ada", "by": "ann", "reason": "a test run", **wish}
        answer = await self.door.client.post("/v1/corrections", json=body, headers=self.door.bearer("operator"))
        assert answer.status_code in (200, 202), answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def at_stripe(self, start_ms: int) -> float:
        """What Stripe's meter has of the month that begins at an instant."""
        start_s = start_ms // 1_000
        span = {"start_time": start_s, "end_time": start_s + 30 * 86_400}
        body = {"customer": self.business.customers["ada"], **span}
        page = await self.business.sdk("v1.billing.meters.event_summaries.list", self.business.meter, body)
        return float(page["data"][0]["aggregated_value"]) if page["data"] else 0.0

    async def told(self) -> tuple[float, float, list[tuple[str, int]], str]:
        """All that a closed period has: Stripe's meter of both months, the invoices, and the live view."""
        usage = await self.door.get("/v1/usage/current", account="ada")
        months = await self.at_stripe(NOVEMBER_MS), await self.at_stripe(DECEMBER_MS)
        return *months, await self.business.billed("ada"), usage.text.partition('"meters"')[2]


@contextlib.asynccontextmanager
async def opened(clickhouse: ClickHouse, folder: Path, coupon: dict[str, Any] | None = None) -> AsyncIterator[Shop]:
    """The shop, whose customer has the coupon."""
    async with explained_business(clickhouse) as business:
        given: dict[str, Any] = {}
        if coupon:
            given["discounts"] = [{"coupon": (await business.sdk("v1.coupons.create", coupon))["id"]}]
        await business.buy("ada", "api.v1.base", "api.v1.calls", **given)
        archive = ClickHouseCorrections(clickhouse)

        async def explain() -> Any:
            return business.stores

        async with running(folder, business.world, explain=explain, corrections=archive) as door:
            shop = Shop(business, door, archive)
            await shop.use()
            yield shop


@pytest_asyncio.fixture
async def shop(clickhouse: ClickHouse, tmp_path: Path) -> AsyncIterator[Shop]:
    async with opened(clickhouse, tmp_path) as found:
        yield found


def usd(minor: int) -> dict[str, Any]:
    """An amount in the API's answer."""
    return {"minor": minor, "currency": "usd", "exponent": 2}


async def test_a_correction_in_the_open_period_changes_the_invoice(shop: Shop) -> None:
    """op-4 was a test run, and op-2 had 17 000 calls: 117 510 calls cost 18000 + 1751."""
    assert await shop.at_stripe(NOVEMBER_MS) == 157_510

    voided = await shop.correct("t-1", void="op-4")
    amended = await shop.correct("t-2", amend="op-2", data={"calls": "17000"})
    await shop.flow()

    assert (voided["is_closed"], voided["settlements"], amended["settlements"]) == (False, [], [])
    assert await shop.at_stripe(NOVEMBER_MS) == 117_510
    await shop.close()
    assert [total for _, total in await shop.business.billed("ada")] == [4_900, 4_900 + 18_000 + 1_751]


async def test_a_correction_after_the_invoice_says_the_cents_and_changes_no_total(shop: Shop) -> None:
    """Without op-2, 120 510 calls cost 18000 + 2051. With 60 000 calls in op-1, 80 510 cost 14102: a tier less."""
    await shop.close()
    before = await shop.told()
    invoice, total = before[2][-1]
    assert (before[0], total) == (157_510, 4_900 + 18_000 + 5_751)

    look = await shop.correct("t-1", void="op-2", closed_period="credit_note", dry_run=True)
    first = await shop.correct("t-1", void="op-2", closed_period="credit_note")
    await shop.flow()
    second = await shop.correct("t-2", amend="op-1", data={"calls": "60000"}, closed_period="credit_note")
    again = await shop.correct("t-1", void="op-2", closed_period="credit_note")
    await shop.flow()

    (settled,) = first["settlements"]
    assert settled == {
        "meter": "calls", "start": "2026-11-01T00:00:00Z", "end": "2026-12-01T00:00:00Z", "invoice": invoice,
        "unknown": "", "billed_quantity": "157510", "corrected_quantity": "120510", "billed": usd(23_751),
        "settled_before": usd(0), "corrected": usd(20_051), "discount": usd(0), "difference": usd(-3_700),
    }  # fmt: skip
    assert (look["settlements"], again["settlements"], again["state"]) == ([settled], [settled], "known")
    (settled,) = second["settlements"]
    assert (settled["settled_before"], settled["corrected"]) == (usd(-3_700), usd(14_102))
    assert (settled["difference"], settled["corrected_quantity"]) == (usd(14_102 - 20_051), "80510")
    assert await shop.told() == before


@pytest.mark.parametrize(
    ("coupon", "total", "difference"),
    [
        # 20 % of 28 651 are 5730, and of 24 951 they are 4990.
        pytest.param({"percent_off": 20, "duration": "forever"}, 22_921, usd(-3_700 + 740), id="a percentage"),
        pytest.param(
            {"amount_off": 500, "currency": "usd", "duration": "forever"}, 28_151, usd(-3_700), id="an amount"
        ),
        pytest.param({"percent_off": 20, "duration": "once"}, 28_651, usd(-3_700), id="on the invoice before"),
    ],
)
async def test_a_discount_of_the_subscription(
    clickhouse: ClickHouse, tmp_path: Path, coupon: dict[str, Any], total: int, difference: dict[str, Any]
) -> None:
    """The difference is what the invoice would bill less."""
    async with opened(clickhouse, tmp_path, coupon) as shop:
        await shop.close()
        (settled,) = (await shop.correct("t-1", void="op-2", closed_period="credit_note"))["settlements"]

        assert (await shop.business.billed("ada"))[-1][1] == total
        assert (settled["unknown"], settled["difference"]) == ("", difference)
