"""Scenarios 1, 25, 28 and 29: at a month's end the sink bills each unit once. Amounts are cents."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from stripe_simulator.faults import Fault, FaultKind
from tests.worlds.closing import ClosingWorld, ms

NOVEMBER = ("2027-11-01", "2027-12-01")
DECEMBER = ("2027-12-01", "2028-01-01")


@pytest_asyncio.fixture
async def world(request: pytest.FixtureRequest) -> AsyncIterator[ClosingWorld]:
    """A deployment in November; the parameter has the options of the world."""
    world = await ClosingWorld("2027-11-01", **getattr(request, "param", {})).start()
    yield world
    await world.close()


async def test_01_usage_to_invoice(world: ClosingWorld) -> None:
    """137 510 calls: 0 + 90 000 × 0.2 + 37 510 × 0.1 = 21751, of which seven arrive half an hour after the month."""
    tiers = [(10_000, "0"), (100_000, "0.2"), ("inf", "0.1")]
    rows = [{"up_to": up_to, "unit_amount_decimal": cents} for up_to, cents in tiers]
    calls = world.price({"billing_scheme": "tiered", "tiers_mode": "graduated", "tiers": rows})
    await world.sign_up("acme", world.stripe.price(amount=4900), calls)
    await world.publish(world.used("acme", 137_503, "2027-11-20 12:00", NOVEMBER))
    await world.jump("2027-11-20 12:00")
    await world.pump()
    await world.jump("2027-12-01 00:40")
    world.unreported.append(world.used("acme", 7, "2027-12-01 01:00", NOVEMBER))
    await world.advance("2027-12-01 01:10", step_ms=120_000)

    (_, december) = world.invoices("acme")
    assert (december["total"], december["status"]) == (26_651, "paid")
    assert sorted(line["amount"] for line in december["all_lines"]) == [0, 3_751, 4_900, 18_000]
    assert (world.flushed, world.stripe_items("acme")) == (["acme"], [])
    assert (await world.states("acme"))[december["id"]] == "confirmed"


async def in_november(world: ClosingWorld, cents: str = "2") -> None:
    """A thousand calls of November, reported in time; it is December 1, ten past twelve."""
    await world.sign_up("acme", world.per_call(cents))
    await world.publish(world.used("acme", 1_000, "2027-11-20 12:00", NOVEMBER))
    await world.jump("2027-11-20 12:00")
    await world.pump()
    await world.jump("2027-12-01 00:10")


async def to_january(world: ClosingWorld) -> list[int]:
    """The totals of the first invoice, that of November and that of December."""
    await world.jump("2028-01-01 01:10")
    return world.totals("acme")


async def test_25_usage_that_arrives_within_the_grace_is_on_the_invoice(world: ClosingWorld) -> None:
    """1 007 × 2 = 2014: the hour that contains 00:20 ends with the draft, so its usage is asked for before."""
    await in_november(world)
    world.unreported.append(world.used("acme", 7, "2027-12-01 01:00", NOVEMBER))
    await world.advance("2027-12-01 01:05", step_ms=180_000)
    assert (world.totals("acme"), world.stripe_items("acme")) == ([0, 2_014], [])
    assert await to_january(world) == [0, 2_014, 0]


@pytest.mark.parametrize("world", [{"grace_s": 72 * 3_600}], indirect=True, ids=["72 h"])
async def test_25_the_sink_is_down_for_three_hours_under_the_72_h_rule(world: ClosingWorld) -> None:
    await in_november(world)
    await world.publish(world.used("acme", 7, "2027-12-01 01:00", NOVEMBER))
    await world.jump("2027-12-01 03:00")
    await world.pump()
    await world.jump("2027-12-03 23:40")
    await world.advance("2027-12-04 00:10", step_ms=300_000)
    assert (world.totals("acme"), world.stripe_items("acme")) == ([0, 2_014], [])


async def test_25_the_sink_is_down_for_three_hours_under_the_1_h_rule(
    world: ClosingWorld, caplog: pytest.LogCaptureFixture
) -> None:
    """There is an alarm before `automatically_finalizes_at`, and 7 × 2 = 14 come as an item on the next invoice."""
    await in_november(world)
    world.is_sender_down = True
    await world.publish(world.used("acme", 7, "2027-12-01 00:30", NOVEMBER))
    await world.advance("2027-12-01 00:40", step_ms=600_000)
    await world.advance("2027-12-01 00:54")
    assert (world.controller.status().drafts, world.controller.status().late_drafts) == (1, 0)
    await world.advance("2027-12-01 00:56")
    assert world.controller.status().late_drafts == 1
    assert caplog.text.count("usage of the customer is not reported") == 1
    await world.advance("2027-12-01 03:10", step_ms=600_000)
    assert (world.totals("acme"), world.controller.status().late_drafts) == ([0, 2_000], 0)
    world.is_sender_down = False
    await world.advance("2027-12-01 04:30", step_ms=600_000)

    (item,) = world.stripe_items("acme")
    assert (item["amount"], item["description"]) == (
        14, "API calls: 7 additional usage, 2027-11-01 to 2027-11-30 (UTC)",
    )  # fmt: skip
    assert await to_january(world) == [0, 2_000, 14]


async def test_25_usage_found_later_is_an_invoice_item_once(world: ClosingWorld) -> None:
    """125 × 2 = 250 on the next invoice. The bill is confirmed before the usage is known and after it is billed."""
    await in_november(world)
    await world.advance("2027-12-01 01:10", step_ms=600_000)
    (_, november) = world.invoices("acme")
    assert (await world.states("acme"))[november["id"]] == "confirmed"
    await world.jump("2027-12-11 12:00")
    await world.publish(world.used("acme", 125, "2027-12-11 12:00", NOVEMBER))
    await world.pump()
    await world.controller.turn()
    assert (await world.states("acme"))[november["id"]] == "unbilled"
    assert world.stripe_items("acme") == []
    await world.advance("2027-12-12 12:00", step_ms=7_200_000)
    (item,) = world.stripe_items("acme")
    assert (item["amount"], item["period"]["start"] * 1_000) == (250, ms("2027-11-01"))
    assert (await world.states("acme"))[november["id"]] == "confirmed"
    assert await to_january(world) == [0, 2_000, 250]
    await world.jump("2028-02-01 01:10")
    assert world.totals("acme") == [0, 2_000, 250, 0]


REJECTED = {1: 5, 2: 7, 3: 9}


async def rejected(world: ClosingWorld) -> None:
    """Three reports that Stripe took and rejected afterwards; its reports of errors name one of them."""
    await world.sign_up("acme", world.per_call("25"))
    for number, calls in REJECTED.items():
        fault = Fault(FaultKind.REJECTED, count=1, contains=f"tm_{number}", reason="meter_event_invalid_value")
        world.stripe.simulator.faults.add(fault)
        await world.publish(world.used("acme", calls, f"2027-11-20 1{number}:00", NOVEMBER))
    await world.jump("2027-11-20 14:00")
    await world.pump()
    await world.jump("2027-11-25 12:00")


async def test_28_rejected_reports_that_are_told_again_are_on_the_invoice(world: ClosingWorld) -> None:
    """5 + 7 + 9 = 21 under other identifiers: 21 × 25 = 525."""
    await rejected(world)
    results = await world.redrive("tm_1", "tm_2", "tm_3")
    assert [result.refused for result in results] == ["", "", ""]
    await world.pump(20)
    span = (ms("2027-11-01") // 1_000, ms("2027-12-01") // 1_000)
    assert float((await world.meters.summary("calls", world.customers["acme"], *span)).value) == 21
    await world.jump("2027-12-01 00:30")
    await world.advance("2027-12-01 01:10", step_ms=300_000)
    assert (world.totals("acme"), world.stripe_items("acme")) == ([0, 525], [])
    assert list((await world.states("acme")).values())[-1] == "confirmed"


@pytest.mark.parametrize("is_redriven", [False, True], ids=["left alone", "redriven too"])
async def test_28_what_was_rejected_without_notice_is_an_invoice_item(world: ClosingWorld, is_redriven: bool) -> None:
    """The invoice bills 0, and the usage was reported. A redrive after finalization changes nothing more."""
    await rejected(world)
    await world.jump("2027-12-01 00:30")
    await world.advance("2027-12-01 01:10", step_ms=300_000)
    if is_redriven:
        await world.redrive("tm_1", "tm_2", "tm_3")
        await world.pump(20)
    await world.advance("2027-12-03 02:00", step_ms=14_400_000)
    assert [item["amount"] for item in world.stripe_items("acme")] == [525]
    assert await to_january(world) == [0, 0, 525]


@pytest.mark.parametrize("world", [{"lag_s": 5_400}], indirect=True, ids=["lag 90 min"])
@pytest.mark.parametrize("seed", range(2))
async def test_29_thirty_hours_without_a_sink_over_a_months_end(world: ClosingWorld, seed: int) -> None:
    """The sink dies at random steps and loses answers; then it is down from November 30, 20:00, for 30 hours. Each call
    is billed once, on the invoice of its month or as an invoice item, and nothing is a dead letter."""
    chance = random.Random(seed)
    await world.sign_up("acme", world.per_call("2"))
    world.disturb(chance)
    calls = {NOVEMBER: 0, DECEMBER: 0}
    hours = range(ms("2027-11-30 16:00"), ms("2027-12-02 08:00"), 3_600_000)
    world.clock.ms = hours[0]
    for end_ms in hours:
        used = chance.randint(1, 50)
        period = NOVEMBER if end_ms <= ms("2027-12-01") else DECEMBER
        calls[period] += used
        await world.publish(world.used("acme", used, end_ms, period))
        world.is_sender_down = world.is_controller_down = ms("2027-11-30 20:00") <= end_ms < ms("2027-12-02 02:00")
        await world.advance(end_ms + 3_600_000, step_ms=1_800_000)
    await world.advance("2027-12-05", step_ms=7_200_000)
    world.calm()
    await world.advance("2027-12-06", step_ms=7_200_000)
    await world.jump("2028-01-01 00:50")
    await world.advance("2028-01-01 02:00", step_ms=600_000)
    await world.advance("2028-01-03", step_ms=7_200_000)

    assert await world.dead_letters() == []
    november = world.invoices("acme")[1]
    on_time = sum(line["quantity"] for line in november["all_lines"])
    late = sum(item["amount"] // 2 for item in world.stripe_items("acme"))
    assert 0 < on_time < calls[NOVEMBER]
    assert on_time + late == calls[NOVEMBER]
    assert sum(world.totals("acme")) == 2 * sum(calls.values())
