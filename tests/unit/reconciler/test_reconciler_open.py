"""Usage in flight and views that cannot be read are reported as such: never as equal, never as drift."""

from __future__ import annotations

import pytest

from reconciler.causes import Cause, Pair, Verdict
from reconciler.views import ReconcilePolicy
from schemas.analytics import ArchivePosition
from schemas.clock import HOUR_MS, MINUTE_MS
from schemas.errors import Transient
from tests.worlds.reconciler import Deployment, Fault, after, causes_by_pair, rows_of, settled


async def test_usage_that_the_archive_has_not_reached_is_in_flight_with_the_lag() -> None:
    """A rollup ahead of the archive is normal; calling this drift would hide real drift."""
    deployment = await settled()
    deployment.clock.ms += MINUTE_MS
    for account in ("ada", "bob", "cyd", "dora"):
        await deployment.emit(account, gb="1", user="u", region="eu")
    await deployment.fold()

    report = await deployment.reconcile()

    assert report.verdict is Verdict.INCOMPLETE
    assert {cause for _, cause in report.causes} == {Cause.IN_FLIGHT}
    assert all("records and" in row.detail and "behind the rollup" in row.detail for row in report.rows)


async def test_the_reconciler_waits_for_the_archive_within_the_limit() -> None:
    """Two consumer groups are never at the same position; a short wait makes most traffic comparable."""
    deployment = await settled()
    await deployment.emit("ada", gb="1", user="u", region="eu")
    await deployment.fold()
    sleep, slept = deployment.clock.sleep, []

    async def sleep_and_archive(duration_s: float) -> None:
        slept.append(duration_s)
        await deployment.archive()
        await sleep(duration_s)

    deployment.clock.sleep = sleep_and_archive  # type: ignore[method-assign]  # the archive goes on meanwhile
    report = await deployment.reconcile()

    assert next(s for s in report.summaries if s.pair is Pair.REDIS).equal == 20
    assert slept


async def test_open_buckets_and_unrelayed_cells_are_in_flight() -> None:
    """Each row states what it waits for: the hour's end, the relay, or the publication of intents."""
    deployment = await settled()
    await deployment.emit("ada", gb="1", user="u", region="eu")
    await deployment.fold()
    await deployment.archive()
    is_open = await deployment.reconcile()
    await deployment.advance(HOUR_MS)
    await deployment.fold()
    await deployment.archive()
    unrelayed = await deployment.reconcile()

    assert "stream time has not passed it" in rows_of(is_open, Cause.IN_FLIGHT, Pair.HOURLY)[0].detail
    assert "stream time has not passed it" in rows_of(is_open, Cause.IN_FLIGHT, Pair.INTENTS)[0].detail
    assert "wait in Redis to be relayed" in rows_of(unrelayed, Cause.IN_FLIGHT, Pair.HOURLY)[0].detail
    assert "waits in Redis for its intents" in rows_of(unrelayed, Cause.IN_FLIGHT, Pair.INTENTS)[0].detail
    assert is_open.verdict is unrelayed.verdict is Verdict.INCOMPLETE
    assert not is_open.differences


async def test_a_meter_event_that_stripe_does_not_show_yet_is_in_flight() -> None:
    """Stripe's summaries lag behind its answers."""
    deployment = await Deployment().start()
    deployment.stripe.lag_ms = 5 * MINUTE_MS
    await deployment.traffic(1)
    await deployment.settle()
    deployment.clock.ms -= 20 * MINUTE_MS
    early = await deployment.reconcile()
    deployment.clock.ms += 20 * MINUTE_MS

    assert causes_by_pair(early) == {(Pair.STRIPE, Cause.IN_FLIGHT)}
    assert (await deployment.reconcile()).verdict is Verdict.EQUAL


async def test_an_extra_meter_event_shows_even_while_others_are_in_flight() -> None:
    """A busy send queue must not hide an event that is billed twice."""
    deployment = await settled()
    event = deployment.sent("bob", "requests")
    deployment.stripe.inject(event._replace(identifier="sent again", value="1000"))
    await deployment.emit("bob", gb="1", user="u", region="eu")
    await deployment.settle()
    deployment.clock.ms -= 20 * MINUTE_MS

    report = await deployment.reconcile()

    assert [(row.meter, row.stripe_customer) for row in rows_of(report, Cause.EXTRA)] == [("requests", "cus_bob")]


