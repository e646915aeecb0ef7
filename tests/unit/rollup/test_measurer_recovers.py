"""The measurer beside another one, after a lost answer, and at its limits: nothing is lost or told twice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import pytest

from pipeline.rollup import measurer
from pipeline.rollup.measurer import Measured, Measurer
from schemas.clock import DAY_MS, HOUR_MS, MINUTE_MS
from schemas.periods import Interval
from sinks.clickhouse.fake_measures import FakeMeasures
from tests.traffic.generate import rfc3339
from tests.worlds.reconciler import DECEMBER_MS, START_MS, Deployment

DELAY_MS: Final = 2 * MINUTE_MS
JOBS: Final[Mapping[str, Any]] = {
    "slug": "jobs", "event_type": "job", "aggregation": "duration", "start_path": "$.began", "per": "second",
}  # fmt: skip
GAUGE: Final[Mapping[str, Any]] = {
    "slug": "disk", "event_type": "gauge", "aggregation": "time_weighted", "value_path": "$.gb",
}  # fmt: skip


class World(Deployment):
    """A deployment whose measurers the test calls."""

    async def begin(self, *meters: Mapping[str, Any], **policy: int) -> World:
        await self.start({"version": 1, "meters": meters, "policy": policy})
        await self.catch_up()
        return self

    def measurer(self, *, delay_ms: int = DELAY_MS, archive: Any = None) -> Measurer:
        samples, measured = FakeMeasures(self.clickhouse), self.store.measured
        return Measurer(self.log, self.store.accounts, archive or self.clickhouse, samples, measured, delay_ms)

    async def told(self, measurer: Measurer, hours: int = 1) -> int:
        """What a measurer tells in some hours."""
        found = 0
        for _ in range(hours):
            await self.advance(HOUR_MS)
            await self.catch_up()
            found += sum([(await measurer.measure(at)).told for at in range(self.world.partitions)])
        await self.catch_up()
        return found

    async def job(self, account: str, end_ms: int) -> None:
        """A job of 10 minutes."""
        await self.emit(account, type_="job", at_ms=end_ms, began=rfc3339((end_ms - 10 * MINUTE_MS) * 1000))


class Behind:
    """An archive whose position was read some time ago."""

    def __init__(self, inner: Any, reached: Mapping[int, Any]) -> None:
        self._inner, self._reached = inner, reached

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def load_position(self, partition: int) -> Any:
        return self._reached[partition]


async def test_what_two_measurers_tell_under_one_id_is_corrected_by_the_next_pass() -> None:
    """One read the archive's position before a late sample, the other one after it. The fold counts the first."""
    world = await World().begin(JOBS)
    partitions, at_ms = range(world.world.partitions), world.clock.ms
    await world.advance(HOUR_MS)
    await world.job("ada", at_ms + 20 * MINUTE_MS)
    await world.advance(5 * MINUTE_MS)
    await world.catch_up()
    reached = {at: await world.clickhouse.load_position(at) for at in partitions}
    await world.job("ada", at_ms + 50 * MINUTE_MS)
    await world.catch_up()
    slow, fast = world.measurer(archive=Behind(world.clickhouse, reached)), world.measurer()

    told = [sum([(await each.measure(at)).told for at in partitions]) for each in (slow, fast)]
    await world.catch_up()
    assert (told, world.live()) == ([1, 1], {("ada", "jobs"): 600})

    assert await world.told(fast, 3) == 1
    assert world.live() == {("ada", "jobs"): 1200}


