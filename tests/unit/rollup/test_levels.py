"""A level stands until an event changes it (S13): in Redis, the recount, the intents and at Stripe."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal
from typing import Any, Final

import pytest

from aggregators.levels import CARRIED_MAX
from pipeline.logs.control_records import append_everywhere
from schemas.clock import DAY_MS, HOUR_MS, MINUTE_MS
from schemas.control import MeterSetRecord
from schemas.meters import MeterSet
from schemas.periods import Interval
from tests.worlds.billed import CALLS, BilledDeployment, billed_deployment
from tests.worlds.deployment import SECRET
from tests.worlds.late_binding import EVE, totals
from tests.worlds.reconciler import DECEMBER_MS, METER_SET, NOVEMBER_MS, START_MS, Deployment

SEATS: Final = {
    "slug": "seats", "event_type": "seats", "aggregation": "latest", "value_path": "$.seats", "carry_over": True,
    "stripe_event_name": "seats",
}  # fmt: skip
LEVELS: Final = {**METER_SET, "meters": [*METER_SET["meters"][:-1], SEATS]}
JANUARY_MS: Final = DECEMBER_MS + 31 * DAY_MS
FEBRUARY_MS: Final = JANUARY_MS + 31 * DAY_MS
MARCH_MS: Final = FEBRUARY_MS + 28 * DAY_MS


async def deployment(customer: str = "cus_eve", meter_set: dict[str, Any] = LEVELS) -> Deployment:
    world = await Deployment().start(meter_set)
    for each in ("cus_eve", "cus_new"):
        world.stripe.add_customer(each)
    if customer:
        await world.bind(EVE, stripe_customer=customer)
    return world


async def until(world: Deployment, instant_ms: int) -> None:
    await world.advance(instant_ms - world.clock.ms)


async def seats(world: Deployment, number: int, at_ms: int | None = None, **data: Any) -> None:
    await world.emit(EVE, type_="seats", at_ms=at_ms, seats=number, **data)


async def billed(world: Deployment) -> dict[str, int]:
    """What Stripe has of eve's customers, by customer and month, after all views agree."""
    await world.settle()
    report = await world.reconcile()
    assert report.differences == 0, report.rows
    sums: Counter[str] = Counter()
    months = {NOVEMBER_MS: "November", DECEMBER_MS: "December", JANUARY_MS: "January", FEBRUARY_MS: "February"}
    for stored in world.stripe.events:
        event = stored.event
        if event.event_name == "seats" and event.stripe_customer in ("cus_eve", "cus_new"):
            month = months[max(start_ms for start_ms in months if start_ms <= event.timestamp_s * 1000)]
            sums[f"{event.stripe_customer} {month}"] += int(Decimal(event.value))
    return {name: total for name, total in sums.items() if total}


async def test_seats_that_are_set_once_are_billed_in_every_later_month() -> None:
    """Nobody sends another event, and stream time moves by ticks. Hours have only what events made."""
    world = await deployment()
    await seats(world, 10)
    for month_ms in (DECEMBER_MS, JANUARY_MS):
        await until(world, month_ms + DAY_MS)

    assert await billed(world) == {"cus_eve November": 10, "cus_eve December": 10, "cus_eve January": 10}
    assert await totals(world, "seats") == {NOVEMBER_MS: 10, DECEMBER_MS: 10, JANUARY_MS: 10}
    assert {key.hour_ms for key in world.clickhouse.cells if key.meter == "seats"} == {START_MS}


