"""If the sender cannot know whether Stripe took an event, it reads the sum, waits, and never guesses."""

from __future__ import annotations

from typing import Any

import pytest

from schemas.clock import DAY_MS, HOUR_MS, MINUTE_MS
from schemas.errors import Transient
from schemas.log import REPORTS_TOPIC
from schemas.periods import Billing
from schemas.reports import Attempt, MeterEvent, MeterSummary, OutcomeStatus, ReportOutcome
from sinks.stripe.fake import FakeFault, FakeStripe
from tests.worlds.sender import (
    NOW_MS,
    PERIOD_END_MS,
    PERIOD_START_MS,
    Bench,
    make_intent,
)

# The period from the 15th to the 15th around `NOW_MS`.
ANCHORED: dict[str, Any] = {
    "period_start_ms": PERIOD_START_MS + 14 * DAY_MS,
    "period_end_ms": PERIOD_END_MS + 14 * DAY_MS,
}
# The running calendar month, cut by a binding.
CUT_SHORT: dict[str, Any] = {"period_end_ms": NOW_MS}


LOOK_STEP_MS = 15 * MINUTE_MS


async def left_in_doubt(bench: Bench) -> None:
    """Intents whose answers were lost; when Stripe answers again, it has forgotten their identifiers."""
    await bench.pump(3)
    bench.stripe.fault = lambda _event: None
    bench.clock.advance(30 * HOUR_MS)


@pytest.mark.parametrize("fault", [FakeFault.LOST_ANSWER, FakeFault.NO_ANSWER], ids=["delivered", "lost"])
async def test_after_the_window_the_sender_reads_the_sum_and_does_not_guess(fault: FakeFault) -> None:
    """Down for 30 hours after a send without an answer: Stripe has forgotten the identifier."""
    bench = await Bench().start()
    await bench.publish(make_intent("before", delta=700))
    await bench.settle()
    await bench.publish(make_intent("doubt", delta=5))
    bench.stripe.fault = lambda _event: fault
    await left_in_doubt(bench)

    await bench.restart()
    await bench.settle(step_ms=LOOK_STEP_MS)

    assert bench.counted() == {"before": 1, "doubt": 1}
    looked = {name: count for name, count in bench.sender.status().counts.items() if name.startswith("looked")}
    assert looked == ({"looked_present": 1} if fault is FakeFault.LOST_ANSWER else {"looked_absent": 2})


@pytest.mark.parametrize(
    ("cut_days_ago", "status"),
    [(33, OutcomeStatus.ACCEPTED), (36, OutcomeStatus.DEAD)],
    ids=["the cut period is young enough", "only what follows the cut would be"],
)
async def test_lost_report_of_a_period_that_was_cut_since_is_sent_within_the_cut(
    cut_days_ago: int, status: OutcomeStatus
) -> None:
    """Stripe lacks the report, so it is sent again. An instant after the cut would belong to another bill."""
    bench = await Bench().start()
    await bench.publish(make_intent("doubt"))
    bench.stripe.fault = lambda _event: FakeFault.NO_ANSWER
    await left_in_doubt(bench)
    cut_ms = bench.period_ends["a"] = NOW_MS + HOUR_MS
    bench.clock.ms = cut_ms + cut_days_ago * DAY_MS

    await bench.restart()
    await bench.settle(step_ms=LOOK_STEP_MS)

    assert (await bench.outcomes())["doubt"].status is status
    assert all(stored.event.timestamp_s * 1_000 < cut_ms for stored in bench.stripe.events)


async def test_two_in_doubt_with_one_sum_that_fits_both_are_on_hold() -> None:
    """One of two equal events is missing and nothing tells which. An operator decides; nothing is sent again."""
    bench = await Bench(partitions=2).start()
    bench.billing["b"] = (Billing.MAPPED, "cus_a")
    bench.stripe.fault = lambda event: FakeFault.LOST_ANSWER if event.identifier == "one" else FakeFault.NO_ANSWER
    await bench.publish(make_intent("one", "a"))
    await bench.publish(make_intent("two", "b"), partition=1)
    await left_in_doubt(bench)

    await bench.restart()
    await bench.settle(rounds=10)

    assert bench.sender.status().held == {"unknown": 2}
    assert bench.counted() == {"one": 1}


