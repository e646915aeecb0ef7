"""Credits pay before Stripe does: whatever ends the sender, each unit is paid once, by credits or at Stripe."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from pipeline.billing.redrive import Redriver
from schemas.clock import DAY_MS, HOUR_MS
from schemas.errors import Transient
from schemas.intent_ledger import IntentState
from schemas.periods import Billing
from schemas.reports import Allocation, OutcomeStatus
from sinks.sql.fake_intents import FakeIntentLedger
from sinks.stripe.fake import FakeFault
from tests.worlds.crashing import Crash, Crashing
from tests.worlds.credits import CATALOG, OTHER, Purse
from tests.worlds.sender import NOW_MS, PERIOD_END_MS, PERIOD_START_MS, Bench, make_intent

CREDITED, ACCEPTED = OutcomeStatus.CREDITED, OutcomeStatus.ACCEPTED


async def opened(amount: int = 8, pool: str = "first") -> tuple[Bench, Purse]:
    """A sender whose account `a` has so many credits."""
    bench = Bench()
    purse = await Purse(bench.clock).open()
    bench.drawing = purse.drawing()
    bench.sender = bench.new_sender()
    if amount:
        await purse.give("a", amount, pool=pool)
    return await bench.start(), purse


async def totals(bench: Bench) -> tuple[Decimal, list[str]]:
    """What Stripe counts, and the values that it got."""
    values = [stored.event.value for stored in bench.stripe.accepted()]
    return sum(map(Decimal, values), Decimal(0)), values


async def states(bench: Bench) -> dict[str, str]:
    return {name: str(outcome.status) for name, outcome in (await bench.outcomes()).items()}


async def test_what_credits_leave_is_sent_under_the_same_identifier() -> None:
    bench, purse = await opened(8)
    await bench.publish(make_intent("one"), make_intent("two", bucket=1), make_intent("three", bucket=2))
    await bench.settle()

    assert await states(bench) == {"one": CREDITED, "two": ACCEPTED, "three": ACCEPTED}
    assert {stored.event.identifier: stored.event.value for stored in bench.stripe.accepted()} == {
        "two": "0.02", "three": "0.05",
    }  # fmt: skip
    assert await purse.left() == 0
    found = await bench.ledger.totals("tokens", "cus_a", PERIOD_START_MS, PERIOD_END_MS)
    assert found.accepted == Decimal("0.07")


async def test_a_meter_that_no_pool_covers_is_left_alone() -> None:
    bench, purse = await opened(8)
    await purse.sell(OTHER)
    await bench.publish(make_intent("one"), make_intent("two", meter="calls", bucket=1))
    await bench.settle()

    assert await states(bench) == {"one": ACCEPTED, "two": ACCEPTED}
    assert (await totals(bench), await purse.left()) == ((Decimal("0.10"), ["0.05", "0.05"]), 8)


async def test_a_correction_gives_back_to_stripe_first_then_to_the_grants() -> None:
    bench, purse = await opened(8)
    await bench.publish(make_intent("one", delta=10))
    await bench.settle()
    await bench.publish(make_intent("less", delta=-5, bucket=1))
    await bench.settle()

    assert (await totals(bench), await purse.left()) == ((Decimal(0), ["0.02", "-0.02"]), 3)


async def test_a_free_account_draws_nothing() -> None:
    bench, purse = await opened(8)
    bench.billing["a"] = (Billing.FREE, "")
    await bench.publish(make_intent("one"))
    await bench.settle()

    assert (await states(bench), await purse.left()) == ({"one": OutcomeStatus.FREE}, 8)


async def test_an_account_that_becomes_free_gets_its_credits_back() -> None:
    """The process ended between the draw and the allocation's record."""
    bench, purse = await opened(8)
    bench.log.hook = lambda value: ("before", Transient("away")) if b"allocation" in value else None
    await bench.publish(make_intent("one"))
    await bench.pump(2)
    assert await purse.left() == 3
    bench.log.hook = lambda _value: None
    bench.billing["a"] = (Billing.FREE, "")
    bench.clock.advance(HOUR_MS)
    await bench.settle()

    assert (await states(bench), await purse.left()) == ({"one": OutcomeStatus.FREE}, 8)


