"""Intents that a rebuild or a retry publishes again, long after they were settled."""

from __future__ import annotations

from schemas.clock import DAY_MS
from schemas.reports import OutcomeStatus
from sinks.stripe.fake import FakeFault
from tests.worlds.sender import NOW_MS, PERIOD_END_MS, Bench, make_intent


async def test_republished_intents_are_not_sent_again() -> None:
    """A rebuild publishes the same intents again, even months later."""
    bench = await Bench().start()
    intents = [make_intent(f"i{number}", bucket=number) for number in range(5)]
    await bench.publish(*intents)
    await bench.settle()

    bench.clock.advance(3 * DAY_MS)
    await bench.publish(*intents)
    await bench.restart()
    await bench.settle()

    assert bench.counted() == {intent.identifier: 1 for intent in intents}


async def test_intent_that_is_published_again_when_it_is_too_old_for_stripe_is_no_dead_letter() -> None:
    """A dead letter would be billed again by hand."""
    bench = await Bench().start()
    settled = [make_intent(f"i{number}", bucket=number) for number in range(5)]
    await bench.publish(*settled, make_intent("bad", bucket=6))
    bench.stripe.fault = lambda event: FakeFault.BAD_REQUEST if event.identifier == "bad" else None
    await bench.settle()
    bench.clock.advance(50 * DAY_MS)
    await bench.pump(3)
    before = await bench.entries()
    again = [*settled, make_intent("bad", bucket=6)]
    for intent in again:
        await bench.publish(intent)
        await bench.pump()
    assert await bench.entries() == before + again
    assert bench.sender.status().pending == 0

    never_told = make_intent("never told", bucket=7)
    await bench.publish(never_told)
    await bench.settle()
    outcomes = await bench.outcomes()
    assert {key for key, outcome in outcomes.items() if outcome.status is OutcomeStatus.DEAD} == {"bad", "never told"}

    bench.clock.advance(DAY_MS)
    await bench.pump(3)


async def test_intents_of_before_a_wrong_clock_are_not_sent_again() -> None:
    """The clock was two months ahead for a while. A rebuild then publishes intents that Stripe would still accept."""
    bench = await Bench().start()
    await bench.publish(make_intent("one"))
    await bench.settle()
    bench.clock.advance(60 * DAY_MS)
    await bench.pump(2)
    bench.clock.advance(-58 * DAY_MS)

    await bench.publish(make_intent("one"))
    await bench.settle()

    assert bench.counted() == {"one": 1}
    assert len(bench.stripe.sends) == 1


async def test_intent_that_is_published_again_with_a_longer_period_is_not_sent_again() -> None:
    """A planned change cut the period at the first send and was then withdrawn. The shorter period ended long ago."""
    bench = await Bench().start()
    cut_ms = NOW_MS + DAY_MS
    await bench.publish(make_intent("one", period_end_ms=cut_ms))
    await bench.settle()
    while bench.clock.now_ms() < cut_ms + 38 * DAY_MS:
        bench.clock.advance(DAY_MS)
        await bench.pump()

    await bench.publish(make_intent("one", period_end_ms=PERIOD_END_MS))
    await bench.settle()

    assert PERIOD_END_MS - cut_ms > 7 * DAY_MS
    assert len(bench.stripe.sends) == 1
    assert bench.sender.status().pending == 0
