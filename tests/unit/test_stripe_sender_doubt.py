"""What the sender does where it cannot know whether Stripe took an event: it looks, waits, and never guesses."""

from __future__ import annotations

import pytest

from schemas.clock import HOUR_MS, MINUTE_MS
from schemas.log import REPORTS_TOPIC
from schemas.periods import Billing
from schemas.reports import Attempt, MeterEvent, MeterSummary, Outcome, OutcomeStatus
from sinks.stripe.memory import MemoryFault, MemoryStripe
from tests.unit.sender_world import (
    NOW_MS,
    Bench,
    make_intent,
)


@pytest.mark.parametrize("fault", [MemoryFault.LOST_ANSWER, MemoryFault.NO_ANSWER], ids=["delivered", "lost"])
async def test_after_the_window_it_looks_and_does_not_guess(fault: MemoryFault) -> None:
    """Down for 30 hours after a send without an answer: Stripe has forgotten the identifier."""
    bench = await Bench().start()
    await bench.publish(make_intent("before", delta=700))
    await bench.settle()
    await bench.publish(make_intent("doubt", delta=5))
    bench.stripe.fault = lambda _event: fault
    await bench.pump(3)
    bench.stripe.fault = lambda _event: None
    bench.clock.advance(30 * HOUR_MS)

    await bench.restart()
    await bench.settle()

    assert bench.held() == {"before": 1, "doubt": 1}
    assert bench.sender.status().counts["looked_present" if fault is MemoryFault.LOST_ANSWER else "looked_absent"] == 1


async def test_two_in_doubt_with_one_sum_that_fits_both_are_held() -> None:
    """One of two equal events is missing and nothing tells which: a person decides, nothing is repeated."""
    bench = await Bench(partitions=2).start()
    bench.billing["b"] = (Billing.MAPPED, "cus_a")
    bench.stripe.fault = lambda event: MemoryFault.LOST_ANSWER if event.identifier == "one" else MemoryFault.NO_ANSWER
    await bench.publish(make_intent("one", "a"))
    await bench.publish(make_intent("two", "b"), partition=1)
    await bench.pump(3)
    bench.stripe.fault = lambda _event: None
    bench.clock.advance(30 * HOUR_MS)

    await bench.restart()
    await bench.settle(rounds=10)

    assert bench.sender.status().held == {"unknown": 2}
    assert bench.held() == {"one": 1}


async def test_recent_send_of_the_lane_delays_the_verdict() -> None:
    """A sum that may not show the latest send would lie: equal amounts would cancel out."""
    bench = await Bench().start()
    bench.stripe.lag_ms = 5 * MINUTE_MS
    bench.stripe.fault = lambda _event: MemoryFault.LOST_ANSWER
    await bench.publish(make_intent("doubt"))
    await bench.pump(3)
    bench.stripe.fault = lambda _event: None
    bench.clock.advance(30 * HOUR_MS)
    await bench.publish(make_intent("fresh", "b"))
    bench.billing["b"] = (Billing.MAPPED, "cus_a")

    await bench.restart()
    await bench.settle(step_ms=MINUTE_MS)

    assert bench.held() == {"doubt": 1, "fresh": 1}


async def test_send_of_another_process_during_the_look_voids_it() -> None:
    """An equal amount that arrives between reading the log and reading the sum would pass for the lost event."""
    bench = await Bench(partitions=2).start()

    class Busy(MemoryStripe):
        async def summary(self, event_name: str, stripe_customer: str, start_s: int, end_s: int) -> MeterSummary:
            if "other" not in bench.held():
                other, at_ms = make_intent("other"), bench.clock.now_ms()
                event = MeterEvent("other", "tokens", "cus_a", "0.05", NOW_MS // 1_000 - 1)
                attempt = Attempt(
                    identifier="other",
                    stripe_customer="cus_a",
                    timestamp_s=event.timestamp_s,
                    value=event.value,
                    attempted_at_ms=at_ms,
                )
                outcome = Outcome(
                    identifier="other", status=OutcomeStatus.ACCEPTED, stripe_customer="cus_a", settled_at_ms=at_ms
                )
                for entry in (other, attempt, outcome):
                    await bench.log.append(REPORTS_TOPIC, 1, entry.model_dump_json().encode())
                self.inject(event)
            return await super().summary(event_name, stripe_customer, start_s, end_s)

    bench.stripe = Busy(bench.clock)
    bench.stripe.add_customer("cus_a")
    bench.stripe.fault = lambda _event: MemoryFault.NO_ANSWER
    await bench.restart()
    await bench.publish(make_intent("doubt"))
    await bench.pump(3)
    bench.stripe.fault = lambda _event: None
    bench.clock.advance(30 * HOUR_MS)

    await bench.restart()
    await bench.settle(step_ms=MINUTE_MS)

    assert bench.held() == {"other": 1, "doubt": 1}


async def test_suspended_owner_that_wakes_after_days_sends_nothing_twice() -> None:
    """It believes that it owns the partition, and Stripe has forgotten the identifier: the log has not."""
    bench = await Bench().start()
    await bench.publish(make_intent("one"))
    sleeper = bench.sender
    sleeper_offset = bench.offsets[0]
    records = await bench.log.read(REPORTS_TOPIC, 0, sleeper_offset)
    await bench.restart()
    await bench.settle()

    bench.clock.advance(30 * HOUR_MS)
    await sleeper.step(0, records)
    for _ in range(3):
        sleeper_offset = records[-1].next_offset
        records = await bench.log.read(REPORTS_TOPIC, 0, sleeper_offset) or records
        await sleeper.step(0, records)

    assert bench.held() == {"one": 1}


async def test_attempt_of_a_sender_that_had_not_seen_the_first_is_not_in_force() -> None:
    """Else a suspended sender's late attempt would look as if somebody had looked, and restart the window."""
    bench = await Bench().start()
    await bench.publish(make_intent("one"))
    bench.stripe.fault = lambda _event: MemoryFault.LOST_ANSWER
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

    assert bench.held() == {"one": 1}
    assert bench.sender.status().counts["looked_present"] == 1