async def test_one_record_passes_several_months_in_turn() -> None:
    world = await deployment()
    await seats(world, 10)
    await until(world, FEBRUARY_MS)
    await world.fold()

    # November has left the live view.
    assert await totals(world, "seats") == dict.fromkeys((DECEMBER_MS, JANUARY_MS, FEBRUARY_MS), 10)


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        pytest.param([(10, -60, -60), (0, -1, -1)], (0, 0), id="a level of 0 is a level"),
        pytest.param([(10, -60, -60), (4, 30, 30)], (10, 4), id="changed in the next month"),
        pytest.param([(10, -60, -60), (4, 0, 0)], (10, 4), id="changed at the boundary"),
        pytest.param([(10, -60, -60), (4, 30, 30), (7, -1, 40)], (7, 4), id="late, and changed since"),
        pytest.param([(10, -60, -60), (7, -1, 40)], (7, 7), id="late, and nothing since"),
        pytest.param([(10, -60, -60), (7, -90, 40)], (10, 10), id="late, and older than the level"),
        pytest.param([(10, 30, 30)], (None, 10), id="set in the next month only"),
        pytest.param([(10, 30, 30), (7, -1, 40)], (7, 10), id="late, and the first of its month"),
        pytest.param([(7, -1, 40)], (7, 7), id="late, and the first of all"),
        pytest.param([(4, 2, -2), (10, -60, -1)], (10, 4), id="of the future, before the month begins"),
    ],
)
async def test_the_newest_event_by_its_time_is_the_level(
    events: list[tuple[int, int, int]], expected: tuple[int | None, int]
) -> None:
    """Events as level, time and arrival, in minutes around the end of November; the grace is an hour."""
    world = await deployment()
    await until(world, DECEMBER_MS - 2 * HOUR_MS)
    for number, at, arrives in events:
        await until(world, DECEMBER_MS + arrives * MINUTE_MS)
        await seats(world, number, DECEMBER_MS + at * MINUTE_MS)
    await billed(world)

    found = await totals(world, "seats")
    assert (found.get(NOVEMBER_MS), found[DECEMBER_MS]) == expected


async def test_usage_after_the_grace_moves_the_level_of_the_open_month_only() -> None:
    """A level that was set later than the late event stays."""
    world = await deployment()
    await seats(world, 10)
    await until(world, DECEMBER_MS - HOUR_MS)
    await seats(world, 11)
    await until(world, DECEMBER_MS + 2 * HOUR_MS)
    await seats(world, 12, DECEMBER_MS - 2)
    await seats(world, 99, DECEMBER_MS - 2 * HOUR_MS)

    assert await billed(world) == {"cus_eve November": 11, "cus_eve December": 12}


async def test_the_level_stands_on_when_another_customer_pays() -> None:
    """The change of the payer ends the period, and the next period begins with the level."""
    world = await deployment()
    await seats(world, 10)
    await until(world, NOVEMBER_MS + 20 * DAY_MS)
    await world.bind(EVE, stripe_customer="cus_new", effective_from_ms=NOVEMBER_MS + 20 * DAY_MS)
    await until(world, DECEMBER_MS + HOUR_MS)

    assert await billed(world) == {"cus_eve November": 10, "cus_new November": 10, "cus_new December": 10}


async def test_a_late_binding_restates_levels_too() -> None:
    """Nobody paid, and a level of October would stand in both parts of November."""
    world = await deployment("")
    await seats(world, 10)
    await until(world, DECEMBER_MS + 20 * MINUTE_MS)
    await world.fold()
    await world.archive()
    cut_ms = NOVEMBER_MS + 25 * DAY_MS
    await world.bind(EVE, effective_from_ms=cut_ms, anchor_ms=cut_ms, stripe_customer="cus_eve")
    for _ in range(2):
        await world.fold()
        await world.archive()
        assert await world.restatement() == 1
    await until(world, DECEMBER_MS + 40 * MINUTE_MS)
    await world.fold()

    assert await totals(world, "seats") == {NOVEMBER_MS: 10, cut_ms: 10}
    await until(world, cut_ms + 31 * DAY_MS)
    await world.settle()
    assert (await world.reconcile()).differences == 0
    assert list((await totals(world, "seats")).values()) == [10, 10, 10]


async def test_more_levels_than_one_record_carries_over_go_on_with_the_next() -> None:
    """The bound is of each partition: the ticks that follow carry the rest."""
    world = await deployment("")
    names = [f"acct-{number}" for number in range(2 * CARRIED_MAX + 300) if not world.partition(f"acct-{number}")]
    for name in names:
        await world.emit(name, type_="seats", seats=1)
    await until(world, DECEMBER_MS)
    await world.fold()

    def carried() -> int:
        found = world.store.server.partitions[0].totals
        return sum(key.period_start_ms == DECEMBER_MS and "seats" in fields for key, fields in found.items())

    assert len(names) > CARRIED_MAX
    assert carried() == CARRIED_MAX
    await world.advance(1)
    await world.fold()
    assert carried() == len(names)


