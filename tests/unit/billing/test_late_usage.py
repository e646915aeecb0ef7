"""Usage whose invoice is final is settled as late: Stripe would take the event and bill it never."""

from __future__ import annotations

import dataclasses
from decimal import Decimal
from typing import Any

import pytest

from pipeline.billing.redrive import Redriver
from schemas.clock import DAY_MS, HOUR_MS, MINUTE_MS
from schemas.errors import Transient
from schemas.intent_ledger import IntentState
from schemas.periods import Billing
from schemas.reports import MeterEvent, OutcomeStatus, SendResult, SendStatus
from sinks.stripe.fake import FakeFault, FakeStripe
from tests.worlds.sender import NOW_MS, PERIOD_END_MS, POLICY, Bench, make_intent

LAST = (PERIOD_END_MS - NOW_MS) // HOUR_MS


class Finalized:
    """Stripe's invoices of the mirror: final from `at_ms` on, for all usage before `PERIOD_END_MS`."""

    def __init__(self, bench: Bench, at_ms: int) -> None:
        self.bench = bench
        self.at_ms = at_ms
        self.is_down = False
        self.asked: list[tuple[str, str, int]] = []

    async def finalized(self, event_name: str, stripe_customer: str, instant_ms: int) -> str:
        if self.is_down:
            raise Transient("SQL is down")
        self.asked.append((event_name, stripe_customer, instant_ms))
        is_final = self.bench.clock.now_ms() >= self.at_ms and instant_ms < PERIOD_END_MS
        return "in_1" if is_final else ""


async def closing(at_ms: int, **policy: Any) -> tuple[Bench, Finalized]:
    """A bench at the end of the period, whose invoices are final from `at_ms` on."""
    bench = Bench(policy=dataclasses.replace(POLICY, **policy))
    finalized = bench.closings = Finalized(bench, at_ms)
    bench.sender = bench.new_sender()
    await bench.start()
    bench.clock.ms = PERIOD_END_MS + HOUR_MS
    return bench, finalized


async def test_usage_after_the_invoice_was_final_is_late_and_not_sent() -> None:
    bench, _ = await closing(PERIOD_END_MS)
    await bench.publish(make_intent("late", bucket=-LAST))
    await bench.settle()

    outcome = (await bench.outcomes())["late"]
    assert (outcome.status, outcome.stripe_customer, outcome.in_doubt) == (OutcomeStatus.LATE, "cus_a", False)
    assert "in_1" in outcome.detail
    assert [entry.kind for entry in await bench.entries()] == ["intent", "outcome"]
    assert bench.stripe.sends == []
    totals = await bench.ledger.totals("tokens", "cus_a", PERIOD_END_MS - HOUR_MS, PERIOD_END_MS)
    assert (totals.late, totals.pending) == (Decimal("0.05"), Decimal(0))


async def test_invoices_are_asked_for_once_the_period_is_over_and_only_then() -> None:
    """A question for each report of each hour would cost as many reads of SQL."""
    bench, finalized = await closing(PERIOD_END_MS + 2 * HOUR_MS)
    bench.clock.ms = PERIOD_END_MS - MINUTE_MS
    await bench.publish(make_intent("in time", bucket=-LAST + 1))
    await bench.settle()
    assert finalized.asked == []

    bench.clock.ms = PERIOD_END_MS
    await bench.publish(make_intent("in the grace", bucket=-LAST))
    await bench.settle()
    assert set(finalized.asked) == {("tokens", "cus_a", PERIOD_END_MS - 1_000)}
    assert bench.counted() == {"in time": 1, "in the grace": 1}


async def test_the_end_of_a_period_that_was_cut_since_counts() -> None:
    bench, _ = await closing(0)
    bench.clock.ms = PERIOD_END_MS - DAY_MS
    bench.period_ends["a"] = PERIOD_END_MS - 2 * DAY_MS
    await bench.publish(make_intent("cut", bucket=-LAST + 50))
    await bench.settle()
    assert (await bench.outcomes())["cut"].status is OutcomeStatus.LATE