async def test_few_adjustments_are_deferred_at_once_and_the_rest_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis holds each adjustment from before the dedup window until it is decided."""
    monkeypatch.setattr(measurer, "FAR_LATE_MAX", 40)
    world = await World().begin(GAUGE)
    measuring = world.measurer()
    await world.told(measuring)
    await world.advance(5 * DAY_MS)
    await world.emit("ada", type_="gauge", at_ms=world.clock.ms - 5 * DAY_MS, gb=5)

    assert await world.told(measuring) == 70 + 40
    assert await world.told(measuring, 4) == 124 - 110
    assert world.live() == {("ada", "disk"): 5 * 124}


async def test_a_greater_delay_takes_nothing_back() -> None:
    """What was told of hours that end after the instant of the pass stands."""
    world = await World().begin(GAUGE)
    await world.emit("ada", type_="gauge", gb=5)
    await world.told(world.measurer(), 5)
    patient = world.measurer(delay_ms=2 * HOUR_MS + 30 * MINUTE_MS)

    assert await world.told(patient, 2) == 0
    assert await world.told(patient, 2) == 2
    assert world.live() == {("ada", "disk"): 5 * 6}


@pytest.mark.parametrize("inline_max", [0, 5_000], ids=["in a thread", "in the loop"])
async def test_an_account_with_too_many_samples_is_measured_period_by_period(
    monkeypatch: pytest.MonkeyPatch, inline_max: int
) -> None:
    """A measurer that starts reads 70 days at once. What was not told before is told."""
    monkeypatch.setattr(measurer, "SAMPLES_MAX", 300)
    monkeypatch.setattr(measurer, "INLINE_MAX", inline_max)
    world = await World().begin(GAUGE)
    await world.bind("ada", interval=Interval.WEEK, anchor_ms=START_MS, stripe_customer="cus_ada")
    for number in range(400):
        await world.emit("ada", type_="gauge", gb=number % 7)
        await world.advance(2 * HOUR_MS)
    measuring = world.measurer()

    await world.told(measuring, 2)

    assert world.live() == {("ada", "disk"): 2 * sum(number % 7 for number in range(400)) + 399 % 7}
    assert (await measuring.measure(world.partition("ada"))).left_out == 0


async def test_an_account_that_is_left_out_stays_so_until_it_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the next period would end the alert, and the period before would never be billed."""
    world = await World().begin(GAUGE)
    monkeypatch.setattr(measurer, "SAMPLES_MAX", 50)
    counting, partition = world.measurer(), world.partition("ada")
    for _ in range(60):
        await world.emit("ada", type_="gauge", gb=1)
        await world.told(counting)
    while world.clock.ms < DECEMBER_MS + 3 * HOUR_MS:
        await world.told(counting)

    assert (await counting.measure(partition)).left_out == 1
    monkeypatch.setattr(measurer, "SAMPLES_MAX", 1_000)
    await world.told(counting)
    assert (await counting.measure(partition)).left_out == 0
    assert world.live() == {("ada", "disk"): (world.clock.ms - START_MS) // HOUR_MS - 1}


async def test_a_pass_over_an_archive_that_is_exchanged_passes_no_sample() -> None:
    """Rows that were written around the exchange are missing for a moment, below the position."""
    world = await World().begin(JOBS)
    measuring = world.measurer()
    await world.told(measuring)
    await world.job("ada", world.clock.ms - 20 * MINUTE_MS)
    await world.catch_up()
    (key,) = (key for key, row in world.clickhouse.events.items() if row.type == "job")
    row, world.clickhouse.rebuilt = world.clickhouse.events.pop(key), None
    assert await world.told(measuring) == 0

    world.clickhouse.events[key], world.clickhouse.rebuilt = row, 1
    assert await world.told(measuring) == 1
    assert world.live() == {("ada", "jobs"): 600}


async def test_a_start_waits_for_the_fold() -> None:
    """A fold that replays does not know the accounts' periods yet: pieces would be cut wrong, told and taken back."""
    world = await World().begin(JOBS)
    await world.advance(HOUR_MS)
    await world.job("ada", world.clock.ms - 5 * MINUTE_MS)
    await world.advance(HOUR_MS)
    await world.archive()
    measuring, partition = world.measurer(), world.partition("ada")

    assert await measuring.measure(partition) == Measured()
    await world.catch_up()
    assert (await measuring.measure(partition)).told == 1
