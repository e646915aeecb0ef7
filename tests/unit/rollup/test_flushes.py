"""A flush ends the report bucket of one account: what is counted so far is reported at once, and later usage apart."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from pipeline.rollup.processor import RollupSettings
from pipeline.rollup.relays import ReportRelay
from reconciler.causes import Cause, Pair, Verdict
from schemas.clock import DAY_MS, HOUR_MS, MINUTE_MS, SECOND_MS
from schemas.control import FlushRecord
from schemas.reports import Intent
from tests.worlds.flushes import (
    ADA,
    BOB,
    HALF_PAST,
    METERS,
    TEN,
    Part,
    deployment,
    flush,
    intents,
    parts,
    relayed,
    requests,
    until,
)
from tests.worlds.reconciler import Deployment, rows_of


async def test_a_flush_reports_what_is_counted_so_far_and_later_usage_apart() -> None:
    """Of one account only: the bucket of the other one goes on."""
    world = await deployment()
    for account in (ADA, BOB):
        await requests(world, account, 2)
    await until(world, HALF_PAST)
    flushed = await flush(world)
    for account in (ADA, BOB):
        await requests(world, account, 3)
    await relayed(world)

    assert flushed.instant_ms == HALF_PAST
    assert await parts(world) == [Part(TEN, HALF_PAST, 2)]
    assert await parts(world, BOB) == []

    await world.settle()
    assert await parts(world) == [Part(TEN, HALF_PAST, 2), Part(HALF_PAST, TEN + HOUR_MS, 3)]
    assert await parts(world, BOB) == [Part(TEN, TEN + HOUR_MS, 5)]
    report = await world.reconcile()
    assert report.verdict is Verdict.EQUAL, report.rows


@pytest.mark.parametrize("interval_ms", [5 * MINUTE_MS, HOUR_MS, DAY_MS], ids=["5 minutes", "an hour", "a day"])
async def test_flushed_usage_lies_before_the_flush_and_later_usage_behind_it(interval_ms: int) -> None:
    """At Stripe, for every report interval: a price that is swapped after the flush has the usage after it."""
    world = await deployment(interval_ms)
    await until(world, HALF_PAST - 7 * SECOND_MS)
    await requests(world, ADA, 4)
    await until(world, HALF_PAST)
    await flush(world)
    await until(world, HALF_PAST + 2 * SECOND_MS)
    await requests(world, ADA, 3)
    await until(world, TEN + DAY_MS)
    await world.settle()

    sent = [each.event for each in world.stripe.events if each.event.event_name == "requests"]
    before = sum(Decimal(event.value) for event in sent if event.timestamp_s < HALF_PAST // 1000)
    after = sum(Decimal(event.value) for event in sent if event.timestamp_s >= HALF_PAST // 1000)
    assert (before, after) == (4, 3)


async def test_flushes_follow_each_other_and_a_repeated_record_ends_nothing() -> None:
    """At every repetition at once, within the same millisecond, and after a later flush."""
    world = await deployment()
    await requests(world, ADA, 1)
    await until(world, HALF_PAST)
    first = await flush(world)
    await requests(world, ADA, 2)
    second = await flush(world)
    await requests(world, ADA, 4)
    await until(world, HALF_PAST + MINUTE_MS)
    third = await flush(world)
    for revision in (first.revision, second.revision, third.revision):
        await until(world, world.clock.ms + MINUTE_MS)
        await requests(world, ADA, 8)
        await world.world.control(world.partition(ADA), FlushRecord(account=ADA, revision=revision))
    await world.settle()

    assert await parts(world) == [
        Part(TEN, HALF_PAST, 1),
        Part(HALF_PAST, HALF_PAST + 1, 2),
        Part(HALF_PAST + 1, HALF_PAST + MINUTE_MS, 4),
        Part(HALF_PAST + MINUTE_MS, TEN + HOUR_MS, 24),
    ]
    assert (await world.reconcile()).verdict is Verdict.EQUAL


@pytest.mark.parametrize(
    ("at_ms", "expected"),
    [
        pytest.param(TEN, [Part(TEN, TEN + 1, 1), Part(TEN + 1, TEN + HOUR_MS, 2)], id="the bucket's start"),
        pytest.param(
            TEN + HOUR_MS - 1,
            [Part(TEN, TEN + HOUR_MS - 1, 1), Part(TEN + HOUR_MS - 1, TEN + HOUR_MS, 6)],
            id="twice in the last millisecond",
        ),
    ],
)
async def test_flush_at_an_edge_of_the_bucket_loses_nothing(at_ms: int, expected: list[Part]) -> None:
    world = await deployment()
    await until(world, at_ms)
    await requests(world, ADA, 1)
    assert (await flush(world)).instant_ms == expected[0].end_ms
    await requests(world, ADA, 2)
    if at_ms != TEN:
        assert (await flush(world)).instant_ms == TEN + HOUR_MS
        await requests(world, ADA, 4)
    await world.settle()

    assert await parts(world) == expected
    assert (await world.reconcile()).verdict is Verdict.EQUAL


async def test_replay_makes_the_same_intents() -> None:
    """A worker that starts from the log's first record; it relays only after the buckets have ended by themselves."""
    world = await deployment()
    for minute in (5, 20, 40, 50):
        await until(world, TEN + minute * MINUTE_MS)
        await requests(world, ADA, 1, user=f"user-{minute}")
        await flush(world)
        await relayed(world)
    await world.settle()
    published = {each.identifier: each for each in await intents(world)}
    assert len({each.bucket_end_ms for each in published.values()}) == 4

    world.store.server.empty()
    world.rollup_settings = RollupSettings(replay_from_start=True)
    await relayed(world)

    again = await intents(world)
    assert len(again) == 2 * len(published)
    assert all(published[each.identifier] == each for each in again)


