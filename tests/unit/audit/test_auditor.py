"""When the auditor runs: once a day, also after a missed night, and one auditor at a time."""

from __future__ import annotations

import pytest

from pipeline.audit.auditor import ROLE, RUN_WITHIN_MS, Auditor, days_left
from pipeline.audit.reconciling import month_start_ms
from reconciler.records import RUNNING, begun
from schemas.clock import DAY_MS, HOUR_MS, MINUTE_MS
from schemas.errors import OperatorNeeded, Transient
from sinks.clickhouse.fake_reconciliations import FakeReconciliations
from tests.worlds.clock import ManualClock
from tests.worlds.reconciler import DECEMBER_MS, NOVEMBER_MS

THREE_MS = NOVEMBER_MS + 3 * HOUR_MS


class World:
    """An auditor that notes the reads it was given."""

    def __init__(self, now_ms: int, records: FakeReconciliations | None = None) -> None:
        self.clock = ManualClock(now_ms)
        self.records = records or FakeReconciliations()
        self.reads: list[int] = []
        self.errors: list[Exception] = []
        self.auditor = Auditor(self.records, self.clock, "03:00", self.audit, self.left)

    async def audit(self, reads_max: int) -> None:
        if self.errors:
            raise self.errors.pop()
        self.reads.append(reads_max)
        run = begun(f"run-{self.clock.ms}", ROLE, self.clock.ms)
        await self.records.insert(run._replace(verdict="equal"), ())

    async def left(self) -> int:
        return 3_000


@pytest.mark.parametrize(
    ("last_ms", "now_ms", "runs"),
    [
        pytest.param(None, THREE_MS - 1, True, id="never ran"),
        pytest.param(THREE_MS - DAY_MS, THREE_MS - 1, False, id="before the time of day"),
        pytest.param(THREE_MS - DAY_MS, THREE_MS, True, id="at the time of day"),
        pytest.param(THREE_MS, THREE_MS, False, id="just run"),
        pytest.param(THREE_MS + HOUR_MS, THREE_MS + DAY_MS - 1, False, id="until the next night"),
        pytest.param(THREE_MS - 3 * DAY_MS, THREE_MS + 5 * HOUR_MS, True, id="missed nights"),
    ],
)
async def test_a_run_is_due_once_after_each_passing_of_the_time(last_ms: int | None, now_ms: int, runs: bool) -> None:
    """Whatever the process did at that time."""
    world = World(now_ms)
    if last_ms is not None:
        await world.records.insert(begun("last", ROLE, last_ms)._replace(verdict="equal"), ())

    assert runs is await world.auditor.look()
    assert runs is bool(world.reads)


async def test_a_run_of_a_person_is_not_the_auditors() -> None:
    """A command in the evening must not cancel the night."""
    world = World(THREE_MS)
    await world.records.insert(begun("by hand", "command", THREE_MS)._replace(verdict="equal"), ())

    assert await world.auditor.look()


async def test_two_auditors_take_turns_and_an_interrupted_run_is_repeated() -> None:
    """The row of a run that has begun keeps others away, until it cannot be running any more."""
    world = World(THREE_MS)
    await world.records.insert(begun("other", ROLE, THREE_MS), ())
    world.clock.ms += RUN_WITHIN_MS - 1
    assert RUNNING == world.records.runs["other"].verdict
    assert not await world.auditor.look()

    world.clock.ms += 1
    assert await world.auditor.look()


async def test_reads_of_the_month_are_spread_over_its_days() -> None:
    """A first night with much to read leaves something for the last one."""
    first, last = World(THREE_MS), World(DECEMBER_MS - HOUR_MS)
    await first.auditor.look()
    await last.auditor.look()

    assert [[100], [3_000]] == [first.reads, last.reads]
    assert [30, 1, 31] == [days_left(ms) for ms in (NOVEMBER_MS, DECEMBER_MS - 1, DECEMBER_MS)]
    assert [NOVEMBER_MS, NOVEMBER_MS, DECEMBER_MS] == [
        month_start_ms(ms) for ms in (NOVEMBER_MS, DECEMBER_MS - 1, DECEMBER_MS)
    ]


async def test_a_store_that_does_not_answer_is_asked_again_and_what_needs_a_person_ends_the_role() -> None:
    """A night without Stripe is made up for within a minute."""
    world = World(THREE_MS)
    world.errors = [OperatorNeeded("choose"), Transient("no answer")]

    with pytest.raises(OperatorNeeded):
        await world.auditor.run()

    assert (1, THREE_MS + MINUTE_MS) == (world.auditor.failures, world.clock.ms)