async def test_an_account_without_a_customer_draws_when_it_has_one() -> None:
    bench, purse = await opened(8)
    bench.billing["a"] = (Billing.UNMAPPED, "")
    await bench.publish(make_intent("one"))
    await bench.pump(3)
    assert await purse.left() == 8
    bench.billing["a"] = (Billing.MAPPED, "cus_a")
    bench.clock.advance(HOUR_MS)
    await bench.settle()

    assert (await states(bench), await purse.left()) == ({"one": CREDITED}, 3)


async def test_what_a_restatement_replaces_gives_its_credits_back() -> None:
    """The allocation is in the log; then a late binding puts the usage into other periods."""
    bench, purse = await opened(8)
    bench.stripe.fault = lambda _event: FakeFault.SERVER_ERROR
    await bench.publish(make_intent("one", delta=5))
    await bench.pump(1)
    assert await purse.left() == 3
    bench.replaced = {"one"}
    await bench.settle()
    await bench.publish(make_intent("again", delta=4, bucket=1))
    await bench.settle()

    assert await states(bench) == {"one": OutcomeStatus.REPLACED, "again": CREDITED}
    assert await purse.left() == 4


async def test_credits_come_back_although_the_pool_is_gone() -> None:
    bench, purse = await opened(8)
    await bench.publish(make_intent("one", delta=10))
    await bench.pump(1)
    assert await purse.left() == 0
    await purse.sell(OTHER)
    bench.replaced = {"one"}
    await bench.settle()

    assert (await states(bench), await purse.left()) == ({"one": OutcomeStatus.REPLACED}, 8)


async def test_a_pool_that_comes_after_an_attempt_draws_nothing() -> None:
    """Stripe refused the event before the pool was sold. The next attempt is of all of the usage."""
    bench, purse = await opened(8)
    await purse.sell(OTHER)
    bench.stripe.fault = lambda _event: FakeFault.NO_CUSTOMER
    await bench.publish(make_intent("one"))
    await bench.pump(3)
    await purse.sell(CATALOG.replace("version: 1", "version: 3"))
    for _ in range(20):
        bench.clock.advance(HOUR_MS)
        await bench.pump(1)
    bench.stripe.fault = lambda _event: None
    bench.clock.advance(9 * HOUR_MS)
    await bench.settle()

    assert (await states(bench), await purse.left()) == ({"one": ACCEPTED}, 8)
    assert await totals(bench) == (Decimal("0.05"), ["0.05"])


async def test_a_dead_letter_keeps_its_credits_and_a_redrive_sends_the_same_remainder() -> None:
    bench, purse = await opened(3)
    bench.stripe.fault = lambda event: FakeFault.BAD_REQUEST if event.identifier == "bad" else None
    await bench.publish(make_intent("bad"))
    await bench.settle()
    assert (await states(bench), await purse.left()) == ({"bad": OutcomeStatus.DEAD}, 0)
    await purse.give("a", 100, key="later")
    bench.clock.advance(9 * HOUR_MS)

    redriver = Redriver(bench.log, bench.ledger, bench.stripe, bench.stripe, bench.clock)
    [redriven] = await redriver.redrive(["bad"], "ann", "repaired")
    assert redriven.refused == ""
    await bench.settle()

    assert (await states(bench))["bad-r1"] == ACCEPTED
    assert (await totals(bench), await purse.left()) == ((Decimal("0.02"), ["0.02"]), 100)


class _Closings:
    """Every period has a final invoice."""

    async def finalized(self, *_asked: Any) -> str:
        return "in_1"


