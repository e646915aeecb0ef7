"""Corrections of events: random voids and amendments, and what a naive count of the events that stand says (S16)."""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from typing import Any, Final

import pytest

from pipeline.rollup.corrector import Corrector
from schemas.clock import DAY_MS, HOUR_MS
from schemas.control import CorrectionRecord
from schemas.log import REJECTED_TOPIC
from sinks.clickhouse.fake_corrections import FakeCorrections
from tests.worlds.reconciler import Deployment

METER_SET: Final[dict[str, Any]] = {
    "version": 1,
    "meters": [
        {"slug": "calls", "event_type": "job", "aggregation": "count", "dimensions": {"site": "$.site"},
         "filters": [{"path": "$.kind", "values": ["real"]}]},
        {"slug": "units", "event_type": "job", "aggregation": "sum", "value_path": "$.units", "scale": 2,
         "dimensions": {"site": "$.site"}, "allow_negative": True, "stripe_event_name": "units"},
        {"slug": "peak", "event_type": "peak", "aggregation": "max", "value_path": "$.units"},
    ],
    "policy": {"late_max_ms": 8 * DAY_MS},
}  # fmt: skip
ACCOUNTS: Final = ("ada", "bob")


class Story:
    """Events of two accounts, corrected at random."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.world = Deployment()
        self.events: dict[str, tuple[str, dict[str, Any] | None]] = {}
        self.corrections = 0
        self.corrector = self.new_corrector()

    def new_corrector(self) -> Corrector:
        return Corrector(self.world.log, self.world.clickhouse, FakeCorrections(self.world.clickhouse))

    async def write(self, steps: int = 60) -> None:
        world, chance = self.world, self.chance
        await world.start(METER_SET)
        for _ in range(steps):
            await world.advance(chance.choice([1, HOUR_MS, 5 * HOUR_MS, DAY_MS]))
            for _ in range(chance.randrange(4)):
                account, data = chance.choice(ACCOUNTS), self.data()
                at_ms = world.clock.ms - chance.choice([0, HOUR_MS, 5 * DAY_MS])
                event = await world.emit(account, type_="job", at_ms=at_ms, **data)
                self.events[event] = account, data
            if self.events and chance.random() < 0.5:
                await self.correct(chance.choice(sorted(self.events)), chance.choice(["void", "amend"]))
            if chance.random() < 0.5:
                await self.pass_()
            if chance.random() < 0.1:
                self.corrector = self.new_corrector()
        while await self.pass_():
            pass

    def data(self) -> dict[str, Any]:
        units = self.chance.choice(["1", "2.5", "-0.75", "0"])
        return {"units": units, "site": self.chance.choice(["", "eu"]), "kind": self.chance.choice(["real", "test"])}

    async def correct(self, event: str, kind: str, *, counts: bool = True, name: str = "") -> None:
        account, data = self.events[event][0], self.data() if kind == "amend" else None
        self.corrections += 1
        record = CorrectionRecord.model_validate({
            "account": account, "correction": name or f"c{self.corrections}", "event": event, "kind": kind, "by": "ann",
            "reason": "wrong", "data": json.dumps(data) if data else "", "counts": counts,
        })  # fmt: skip
        await self.world.world.control(self.world.partition(account), record)
        if counts:
            self.events[event] = account, data

    async def pass_(self) -> int:
        await self.world.catch_up()
        told = sum([await self.corrector.correct(at) for at in range(self.world.world.partitions)])
        await self.world.catch_up()
        return told

    def expected(self) -> dict[tuple[str, str], int]:
        sums: Counter[tuple[str, str]] = Counter()
        for account, data in self.events.values():
            if data is not None:
                sums[account, "units"] += round(float(data["units"]) * 100)
                sums[account, "calls"] += data["kind"] == "real"
        return {key: total for key, total in sums.items() if total}


@pytest.mark.parametrize("seed", range(12))
async def test_totals_are_those_of_the_events_that_stand(seed: int) -> None:
    """Also by site, and for the reconciler, which recounts the archive."""
    story = Story(seed)
    await story.write()
    world = story.world

    assert story.world.live() == story.expected()
    await world.relay()
    by_site: Counter[tuple[str, str, str]] = Counter()
    for row in world.clickhouse.cells.values():
        by_site[row.account, row.meter, json.loads(row.dimensions)["site"]] += row.value_minor
    sites: dict[tuple[str, str, str], int] = defaultdict(int)
    for account, data in story.events.values():
        if data is not None:
            sites[account, "units", data["site"]] += round(float(data["units"]) * 100)
            sites[account, "calls", data["site"]] += data["kind"] == "real"
    assert {key: total for key, total in by_site.items() if total} == {key: n for key, n in sites.items() if n}
    report = await world.reconcile()
    assert report.differences == 0, report.rows


async def test_a_corrector_that_starts_again_and_a_second_one_tell_nothing_twice() -> None:
    story = Story(3)
    await story.write()
    await story.correct(sorted(story.events)[0], "void")
    await story.world.catch_up()
    correctors = [story.corrector, story.new_corrector(), story.new_corrector()]
    for corrector in correctors:
        for at in range(story.world.world.partitions):
            await corrector.correct(at)
    while await story.pass_():
        pass
    story.corrector = story.new_corrector()

    assert await story.pass_() == 0
    assert story.world.live() == story.expected()


async def test_a_new_correction_does_not_wait_until_a_restart_has_looked_at_all_old_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipeline.rollup.corrector.RECORDS_MAX", 2)
    story = Story(3)
    await story.world.start(METER_SET)
    for _ in range(6):
        story.events[await story.world.emit("ada", type_="job", units="5", kind="real")] = "ada", None
    first, *others = sorted(story.events)
    for event in others:
        await story.correct(event, "void")
    await story.world.catch_up()
    corrector = story.new_corrector()
    at = story.world.partition("ada")
    assert await corrector.correct(at) == 4
    await story.correct(first, "void")
    await story.world.catch_up()

    assert await corrector.correct(at) == 4
    await story.world.catch_up()
    told = [row for row in story.world.clickhouse.events.values() if row.id.startswith("c:")]
    assert first in {json.loads(row.data)["corrects"] for row in told}
    while await corrector.correct(at):
        await story.world.catch_up()
    assert story.world.live() == {}


async def test_an_event_that_the_archive_lacks_for_a_moment_is_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As while a rebuilt table is exchanged: forgotten, the correction would be told at the next start only."""
    story = Story(3)
    await story.world.start(METER_SET)
    story.events[await story.world.emit("ada", type_="job", units="5", kind="real")] = "ada", None
    await story.correct("event-1", "void")

    async def lacking(_self: FakeCorrections, _account: str, _event: str) -> None:
        return None

    with monkeypatch.context() as exchanged:
        exchanged.setattr(FakeCorrections, "event", lacking)
        assert await story.pass_() == 0
    assert await story.pass_() == 0
    await story.world.advance(HOUR_MS)

    assert await story.pass_() == 2
    assert story.world.live() == {}


