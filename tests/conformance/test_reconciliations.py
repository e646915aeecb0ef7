"""The store of reconciliations: the same tests for the fake and the real engine."""

from __future__ import annotations

import pytest

from schemas.reconciliation import FindingRow, PastRead, ReconciliationRecords, RepairRow, RunRow
from sinks.clickhouse.fake_reconciliations import FakeReconciliations
from sinks.clickhouse.reconciliations import ClickHouseReconciliations

RUN = RunRow("r1", "auditor", 1_000, 2_000, None, 500, "drift", 3, 48, 32, 4, 4, 77, 40)
FINDING = FindingRow(
    "r1", 0, 1_000, "stripe", "missing", None, 'ä "quoted"', "calls", "calls", "cus_1", 0, 90, None, "", "12.5", "3",
    "", "", "line\nline",
)  # fmt: skip


@pytest.fixture(params=["fake", "service"])
def records(request: pytest.FixtureRequest) -> ReconciliationRecords:
    if request.param == "fake":
        return FakeReconciliations()
    return ClickHouseReconciliations(request.getfixturevalue("clickhouse"))


def finding(number: int, **fields: object) -> FindingRow:
    return FINDING._replace(number=number, **fields)  # type: ignore[arg-type]  # any field


async def test_a_run_that_is_stored_twice_is_one_run(records: ReconciliationRecords) -> None:
    """After a lost answer the caller repeats."""
    for _ in range(2):
        await records.insert(RUN, [FINDING])

    assert RUN == await records.last_run()
    assert RUN == await records.last_run("auditor")
    assert None is await records.last_run("command")
    assert [40, 0] == [await records.stripe_reads(1_000), await records.stripe_reads(1_001)]
    assert [PastRead("stripe", "calls", "cus_1", 0, 90, 1_000, "missing")] == list(await records.past_reads())


async def test_the_last_read_of_each_value_counts(records: ReconciliationRecords) -> None:
    """What a run did not read, and what is of another pair, is no read."""
    first = [
        FINDING,
        finding(1, stripe_customer="cus_2", cause="confirmed"),
        finding(2, pair="redis", cause="missing"),
        finding(3, pair="invoices", cause="in_flight"),
        finding(4, pair="flags", event_name="", period_start_ms=None, period_end_ms=None, cause="missing"),
    ]
    later = [
        finding(0, run="r2", read_at_ms=5_000, cause="confirmed"),
        finding(1, run="r2", read_at_ms=5_000, cause="unchecked", stripe_customer="cus_2"),
    ]
    await records.insert(RUN._replace(run="r2", role="command", started_ms=5_000), later)
    await records.insert(RUN, first)

    assert [
        PastRead("flags", "", "cus_1", 0, 0, 1_000, "missing"),
        PastRead("invoices", "calls", "cus_1", 0, 90, 1_000, "in_flight"),
        PastRead("stripe", "calls", "cus_1", 0, 90, 5_000, "confirmed"),
        PastRead("stripe", "calls", "cus_2", 0, 90, 1_000, "confirmed"),
    ] == list(await records.past_reads())
    last = await records.last_run()
    assert last is not None
    assert ("r2", 80) == (last.run, await records.stripe_reads(0))


async def test_a_run_without_rows_is_a_run(records: ReconciliationRecords) -> None:
    """A deployment without usage."""
    assert None is await records.last_run()
    assert 0 == await records.stripe_reads(0)

    await records.insert(RUN._replace(oldest_unread_ms=None, to_ms=None), [])

    assert RUN._replace(oldest_unread_ms=None, to_ms=None) == await records.last_run()


async def test_the_last_row_of_a_repair_says_how_it_ended(records: ReconciliationRecords) -> None:
    """Also if both were written within a millisecond."""
    begun = RepairRow("cancel:tm_1", "cancel", "tm_1", "calls", "cus_1", "12.5", "ada", "sent twice", 1_000, "begun")
    assert None is await records.repair(begun.step)
    await records.note_repair(begun)
    assert begun == await records.repair(begun.step)
    await records.note_repair(begun._replace(result="done"))
    assert "done" == ((await records.repair(begun.step)) or begun).result
    await records.note_repair(begun._replace(at_ms=1_001))
    assert "begun" == ((await records.repair(begun.step)) or begun).result
    assert None is await records.repair("cancel:tm_2")


async def test_the_rows_of_a_run_by_cause(records: ReconciliationRecords) -> None:
    """What is right, and what was not looked at, is not counted; the most comes first."""
    causes = ("missing", "confirmed", "unbilled", "unbilled", "unchecked")
    await records.insert(RUN, [finding(number, cause=cause) for number, cause in enumerate(causes)])
    await records.insert(RUN._replace(run="r2"), [finding(9, run="r2", cause="extra")])

    assert [("stripe", "unbilled", 2), ("stripe", "missing", 1)] == list(await records.causes("r1", 10))
    assert [("stripe", "unbilled", 2)] == list(await records.causes("r1", 1))
