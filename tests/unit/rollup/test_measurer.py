"""The measurer: random histories of samples, and what a naive oracle says of them, in every view (S15)."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from decimal import Decimal
from typing import Any, Final

import pytest

from oracle.areas import Sample
from pipeline.rollup.measurer import Measurer
from schemas.clock import DAY_MS, HOUR_MS
from schemas.log import REJECTED_TOPIC, Bounds, Log
from sinks.clickhouse.fake_measures import FakeMeasures
from tests.simulation.measure_mutants import MEASURES, seed_that_catches
from tests.traffic.generate import rfc3339
from tests.worlds.measured import DELAY_MS, MeasuredHistory, Sent, history_of
from tests.worlds.measured_faults import differences_of
from tests.worlds.reconciler import DECEMBER_MS, START_MS, Deployment

SEEDS: Final = (1, 2, 3, 5)
QUICK: Final = {
    "measure: rounds each piece alone": 0,
    "measure: a lost heartbeat costs for ever": 0,
    "measure: a session covers its gaps": 0,
    "measure: adjustments may be too old": 0,
    "check: always says yes": 0,
    "check: too much is no drift": 0,
}


@pytest.mark.parametrize("seed", SEEDS)
async def test_every_view_has_what_the_naive_oracle_says(seed: int) -> None:
    """`make measures` writes a thousand histories. Some of these have a measurer that ends, or two at once."""
    assert await differences_of(seed) == [], f"python -m tests.measures --seed {seed} --histories 1"


async def test_histories_have_all_that_may_happen_to_samples() -> None:
    """Else they would prove less and less."""
    seen: Counter[str] = Counter()
    for seed in SEEDS[:3]:
        history = history_of(seed)
        await history.write()
        world = history.world
        seen["voided"] += sum(row.kind == "correction" for row in world.clickhouse.control_log.values())
        seen["closed"] += sum(row.kind == "close" for row in world.clickhouse.control_log.values())
        seen["restated"] += sum(row.kind == "restatement" for row in world.clickhouse.control_log.values())
        seen["duplicate"] += len(world.clickhouse.duplicates)
        starts_ms = [start_ms for _, _, _, start_ms in history.told()]
        seen["cut inside an hour"] += sum(start_ms % HOUR_MS != 0 for start_ms in starts_ms)
        seen["negative"] += sum(minor < 0 for minor in history.told().values())
        seen["pieces"] += len(starts_ms)

    assert min(seen.values()) > 0, seen
    assert seen["pieces"] > 500


@pytest.mark.parametrize("after", [False, True], ids=["before it acts", "after it acted"])
async def test_the_measurer_may_end_at_any_call(after: bool) -> None:
    """A history of a few steps, again for every 5th call of a store or of the log."""
    crash_at, was_reached = 1 + after, True
    while was_reached:
        history = MeasuredHistory(6, crash_at=crash_at, after=after)
        await history.write(6)
        assert await history.differences() == [], f"at call {crash_at}"
        crash_at, was_reached = crash_at + 5, history.countdown[0] <= 0

    assert crash_at > 50


async def test_another_pass_of_a_measurer_that_starts_again_tells_nothing() -> None:
    history = MeasuredHistory(3)
    await history.write()
    assert await history.measure() > 0
    history.measurer = history.new_measurer()

    assert await history.measure() == 0
    assert len(history.told()) > 100


async def test_a_level_stands_for_months_without_samples_and_through_restarts() -> None:
    """A month ends, no event comes, and the level is older than the late limit and than a start looks back."""
    history = await quiet()
    await gauge(history, START_MS, 725)
    for _ in range(5):
        await history.world.advance(20 * DAY_MS)
        history.measurer = history.new_measurer()
        await told(history)
    await history.rest()

    assert await history.differences() == []
    assert history.world.live()["eve", "disk"] > 725 * 24 * 100


async def test_a_level_that_is_voided_after_months_leaves_nothing() -> None:
    """Later passes look at all that has arrived, however old. The open period takes back what closed periods held."""
    history = await quiet()
    await gauge(history, START_MS, 725)
    for _ in range(5):
        await history.world.advance(20 * DAY_MS)
        await told(history)
    assert history.world.live()["eve", "disk"] > 0

    await history.void(history.sent[0])
    await history.rest()

    assert "disk" not in history.billed()
    assert await history.differences() == []


async def test_an_old_level_that_is_voided_while_no_measurer_runs_leaves_nothing() -> None:
    """The level is older than a start looks back, and the account has no other event."""
    history = await quiet()
    await gauge(history, START_MS, 725)
    for _ in range(2):
        await history.world.advance(25 * DAY_MS)
        await told(history)
    assert history.late_max_ms < 15 * DAY_MS
    assert history.world.live()["eve", "disk"] > 0

    await history.void(history.sent[0])
    await history.world.advance(DAY_MS)
    history.measurer = history.new_measurer()
    await history.rest()

    assert "disk" not in history.billed()
    assert await history.differences() == []


async def quiet() -> MeasuredHistory:
    """A history in which nothing has happened yet."""
    history = MeasuredHistory(0)
    await history.write(0)
    history.world.clock.ms = max(history.world.clock.ms, START_MS)
    return history


async def told(history: MeasuredHistory) -> None:
    """Measure, and report it while Stripe takes it."""
    await history.measure()
    await history.world.catch_up()
    await history.views()


async def gauge(history: MeasuredHistory, time_ms: int, minor: int) -> None:
    """A sample of the disk of eve."""
    body = {
        "specversion": "1.0", "id": f"g{time_ms}", "source": "s", "type": "gauge", "subject": "eve",
        "time": rfc3339(time_ms * 1000), "data": {"level": str(Decimal(minor) / 100), "site": "", "box": "a"},
    }  # fmt: skip
    samples = {("disk", ""): Sample(time_ms * 1000, 0, minor), ("boxes", ""): Sample(time_ms * 1000, 0, minor, "a")}
    samples["most", ""] = samples["boxes", ""]
    await history.send(Sent(body, time_ms * 1000, samples))


@pytest.mark.parametrize("event_id", ["m:disk:1", f"m:disk:44136fa355b3678a:{START_MS}:0"])
async def test_an_event_of_an_application_with_an_id_of_the_measurer_tells_nothing(event_id: str) -> None:
    """The first id ended the worker, the second one changed the invoice."""
    history = await quiet()
    await gauge(history, START_MS, 725)
    body = {
        "specversion": "1.0", "id": event_id, "source": "s", "type": "page", "subject": "eve",
        "data": {"quantity": "-100", "dimensions": {"site": ""}},
    }  # fmt: skip
    await history.send(Sent(body, START_MS * 1000, {}))
    await history.rest()

    assert await history.differences() == []
    assert ("eve", "disk", "", START_MS) in history.told()


async def test_what_a_closed_period_would_keep_out_is_not_told_again_and_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A late sample of a meter with the policy quarantine: else each pass would quarantine the same adjustment. The log
    is the only trace of it."""
    world = Deployment()
    gauge = {"slug": "disk", "event_type": "gauge", "aggregation": "time_weighted", "value_path": "$.gb"}
    await world.start({"version": 1, "meters": [{**gauge, "late": "quarantine"}]})
    samples, measured = FakeMeasures(world.clickhouse), world.store.measured
    measurer = Measurer(world.log, world.store.accounts, world.clickhouse, samples, measured, DELAY_MS)

    async def told(duration_ms: int) -> int:
        await world.advance(duration_ms)
        await world.fold()
        await world.archive()
        return sum([(await measurer.measure(at)).told for at in range(world.world.partitions)])

    await world.emit("ada", type_="gauge", gb=5)
    assert await told(3 * HOUR_MS) == 2
    while world.clock.ms < DECEMBER_MS + 2 * HOUR_MS:
        await told(HOUR_MS)
    await world.emit("ada", type_="gauge", at_ms=DECEMBER_MS - 2 * HOUR_MS, gb=9)
    in_december = [await told(HOUR_MS) for _ in range(3)]
    await world.fold()

    # The two hours of November stay; those of December that were told already get the rest.
    assert in_december == [2, 1, 1]
    kept_out = {record.message for record in caplog.records if "closed periods" in record.message}
    assert max(kept_out) == "disk: closed periods keep out 5 minor units of 1 accounts, such as ada"
    assert min(kept_out) == "disk: closed periods keep out 13 minor units of 1 accounts, such as ada"
    rejected = [await world.log.bounds(REJECTED_TOPIC, at) for at in range(world.world.partitions)]
    assert sum(bounds.next for bounds in rejected) == 0


