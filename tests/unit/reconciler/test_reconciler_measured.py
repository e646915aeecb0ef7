"""The reconciler's check of measured meters: what it computes, what it names, and what is no drift (S15)."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Any, Final

import pytest

from oracle.areas import Sample, pieces
from reconciler.causes import Cause, Pair, Verdict
from reconciler.compare import Range
from reconciler.measured_pieces import held, instant_us
from reconciler.report import Row
from schemas.clock import DAY_MS, HOUR_MS, MINUTE_MS, SECOND_MS
from schemas.control import CorrectionRecord
from schemas.measured_recount import RecountedSample
from schemas.measures import MeasuredTo
from schemas.meters import Meter
from schemas.periods import Period
from tests.traffic.generate import rfc3339
from tests.worlds.measured import BY_SLUG, MeasuredHistory, Sent
from tests.worlds.measured_faults import FAULTS, Running, Watched, measured_rows
from tests.worlds.reconciler import DECEMBER_MS, NOVEMBER_MS

MINUTE_US: Final = MINUTE_MS * 1000


@pytest.mark.parametrize("slug", BY_SLUG)
def test_pieces_hold_what_the_naive_oracle_says(slug: str) -> None:
    """Random samples with equal times, in periods with cuts inside hours."""
    definition, chance = BY_SLUG[slug], random.Random(slug)
    meter = Meter.model_validate(definition)
    held_in_all = 0
    for _ in range(60):
        samples, own = [], []
        for number in range(chance.randrange(20)):
            steps = chance.randrange(-9, 20) if number % 4 else chance.randrange(-100, 400)
            time_us = (NOVEMBER_MS + steps * 10 * MINUTE_MS) * 1000 + chance.choice([0, 0, 1])
            minor = chance.choice([0, 1, 325, 1_000]) if slug != "disk" else chance.choice([-50, 0, 100, 725])
            text, start_us = chance.choice("ab"), None
            if "start_path" in definition:
                start_us = time_us - chance.choice([0, 1, 70 * MINUTE_US, 30 * 24 * 60 * MINUTE_US])
                text = rfc3339(start_us)
            elif slug == "disk":
                text = ""
            samples.append(RecountedSample("eve", f"e{number}", time_us, number, 0, minor, "{}", text))
            own.append(Sample(time_us, number, minor, text if start_us is None else "", start_us))
        cut_ms = NOVEMBER_MS + chance.randrange(2 * DAY_MS)
        periods = [Period(NOVEMBER_MS - DAY_MS, cut_ms), Period(cut_ms, DECEMBER_MS)]
        until_ms = NOVEMBER_MS + chance.randrange(3 * DAY_MS)

        found = held(meter, samples, periods, until_ms)

        expected: dict[int, int] = {}
        for period in periods:
            expected |= pieces(definition, own, (period.start_ms * 1000, period.end_ms * 1000), until_ms * 1000)
        assert {key.start_ms * 1000: minor for key, minor in found.items()} == expected
        held_in_all += len(found)
    assert held_in_all > 50


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("1970-01-01T00:00:01Z", 1_000_000, id="whole seconds"),
        pytest.param("1970-01-01t00:00:00.1234569z", 123_456, id="finer digits are cut off"),
        pytest.param("1970-01-01T02:00:00+02:00", 0, id="an offset"),
        pytest.param("1970-01-01T00:00:00", None, id="no offset"),
        pytest.param("1970-01-01T24:00:00Z", None, id="no hour"),
        pytest.param("1970-02-30T00:00:00Z", None, id="no day"),
        pytest.param("19700101T000000Z", None, id="another form"),
    ],
)
def test_the_start_of_a_span_is_an_instant_or_none(text: str, expected: int | None) -> None:
    assert instant_us(text) == expected


class History(MeasuredHistory):
    """One account with calendar months, the meters with a late policy; the tests say what happens."""

    def __init__(self, late: str = "carry_forward") -> None:
        super().__init__(0)
        self._late, self._new, self._grace_ms, self.late_max_ms = late, "", HOUR_MS, 35 * DAY_MS
        self._samples = 0

    def _meter_set(self) -> dict[str, Any]:
        meter_set = super()._meter_set()
        return {**meter_set, "meters": [{**meter, "late": self._late} for meter in meter_set["meters"]]}

    async def begin(self, at_ms: int = NOVEMBER_MS + 10 * DAY_MS) -> None:
        """A disk that stands, measured for a day."""
        self.world.clock.ms = at_ms - DAY_MS
        self.world.stripe.add_customer("cus_1")
        await self.world.world.start(self._meter_set())
        await self.world.prepare_to_send()
        await self.world.bind("eve", stripe_customer="cus_1")
        await self.level(1)
        await self.pass_to(at_ms)

    async def level(self, level: float, at_ms: int | None = None) -> str:
        self._samples += 1
        return await self.world.emit("eve", at_ms=at_ms, type_="gauge", level=str(level), site="", box="a")

    async def pass_to(self, at_ms: int) -> None:
        """A pass of the measurer at an instant, and all of it in every view."""
        await self.world.advance(at_ms - self.world.clock.ms)
        await self.measure()
        await self.world.catch_up()
        await self.views()

    async def rows(self) -> list[Row]:
        return await measured_rows(self.world)

    async def causes(self) -> set[Cause]:
        return {row.cause for row in await self.rows()}

    def break_one(self, fault: str, start_ms: int) -> None:
        events = self.world.clickhouse.events
        (row,) = (row for row in events.values() if row.id.startswith("m:disk:") and row.time_us == start_ms * 1000)
        FAULTS[fault](events, row)


@pytest.mark.parametrize(
    ("fault", "cause", "found"),
    [("delete", Cause.MISSING, "23"), ("double", Cause.EXTRA, "25"), ("change", Cause.MISSING, "22")],
)
async def test_a_fault_of_an_adjustment_is_named(fault: str, cause: Cause, found: str) -> None:
    history = History()
    await history.begin()
    await history.pass_to(history.world.clock.ms + 10 * MINUTE_MS)
    assert await history.rows() == []

    history.break_one(fault, NOVEMBER_MS + 9 * DAY_MS + 5 * HOUR_MS)

    row, *_ = [row for row in await history.rows() if "samples say" in row.detail]
    assert (row.cause, row.account, row.meter, row.period) == (cause, "eve", "disk", Period(NOVEMBER_MS, DECEMBER_MS))
    assert (row.expected, row.found) == ("24", found)
    assert "1 hours" in row.detail
    assert "2026-11-10 05:00" in row.detail
    assert (await history.world.reconcile()).verdict is Verdict.DRIFT


async def test_usage_that_somebody_changed_is_named() -> None:
    history = History()
    await history.begin()
    await history.pass_to(history.world.clock.ms + HOUR_MS)
    cells = history.world.clickhouse.cells
    key = next(key for key in cells if key.meter == "disk" and key.hour_ms == NOVEMBER_MS + 9 * DAY_MS + 5 * HOUR_MS)
    cells[key] = cells[key]._replace(value_minor=cells[key].value_minor + 3)

    (row,) = await history.rows()

    assert (row.cause, row.meter, "usage_hourly" in row.detail) == (Cause.EXTRA, "disk", True)


@pytest.mark.parametrize("what", ["sample", "void"])
async def test_what_comes_after_the_last_pass_is_in_flight_and_then_told(what: str) -> None:
    history = History()
    await history.begin()
    now_ms = history.world.clock.ms
    if what == "sample":
        await history.level(5, now_ms - 3 * HOUR_MS)
    else:
        first = next(row for row in history.world.clickhouse.events.values() if row.type == "gauge")
        await history.void(Sent({"subject": "eve", "id": first.id}, 0, {}))
    await history.world.catch_up()

    assert await history.causes() == {Cause.IN_FLIGHT}

    await history.pass_to(now_ms + HOUR_MS)
    assert await history.rows() == []


async def test_of_two_corrections_with_one_name_the_first_counts() -> None:
    history = History()
    await history.begin()
    first = next(row.id for row in history.world.clickhouse.events.values() if row.type == "gauge")
    for event in (first, await history.level(3)):
        record = CorrectionRecord(
            account="eve", correction="ticket", event=event, kind="void", by="eve", reason="a test"
        )
        await history.world.world.control(history.world.partition("eve"), record)
    await history.pass_to(history.world.clock.ms + HOUR_MS)
    await history.pass_to(history.world.clock.ms + HOUR_MS)

    assert await history.rows() == []
    assert {minor for key, minor in history.told().items() if key[1] == "disk"} == {300}


async def test_a_fault_is_named_while_other_hours_change() -> None:
    history = History()
    await history.begin()
    history.break_one("delete", NOVEMBER_MS + 9 * DAY_MS + 5 * HOUR_MS)
    await history.level(5, history.world.clock.ms - 3 * HOUR_MS)
    await history.world.catch_up()

    assert Cause.MISSING in await history.causes()


@pytest.mark.parametrize("why", ["quarantine", "another payer"])
async def test_what_a_closed_period_keeps_out_is_no_drift(why: str) -> None:
    """A late sample changes hours of November that nobody is told of any more. What was told is checked."""
    history = History("quarantine" if why == "quarantine" else "carry_forward")
    await history.begin()
    if why == "another payer":
        await history.world.bind("eve", stripe_customer="cus_2", effective_from_ms=DECEMBER_MS)
    await history.pass_to(DECEMBER_MS + 30 * MINUTE_MS)
    await history.pass_to(DECEMBER_MS + DAY_MS)
    await history.level(5, DECEMBER_MS - 2 * DAY_MS)
    await history.pass_to(DECEMBER_MS + DAY_MS + HOUR_MS)
    told = history.told()["eve", "disk", "", DECEMBER_MS - DAY_MS]

    assert told == 100
    assert await history.rows() == []

    history.break_one("double", NOVEMBER_MS + 9 * DAY_MS + 5 * HOUR_MS)
    assert Cause.EXTRA in await history.causes()


async def test_usage_that_the_worker_did_not_tell_before_its_period_closed_is_named() -> None:
    """No view but this one knows of it."""
    history = History("quarantine")
    await history.begin()
    await history.pass_to(DECEMBER_MS + DAY_MS)

    (row,) = await history.rows()

    assert (row.cause, row.period) == (Cause.MISSING, Period(NOVEMBER_MS, DECEMBER_MS))


async def test_an_adjustment_that_waits_for_its_dedup_decision_is_told() -> None:
    history = History()
    await history.begin()
    await history.level(5, history.world.clock.ms - 80 * HOUR_MS)
    await history.world.advance(HOUR_MS)
    await history.measure()
    await history.world.fold()
    await history.world.archive()
    assert any(row.deferred and row.id.startswith("m:") for row in history.world.clickhouse.events.values())

    assert await history.rows() == []


async def test_what_was_not_measured_is_in_flight_or_unchecked() -> None:
    history = History()
    await history.begin()
    measured, partition = history.world.store.measured, history.world.partition("eve")
    note = await measured.measured_to(partition)
    assert note is not None

    await measured.note_measured(partition, MeasuredTo("other", note.until_ms, note.as_of_ms))
    (row,) = await history.rows()
    assert (row.cause, "log other" in row.detail) == (Cause.UNCHECKED, True)

    await measured.note_measured(partition, note)
    await history.world.advance(SECOND_MS)
    assert [(row.cause, "the archive" in row.detail) for row in await history.rows()] == [(Cause.IN_FLIGHT, True)] * 2

    await history.world.advance(2 * HOUR_MS)
    await history.world.catch_up()
    assert {(row.cause, "until 2026-11-10 23:58 only" in row.detail) for row in await history.rows()} == {
        (Cause.IN_FLIGHT, True)
    }


@pytest.mark.parametrize(("rows_max", "causes"), [(70, set()), (10, {Cause.UNCHECKED})])
async def test_accounts_are_read_as_many_at_a_time_as_the_limit_allows(rows_max: int, causes: set[Cause]) -> None:
    """An account over the limit is not compared, and the row says so."""
    history = History()
    await history.begin()
    for account in ("fay", "gus", "hal", "ida"):
        await history.world.emit(account, type_="gauge", level="1", site="", box="a")
    await history.pass_to(history.world.clock.ms + 12 * HOUR_MS)
    history.world.policy = replace(history.world.policy, measured_rows_max=rows_max)

    assert await history.causes() == causes


async def test_only_periods_of_the_range_are_compared() -> None:
    history = History()
    await history.begin()
    history.break_one("delete", NOVEMBER_MS + 9 * DAY_MS + 5 * HOUR_MS)

    assert await measured_rows(history.world, Range(DECEMBER_MS, None)) == []
    assert await measured_rows(history.world, Range(None, NOVEMBER_MS)) == []
    assert await measured_rows(history.world, Range(NOVEMBER_MS, DECEMBER_MS)) != []


async def test_a_report_counts_what_was_compared() -> None:
    history = History()
    await history.begin()
    await history.pass_to(history.world.clock.ms + HOUR_MS)
    report = await history.world.reconcile()

    (summary,) = (each for each in report.summaries if each.pair is Pair.MEASURED)
    assert (summary.compared, summary.equal, summary.unchecked) == (6, 6, 0)


async def test_a_moving_history_raises_no_false_alarm() -> None:
    """Samples, corrections, bindings and closings come at any moment; the check looks before and after each step."""
    seen: Counter[str] = Counter()
    for seed in (1, 2, 22):
        history = Watched(seed)
        await history.write(12)
        assert history.alarms == []
        seen += history.seen

    assert min(seen[each] for each in ("equal", "the", "samples,")) > 2, seen


async def test_a_running_worker_tells_all_that_closed_periods_would_keep_out() -> None:
    history = Running(22)
    await history.write(12)

    assert history.alarms == []
    assert history.seen["equal"] > 10
