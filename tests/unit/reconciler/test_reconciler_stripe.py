"""Stripe's sums compared with the log: the key's account, payers, dead letters, sums of doubles."""

from __future__ import annotations

import random
from collections.abc import Sequence
from decimal import Decimal
from itertools import count

import pytest

from aggregators.quantities import decimal_text
from aggregators.report_records import ReportedIntent
from aggregators.stripe_sums import SCALE_MAX, StripeSum, bounds_of, may_contain, units_of
from pipeline.logs.control_records import ensure_deployment
from pipeline.settings import Settings
from reconciler.causes import Cause, Pair, Verdict
from schemas.clock import DAY_MS, HOUR_MS, MINUTE_MS
from schemas.periods import Billing, Period
from schemas.reports import MeterEvent, OutcomeStatus
from sinks.stripe.fake import FakeFault
from tests.worlds.deployment import SECRET
from tests.worlds.reconciler import (
    ACCEPTED,
    DECEMBER_MS,
    INTENT,
    NOVEMBER_MS,
    Deployment,
    all_reported,
    attempt,
    rows_of,
    settled,
)


@pytest.mark.parametrize(
    ("change", "theirs"),
    [
        pytest.param({"livemode": True}, "the key is of live mode of Stripe account acct_ours", id="mode"),
        pytest.param({"account": "acct_other"}, "the key is of test mode of Stripe account acct_other", id="account"),
    ],
)
@pytest.mark.parametrize("is_refused", [False, True], ids=["accepted", "dead letters"])
async def test_a_key_of_another_account_or_mode_compares_nothing_and_is_reported(
    change: dict[str, str | bool], theirs: str, is_refused: bool
) -> None:
    """Nothing was sent with that key, so nothing that the key reads proves anything."""
    deployment = Deployment()
    topics = Settings(partitions=2, retention_days=3650).topics()
    await ensure_deployment(deployment.log, SECRET, topics, stripe_account="acct_ours")
    deployment.stripe.account = "acct_ours"
    await deployment.start()
    deployment.stripe.fault = lambda _event: FakeFault.BAD_REQUEST if is_refused else None
    await deployment.traffic(1)
    await deployment.settle()
    with_its_own = await deployment.reconcile()
    for name, value in change.items():
        setattr(deployment.stripe, name, value)

    report = await deployment.reconcile()

    assert with_its_own.verdict is (Verdict.DRIFT if is_refused else Verdict.EQUAL)
    assert report.verdict is Verdict.INCOMPLETE
    (row,) = rows_of(report, Cause.UNCHECKED, Pair.STRIPE)
    assert row.detail.startswith(f"{theirs}, these intents are of test mode of Stripe account acct_ours: ")
    assert "TIDEMARK_STRIPE_API_KEY" in row.detail
    stripe = next(s for s in report.summaries if s.pair is Pair.STRIPE)
    assert (stripe.compared, stripe.unchecked) == (0, 16)


async def used_a_day_before_somebody_pays() -> Deployment:
    """Usage of eve, and a customer for her from a day later on."""
    deployment = await settled()
    await deployment.emit("eve", gb="2.5", user="u", region="eu")
    await deployment.settle()
    deployment.stripe.add_customer("cus_eve")
    from_ms = (deployment.clock.ms + DAY_MS) // MINUTE_MS * MINUTE_MS
    await deployment.bind("eve", stripe_customer="cus_eve", effective_from_ms=from_ms)
    return deployment


async def test_usage_before_the_first_customer_waits_for_one_despite_a_later_customer() -> None:
    """The sender ignores who pays at the period's end; usage on hold is not in flight."""
    deployment = await used_a_day_before_somebody_pays()
    await deployment.advance(2 * DAY_MS)
    await deployment.emit("eve", gb="4", user="u", region="eu")
    await deployment.settle()

    report = await deployment.reconcile()

    assert {(row.cause, row.account) for row in report.rows} == {(Cause.UNKNOWN_CUSTOMER, "eve")}
    assert {(row.meter, row.expected) for row in report.rows} >= {("gigabytes", "2.5")}
    assert all("for the time of this usage" in row.detail for row in report.rows)
    assert report.verdict is Verdict.EQUAL


async def test_usage_of_a_customer_who_ends_within_the_period_is_in_flight() -> None:
    """The sender will send the usage; no new payer is needed."""
    deployment = await settled()
    await deployment.emit("ada", gb="2.5", user="u", region="eu")
    await deployment.bind("ada", billing=Billing.UNMAPPED, effective_from_ms=NOVEMBER_MS + 19 * DAY_MS)
    await deployment.advance(HOUR_MS)
    await deployment.fold()
    await deployment.archive()
    await deployment.relay()
    await deployment.publish()

    waiting = await deployment.reconcile()
    await deployment.send()
    deployment.clock.ms += 20 * MINUTE_MS

    assert {(row.pair, row.cause) for row in waiting.rows} == {(Pair.STRIPE, Cause.IN_FLIGHT)}
    assert (await deployment.reconcile()).verdict is Verdict.EQUAL