class _HeldLog:
    """A log that appends once `go` is set."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self.is_asked, self.go = asyncio.Event(), asyncio.Event()

    async def append(self, *arguments: Any) -> int:
        self.is_asked.set()
        await self.go.wait()
        return await self._log.append(*arguments)

    async def bounds(self, topic: str, partition: int) -> Bounds:
        return await self._log.bounds(topic, partition)


async def test_what_another_measurer_told_under_the_same_id_is_looked_at_again() -> None:
    """The other one knew fewer samples, and ended before the archive had what it told."""
    world = Deployment()
    gauge = {"slug": "disk", "event_type": "gauge", "aggregation": "time_weighted", "value_path": "$.gb"}
    await world.start({"version": 1, "meters": [gauge]})
    at = world.partition("ada")

    def measurer(log: Any) -> Measurer:
        samples, measured = FakeMeasures(world.clickhouse), world.store.measured
        return Measurer(log, world.store.accounts, world.clickhouse, samples, measured, DELAY_MS)

    async def catch_up() -> None:
        await world.fold()
        await world.archive()

    await world.advance(HOUR_MS - world.clock.ms % HOUR_MS)
    start_ms = world.clock.ms
    await world.emit("ada", type_="gauge", gb=5)
    await world.advance(3 * HOUR_MS)
    await catch_up()
    held = _HeldLog(world.log)
    first = asyncio.ensure_future(measurer(held).measure(at))
    await held.is_asked.wait()
    await world.emit("ada", type_="gauge", gb=9, at_ms=start_ms + HOUR_MS)
    # The level has ended: no later hour has another look at it.
    await world.emit("ada", type_="gauge", gb=0, at_ms=start_ms + 2 * HOUR_MS)
    await catch_up()
    held.go.set()
    await first

    second = measurer(world.log)
    for _ in range(3):
        await second.measure(at)
        await world.advance(HOUR_MS)
        await catch_up()

    told: Counter[int] = Counter()
    for row in world.clickhouse.events.values():
        if row.id.startswith("m:"):
            told[int(row.id.split(":")[3]) - start_ms] += int(json.loads(row.data)["quantity"])
    assert {start: minor for start, minor in told.items() if minor} == {0: 5, HOUR_MS: 9}


@pytest.mark.parametrize(("name", "seed"), QUICK.items(), ids=QUICK)
def test_a_deliberate_defect_is_caught(name: str, seed: int) -> None:
    """`python -m tests.measures --mutants` tries all of them."""
    (mutant,) = (each for each in MEASURES if each.name == name)

    assert seed_that_catches(mutant, [seed]) == seed


def test_each_defect_has_a_name_of_its_own() -> None:
    assert len({mutant.name for mutant in MEASURES}) == len(MEASURES) >= 20