async def test_an_attempt_that_nobody_sent_is_late_if_the_invoice_became_final_meanwhile() -> None:
    bench, finalized = await closing(PERIOD_END_MS + 2 * HOUR_MS)
    await bench.publish(make_intent("one", bucket=-LAST))
    await bench.pump()
    assert [entry.kind for entry in await bench.entries()] == ["intent", "attempt"]
    bench.clock.ms = finalized.at_ms
    await bench.settle()

    outcome = (await bench.outcomes())["one"]
    assert (outcome.status, outcome.in_doubt) == (OutcomeStatus.LATE, False)
    assert bench.stripe.sends == []


@pytest.mark.parametrize("wait_ms", [HOUR_MS, 30 * HOUR_MS], ids=["would be sent again", "would be looked up"])
async def test_an_attempt_in_doubt_is_late_and_in_doubt(wait_ms: int) -> None:
    """Whether Stripe has the event does not matter any more: the invoice does not change."""
    bench, finalized = await closing(PERIOD_END_MS + 2 * HOUR_MS)
    bench.stripe.fault = lambda _event: FakeFault.LOST_ANSWER
    await bench.publish(make_intent("one", bucket=-LAST))
    await bench.pump(3)
    bench.stripe.fault = lambda _event: None
    bench.clock.ms = finalized.at_ms + wait_ms
    await bench.settle()

    outcome = (await bench.outcomes())["one"]
    assert (outcome.status, outcome.in_doubt) == (OutcomeStatus.LATE, True)
    assert len(bench.stripe.sends) == 1
    assert not any(name.startswith("looked") for name in bench.sender.status().counts)


@pytest.mark.parametrize(
    ("billed", "mapped", "status"),
    [(True, True, OutcomeStatus.LATE), (True, False, OutcomeStatus.DEAD), (False, True, OutcomeStatus.DEAD)],
    ids=["late", "nobody pays", "nobody bills late usage"],
)
async def test_usage_that_is_too_old_for_stripe(billed: bool, mapped: bool, status: OutcomeStatus) -> None:
    bench, _ = await closing(1 << 60)
    if not billed:
        bench.closings = None
        await bench.restart()
    if not mapped:
        bench.billing["a"] = (Billing.UNMAPPED, "")
    bench.clock.ms = PERIOD_END_MS + 36 * DAY_MS
    await bench.publish(make_intent("old", bucket=-LAST))
    await bench.settle()

    outcome = (await bench.outcomes())["old"]
    assert (outcome.status, outcome.stripe_customer) == (status, "cus_a" if mapped else "")
    assert "35 days" in outcome.detail


async def test_without_an_answer_about_invoices_nothing_is_sent() -> None:
    bench, finalized = await closing(PERIOD_END_MS)
    finalized.is_down = True
    await bench.publish(make_intent("one", bucket=-LAST))
    await bench.pump(5)
    assert (bench.stripe.sends, bench.sender.status().pending) == ([], 1)

    finalized.is_down = False
    await bench.settle(step_ms=MINUTE_MS)
    assert (await bench.outcomes())["one"].status is OutcomeStatus.LATE


class Refusing(FakeStripe):
    """Stripe, which refuses every event for good."""

    async def send(self, event: MeterEvent) -> SendResult:
        return SendResult(SendStatus.DEAD, f"no {event.identifier}", cause=event.identifier)


@pytest.mark.parametrize("days", [1, 50])
async def test_a_dead_letter_whose_invoice_is_final_is_redriven_at_any_age_and_is_late(days: int) -> None:
    """Its quantity was reported by nobody, and the invoice is fixed: an invoice item bills it."""
    bench, finalized = await closing(PERIOD_END_MS + 2 * HOUR_MS)
    bench.stripe = Refusing(bench.clock)
    bench.sender = bench.new_sender()
    await bench.assign()
    await bench.publish(make_intent("one", bucket=-LAST))
    await bench.settle()
    bench.clock.ms = PERIOD_END_MS + days * DAY_MS
    redriver = Redriver(bench.log, bench.ledger, bench.stripe, bench.stripe, bench.clock, finalized)

    (result,) = await redriver.redrive(["one"], "ada", "corrected")
    await bench.settle(step_ms=MINUTE_MS)

    assert (result.successor, result.refused) == ("one-r1", "")
    states = {each.intent.identifier: each.state for each in await bench.ledger.found(["one", "one-r1"])}
    assert states == {"one": IntentState.REDRIVEN, "one-r1": IntentState.LATE}
