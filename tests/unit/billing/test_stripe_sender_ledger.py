"""The sender and the ledger of intents: where it starts, and what survives a restart or the loss of the ledger."""

from __future__ import annotations

from unittest.mock import patch

import pytest

from pipeline.logs.fake import FakeLog
from schemas.clock import DAY_MS, HOUR_MS, MINUTE_MS
from schemas.errors import OperatorNeeded, Transient
from schemas.intent_ledger import IntentState, LedgerIntent
from schemas.log import REPORTS_TOPIC
from schemas.periods import Billing
from sinks.stripe.fake import FakeFault
from tests.worlds.sender import NOW_MS, POLICY, Bench, make_intent


async def known(bench: Bench, name: str) -> LedgerIntent:
    (found,) = await bench.ledger.found([name])
    return found


async def test_a_restart_reads_nothing_of_before() -> None:
    """After a year, reading the topic from its first record took hours."""
    bench = await Bench().start()
    await bench.publish(*(make_intent(f"i{number}", bucket=number) for number in range(20)))
    await bench.settle()
    end = (await bench.log.bounds(REPORTS_TOPIC, 0)).next

    with patch.object(bench.log, "read", wraps=bench.log.read) as reads:
        await bench.restart()
        await bench.pump(3)

    assert bench.offsets == {0: end}
    assert {call.args[2] for call in reads.call_args_list} == {end}


async def test_a_ledger_that_was_lost_is_read_again_and_nothing_is_sent_twice() -> None:
    """Also after Stripe forgot the identifiers."""
    bench = await Bench().start()
    await bench.publish(*(make_intent(f"i{number}", bucket=number) for number in range(20)))
    await bench.settle()
    before = await bench.entries()
    bench.clock.advance(3 * DAY_MS)
    bench.ledger.empty()
    await bench.restart()
    await bench.publish(make_intent("new"))

    while bench.offsets[0] < len(before):
        await bench.pump()
        assert len(bench.stripe.sends) == 20
    await bench.settle()

    assert bench.counted() == {**{f"i{number}": 1 for number in range(20)}, "new": 1}
    assert len(await bench.ledger.listed([IntentState.ACCEPTED])) == 21


async def test_an_older_copy_of_the_ledger_goes_on_where_it_was() -> None:
    bench = await Bench().start()
    await bench.publish(make_intent("old"), make_intent("waits", bucket=1))
    await bench.pump()
    intents, positions = dict(bench.ledger.intents), dict(bench.ledger.positions)
    await bench.settle()
    bench.ledger.intents, bench.ledger.positions = intents, positions

    await bench.restart()
    assert bench.offsets == positions
    await bench.settle()

    assert bench.counted() == {"old": 1, "waits": 1}
    assert len(bench.stripe.sends) == 2


async def test_a_sender_whose_ledger_is_emptied_meanwhile_stops() -> None:
    """It would go on behind intents that the ledger does not have."""
    bench = await Bench().start()
    await bench.publish(make_intent("one"))
    await bench.settle()
    bench.ledger.empty()
    await bench.publish(make_intent("two"))

    with pytest.raises(Transient, match="another process moved the position"):
        await bench.settle()
    await bench.restart()
    await bench.settle()

    assert bench.counted() == {"one": 1, "two": 1}


@pytest.mark.parametrize("offset", [99, 0], ids=["after the end", "before the start"])
async def test_a_ledger_of_another_log_stops_the_sender(offset: int) -> None:
    bench = await Bench().start()
    await bench.publish(make_intent("one"))
    bench.ledger.positions[0] = offset
    if offset == 0:
        await bench.publish(make_intent("two"))
        del bench.log._partitions[REPORTS_TOPIC, 0].records[0]
        assert (await FakeLog.bounds(bench.log, REPORTS_TOPIC, 0)).first == 1

    with pytest.raises(OperatorNeeded, match="DELETE FROM positions WHERE reader = 'billing"):
        await bench.restart()


async def test_the_first_of_two_lookups_survives_a_restart() -> None:
    """Otherwise a sink that restarts every few hours would never send the event again."""
    bench = await Bench().start()
    bench.stripe.fault = lambda _event: FakeFault.NO_ANSWER
    await bench.publish(make_intent("one"))
    await bench.pump(3)
    bench.stripe.fault = lambda _event: None
    bench.clock.advance(30 * HOUR_MS)
    await bench.pump(2)
    looked_at_ms = bench.clock.now_ms()
    assert (await known(bench, "one")).absent_at_ms == looked_at_ms

    await bench.restart()
    bench.clock.advance(POLICY.look_again_ms)
    await bench.settle()

    assert bench.counted() == {"one": 1}
    assert bench.sender.status().counts["looked_absent"] == 1


async def test_holds_and_waits_survive_a_restart() -> None:
    """A thousand accounts without a customer are not all asked for again at once."""
    bench = await Bench().start()
    bench.billing["a"] = (Billing.UNMAPPED, "")
    await bench.publish(make_intent("held"))
    await bench.pump(2)
    held = await known(bench, "held")
    assert (held.hold, held.not_before_ms) == ("unmapped", NOW_MS + POLICY.hold_retry_ms)

    await bench.restart()
    bench.asked.clear()
    await bench.pump(3)
    assert (bench.asked, bench.sender.status().held) == ([], {"unmapped": 1})

    bench.clock.advance(POLICY.hold_retry_ms)
    await bench.pump(2)
    assert len(bench.asked) == 1


async def test_waits_of_a_clock_that_was_ahead_end_at_the_next_start() -> None:
    bench = await Bench().start()
    bench.billing["a"] = (Billing.UNMAPPED, "")
    bench.clock.advance(40 * DAY_MS)
    await bench.publish(make_intent("held", period_end_ms=NOW_MS + 60 * DAY_MS))
    await bench.pump(2)
    bench.clock.advance(-40 * DAY_MS)
    bench.billing["a"] = (Billing.MAPPED, "cus_a")

    await bench.restart()
    await bench.settle()

    assert bench.counted() == {"held": 1}


async def test_the_longer_a_report_waits_for_a_person_the_less_often_it_is_tried() -> None:
    """A million reports that wait, tried every minute, would keep the database busy with nothing else."""
    bench = await Bench().start()
    bench.billing["a"] = (Billing.UNMAPPED, "")
    await bench.publish(make_intent("held"))
    waits = []
    for _ in range(60):
        await bench.pump(2)
        waits.append((await known(bench, "held")).not_before_ms - bench.clock.now_ms())
        bench.clock.advance(waits[-1])

    assert waits[0] == POLICY.hold_retry_ms
    assert waits == sorted(waits)
    assert waits[-1] == POLICY.hold_retry_max_ms


async def test_intents_behind_one_that_failed_wait_with_it() -> None:
    """Stripe does not answer: one try for the queue, not one for each of its intents."""
    bench = await Bench().start()
    await bench.publish(*(make_intent(f"i{number}", bucket=-number) for number in range(5)))
    bench.stripe.fault = lambda _event: FakeFault.NO_ANSWER
    await bench.pump(6)
    sends = len(bench.stripe.sends)
    for _ in range(3):
        bench.clock.advance(2 * MINUTE_MS)
        await bench.pump(2)

    assert (sends, len(bench.stripe.sends)) == (1, 4)
    assert len(set(bench.stripe.sends)) == 1