@pytest.mark.parametrize("fault", [FakeFault.LOST_ANSWER, FakeFault.NO_ANSWER], ids=["delivered", "lost"])
@pytest.mark.parametrize("other_delta", [5, -5], ids=["as much", "as much less"])
@pytest.mark.parametrize(
    ("account", "other", "changes"),
    [("b", ANCHORED, {}), ("a", {}, CUT_SHORT)],
    ids=["two accounts of one customer", "one account, cut meanwhile"],
)
async def test_sum_is_compared_with_the_reports_of_all_periods_in_its_span(
    account: str, other: dict[str, Any], changes: dict[str, Any], other_delta: int, fault: FakeFault
) -> None:
    """Stripe adds up by instants, so the report of another period may explain the sum too."""
    bench = await Bench().start()
    bench.billing["b"] = (Billing.MAPPED, "cus_a")
    await bench.publish(make_intent("other", account, delta=other_delta, **other))
    await bench.settle()
    bench.stripe.fault = lambda _event: fault
    await bench.publish(make_intent("doubt", delta=5, **changes))
    await left_in_doubt(bench)

    await bench.restart()
    await bench.settle(step_ms=LOOK_STEP_MS)

    assert bench.counted() == {"other": 1, "doubt": 1}


@pytest.mark.parametrize(("hours_before", "sends"), [(0, 2), (1, 1)], ids=["of the same hour", "of another hour"])
async def test_rejected_event_is_taken_for_a_doubtful_one_of_the_same_amount(hours_before: int, sends: int) -> None:
    """A known limit (docs/guarantees.md): an hour's sum does not tell which of two equal events it contains."""
    bench = await Bench().start()
    bench.billing["b"] = (Billing.MAPPED, "cus_a")
    bench.stripe.fault = lambda _event: FakeFault.REJECTED
    await bench.publish(make_intent("rejected", "b", bucket=hours_before))
    await bench.settle()
    bench.stripe.fault = lambda _event: FakeFault.LOST_ANSWER
    await bench.publish(make_intent("doubt"))
    await left_in_doubt(bench)

    await bench.restart()
    await bench.settle(step_ms=LOOK_STEP_MS)

    assert bench.counted()["doubt"] == sends


async def accepted_by_another_sink(bench: Bench, hours_before: int) -> None:
    """Account b, of the same customer as a, on partition 1 with a sink of its own. Its event has the same amount, and
    was accepted 20 minutes ago."""
    await bench.publish(make_intent("other", "b", bucket=hours_before), partition=1)
    sink, offset = bench.new_sender(), await bench.sender.start_offset(1) or 0
    await sink.start_offset(1)
    while records := await bench.log.read(REPORTS_TOPIC, 1, offset):
        await sink.step(1, records)
        offset = records[-1].next_offset
    assert "other" in await bench.outcomes()
    bench.clock.advance(20 * MINUTE_MS)


@pytest.mark.parametrize(
    ("hours_before", "looked"),
    [
        (-29, {"looked_present": 1}),
        (0, {"looked_absent": 1, "looked_present": 1}),
    ],
    ids=["the other event has its own hour", "the other event was reported late, in the same hour"],
)
async def test_recent_event_that_the_sum_lacks_does_not_hide_a_delivered_one(
    hours_before: int, looked: dict[str, int]
) -> None:
    """Two accounts of one customer on two partitions. Stripe took the event of a, the answer was lost and the sink was
    down for a day. The period's sum, which lags by 90 minutes, equals the event of b alone, and a was sent twice."""
    bench = await Bench(partitions=2).start()
    bench.billing["b"] = (Billing.MAPPED, "cus_a")
    bench.stripe.lag_ms = 90 * MINUTE_MS
    bench.stripe.fault = lambda _event: FakeFault.LOST_ANSWER
    await bench.publish(make_intent("doubt", "a"))
    await left_in_doubt(bench)
    await accepted_by_another_sink(bench, hours_before)

    await bench.restart()
    await bench.settle(step_ms=LOOK_STEP_MS)

    assert bench.counted() == {"doubt": 1, "other": 1}
    counts = bench.sender.status().counts
    assert looked == {name: count for name, count in counts.items() if name.startswith("looked")}