async def test_a_month_that_has_retired_leaves_its_level() -> None:
    """Each month is carried over before it leaves the live view, even when one record does both."""
    world = await deployment(meter_set={**LEVELS, "policy": {"keep_periods_ms": 0}})
    await seats(world, 10)
    await until(world, MARCH_MS + 5 * DAY_MS)
    for _ in range(9):
        await world.advance(MINUTE_MS)
    await world.fold()

    assert await totals(world, "seats") == dict.fromkeys((JANUARY_MS, FEBRUARY_MS, MARCH_MS), 10)


async def test_a_level_of_a_removed_meter_ends_with_its_month() -> None:
    world = await deployment()
    await seats(world, 10)
    await until(world, START_MS + HOUR_MS)
    without = MeterSet.model_validate({**METER_SET, "version": 2, "meters": METER_SET["meters"][:-1]})
    await append_everywhere(world.log, SECRET, MeterSetRecord(meter_set=without))
    await until(world, DECEMBER_MS + HOUR_MS)

    assert await billed(world) == {"cus_eve November": 10}


async def test_a_level_that_the_next_bucket_reports_is_in_flight() -> None:
    """No record comes for 90 minutes after the boundary: the closed report bucket has nothing to say."""
    world = await deployment()
    await seats(world, 10)
    await until(world, DECEMBER_MS - MINUTE_MS)
    await world.settle()
    await until(world, DECEMBER_MS + 90 * MINUTE_MS)
    for step in (world.fold, world.archive, world.relay, world.publish):
        await step()

    report = await world.reconcile()
    assert report.differences == 0, report.rows
    await until(world, DECEMBER_MS + 5 * HOUR_MS)
    assert await billed(world) == {"cus_eve November": 10, "cus_eve December": 10}


async def test_days_are_carried_over_as_months_are() -> None:
    """The binding has cut November at its effect."""
    world = await deployment()
    await world.bind(EVE, stripe_customer="cus_eve", interval=Interval.DAY, effective_from_ms=START_MS + HOUR_MS)
    await seats(world, 3)
    for _ in range(3):
        await world.advance(DAY_MS)
    await world.fold()

    assert list((await totals(world, "seats")).values()) == [3, 3, 3, 3, 3]


class Desks(BilledDeployment):
    """A deployment that also sells desks, of which ten are included."""

    async def open(self) -> None:
        """See the base class."""
        await super().open()
        desks = {**SEATS, "slug": "desks", "stripe_event_name": "desks"}
        meter_set = MeterSet.model_validate({"version": 2, "meters": [*CALLS["meters"], desks]})
        await append_everywhere(self.log, SECRET, MeterSetRecord(meter_set=meter_set))
        params = {"display_name": "Desks", "event_name": "desks", "default_aggregation": {"formula": "sum"}}
        self.meter = (await self.sdk("v1.billing.meters.create", params))["id"]


async def test_seats_above_the_included_ones_are_on_every_invoice() -> None:
    """Scenario 24: 10 included, 13 set once: 3 × 1500 each month, also in months without an event, at Stripe itself."""
    async with billed_deployment(Desks) as world:
        await world.subscribe(EVE, await world.price((10, "0"), ("inf", "1500")))
        await world.until(START_MS)
        await seats(world, 13)
        await world.settle()
        for month_ms in (DECEMBER_MS, JANUARY_MS, FEBRUARY_MS):
            await world.until(month_ms + 5 * HOUR_MS)
            await world.settle()
        report = await world.reconcile()
        listed = await world.sdk("v1.invoices.list", {"customer": world.customers[EVE]})

    assert report.differences == 0, report.rows
    assert [invoice["total"] for invoice in reversed(listed["data"])] == [0, 4500, 4500, 4500]
