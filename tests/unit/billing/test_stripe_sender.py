"""The sender sends each intent to Stripe exactly once, across crashes, lag and lost answers."""

from __future__ import annotations

import dataclasses
import logging
import random
from typing import Any

import pytest

from schemas.clock import DAY_MS, HOUR_MS, MINUTE_MS
from schemas.errors import OperatorNeeded
from schemas.log import Bounds
from schemas.periods import Billing
from schemas.reports import MeterEvent, OutcomeStatus, SendResult
from sinks.stripe.fake import FakeFault, FakeStripe
from tests.worlds.sender import (
    NOW_MS,
    PERIOD_END_MS,
    POLICY,
    Bench,
    Crash,
    CrashingLog,
    make_intent,
)


async def test_intent_becomes_one_event_and_one_outcome() -> None:
    """The normal case, with the exact request."""
    bench = await Bench().start()
    await bench.publish(make_intent("one", delta=1250))

    await bench.settle()

    expected = MeterEvent("one", "tokens", "cus_a", "12.5", NOW_MS // 1_000 - 1)
    assert [stored.event for stored in bench.stripe.events] == [expected]
    kinds = [entry.kind for entry in await bench.entries()]
    assert kinds == ["intent", "attempt", "outcome"]
    assert await bench.ledger.position(0) == 3


async def test_intents_on_hold_block_no_others() -> None:
    """The sender asks again and again about accounts without a customer; a mapped account does not wait for them."""
    bench = await Bench(policy=dataclasses.replace(POLICY, queues_max=1, round_s=0.0)).start()
    bench.billing = dict.fromkeys("abc", (Billing.UNMAPPED, "")) | {"d": (Billing.MAPPED, "cus_d")}
    await bench.publish(*(make_intent(f"held {account}", account) for account in "abc"))
    await bench.pump(6)
    assert bench.sender.status().held == {"unmapped": 3}
    bench.clock.advance(2 * POLICY.hold_retry_ms)
    bench.asked.clear()
    await bench.publish(make_intent("one", "d"))

    await bench.pump()

    assert [account for account, _ in bench.asked] == ["d"]


async def test_nothing_is_sent_before_the_partition_is_read_to_its_end() -> None:
    """Outcomes come after intents in the log: sending early would repeat settled intents."""
    bench = await Bench().start()
    await bench.publish(*(make_intent(f"i{number}") for number in range(20)))
    await bench.settle()
    sends = len(bench.stripe.sends)

    await bench.restart()
    await bench.settle()

    assert len(bench.stripe.sends) == sends == 20


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("kind", [b'"attempt"', b'"outcome"'], ids=["attempt", "outcome"])
async def test_crash_around_an_append_leaves_one_event(kind: bytes, moment: str) -> None:
    """Between attempt and send, or between send and outcome: the next sender continues and sends once."""
    bench = await Bench().start()
    await bench.publish(make_intent("one"))
    bench.log.hook = lambda value: (moment, Crash()) if kind in value else None
    with pytest.raises(Crash):
        await bench.settle()
    bench.log.hook = lambda _value: None

    await bench.restart()
    await bench.settle()

    assert bench.counted() == {"one": 1}
    assert (await bench.outcomes())["one"].status is OutcomeStatus.ACCEPTED


async def test_retries_have_the_same_bytes_across_a_restart_and_a_new_binding() -> None:
    """Stripe refuses an Idempotency-Key with other parameters, and another customer would pay."""
    bench = await Bench().start()
    await bench.publish(make_intent("one"))
    bench.stripe.fault = lambda _event: FakeFault.LOST_ANSWER
    await bench.pump(3)

    bench.billing["a"] = (Billing.MAPPED, "cus_b")
    bench.clock.advance(HOUR_MS)
    await bench.restart()
    bench.stripe.fault = lambda _event: None
    await bench.settle()

    assert len(set(bench.stripe.sends)) == 1
    assert bench.counted() == {"one": 1}
    assert (await bench.outcomes())["one"].stripe_customer == "cus_a"


@pytest.mark.parametrize(
    "fault",
    [
        FakeFault.CONFLICT,
        FakeFault.RATE_LIMITED,
        FakeFault.SERVER_ERROR,
        FakeFault.SERVER_ERROR_AFTER_COMMIT,
        FakeFault.LOST_ANSWER,
        FakeFault.NO_ANSWER,
    ],
    ids=str,
)
async def test_storm_of_unclear_answers_ends_with_one_event_each(fault: FakeFault) -> None:
    """Four of five answers fail for a while; afterwards Stripe has every event once."""
    bench = await Bench().start()
    rng = random.Random(3)
    bench.stripe.fault = lambda _event: fault if rng.random() < 0.8 else None
    intents = [make_intent(f"i{number}", "abcd"[number % 4], bucket=number // 4) for number in range(24)]
    await bench.publish(*intents)

    await bench.settle(rounds=3_000, step_ms=1_000)

    assert bench.counted() == {intent.identifier: 1 for intent in intents}
    assert bench.stripe.conflicts == 0


async def test_queues_are_serial_even_if_accounts_share_a_customer() -> None:
    """Stripe allows one concurrent call per meter and customer."""
    bench = await Bench(partitions=2).start()
    bench.billing = dict.fromkeys("abcd", (Billing.MAPPED, "cus_a"))
    for number in range(40):
        await bench.publish(make_intent(f"i{number}", "abcd"[number % 4]), partition=number % 2)

    await bench.settle()

    assert bench.stripe.conflicts == 0
    assert bench.counted().total() == 40


async def test_backoff_grows_and_is_bounded() -> None:
    """An outage of hours must not cause a flood of calls."""
    bench = await Bench().start()
    bench.stripe.fault = lambda _event: FakeFault.NO_ANSWER
    await bench.publish(make_intent("one"))

    for _ in range(3_600):
        await bench.pump()
        bench.clock.advance(1_000)

    assert 30 <= len(bench.stripe.sends) <= 70


async def test_dead_letter_blocks_neither_its_queue_nor_others() -> None:
    """A refused event blocks only itself."""
    bench = await Bench().start()
    bench.stripe.fault = lambda event: FakeFault.BAD_REQUEST if event.identifier == "bad" else None
    await bench.publish(make_intent("bad"), make_intent("good"), make_intent("other", "b"))

    await bench.settle()

    assert {key: value.status for key, value in (await bench.outcomes()).items()} == {
        "bad": OutcomeStatus.DEAD,
        "good": OutcomeStatus.ACCEPTED,
        "other": OutcomeStatus.ACCEPTED,
    }


async def test_dead_letter_after_an_unclear_answer_is_marked() -> None:
    """The operator must look at Stripe before sending the event by hand."""
    bench = await Bench().start()
    answers = iter([FakeFault.LOST_ANSWER, FakeFault.BAD_REQUEST])
    bench.stripe.fault = lambda _event: next(answers)
    await bench.publish(make_intent("one"))

    await bench.settle(step_ms=1_000)

    assert "Stripe may have it" in (await bench.outcomes())["one"].detail


async def test_free_account_is_settled_without_a_call() -> None:
    """Free usage is never sent."""
    bench = await Bench().start()
    bench.billing["a"] = (Billing.FREE, "")
    await bench.publish(make_intent("one"))

    await bench.settle()

    assert (await bench.outcomes())["one"].status is OutcomeStatus.FREE
    assert bench.stripe.sends == []


async def test_unmapped_intent_is_on_hold_counted_and_sent_once_mapped() -> None:
    """The intent blocks no other, the alarm knows the deadline, and the ledger names the hold."""
    bench = await Bench().start()
    bench.billing["a"] = (Billing.UNMAPPED, "")
    await bench.publish(make_intent("held"), make_intent("other", "b"))
    await bench.pump(5)
    status = bench.sender.status()

    assert (status.pending, status.held) == (1, {"unmapped": 1})
    assert status.held_deadline_ms == PERIOD_END_MS + 35 * DAY_MS
    assert bench.counted() == {"other": 1}

    bench.billing["a"] = (Billing.MAPPED, "cus_a")
    bench.clock.advance(2 * MINUTE_MS)
    await bench.settle()
    assert bench.counted() == {"other": 1, "held": 1}


@pytest.mark.parametrize("changes", [{"livemode": True}, {"stripe_account": "acct_other"}], ids=["mode", "account"])
async def test_intent_of_another_mode_or_account_stops_the_sender(changes: dict[str, Any]) -> None:
    """A test key must never bill, and a live key must never bill for another Stripe account (I12)."""
    bench = await Bench().start()
    await bench.publish(make_intent("one", **changes))

    with pytest.raises(OperatorNeeded, match="TIDEMARK_STRIPE_API_KEY"):
        await bench.settle()
    assert bench.stripe.sends == []


async def test_refused_key_stops_the_sender_and_loses_nothing() -> None:
    """A revoked key must not turn a day's intents into dead letters."""
    bench = await Bench().start()
    await bench.publish(make_intent("one"))
    await bench.pump()
    bench.stripe.key_is_valid = False
    with pytest.raises(OperatorNeeded):
        await bench.settle()

    bench.stripe.key_is_valid = True
    await bench.restart()
    await bench.settle()

    assert bench.counted() == {"one": 1}


async def test_one_broken_meter_stops_its_own_intents_only() -> None:
    """An operator must repair a meter whose formula at Stripe differs; the other meters are billed meanwhile."""
    bench = await Bench().start()

    class Picky(FakeStripe):
        async def find_meter(self, event_name: str) -> str:
            if event_name == "broken":
                raise OperatorNeeded("the Stripe meter of broken is deactivated")
            return await super().find_meter(event_name)

    bench.stripe = Picky(bench.clock)
    bench.stripe.add_customer("cus_a")
    await bench.restart()
    await bench.publish(make_intent("held", event_name="broken"), make_intent("sent"))

    await bench.pump(6)

    assert bench.counted() == {"sent": 1}
    assert bench.sender.status().held == {"meter": 1}


async def test_meter_that_stripe_does_not_have_holds_its_reports_and_is_not_created(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A typo in a meter set made a meter without a price: its usage was accepted and billed by nothing. The log line
    names the command, after which the reports are sent without a restart."""
    bench = await Bench().start()
    bench.without_meter = {"tokesn"}
    await bench.publish(make_intent("held", event_name="tokesn"), make_intent("sent"))
    with caplog.at_level(logging.WARNING):
        await bench.pump(6)

    assert (bench.counted(), bench.sender.status().held) == ({"sent": 1}, {"meter": 1})
    assert "tidemark meters apply FILE --create-at-stripe" in caplog.text
    with pytest.raises(OperatorNeeded):
        await bench.stripe.find_meter("tokesn")

    await bench.stripe.create_meter("tokesn", "Tokens")
    await bench.settle(rounds=20, step_ms=MINUTE_MS)
    assert bench.counted() == {"sent": 1, "held": 1}


async def test_more_intents_than_the_window_has_room_for_are_all_sent() -> None:
    """Memory is bounded by the window, not by the pending intents. Those that wait make room for the others."""
    bench = await Bench(policy=dataclasses.replace(POLICY, window_max=5)).start()
    bench.billing["b"] = (Billing.UNMAPPED, "")
    await bench.publish(*(make_intent(f"held {number}", "b", bucket=number) for number in range(20)))
    await bench.publish(*(make_intent(f"sent {number}", bucket=number) for number in range(20)))

    windows = []
    for _ in range(60):
        await bench.pump()
        windows.append(len(bench.sender._partitions[0].window))

    assert max(windows) <= 5
    assert bench.counted() == {f"sent {number}": 1 for number in range(20)}
    assert bench.sender.status().held == {"unmapped": 20}


async def test_end_of_a_partition_without_records_at_its_last_offsets_is_noticed() -> None:
    """Kafka's transaction markers take offsets that no consumer receives."""
    bench = await Bench().start()
    await bench.publish(make_intent("one"))

    class Gapped(CrashingLog):
        async def bounds(self, topic: str, partition: int) -> Bounds:
            actual = await super().bounds(topic, partition)
            return actual._replace(next=actual.next + 1)

    bench.log.__class__ = Gapped
    await bench.restart()
    await bench.pump(6)

    assert bench.counted() == {"one": 1}


async def test_no_outcome_is_written_for_a_send_that_was_cancelled() -> None:
    """The runner cancels a step when the process loses the partition. No call continues in the background."""
    bench = await Bench().start()
    await bench.publish(make_intent("one"))

    class Hanging(FakeStripe):
        async def send(self, event: MeterEvent) -> SendResult:
            raise TimeoutError(event.identifier)

    bench.stripe = Hanging(bench.clock)
    bench.stripe.add_meter("tokens")
    await bench.restart()
    with pytest.raises(TimeoutError):
        await bench.pump(3)
    await bench.sender.revoked(0)

    assert [entry.kind for entry in await bench.entries()] == ["intent", "attempt"]