async def test_late_usage_is_billed_without_what_credits_pay() -> None:
    bench, purse = await opened(3)
    bench.closings = _Closings()
    await bench.restart()
    bench.clock.advance(PERIOD_END_MS - NOW_MS + DAY_MS)
    await bench.publish(make_intent("late"), make_intent("none", bucket=1, delta=1))
    await bench.settle()

    assert (await states(bench), await purse.left()) == (dict.fromkeys(["late", "none"], OutcomeStatus.LATE), 0)
    found = await bench.ledger.totals("tokens", "cus_a", PERIOD_START_MS, PERIOD_END_MS)
    assert (found.late, await totals(bench)) == (Decimal("0.03"), (Decimal(0), []))


async def test_a_lost_ledger_of_intents_draws_nothing_again() -> None:
    """A rebuild publishes the same intents again, and the ledger is read from the log's first record."""
    bench, purse = await opened(8)
    intents = [make_intent(name, bucket=number) for number, name in enumerate(("one", "two", "three"))]
    await bench.publish(*intents)
    await bench.settle()
    before = await totals(bench)
    bench.ledger = FakeIntentLedger()
    await bench.publish(*intents)
    await bench.restart()
    await bench.settle()

    assert (await totals(bench), await purse.left()) == (before, 0)
    assert {known.intent.identifier: known.drawn_minor for known in bench.ledger.intents.values()} == {
        "one": 5, "two": 3, "three": None,
    }  # fmt: skip


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_a_sender_that_ends_at_any_call_pays_each_unit_once(after: bool) -> None:
    """Ends at the n-th call of the log, of the credits and of Stripe, for every n that there is."""
    for number in range(1, 200):
        bench, purse = await opened(8)
        countdown = [number]
        log, meters = bench.log, bench.stripe
        bench.log = Crashing(log, countdown, after=after)  # type: ignore[assignment]  # a stand-in
        bench.meters = Crashing(meters, countdown, after=after)
        bench.drawing = purse.drawing(countdown, after=after)
        for intent in (make_intent("one"), make_intent("two", bucket=1), make_intent("less", bucket=2, delta=-1)):
            bench.stripe.add_meter(intent.event_name)
            await log.append("billing.reports", 0, intent.model_dump_json().encode(), key=b"a")
        try:
            await bench.restart()
            for _ in range(12):
                await bench.pump()
        except Crash:
            bench.log, bench.meters, bench.drawing = log, None, purse.drawing()
            await bench.restart()
            bench.clock.advance(HOUR_MS)
            await bench.settle()
        drawn = 8 - await purse.left()
        total = (await totals(bench))[0] * 100
        assert (int(total) + drawn, int(total)) == (9, 1), number
        if countdown[0] > 0:
            break
    assert number > 20


async def test_two_senders_at_once_draw_once() -> None:
    bench, purse = await opened(8)
    other = bench.new_sender()
    await other.start_offset(0)
    bench.ledger = FakeIntentLedger()
    bench.sender = bench.new_sender()
    await bench.assign()
    read_to = 0
    await bench.publish(*(make_intent(f"i{number}", bucket=number) for number in range(4)))
    for _ in range(12):
        await bench.pump()
        records = await bench.log.read("billing.reports", 0, read_to, 3)
        if records:
            await other.step(0, records)
            read_to = records[-1].next_offset
        else:
            await other.idle(0)

    assert (await purse.left(), (await totals(bench))[0]) == (0, Decimal("0.12"))
    assert set((await states(bench)).values()) == {CREDITED, ACCEPTED}


async def test_an_allocation_behind_an_attempt_does_not_count() -> None:
    """A sender that knew no pool had written the attempt, and may have sent all of it."""
    bench, _ = await opened(0)
    bench.stripe.fault = lambda _event: FakeFault.SERVER_ERROR
    await bench.publish(make_intent("one"))
    await bench.pump(3)
    record = Allocation(identifier="one", drawn_minor=5, remainder_minor=0)
    await bench.log.append("billing.reports", 0, record.model_dump_json().encode(), key=b"a")
    bench.stripe.fault = lambda _event: None
    bench.clock.advance(HOUR_MS)
    await bench.settle()

    [known] = bench.ledger.intents.values()
    assert (known.state, known.drawn_minor, (await totals(bench))[0]) == (IntentState.ACCEPTED, None, Decimal("0.05"))