async def test_two_lookups_hours_apart_must_agree_before_an_event_is_sent_again() -> None:
    """The last send before the window ended may have arrived, and Stripe's sum may lack it for longer than expected."""
    bench = await Bench().start()
    bench.stripe.fault = lambda _event: FakeFault.NO_ANSWER
    await bench.publish(make_intent("doubt"))
    await left_in_doubt(bench)
    await bench.restart()
    sends = len(bench.stripe.sends)
    await bench.settle(rounds=11, step_ms=LOOK_STEP_MS)
    before = len(bench.stripe.sends)
    held = bench.sender.status().held
    (sent,) = set(bench.stripe.sends)
    bench.stripe.inject(sent)

    await bench.settle(step_ms=LOOK_STEP_MS)

    assert (before, held) == (sends, {"unknown": 1})
    assert bench.counted() == {"doubt": 1}
    assert len(bench.stripe.sends) == sends


async def test_two_in_doubt_of_overlapping_periods_are_on_hold() -> None:
    """One of two equal events of different periods is missing, and nothing tells which."""
    bench = await Bench().start()
    bench.billing["b"] = (Billing.MAPPED, "cus_a")
    bench.stripe.fault = lambda event: FakeFault.LOST_ANSWER if event.identifier == "one" else FakeFault.NO_ANSWER
    await bench.publish(make_intent("one", "a"), make_intent("two", "b", **ANCHORED))
    await left_in_doubt(bench)

    await bench.restart()
    await bench.settle(rounds=10)

    assert bench.sender.status().held == {"unknown": 2}
    assert bench.counted() == {"one": 1}


