"""The timestamp of a meter event: within its period, and within the span that Stripe accepts."""

from __future__ import annotations

import random
from typing import Any

import pytest

from pipeline.billing.sender import StripeSender
from schemas.clock import DAY_MS, HOUR_MS, MINUTE_MS
from schemas.periods import Billing
from schemas.reports import OutcomeStatus
from tests.worlds.sender import NOW_MS, PERIOD_END_MS, PERIOD_START_MS, AheadClock, Bench, make_intent

OLD_MS = NOW_MS - 60 * DAY_MS


@pytest.mark.parametrize(
    ("changes", "expected_ms", "paying_ms"),
    [
        ({}, NOW_MS - 1_000, NOW_MS - 1_000),
        (
            {"bucket_end_ms": PERIOD_END_MS + HOUR_MS, "bucket_start_ms": PERIOD_END_MS},
            PERIOD_END_MS - 1_000,
            PERIOD_END_MS - 1_000,
        ),
        (
            {"period_start_ms": NOW_MS, "bucket_end_ms": NOW_MS - HOUR_MS},
            NOW_MS + MINUTE_MS - 1_000,
            NOW_MS + MINUTE_MS - 1_000,
        ),
        (
            {"period_start_ms": NOW_MS - 90 * DAY_MS, "bucket_end_ms": OLD_MS},
            NOW_MS - 34 * DAY_MS,
            OLD_MS - 1_000,
        ),
    ],
    ids=["bucket inside the period", "bucket after the period", "bucket before the period", "bucket too old"],
)
async def test_timestamp_lies_in_the_period_and_in_what_stripe_accepts(
    changes: dict[str, Any], expected_ms: int, paying_ms: int
) -> None:
    """An instant of the next period belongs to the next invoice. A later timestamp does not change the payer."""
    bench = await Bench().start()
    if expected_ms > NOW_MS:
        bench.clock.ms = expected_ms
    await bench.publish(make_intent("one", **changes))

    await bench.settle()

    assert [stored.event.timestamp_s * 1_000 for stored in bench.stripe.events] == [expected_ms]
    assert bench.asked == [("a", paying_ms)]


async def test_a_clock_that_is_minutes_ahead_sends_nothing_that_stripe_refuses() -> None:
    """Usage is carried into a period that is about to begin. Stripe accepts five minutes of clock difference."""
    bench = await Bench().start()
    ahead, rng = AheadClock(bench.clock, 4 * MINUTE_MS), random.Random(7)
    bench.sender = StripeSender(bench.log, bench.ledger, bench.stripe, bench.resolve, ahead, rng, bench.policy)
    await bench.assign()
    begins_ms = NOW_MS + 8 * MINUTE_MS
    await bench.publish(make_intent("ahead", period_start_ms=begins_ms, bucket_end_ms=NOW_MS))

    for _ in range(20):
        await bench.pump(2)
        bench.clock.advance(MINUTE_MS)

    assert bench.counted() == {"ahead": 1}
    assert (await bench.outcomes())["ahead"].status is OutcomeStatus.ACCEPTED


async def test_period_that_stripe_no_longer_accepts_makes_dead_letters() -> None:
    """Stripe accepts nothing of a period 35 days after its end."""
    bench = await Bench().start()
    await bench.publish(make_intent("old", period_start_ms=NOW_MS - 80 * DAY_MS, period_end_ms=NOW_MS - 40 * DAY_MS))

    await bench.settle()

    assert (await bench.outcomes())["old"].status is OutcomeStatus.DEAD
    assert bench.stripe.sends == []


@pytest.mark.parametrize(
    ("mapped_after_days", "status"),
    [
        pytest.param(30, OutcomeStatus.ACCEPTED, id="the cut period is young enough"),
        pytest.param(49, OutcomeStatus.DEAD, id="only what follows the cut would be"),
    ],
)
async def test_period_that_was_cut_after_its_reports_is_sent_within_the_cut(
    mapped_after_days: int, status: OutcomeStatus
) -> None:
    """An instant after the cut would belong to another payer or another bill."""
    bench = await Bench().start()
    cut_ms = PERIOD_START_MS + 14 * DAY_MS
    bench.period_ends["a"] = cut_ms
    bench.clock.ms = PERIOD_START_MS + mapped_after_days * DAY_MS + HOUR_MS // 2
    used_ms = PERIOD_START_MS + 5 * DAY_MS
    await bench.publish(make_intent("one", bucket_start_ms=used_ms - HOUR_MS, bucket_end_ms=used_ms))

    await bench.settle()

    assert (await bench.outcomes())["one"].status is status
    assert all(stored.event.timestamp_s * 1_000 < cut_ms for stored in bench.stripe.events)


async def test_free_usage_that_is_too_old_for_stripe_is_no_dead_letter() -> None:
    """Nobody should add an invoice item for free usage."""
    bench = await Bench().start()
    bench.billing["a"] = (Billing.FREE, "")
    await bench.publish(make_intent("old", period_start_ms=NOW_MS - 80 * DAY_MS, period_end_ms=NOW_MS - 40 * DAY_MS))

    await bench.settle()

    assert (await bench.outcomes())["old"].status is OutcomeStatus.FREE