async def test_the_first_record_of_a_name_counts_and_a_settled_one_changes_nothing() -> None:
    story = Story(5)
    await story.write(10)
    first = sorted(story.events)[0]
    await story.correct(first, "void", name="once")
    expected = story.expected()
    kept = dict(story.events)
    await story.correct(first, "amend", name="once")
    account = story.events[first][0]
    other = next(each for each in sorted(story.events) if each != first and story.events[each][0] == account)
    await story.correct(other, "void", name="once")
    await story.correct(sorted(story.events)[1], "void", counts=False, name="settled")
    story.events = kept
    await story.pass_()

    assert story.world.live() == expected


async def test_an_event_of_a_meter_that_takes_no_adjustments_is_left_alone() -> None:
    story = Story(6)
    await story.world.start(METER_SET)
    event = await story.world.emit("ada", type_="peak", units=7)
    story.events[event] = "ada", None
    await story.correct(event, "void")

    assert await story.pass_() == 0
    assert story.world.live() == {("ada", "peak"): 7}


async def test_a_correction_that_was_accepted_is_told_to_the_meters_that_can_follow() -> None:
    """It was accepted while the `max` meter was out of the meter set, which has it again when the corrector looks."""
    story = Story(8)
    largest = {"slug": "largest", "event_type": "job", "aggregation": "max", "value_path": "$.units"}
    await story.world.start({**METER_SET, "meters": [*METER_SET["meters"], largest]})
    event = await story.world.emit("ada", type_="job", units="3", site="", kind="real")
    story.events[event] = "ada", {}
    await story.correct(event, "void")

    assert await story.pass_() == 2
    assert story.world.live() == {("ada", "largest"): 3}


async def test_what_a_closed_period_keeps_out_is_told_once() -> None:
    """Else each pass would quarantine the same adjustment."""
    story = Story(7)
    meters = [{**meter, "late": "quarantine"} for meter in METER_SET["meters"]]
    await story.world.start({**METER_SET, "meters": meters})
    story.events[await story.world.emit("ada", type_="job", units="5", kind="real")] = "ada", None
    await story.world.advance(31 * DAY_MS)
    await story.correct(next(iter(story.events)), "void")
    told = [await story.pass_() for _ in range(4)]
    rejected = [await story.world.log.bounds(REJECTED_TOPIC, at) for at in range(story.world.world.partitions)]

    assert sum(told) == 2
    assert sum(bounds.next for bounds in rejected) <= 2
    assert story.world.live() == {("ada", "calls"): 1, ("ada", "units"): 500}