async def test_a_stripe_that_does_not_answer_is_unchecked_and_the_rest_is_compared() -> None:
    """A view that was not read is never equal."""
    deployment = await settled()
    deployment.stripe.read_fault = lambda call: call == "summary"

    report = await deployment.reconcile()

    assert causes_by_pair(report) == {(Pair.STRIPE, Cause.UNCHECKED)}
    assert len(report.rows) == 16
    assert next(s for s in report.summaries if s.pair is Pair.REDIS).equal == 20
    assert report.verdict is Verdict.INCOMPLETE


async def test_reads_of_stripe_stop_at_the_limit_and_the_rest_is_unchecked() -> None:
    """Stripe allows 10 000 reads a month."""
    deployment = await settled()

    report = await deployment.reconcile(policy=ReconcilePolicy(stripe_reads_max=5))

    stripe = next(s for s in report.summaries if s.pair is Pair.STRIPE)
    assert (stripe.equal, stripe.unchecked) == (5, 11)
    assert {row.detail for row in report.rows} == {"over the limit of 5 reads of Stripe (stripe_reads_max)"}


@pytest.mark.parametrize(
    ("answer_ms", "reading_ms"),
    [
        pytest.param(0, 16 * 100, id="fast answers: as the rate allows"),
        pytest.param(70, 16 * 100, id="answers that take most of it: as the rate allows"),
        pytest.param(250, 16 * 250, id="slow answers: no additional wait"),
    ],
)
async def test_reads_of_stripe_keep_the_rate_limit(answer_ms: int, reading_ms: int) -> None:
    """Stripe allows 25 reads a second on one endpoint."""
    deployment = await settled()
    began_ms = deployment.clock.ms

    def takes_its_time(call: str) -> bool:
        deployment.clock.ms += answer_ms if call == "summary" else 0
        return False

    deployment.stripe.read_fault = takes_its_time
    policy = ReconcilePolicy(stripe_concurrency_max=1, stripe_reads_per_s=10)
    report = await deployment.reconcile(policy=policy)

    assert next(s for s in report.summaries if s.pair is Pair.STRIPE).equal == 16
    assert deployment.clock.ms - began_ms == reading_ms


@pytest.mark.parametrize(
    ("fault", "pairs"),
    [
        pytest.param(lambda d: d.store.server.empty(), {Pair.REDIS}, id="Redis was emptied"),
        pytest.param(lambda d: setattr(d.stripe, "key_is_valid", False), {Pair.STRIPE}, id="Stripe refuses the key"),
        pytest.param(
            lambda d: d.clickhouse.archived.update(
                {number: ArchivePosition(number, 10_000, d.clock.ms, "another log") for number in (0, 1)}
            ),
            {Pair.REDIS, Pair.INTENTS, Pair.STRIPE},
            id="the archive belongs to another log",
        ),
    ],
)
async def test_a_view_that_cannot_be_read_is_unchecked(fault: Fault, pairs: set[Pair]) -> None:
    """The row contains the remedy, and no other difference is derived from the missing view."""
    report = await after(fault)

    assert causes_by_pair(report) == {(pair, Cause.UNCHECKED) for pair in pairs}
    assert all(row.detail for row in report.rows)
    assert report.verdict is Verdict.INCOMPLETE


async def test_a_clickhouse_that_does_not_answer_is_unchecked() -> None:
    """A transient failure is not drift."""
    deployment = await settled()

    async def silent(*_: object) -> None:
        raise Transient("no answer from ClickHouse")

    deployment.clickhouse.hourly_cells = silent  # type: ignore[method-assign,assignment]  # it does not answer
    report = await deployment.reconcile()

    assert {(row.pair, row.cause, row.detail) for row in report.rows} == {
        (Pair.HOURLY, Cause.UNCHECKED, "no answer from ClickHouse")
    }
