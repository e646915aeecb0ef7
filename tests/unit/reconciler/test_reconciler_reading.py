"""Which values at Stripe a run reads, when it may not read all (B14)."""

from __future__ import annotations

from collections import Counter

import pytest

from reconciler.causes import Cause, Pair, Verdict
from reconciler.coverage import Coverage
from reconciler.reading import REREAD_AFTER_MS, LastRead, Readable, coverage, plan
from reconciler.records import finding_rows, run_row
from reconciler.report import Report, gauge_values
from reconciler.table import render_table
from reconciler.views import ReconcilePolicy
from schemas.clock import DAY_MS, HOUR_MS, MINUTE_MS
from sinks.clickhouse.fake_reconciliations import FakeReconciliations
from tests.worlds.reconciler import DECEMBER_MS, NOVEMBER_MS, Deployment

NOW_MS = 100 * DAY_MS
CONFIRMED = frozenset({Cause.CONFIRMED})


def readable(
    key: str, ends_ms: int = 90 * DAY_MS, changed_ms: int = 80 * DAY_MS, last: LastRead | None = None
) -> Readable[str]:
    return Readable(key, ends_ms, changed_ms, last)


def read(days: int, cause: Cause = Cause.CONFIRMED) -> LastRead:
    return LastRead(days * DAY_MS, frozenset({cause}))


@pytest.mark.parametrize(
    ("values", "order", "due"),
    [
        pytest.param([readable("a", last=read(95))], "", 0, id="confirmed and unchanged"),
        pytest.param([readable("a", last=read(70))], "a", 1, id="an intent was settled since"),
        pytest.param([readable("a", last=read(80))], "a", 1, id="settled in the moment of the read"),
        pytest.param([readable("a", last=read(95, Cause.IN_FLIGHT))], "a", 1, id="in flight"),
        pytest.param([readable("a", changed_ms=0, last=LastRead(NOW_MS - REREAD_AFTER_MS, CONFIRMED))], "a", 0,
                     id="confirmed long ago"),
        pytest.param([readable("a", changed_ms=0, last=LastRead(NOW_MS - REREAD_AFTER_MS + 1, CONFIRMED))], "", 0,
                     id="confirmed not so long ago"),
        pytest.param([readable("a", 101 * DAY_MS), readable("b"), readable("c", last=read(95, Cause.UNBILLED))], "cba",
                     3, id="drift, then ended periods, then running ones"),
        pytest.param([readable("a", 101 * DAY_MS, 99 * DAY_MS, read(97)), readable("b", 101 * DAY_MS, 99 * DAY_MS,
                     read(96))], "ba", 2, id="longest unread first"),
        pytest.param([readable("a", 90 * DAY_MS), readable("b", 60 * DAY_MS)], "ba", 2, id="oldest end first"),
    ],
)  # fmt: skip
def test_order_of_reading(values: list[Readable[str]], order: str, due: int) -> None:
    """Drift and ended periods come first; what is confirmed is read once a month."""
    planned = plan(values, NOW_MS)

    assert ("".join(each.key for each in planned.keys), planned.due) == (order, due)


def test_coverage_counts_what_was_due() -> None:
    """A confirmed value that is read again is no part of it."""
    planned = plan([readable("a", 3), readable("b", 2), readable("c", 0, 0, LastRead(1, CONFIRMED))], NOW_MS)

    assert Coverage(2, 1, 5, 2) == coverage(planned, ["a", "c"], 5)
    assert Coverage(2, 2, 0, None) == coverage(planned, ["a", "b"], 0)


async def three_months() -> Deployment:
    """Sixteen sums in each of three months."""
    deployment = await Deployment().start()
    for start_ms in (NOVEMBER_MS + 20 * DAY_MS, DECEMBER_MS + 20 * DAY_MS, DECEMBER_MS + 51 * DAY_MS):
        while deployment.clock.ms < start_ms:
            await deployment.advance(min(6 * HOUR_MS, start_ms - deployment.clock.ms))
        await deployment.traffic(1)
        await deployment.settle()
    return deployment


async def recorded(deployment: Deployment, records: FakeReconciliations, reads_max: int) -> Report:
    """A reconciliation that knows the ones before, and is kept."""
    policy = ReconcilePolicy(archive_wait_s=1.0, stripe_reads_max=reads_max)
    report = await deployment.reconcile(policy=policy, past=await records.past_reads())
    run = f"run-{len(records.runs)}"
    await records.insert(
        run_row(report, run, "command", report.started_at_ms, deployment.clock.ms), finding_rows(report, run)
    )
    deployment.clock.ms += MINUTE_MS
    return report


def months(report: Report) -> Counter[int]:
    """How many sums of each month were read and right: 11, 12 and 1."""
    starts = {NOVEMBER_MS: 11, DECEMBER_MS: 12, DECEMBER_MS + 31 * DAY_MS: 1}
    return Counter(starts[row.period.start_ms] for row in report.confirmed if row.period and row.pair is Pair.STRIPE)


async def test_reads_move_on_until_every_month_was_read() -> None:
    """B14: with 32 reads for 48 sums, each run read the same ones, and the newest months never."""
    deployment, records = await three_months(), FakeReconciliations()

    first = await recorded(deployment, records, 32)
    second = await recorded(deployment, records, 32)
    third = await recorded(deployment, records, 32)

    assert [{11: 16, 12: 16}, {1: 16}, {}] == [dict(months(report)) for report in (first, second, third)]
    assert [(48, 32, 0), (16, 16, 32), (0, 0, 48)] == [report.sums[:3] for report in (first, second, third)]
    assert [Verdict.INCOMPLETE, Verdict.EQUAL, Verdict.EQUAL] == [each.verdict for each in (first, second, third)]
    assert DECEMBER_MS + 62 * DAY_MS == first.sums.oldest_unread_ms
    assert "32 of 48 sums that were due were read (66 %)" in render_table(first, width=200)
    gauges = {key.name + "".join(value for _, value in key.labels): value for key, value in gauge_values(first).items()}
    assert [48, 32] == [gauges[f"tidemark_reconcile_stripesums{state}"] for state in ("due", "read")]
    assert (DECEMBER_MS + 62 * DAY_MS) // 1_000 == gauges["tidemark_reconcile_oldest_unread_secondssums"]


async def test_a_closed_month_is_read_again_when_usage_comes_late_or_stripe_may_have_changed() -> None:
    """The confirmed sum of a closed month is no proof for ever."""
    deployment, records = await three_months(), FakeReconciliations()
    await recorded(deployment, records, 1_000)
    event = deployment.sent("ada", "requests")
    deployment.stripe.inject(event._replace(identifier="sent by somebody else"))

    soon = await recorded(deployment, records, 1_000)
    deployment.clock.ms += REREAD_AFTER_MS
    later = await recorded(deployment, records, 1_000)

    assert (Verdict.EQUAL, 0) == (soon.verdict, soon.stripe_reads)
    assert (Verdict.DRIFT, 48) == (later.verdict, later.stripe_reads)
    again = await recorded(deployment, records, 1)
    assert Verdict.DRIFT is again.verdict