async def test_flush_before_any_usage_reports_nothing() -> None:
    """And leaves nothing behind in Redis."""
    world = await deployment()
    await flush(world)
    await relayed(world)

    assert await parts(world) == []
    assert (await world.store.reports.report_buckets(world.partition(ADA)))[1] == []


async def test_flushed_usage_of_an_account_is_restated_with_the_rest() -> None:
    """A late binding recounts all usage that nobody had to pay, also what was flushed: the old reports are replaced."""
    world = await Deployment().start(METERS)
    world.stripe.add_customer("cus_eve")
    for minute in (10, 30, 50):
        await until(world, TEN + minute * MINUTE_MS)
        await requests(world, "eve", 2)
        await flush(world, "eve")
        await relayed(world)
    assert len(await parts(world, "eve")) == 3
    await requests(world, "eve", 5)
    cut_ms = TEN + 20 * MINUTE_MS
    await world.bind("eve", effective_from_ms=cut_ms, anchor_ms=cut_ms, stripe_customer="cus_eve")
    for _ in range(3):
        await world.fold()
        await world.archive()
        await world.restatement()
        await requests(world, "eve", 1)
    await flush(world, "eve")
    await requests(world, "eve", 1)
    await world.resolve()
    await world.settle()

    sent = [each.event for each in world.stripe.events if each.event.event_name == "requests"]
    # Of the first ten minutes, nobody is named to pay.
    assert sum(Decimal(event.value) for event in sent) == 13
    report = await world.reconcile()
    assert report.verdict is Verdict.EQUAL, report.rows


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"bucket_end_ms": TEN + HOUR_MS}, id="told at the end of the bucket of all"),
        pytest.param({"delta_minor": 1}, id="too little"),
    ],
)
async def test_reconciler_finds_usage_that_a_flush_should_have_reported(changed: dict[str, int]) -> None:
    """Although the sum over the whole bucket is right."""
    world = await deployment()
    await requests(world, ADA, 2)
    await until(world, HALF_PAST)
    await flush(world)
    await requests(world, ADA, 3)
    partition, published = world.partition(ADA), world.log.append
    left = 2 - changed.get("delta_minor", 2)

    async def append(topic: str, partition: int, value: bytes, **options: Any) -> int:
        intent = Intent.model_validate_json(value) if b'"intent"' in value else None
        if intent is not None and intent.meter == "requests":
            is_first = intent.bucket_start_ms == TEN
            update = changed if is_first else {"delta_minor": intent.delta_minor + left}
            value = intent.model_copy(update=update).model_dump_json().encode()
        return await published(topic, partition, value, **options)

    world.log.append = append  # type: ignore[method-assign]  # the log of this test only
    await world.settle()

    (row,) = rows_of(await world.reconcile(), Cause.MISSING)
    assert (row.partition, row.account, row.meter) == (partition, ADA, "requests")
    assert row.detail.endswith("the flush at 2026-11-10 10:30")


async def test_flush_that_waits_in_redis_is_in_flight() -> None:
    world = await deployment()
    await requests(world, ADA, 2)
    await until(world, HALF_PAST)
    await flush(world)
    await world.fold()
    await world.archive()

    details = [row.detail for row in rows_of(await world.reconcile(), Cause.IN_FLIGHT)]
    assert "a flush, or a report bucket before it, waits in Redis for its intents to be published" in details


async def test_flush_in_the_first_minute_of_a_period_is_told_before_the_flush() -> None:
    """Usage is otherwise told at the end of that minute, because Stripe's period may begin within it."""
    world = await deployment()
    anchor_ms = TEN + 20 * MINUTE_MS
    await world.bind(ADA, stripe_customer="cus_ada", effective_from_ms=anchor_ms, anchor_ms=anchor_ms)
    await until(world, anchor_ms + 20 * SECOND_MS + 400)
    await requests(world, ADA, 2)
    await flush(world)
    await requests(world, ADA, 3)
    await world.settle()

    sent = [each.event for each in world.stripe.events if each.event.event_name == "requests"]
    told = [(event.timestamp_s - anchor_ms // 1000, int(event.value)) for event in sent]
    assert told == [(19, 2), (40 * 60 - 1, 3)]


async def test_flush_behind_a_bucket_that_waits_is_in_flight_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The relay dies between the flushes and the ended buckets: what an ended bucket reports is missing for a while."""

    async def dies(*_: object) -> int:
        return 0

    world = await deployment()
    await requests(world, ADA, 1)
    await until(world, TEN + HOUR_MS)
    await requests(world, ADA, 2)
    await until(world, HALF_PAST + HOUR_MS)
    await flush(world)
    await world.fold()
    await world.archive()
    with monkeypatch.context() as patched:
        patched.setattr(ReportRelay, "_relay_bucket", dies)
        await world.publish()
    assert await parts(world) == [Part(TEN + HOUR_MS, HALF_PAST + HOUR_MS, 2)]

    report = await world.reconcile()
    assert [row for row in report.rows if row.pair is Pair.INTENTS and row.cause.is_drift] == []
    await world.settle()
    assert (await world.reconcile()).verdict is Verdict.EQUAL
