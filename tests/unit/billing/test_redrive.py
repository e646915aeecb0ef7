"""A report that Stripe rejected is sent again under a new identifier, once, and only if Stripe does not have it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from aggregators.intents import revised, root_of
from pipeline.billing.redrive import Redriven, Redriver, failed_intents
from schemas.clock import DAY_MS, HOUR_MS, MINUTE_MS
from schemas.errors import InvalidInput, OperatorNeeded
from schemas.periods import Billing
from schemas.reports import MeterEvent, OutcomeStatus, Redrive
from sinks.stripe.fake import FakeFault
from tests.worlds.sender import NOW_MS, PERIOD_END_MS, Bench, Crash, make_intent

REASON = "the value's cause is corrected"


async def dead_letters(*names: str, fault: FakeFault = FakeFault.BAD_REQUEST, **changes: Any) -> Bench:
    """Reports of the same amount of one customer that Stripe refused; the cause is corrected a minute later."""
    bench = await Bench().start()
    bench.stripe.fault = lambda event: fault if event.identifier in names else None
    await bench.publish(*(make_intent(name, **changes) for name in names))
    await bench.settle()
    bench.stripe.fault = lambda _event: None
    bench.clock.advance(MINUTE_MS)
    return bench


async def redrive(bench: Bench, *identifiers: str) -> list[Redriven]:
    redriver = Redriver(bench.log, bench.ledger, bench.stripe, bench.stripe, bench.clock)
    return await redriver.redrive(identifiers, "ada", REASON)


async def refusal(bench: Bench, identifier: str) -> str:
    """Why the report is not redriven. Nothing is appended or sent."""
    before = await bench.entries()
    (result,) = await redrive(bench, identifier)
    assert (result.successor, await bench.entries()) == ("", before)
    return result.refused


def amounts(bench: Bench) -> Counter[str]:
    """How often Stripe counts each report, whatever its revision."""
    return Counter(root_of(stored.event.identifier) for stored in bench.stripe.accepted())


async def test_dead_letter_is_sent_once_under_an_identifier_that_stripe_has_not_seen() -> None:
    """The log says who redrove it, why, and how it is known that Stripe does not have the event."""
    bench = await dead_letters("bad")

    results = await redrive(bench, "bad")
    await bench.settle()

    assert results == [Redriven("bad", "bad-r1", is_new=True)]
    assert bench.counted() == {"bad-r1": 1}
    (entry,) = [entry for entry in await bench.entries() if isinstance(entry, Redrive)]
    assert (entry.actor, entry.reason, entry.successor) == ("ada", REASON, "bad-r1")
    assert "Stripe refused it" in entry.evidence
    outcomes = await bench.outcomes()
    assert (outcomes["bad"].status, outcomes["bad-r1"].status) == (OutcomeStatus.DEAD, OutcomeStatus.ACCEPTED)


async def test_redrive_that_is_repeated_or_run_twice_at_once_sends_nothing_twice() -> None:
    """An operator does not know whether a command that was cut off had an effect."""
    bench = await dead_letters("bad")

    await asyncio.gather(redrive(bench, "bad"), redrive(bench, "bad"))
    again = await redrive(bench, "bad", "bad-r1", "bad")
    await bench.restart()
    await bench.settle()

    assert again == [Redriven("bad", "bad-r1")]
    assert amounts(bench) == {"bad": 1}
    assert "accepted" in await refusal(bench, "bad")


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_command_that_dies_around_its_append_is_repeated_without_harm(moment: str) -> None:
    """The redrive and the new intent are one record: neither is there without the other."""
    bench = await dead_letters("bad")
    bench.log.hook = lambda value: (moment, Crash()) if b'"redrive"' in value else None
    with pytest.raises(Crash):
        await redrive(bench, "bad")
    bench.log.hook = lambda _value: None

    await redrive(bench, "bad")
    await bench.settle()

    assert amounts(bench) == {"bad": 1}


async def test_report_that_dies_again_comes_back_under_the_next_revision() -> None:
    """The first correction was not enough."""
    bench = await dead_letters("bad")
    bench.stripe.fault = lambda _event: FakeFault.BAD_REQUEST
    await redrive(bench, "bad")
    await bench.settle()
    bench.stripe.fault = lambda _event: None

    (result,) = await redrive(bench, "bad")
    await bench.settle()

    assert (result.identifier, result.successor) == ("bad-r1", "bad-r2")
    assert bench.counted() == {"bad-r2": 1}


@pytest.mark.parametrize("hours", [0, 12], ids=["at once", "half a day later"])
async def test_many_dead_letters_of_one_customer_and_amount_are_redriven_at_once(hours: int) -> None:
    """Stripe's sum shows that it has none of them."""
    names = [f"bad{number}" for number in range(30)]
    bench = await dead_letters(*names)
    bench.clock.advance(hours * HOUR_MS)
    await bench.publish(make_intent("good", bucket=-hours))
    await bench.settle()

    results = await redrive(bench, *names)
    await bench.settle()

    assert all(result.is_new for result in results)
    assert amounts(bench) == dict.fromkeys((*names, "good"), 1)