async def test_usage_that_is_reported_late_is_not_sent_to_a_payer_at_its_timestamp_only() -> None:
    """The timestamp moves forward each day, but never into the period of a payer who did not pay for the usage."""
    deployment = await used_a_day_before_somebody_pays()
    for _ in range(20):
        await deployment.advance(2 * DAY_MS)
        await deployment.settle()

    assert not [stored for stored in deployment.stripe.events if stored.event.stripe_customer == "cus_eve"]
    rows = rows_of(await deployment.reconcile(), Cause.REJECTED_BY_STRIPE)
    assert {row.account for row in rows} == {"eve"}


async def with_dead_letters(hours: int = 1) -> Deployment:
    """Stripe refuses every report of ada's peak, one per hour."""
    deployment = await Deployment().start()
    is_ours = ("peak", "cus_ada")
    deployment.stripe.fault = lambda event: (
        FakeFault.BAD_REQUEST if (event.event_name, event.stripe_customer) == is_ours else None
    )
    await deployment.traffic(hours)
    await deployment.settle()
    deployment.stripe.fault = lambda _event: None
    return deployment


async def dead_events(deployment: Deployment) -> list[MeterEvent]:
    """The meter events of the dead letters, as they were attempted."""
    return [
        MeterEvent(
            reported.intent.identifier,
            reported.intent.event_name,
            reported.attempt.stripe_customer,
            decimal_text(reported.intent.delta_minor, reported.intent.scale),
            reported.attempt.timestamp_s,
        )
        for reported in await all_reported(deployment)
        if reported.is_dead and reported.attempt
    ]


async def test_a_dead_letter_that_an_operator_sent_is_no_extra_and_is_not_to_be_sent_again() -> None:
    """The remedy of `extra` is to cancel the event: the usage would never be billed."""
    deployment = await with_dead_letters()
    (event,) = await dead_events(deployment)
    before = await deployment.reconcile()
    await deployment.stripe.send(event)

    report = await deployment.reconcile()

    (refused,), (row,) = before.rows, report.rows
    assert (refused.cause, refused.expected, refused.found) == (Cause.REJECTED_BY_STRIPE, event.value, "")
    assert "do not send it again" not in refused.detail
    assert (row.cause, row.expected, row.found) == (Cause.REJECTED_BY_STRIPE, event.value, event.value)
    assert "Invalid request" in row.detail
    assert "do not send it again" in row.detail


async def test_a_dead_letter_that_arrived_by_an_attempt_without_an_answer_is_no_extra() -> None:
    """The last answer was a refusal, and the sender could not know that an earlier attempt had arrived."""
    deployment = await Deployment().start()
    answers = iter([FakeFault.LOST_ANSWER, FakeFault.BAD_REQUEST])
    deployment.stripe.fault = lambda event: (
        next(answers) if (event.event_name, event.stripe_customer) == ("peak", "cus_ada") else None
    )
    await deployment.traffic(1)
    await deployment.settle()
    deployment.clock.ms += HOUR_MS
    await deployment.send()

    (row,) = (await deployment.reconcile()).rows

    assert row.cause is Cause.REJECTED_BY_STRIPE
    assert "do not send it again" in row.detail


async def test_each_of_several_dead_letters_is_judged_by_the_sum() -> None:
    """Stripe has both dead letters, or one; an amount that no dead letter explains stays extra."""
    deployment = await with_dead_letters(hours=2)
    first, second = await dead_events(deployment)
    await deployment.stripe.send(second)
    one = await deployment.reconcile()
    await deployment.stripe.send(first)
    both = await deployment.reconcile()
    deployment.stripe.inject(second._replace(identifier="sent twice", value="0.001"))
    more = await deployment.reconcile()

    assert first.value != second.value
    assert {(row.expected, row.found) for row in one.rows} == {(first.value, ""), (second.value, second.value)}
    assert {(row.expected, row.found) for row in both.rows} == {(e.value, e.value) for e in (first, second)}
    assert [row.cause for row in more.rows].count(Cause.EXTRA) == 1
    assert not [row for row in more.rows if "do not send it again" in row.detail]


async def test_a_dead_letter_that_stripe_contains_is_reported_once_nothing_else_is_in_flight() -> None:
    """During other sends the sum proves neither that the dead letter arrived nor that anything is extra."""
    deployment = await with_dead_letters()
    (event,) = await dead_events(deployment)
    await deployment.stripe.send(event)
    await deployment.emit("ada", gb="900", user="u", region="eu")
    await deployment.settle()
    deployment.clock.ms -= 20 * MINUTE_MS
    early = await deployment.reconcile()
    deployment.clock.ms += 20 * MINUTE_MS

    late = await deployment.reconcile()

    assert not rows_of(early, Cause.EXTRA)
    (row,) = late.rows
    assert "do not send it again" in row.detail


