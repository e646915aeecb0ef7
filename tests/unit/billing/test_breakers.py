"""A fault of configuration holds a meter's reports instead of making a dead letter of each."""

from __future__ import annotations

import dataclasses
import logging

import pytest

from schemas.clock import HOUR_MS, MINUTE_MS
from schemas.periods import Billing
from schemas.reports import MeterEvent, OutcomeStatus
from sinks.stripe.fake import FakeFault
from tests.worlds.sender import POLICY, Bench, make_intent

ACCOUNTS = [f"x{number}" for number in range(40)]
# The simplest order of events: one call at a time.
ONE_BY_ONE = dataclasses.replace(POLICY, queues_max=1)


async def misconfigured(event_name: str = "tokens") -> Bench:
    """Forty customers of a meter whose events Stripe refuses with a code that Tidemark does not know."""
    bench = await Bench(policy=ONE_BY_ONE).start()
    for account in ACCOUNTS:
        bench.billing[account] = (Billing.MAPPED, f"cus_{account}")
        bench.stripe.add_customer(f"cus_{account}")
    bench.stripe.fault = lambda event: FakeFault.BAD_REQUEST if event.event_name == event_name else None
    return bench


async def statuses(bench: Bench) -> list[OutcomeStatus]:
    return [outcome.status for outcome in (await bench.outcomes()).values()]


async def test_burst_of_equal_refusals_holds_the_meter_and_makes_no_more_dead_letters(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Forty reports became forty dead letters. The breaker is seen in the status, the log says the cause, and the
    reports of other meters are sent."""
    bench = await misconfigured()
    await bench.publish(*(make_intent(account, account) for account in ACCOUNTS))
    await bench.publish(make_intent("seats", event_name="seats", meter="seats"))
    with caplog.at_level(logging.ERROR):
        await bench.pump(40)
    status = bench.sender.status()

    assert (status.held, status.open_breakers) == ({"breaker": 36}, 1)
    assert await statuses(bench) == [*[OutcomeStatus.DEAD] * 4, OutcomeStatus.ACCEPTED]
    assert status.held_deadline_ms is not None
    (opened,) = [record.message for record in caplog.records if "one after the other" in record.message]
    assert "parameter_invalid" in opened


async def test_reports_are_sent_once_each_after_the_cause_is_corrected() -> None:
    """The event that is let through shows it, and nobody must restart anything."""
    bench = await misconfigured()
    await bench.publish(*(make_intent(account, account) for account in ACCOUNTS))
    await bench.pump(40)
    bench.stripe.fault = lambda _event: None
    await bench.settle(step_ms=MINUTE_MS)

    accepted = [name for name, outcome in (await bench.outcomes()).items() if outcome.status is OutcomeStatus.ACCEPTED]
    assert len(accepted) == 36
    assert bench.counted() == dict.fromkeys(accepted, 1)
    assert bench.sender.status().open_breakers == 0


async def test_open_breaker_costs_few_calls_and_no_dead_letters() -> None:
    """One event is tried after a minute, then ever less often."""
    bench = await misconfigured()
    await bench.publish(*(make_intent(account, account) for account in ACCOUNTS))
    await bench.pump(40)
    before = len(bench.stripe.sends)
    for _ in range(5 * 60):
        await bench.pump(2)
        bench.clock.advance(MINUTE_MS)

    assert 8 <= len(bench.stripe.sends) - before <= 16
    assert len({event.identifier for event in bench.stripe.sends[before:]}) == len(bench.stripe.sends) - before
    assert await statuses(bench) == [OutcomeStatus.DEAD] * 4


async def test_one_customers_bad_reports_become_dead_letters_and_hold_nobody() -> None:
    """A value that Stripe refuses is not a fault of the meter."""
    bench = await misconfigured()
    bench.stripe.fault = lambda event: FakeFault.BAD_REQUEST if event.stripe_customer == "cus_a" else None
    await bench.publish(*(make_intent(f"bad{number}", "a", bucket=number) for number in range(20)))
    await bench.publish(*(make_intent(account, account) for account in ACCOUNTS))
    await bench.settle()

    assert sorted(await statuses(bench)) == [OutcomeStatus.ACCEPTED] * 40 + [OutcomeStatus.DEAD] * 20


async def test_event_that_stripe_takes_in_between_keeps_the_breaker_closed() -> None:
    """Only refusals in a row show a fault of the meter."""
    bench = await misconfigured()

    def every_other(event: MeterEvent) -> FakeFault | None:
        return FakeFault.BAD_REQUEST if int(event.stripe_customer.removeprefix("cus_x")) % 2 else None

    bench.stripe.fault = every_other
    await bench.publish(*(make_intent(account, account) for account in ACCOUNTS))
    await bench.settle()

    assert sorted(await statuses(bench)) == [OutcomeStatus.ACCEPTED] * 20 + [OutcomeStatus.DEAD] * 20


async def test_bad_event_that_is_tried_does_not_hold_the_good_ones_for_ever() -> None:
    """Each try takes another event, so that one of the good ones closes the breaker."""
    bench = await misconfigured()
    bad = set(ACCOUNTS[:12])
    bench.stripe.fault = lambda event: (
        FakeFault.BAD_REQUEST if event.stripe_customer.removeprefix("cus_") in bad else None
    )
    await bench.publish(*(make_intent(account, account) for account in ACCOUNTS))
    for _ in range(6 * 60):
        await bench.pump(8)
        bench.clock.advance(MINUTE_MS)

    assert bench.counted() == dict.fromkeys(ACCOUNTS[12:], 1)
    assert bench.clock.ms < make_intent("any").bucket_end_ms + 7 * HOUR_MS


async def test_clock_that_is_put_back_prolongs_no_wait_of_a_breaker() -> None:
    """Otherwise the meter would wait for as long as the clock was ahead."""
    bench = await misconfigured()
    await bench.publish(*(make_intent(account, account, bucket=5) for account in ACCOUNTS))
    await bench.pump(40)
    bench.stripe.fault = lambda _event: None
    bench.clock.ms -= 3 * HOUR_MS

    await bench.settle(rounds=60)

    assert len(bench.counted()) == 36