async def test_report_that_stripe_accepted_and_rejected_later_is_redriven() -> None:
    """The old identifier is taken at Stripe: sent again under it, the event would be a duplicate and never billed."""
    bench = await Bench().start()
    bench.stripe.fault = lambda event: FakeFault.REJECTED if event.identifier == "lost" else None
    await bench.publish(make_intent("before", bucket=3), make_intent("lost"), make_intent("other", delta=7, bucket=1))
    await bench.settle()
    bench.clock.advance(8 * HOUR_MS)
    failed = await failed_intents(bench.ledger, await bench.stripe.rejections(0))

    (result,) = await redrive(bench, "lost")
    await bench.settle()

    assert [(each.known.intent.identifier, each.detail) for each in failed] == [
        ("lost", "accepted, then rejected by Stripe: rejected")
    ]
    assert result.is_new, result.refused
    assert bench.counted() == {"before": 1, "other": 1, "lost-r1": 1}
    assert await failed_intents(bench.ledger, await bench.stripe.rejections(0)) == []


async def test_accepted_report_is_refused_even_if_stripe_rejected_another_one_of_the_meter() -> None:
    """Stripe names only some rejected events, so its sum decides."""
    bench = await Bench().start()
    bench.stripe.fault = lambda event: FakeFault.REJECTED if event.identifier == "lost" else None
    await bench.publish(make_intent("lost", "b"), make_intent("billed"))
    await bench.settle()
    bench.clock.advance(2 * MINUTE_MS)
    assert "wait" in await refusal(bench, "billed")
    bench.clock.advance(8 * HOUR_MS)

    assert "contains it" in await refusal(bench, "billed")


async def test_report_that_stripe_accepted_is_refused() -> None:
    """It would be billed twice."""
    bench = await Bench().start()
    await bench.publish(make_intent("billed"))
    await bench.settle()
    bench.clock.advance(DAY_MS)

    assert "accepted" in await refusal(bench, "billed")


@pytest.mark.parametrize("days_later", [0, 2], ids=["at its own instant", "at another instant of the period"])
async def test_dead_letter_that_a_person_sent_by_hand_is_refused(days_later: int) -> None:
    """Stripe's sum already holds the amount."""
    bench = await dead_letters("bad")
    bench.clock.advance(days_later * DAY_MS)
    bench.stripe.inject(MeterEvent("by hand", "tokens", "cus_a", "0.05", bench.clock.ms // 1_000 - 60))
    bench.clock.advance(8 * HOUR_MS)

    assert "contains it" in await refusal(bench, "bad")


async def test_dead_letter_that_stripe_may_have_is_refused_until_its_sum_is_certain() -> None:
    """An earlier send had no clear answer, and Stripe had taken the event."""
    bench = await Bench().start()
    answers = iter([FakeFault.LOST_ANSWER, FakeFault.BAD_REQUEST])
    bench.stripe.fault = lambda _event: next(answers)
    await bench.publish(make_intent("bad"))
    await bench.settle(step_ms=1_000)
    bench.stripe.fault = lambda _event: None

    assert "wait" in await refusal(bench, "bad")
    bench.clock.advance(8 * HOUR_MS)
    assert "contains it" in await refusal(bench, "bad")


async def test_dead_letter_that_one_of_two_equal_events_may_be_is_refused() -> None:
    """A person sent one of them, and the sum does not tell which."""
    bench = await dead_letters("bad", "worse")
    bench.stripe.inject(MeterEvent("by hand", "tokens", "cus_a", "0.05", NOW_MS // 1_000 - 1))
    bench.clock.advance(8 * HOUR_MS)

    assert "does not decide" in await refusal(bench, "bad")


async def test_pending_unknown_and_free_reports_and_those_that_are_too_old_are_refused() -> None:
    """Each with what to do."""
    bench = await dead_letters("bad")
    bench.billing |= {"b": (Billing.UNMAPPED, ""), "c": (Billing.FREE, "")}
    await bench.publish(make_intent("held", "b"), make_intent("free", "c"))
    await bench.pump(5)

    assert "not settled" in await refusal(bench, "held")
    assert "free" in await refusal(bench, "free")
    assert "billing list" in await refusal(bench, "nobody")
    bench.clock.ms = PERIOD_END_MS + 36 * DAY_MS
    assert "invoice item" in await refusal(bench, "bad")


async def test_key_of_another_account_and_a_redrive_without_a_reason_are_refused() -> None:
    """The sum of another account would be zero."""
    bench = await dead_letters("bad")
    with pytest.raises(InvalidInput, match="--reason"):
        await Redriver(bench.log, bench.ledger, bench.stripe, bench.stripe, bench.clock).redrive(["bad"], "ada", " ")
    bench.stripe.account = "acct_other"

    with pytest.raises(OperatorNeeded, match="TIDEMARK_STRIPE_API_KEY"):
        await redrive(bench, "bad")


@pytest.mark.parametrize(
    ("account", "limit", "expected"),
    [("", 9, ["bad", "worse"]), ("b", 9, []), ("", 1, ["worse"])],
    ids=["all", "of an account", "newest"],
)
async def test_list_has_what_stripe_does_not_bill(account: str, limit: int, expected: Sequence[str]) -> None:
    """Settled and redriven reports are not in it."""
    bench = await dead_letters("bad", "worse", "redriven")
    await bench.publish(make_intent("good", "b"))
    await redrive(bench, "redriven")
    await bench.settle()

    failed = await failed_intents(bench.ledger, (), account, limit)

    assert [each.known.intent.identifier for each in failed] == expected


def test_revisions_have_identifiers_of_their_own() -> None:
    """Also those of a part of a long value."""
    part = make_intent("tm_0a-0")
    first, second = revised(part), revised(revised(part))

    assert [first.identifier, second.identifier] == ["tm_0a-0-r1", "tm_0a-0-r2"]
    assert {root_of(each.identifier) for each in (part, first, second)} == {"tm_0a-0"}
    assert second.model_copy(update={"identifier": "tm_0a-0", "revision": 0}) == part