@pytest.mark.parametrize("found", [0, 1], ids=["not sent", "sent"])
def test_report_that_another_sender_settled_as_free_after_an_attempt_is_no_extra(found: int) -> None:
    """The sender of the attempt may not have read the outcome, and sends to the payer that it found."""
    free = ACCEPTED.model_copy(update={"status": OutcomeStatus.FREE})
    reported = ReportedIntent(0, INTENT, attempt(1), free)
    asked = StripeSum(INTENT.event_name, attempt(1).stripe_customer, Period(NOVEMBER_MS, DECEMBER_MS))
    units = INTENT.delta_minor * 10 ** (SCALE_MAX - INTENT.scale)

    expected = bounds_of([reported], 0, try_unsettled=False)

    assert may_contain(asked, reported)
    assert expected.accepted == 0
    assert expected.contained(Decimal(found * units)) is not None
    assert expected.contained(Decimal(2 * units)) is None


async def test_more_dead_letters_than_can_be_tried_leave_a_difference_unchecked() -> None:
    """Stripe has an amount that equals no dead letter; with so many dead letters, no combination can be excluded."""
    deployment = await settled()
    deployment.stripe.fault = lambda event: (
        FakeFault.BAD_REQUEST if (event.event_name, event.stripe_customer) == ("gigabytes", "cus_ada") else None
    )
    for power in range(13):
        await deployment.emit("ada", gb=str(10 * 2**power), user="u", region="eu")
        await deployment.settle()
    deployment.stripe.fault = lambda _event: None
    sent = (await dead_events(deployment))[0]
    await deployment.stripe.send(sent._replace(identifier="somebody else's", value="3"))

    report = await deployment.reconcile()

    (unchecked,) = rows_of(report, Cause.UNCHECKED)
    assert unchecked.stripe_customer == "cus_ada"
    assert "too many different dead letters" in unchecked.detail


async def test_dead_letters_that_no_sum_distinguishes_are_perhaps_contained() -> None:
    """Two dead letters have the same amount, and Stripe has one of them."""
    deployment = await settled()
    deployment.stripe.fault = lambda event: (
        FakeFault.BAD_REQUEST if (event.event_name, event.stripe_customer) == ("gigabytes", "cus_ada") else None
    )
    for _ in range(2):
        await deployment.emit("ada", gb="4", user="u", region="eu")
        await deployment.settle()
    deployment.stripe.fault = lambda _event: None
    await deployment.stripe.send((await dead_events(deployment))[0])

    report = await deployment.reconcile()

    assert [(row.cause, row.found) for row in report.rows] == [(Cause.REJECTED_BY_STRIPE, "")] * 2
    assert all("perhaps this one: look" in row.detail for row in report.rows)


def hourly(deltas: Sequence[int]) -> list[ReportedIntent]:
    """Accepted reports of thousandths, one per hour from the period's start."""
    reported = []
    for time_ms, delta in zip(count(NOVEMBER_MS, HOUR_MS), deltas, strict=False):
        name = f"tm_{time_ms}"
        reported.append(
            ReportedIntent(
                0,
                INTENT.model_copy(update={"identifier": name, "delta_minor": delta, "scale": 3}),
                attempt(1).model_copy(update={"identifier": name, "timestamp_s": time_ms // 1_000}),
                ACCEPTED.model_copy(update={"identifier": name}),
            )
        )
    return reported


@pytest.mark.parametrize("seed", range(10))
def test_stripes_sum_of_doubles_over_a_month_of_hours_is_the_expected_one(seed: int) -> None:
    """Each of 720 additions may be off by half a bit; one missing minor unit still shows."""
    draw = random.Random(seed)
    deltas = [draw.choice([draw.randrange(1, 10**5), 100, -draw.randrange(1, 10**4)]) for _ in range(720)]
    doubles = 0.0
    for delta in deltas:
        doubles += float(decimal_text(delta, 3))
    asked, sent = StripeSum("requests", "cus_ada", Period(NOVEMBER_MS, DECEMBER_MS)), hourly(deltas)

    expected = bounds_of(sent, 0, try_unsettled=False)

    assert all(may_contain(asked, reported) for reported in sent)
    assert (expected.accepted, expected.events) == (sum(deltas) * 10**9, 720)
    assert expected.agrees(expected.accepted, units_of(repr(doubles)))
    for lost in (10**9, -(10**9)):
        assert not expected.agrees(expected.accepted + lost, units_of(repr(doubles)))
