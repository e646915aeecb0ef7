"""A report that Stripe refuses because of its meter or customer waits, is sent after the correction, or ends dead."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from pipeline.billing.concurrency import TokenBucket
from schemas.clock import DAY_MS, HOUR_MS, MINUTE_MS, SECOND_MS
from schemas.errors import Transient
from schemas.periods import Billing
from schemas.reports import Attempt, MeterEvent, OutcomeStatus
from sinks.stripe.fake import FakeFault
from tests.worlds.clock import ManualClock
from tests.worlds.sender import NOW_MS, PERIOD_END_MS, POLICY, Bench, make_intent

DEADLINE_MS = PERIOD_END_MS + 35 * DAY_MS


class WrongCustomer(Bench):
    """Account a is bound to a customer that Stripe does not know."""

    def __init__(self, **changes: Any) -> None:
        super().__init__(policy=replace(POLICY, **changes))
        self.is_known = False
        self.stripe.fault = self._refuse

    def _refuse(self, event: MeterEvent) -> FakeFault | None:
        is_refused = event.stripe_customer == "cus_typo" and not self.is_known
        return FakeFault.NO_CUSTOMER if is_refused else None

    async def start(self) -> Bench:
        """Also binds the account."""
        await super().start()
        self.billing["a"] = (Billing.MAPPED, "cus_typo")
        return self

    def create_customer(self) -> None:
        """The operator's correction at Stripe."""
        self.is_known = True
        self.stripe.add_customer("cus_typo")

    async def hours(self, hours: int, deltas: tuple[int, ...] = (), restarts: bool = False) -> None:
        """Let hours pass, each with one report if `deltas` are given. A restart comes every 10 hours."""
        for hour in range(hours):
            if deltas:
                end = (self.clock.ms - NOW_MS) // HOUR_MS
                await self.publish(make_intent(f"i{hour:03}", delta=deltas[hour % len(deltas)], bucket=-end))
            if restarts and hour % 10 == 9:
                await self.restart()
                await self.pump(hours // 5)
            for _ in range(2):
                await self.pump(4)
                self.clock.advance(30 * MINUTE_MS)


@pytest.mark.parametrize("deltas", [(5,), (5, -3)], ids=["additive", "of both signs"])
@pytest.mark.parametrize("restarts", [False, True], ids=["one process", "restarts"])
async def test_reports_of_an_unknown_customer_are_sent_once_after_the_customer_exists(
    deltas: tuple[int, ...], restarts: bool
) -> None:
    """A refusal proves that Stripe does not have the event. However many there are, none is in doubt for ever."""
    bench = WrongCustomer()
    await bench.start()
    await bench.hours(100, deltas, restarts)
    held = bench.sender.status().held

    bench.create_customer()
    await bench.hours(1)
    await bench.settle(step_ms=30 * MINUTE_MS)

    # After a restart, the one that was tried last may wait for its second lookup.
    assert held in ([{"account": 100}, {"account": 99, "unknown": 1}] if restarts else [{"account": 100}])
    assert bench.counted() == {f"i{hour:03}": 1 for hour in range(100)}
    assert bench.sender.status().pending == 0
    assert restarts or "looked_unknown" not in bench.sender.status().counts


@pytest.mark.parametrize("restarts", [False, True], ids=["one process", "restarts"])
async def test_reports_of_a_customer_that_stays_unknown_become_dead_letters_at_the_deadline(restarts: bool) -> None:
    """The usage is not lost in silence: the gauge has the deadline before, and a dead letter names it after."""
    bench = WrongCustomer()
    await bench.start()
    await bench.hours(30, (5,), restarts)
    deadline_ms = bench.sender.status().held_deadline_ms
    await bench.hours((DEADLINE_MS - bench.clock.ms) // HOUR_MS - 12, restarts=restarts)
    before = await bench.outcomes()

    await bench.hours(48)

    assert (deadline_ms, before) == (DEADLINE_MS, {})
    outcomes = await bench.outcomes()
    assert Counter(outcome.status for outcome in outcomes.values()) == {OutcomeStatus.DEAD: 30}
    assert bench.sender.status().held_deadline_ms is None


async def test_report_that_was_held_past_its_own_instants_deadline_gets_a_younger_timestamp() -> None:
    """Stripe takes usage of an open period, but no instant that is 35 days old."""
    bench = WrongCustomer()
    await bench.start()
    await bench.publish(make_intent("old"))
    await bench.hours(24 * 38)

    bench.create_customer()
    await bench.hours(6)

    assert bench.counted() == {"old": 1}


async def test_refusal_after_a_lost_answer_is_no_proof() -> None:
    """Stripe took the event, then the customer was deleted: after the window only the sum may decide."""
    bench = WrongCustomer()
    await bench.start()
    refuse, bench.stripe.fault = bench.stripe.fault, lambda _event: FakeFault.LOST_ANSWER
    bench.stripe.add_customer("cus_typo")
    await bench.publish(make_intent("one"))
    await bench.pump(3)
    bench.stripe.fault = refuse
    bench.clock.advance(MINUTE_MS)
    await bench.hours(30)

    bench.create_customer()
    await bench.hours(30)

    assert bench.counted() == {"one": 1}
    assert len([entry for entry in await bench.entries() if isinstance(entry, Attempt)]) == 1


async def test_refusal_after_an_event_whose_outcome_could_not_be_written_is_no_proof() -> None:
    """Stripe took the event, the log failed, and then the customer was deleted and restored days later."""
    bench = WrongCustomer()
    await bench.start()
    bench.create_customer()
    bench.log.hook = lambda value: ("before", Transient("no answer")) if b'"outcome"' in value else None
    await bench.publish(make_intent("one"))
    await bench.pump(3)
    bench.log.hook = lambda _value: None
    bench.is_known = False
    bench.clock.advance(MINUTE_MS)
    await bench.hours(20)

    bench.clock.advance(5 * HOUR_MS)
    bench.is_known = True
    await bench.hours(30)

    assert bench.counted() == {"one": 1}
    assert (await bench.outcomes())["one"].status is OutcomeStatus.ACCEPTED


async def test_doubt_that_stripes_sum_never_decides_ends_as_a_dead_letter() -> None:
    """One of two equal events is missing. Until the deadline they are held, and the gauge counts them."""
    bench = await Bench().start()
    bench.billing["b"] = (Billing.MAPPED, "cus_a")
    bench.stripe.fault = lambda event: FakeFault.LOST_ANSWER if event.identifier == "one" else FakeFault.NO_ANSWER
    await bench.publish(make_intent("one"), make_intent("two", "b"))
    await bench.pump(3)
    bench.clock.advance(30 * HOUR_MS)
    await bench.settle(rounds=10)
    status = bench.sender.status()

    bench.clock.ms = DEADLINE_MS + HOUR_MS
    await bench.settle(rounds=10, step_ms=10 * MINUTE_MS)

    assert (status.held, status.held_deadline_ms) == ({"unknown": 2}, DEADLINE_MS)
    outcomes = await bench.outcomes()
    assert [outcome.status for outcome in outcomes.values()] == [OutcomeStatus.DEAD] * 2
    assert all("Stripe may have it" in outcome.detail for outcome in outcomes.values())


async def test_many_doubtful_reports_are_decided_if_stripe_has_none_or_all_of_them() -> None:
    """Thirty lost answers of one customer and thirty different amounts."""
    bench = await Bench().start()
    bench.billing |= {f"x{number}": (Billing.MAPPED, "cus_a") for number in range(30)}
    bench.stripe.fault = lambda _event: FakeFault.LOST_ANSWER
    await bench.publish(*(make_intent(f"i{number}", f"x{number}", delta=2**number) for number in range(30)))
    await bench.pump(20)
    bench.stripe.fault = lambda _event: None
    bench.clock.advance(30 * HOUR_MS)

    await bench.restart()
    await bench.settle(step_ms=MINUTE_MS)

    assert bench.counted() == {f"i{number}": 1 for number in range(30)}


async def test_held_customer_is_tried_ever_less_often_and_its_other_reports_not_at_all() -> None:
    """Fifty reports of one customer cost one call each half hour, so that the calls are left to others."""
    bench = WrongCustomer()
    await bench.start()
    await bench.publish(*(make_intent(f"i{number}", bucket=number) for number in range(50)))
    for _ in range(24 * 60):
        await bench.pump()
        bench.clock.advance(MINUTE_MS)

    assert 45 <= len(bench.stripe.sends) <= 60
    assert {event.identifier for event in bench.stripe.sends} == {"i0"}


async def test_clock_that_is_put_back_prolongs_no_wait() -> None:
    """A clock that was three hours ahead must not hold a corrected meter, a customer or a retry for three hours."""
    bench = WrongCustomer()
    await bench.start()
    bench.stripe.inactive.add("seats")
    bench.billing["c"] = (Billing.UNMAPPED, "")
    await bench.publish(
        make_intent("account", bucket=9),
        make_intent("meter", "b", event_name="seats", bucket=9),
        make_intent("unmapped", "c", bucket=9),
    )
    await bench.pump(6)
    held = bench.sender.status().held
    bench.create_customer()
    bench.stripe.inactive.clear()
    bench.billing["c"] = (Billing.MAPPED, "cus_c")
    bench.clock.ms -= 3 * HOUR_MS

    await bench.settle(rounds=10)

    assert held == {"account": 1, "meter": 1, "unmapped": 1}
    assert bench.counted() == {"account": 1, "meter": 1, "unmapped": 1}
    assert bench.clock.ms < NOW_MS - 2 * HOUR_MS


async def test_rate_limit_follows_a_clock_that_is_put_back() -> None:
    """Otherwise the first call after the step would wait for as long as the step."""
    clock = ManualClock(NOW_MS)
    bucket = TokenBucket(clock, 20)
    await bucket.take()
    clock.ms -= 3 * HOUR_MS

    await bucket.take()

    assert clock.ms < NOW_MS - 3 * HOUR_MS + SECOND_MS
