"""Measured meters on Stripe's invoices: a level that is set once is billed until it changes. Amounts are cents.

A disk of 3.3 GB from November 1, noon: 708 h × 3.3 = 2336.4 GB-hours in November, and 744 h × 3.3 = 2455.2 in December
and in January. At 5 cents: 11682, 12276 and 12276.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.worlds.measured_closing import MeasuredClosingWorld


@pytest_asyncio.fixture
async def world() -> AsyncIterator[MeasuredClosingWorld]:
    """A deployment in November with one disk; no other event follows."""
    world = await MeasuredClosingWorld("2027-11-01").start()
    await world.sign_up("acme", world.price({"unit_amount_decimal": "5"}, "GB-hours"))
    await world.jump("2027-11-01 12:00")
    await world.event("acme", "2027-11-01 12:00", gb="3.3")
    await world.pump()
    yield world
    await world.close()


async def month_end(world: MeasuredClosingWorld, first_day: str) -> None:
    """What happens from ten past twelve until the draft is finalized."""
    await world.jump(f"{first_day} 00:10")
    await world.pump()
    await world.advance(f"{first_day} 00:44", step_ms=17 * 60_000)
    await world.advance(f"{first_day} 01:04", step_ms=150_000)


async def test_a_level_that_is_set_once_is_billed_every_month_without_another_event(
    world: MeasuredClosingWorld,
) -> None:
    await month_end(world, "2027-12-01")
    await month_end(world, "2028-01-01")
    await month_end(world, "2028-02-01")
    assert world.totals("acme") == [0, 11_682, 12_276, 12_276]
    assert (world.stripe_items("acme"), world.flushed) == ([], ["acme"] * 3)
    assert set((await world.states("acme")).values()) == {"confirmed"}


async def test_the_draft_waits_for_the_last_hour_that_the_archive_delays(world: MeasuredClosingWorld) -> None:
    """The draft is looked at from 00:45 on. The archive, and so the measurer, comes back at 00:50."""
    await world.jump("2027-11-30 20:00")
    await world.pump()
    world.is_archive_down = True
    await world.advance("2027-12-01 00:40", step_ms=3_600_000)
    await world.advance("2027-12-01 00:50", step_ms=150_000)
    assert (world.controller.status().drafts, world.flushed) == (1, [])
    world.is_archive_down = False
    await world.advance("2027-12-01 01:04", step_ms=60_000)
    assert (world.totals("acme"), world.flushed, world.stripe_items("acme")) == ([0, 11_682], ["acme"], [])


async def test_what_cannot_be_measured_in_time_raises_the_alarm_and_is_billed_next_month(
    world: MeasuredClosingWorld, caplog: pytest.LogCaptureFixture
) -> None:
    """Until 20:00, pieces up to 19:00 are told: 5 h × 3.3 = 16.5 GB-hours are missing, 2319.9 of 2336.4 are
    billed. The period is closed when they come, so December has 2455.2 + 16.5."""
    await world.jump("2027-11-30 20:00")
    await world.pump()
    world.is_archive_down = True
    await world.advance("2027-12-01 00:40", step_ms=3_600_000)
    await world.advance("2027-12-01 00:56")
    assert (world.controller.status().late_drafts, world.flushed) == (1, ["acme"])
    await world.advance("2027-12-01 02:00", step_ms=600_000)
    assert caplog.text.count("usage of the customer is not reported") == 1
    world.is_archive_down = False
    await world.advance("2027-12-01 02:10", step_ms=600_000)
    await month_end(world, "2028-01-01")
    assert world.totals("acme") == [0, 11_600, 12_359]


async def test_a_sample_that_comes_after_the_invoice_changes_the_next_one(world: MeasuredClosingWorld) -> None:
    """On December 3 it is known that the disk was empty from November 30, 12:00 to 18:00: 6 h × 3.3 × 5 = 99 less."""
    await month_end(world, "2027-12-01")
    await world.jump("2027-12-03 12:00")
    await world.event("acme", "2027-11-30 12:00", gb="0")
    await world.event("acme", "2027-11-30 18:00", gb="3.3")
    await world.pump()
    await world.advance("2027-12-03 12:20", step_ms=600_000)
    await month_end(world, "2028-01-01")
    assert world.totals("acme") == [0, 11_682, 12_276 - 99]