async def test_dead_letter_that_an_operator_may_have_sent_at_another_instant_is_in_doubt() -> None:
    """An operator may choose any instant of the dead letter's period, which may lie in the period in question."""
    bench = await Bench().start()
    bench.billing["b"] = (Billing.MAPPED, "cus_a")
    bench.stripe.fault = lambda _event: FakeFault.BAD_REQUEST
    await bench.publish(make_intent("dead", "b", **ANCHORED))
    await bench.settle()
    bench.clock.ms = PERIOD_END_MS + HOUR_MS
    by_hand = MeterEvent("dead", "tokens", "cus_a", "0.05", bench.clock.ms // 1_000 - 1)
    bench.stripe.inject(by_hand)
    bench.stripe.fault = lambda _event: FakeFault.NO_ANSWER
    december: dict[str, Any] = {"period_start_ms": PERIOD_END_MS, "period_end_ms": PERIOD_END_MS + 31 * DAY_MS}
    await bench.publish(make_intent("doubt", **december, bucket_end_ms=bench.clock.ms))
    await left_in_doubt(bench)

    await bench.restart()
    await bench.settle(rounds=20, step_ms=LOOK_STEP_MS)

    assert bench.sender.status().held == {"unknown": 1}
    assert bench.counted() == {"dead": 1}


async def test_report_that_another_process_settled_is_not_in_doubt() -> None:
    """Its amount is part of the certain sum. Otherwise it would seem missing and get another attempt."""
    bench = await Bench().start()
    bench.stripe.fault = lambda _event: FakeFault.LOST_ANSWER
    await bench.publish(make_intent("one"))
    await bench.pump(3)
    bench.clock.advance(30 * HOUR_MS)
    outcome = ReportOutcome(
        identifier="one", status=OutcomeStatus.ACCEPTED, stripe_customer="cus_a", settled_at_ms=NOW_MS
    )
    await bench.log.append(REPORTS_TOPIC, 0, outcome.model_dump_json().encode())

    await bench.sender.idle(0)

    assert [entry.kind for entry in await bench.entries()] == ["intent", "attempt", "outcome"]
    assert len(bench.stripe.sends) == 1


async def test_recent_send_of_the_queue_delays_the_comparison() -> None:
    """A sum that may lack the latest send would mislead: equal amounts would cancel out."""
    bench = await Bench().start()
    bench.stripe.lag_ms = 5 * MINUTE_MS
    bench.stripe.fault = lambda _event: FakeFault.LOST_ANSWER
    await bench.publish(make_intent("doubt"))
    await left_in_doubt(bench)
    await bench.publish(make_intent("fresh", "b"))
    bench.billing["b"] = (Billing.MAPPED, "cus_a")

    await bench.restart()
    await bench.settle(step_ms=MINUTE_MS)

    assert bench.counted() == {"doubt": 1, "fresh": 1}


async def test_send_of_another_process_during_the_comparison_voids_it() -> None:
    """An equal amount that arrives between reading the log and reading the sum would pass for the lost event."""
    bench = await Bench(partitions=2).start()

    class Busy(FakeStripe):
        async def summary(self, event_name: str, stripe_customer: str, start_s: int, end_s: int) -> MeterSummary:
            if "other" not in bench.counted():
                other, at_ms = make_intent("other"), bench.clock.now_ms()
                event = MeterEvent("other", "tokens", "cus_a", "0.05", NOW_MS // 1_000 - 1)
                attempt = Attempt(
                    identifier="other",
                    stripe_customer="cus_a",
                    timestamp_s=event.timestamp_s,
                    value=event.value,
                    attempted_at_ms=at_ms,
                )
                outcome = ReportOutcome(
                    identifier="other", status=OutcomeStatus.ACCEPTED, stripe_customer="cus_a", settled_at_ms=at_ms
                )
                for entry in (other, attempt, outcome):
                    await bench.log.append(REPORTS_TOPIC, 1, entry.model_dump_json().encode())
                self.inject(event)
            return await super().summary(event_name, stripe_customer, start_s, end_s)

    bench.stripe = Busy(bench.clock)
    bench.stripe.add_customer("cus_a")
    bench.stripe.fault = lambda _event: FakeFault.NO_ANSWER
    await bench.restart()
    await bench.publish(make_intent("doubt"))
    await left_in_doubt(bench)

    await bench.restart()
    await bench.settle(step_ms=MINUTE_MS)

    assert bench.counted() == {"other": 1, "doubt": 1}


async def test_suspended_owner_that_wakes_after_days_sends_nothing_twice() -> None:
    """The sender believes that it owns the partition. Stripe forgot the identifier, but the log has the outcome."""
    bench = await Bench().start()
    await bench.publish(make_intent("one"))
    sleeper = bench.sender
    sleeper_offset = bench.offsets[0]
    records = await bench.log.read(REPORTS_TOPIC, 0, sleeper_offset)
    await bench.restart()
    await bench.settle()

    bench.clock.advance(30 * HOUR_MS)
    with pytest.raises(Transient, match="another process moved the position"):
        await sleeper.step(0, records)
    await sleeper.idle(0)

    assert bench.counted() == {"one": 1}


async def test_attempt_of_a_sender_that_had_not_seen_the_first_is_not_in_force() -> None:
    """Otherwise a suspended sender's late attempt would look like a new comparison and restart the window."""
    bench = await Bench().start()
    await bench.publish(make_intent("one"))
    bench.stripe.fault = lambda _event: FakeFault.LOST_ANSWER
    await bench.pump(3)
    bench.clock.advance(30 * HOUR_MS)
    late = Attempt(
        identifier="one",
        stripe_customer="cus_b",
        timestamp_s=NOW_MS // 1_000,
        value="0.05",
        attempted_at_ms=bench.clock.now_ms(),
    )
    await bench.log.append(REPORTS_TOPIC, 0, late.model_dump_json().encode())
    bench.stripe.fault = lambda _event: None

    await bench.restart()
    await bench.settle()

    assert bench.counted() == {"one": 1}
    assert bench.sender.status().counts["looked_present"] == 1
