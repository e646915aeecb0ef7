"""How a notice is sent: still true, at least once, under one id, by one sender at a time."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest
import pytest_asyncio

from pipeline.notices.sending import CLAIM_MS, PAUSES_MS, SENT_AT_ONCE
from schemas.clock import DAY_MS, HOUR_MS, MINUTE_MS
from schemas.errors import Transient
from schemas.notices import ChannelName, DeliveryState
from schemas.rollup import TotalKey
from tests.worlds.notices import NoticeWorld, Receiver, limit


@pytest_asyncio.fixture
async def world() -> NoticeWorld:
    """One notice waits."""
    world = NoticeWorld()
    await world.begin()
    world.use("acme", 850)
    await world.notifier()[0].turn()
    return world


async def test_a_notice_is_sent_once(world: NoticeWorld) -> None:
    _, sending = world.notifier()
    assert [await sending.turn() for _ in range(3)] == [1, 0, 0]
    assert list(world.receiver.bodies().values()) == [1]
    (row,) = await world.rows()
    assert (row.state, row.settled_ms, row.failures) == (DeliveryState.SENT, world.clock.now_ms(), 0)


async def raise_the_limit(world: NoticeWorld) -> str:
    await world.allow("acme", limit(5_000))
    return "850 of 5000 are used now"


async def end_the_period(world: NoticeWorld) -> str:
    world.clock.advance(31 * DAY_MS)
    return "the period is over"


async def correct_the_usage(world: NoticeWorld) -> str:
    world.use("acme", 799)
    return "799 of 1000 are used now"


async def remove_the_usage(world: NoticeWorld) -> str:
    world.view.server.at(0).totals.pop(TotalKey("acme", world.period("acme").start_ms))
    return "0 of 1000 are used now"


async def lift_the_limit(world: NoticeWorld) -> str:
    await world.allow("acme", limit(0))
    return "the account is no longer warned about it: the limit is gone, or the catalog does not warn"


async def turn_the_channel_off(world: NoticeWorld) -> str:
    return "no webhook is set any more"


CHANGES = [raise_the_limit, end_the_period, correct_the_usage, remove_the_usage, lift_the_limit, turn_the_channel_off]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
async def test_what_is_no_longer_true_is_not_sent_and_says_why(world: NoticeWorld, change: object) -> None:
    why = await change(world)  # type: ignore[operator]  # one of CHANGES
    channels = () if change is turn_the_channel_off else (ChannelName.WEBHOOK,)
    _, sending = world.notifier(channels=channels)
    await sending.turn()
    (row,) = await world.rows()
    assert (row.state, row.detail, world.receiver.taken) == (DeliveryState.OBSOLETE, why, [])


async def test_what_becomes_true_again_is_noticed(world: NoticeWorld) -> None:
    """The limit was raised before the notice was sent, and then 80 % of the raised limit was reached."""
    sweep, sending = world.notifier()
    await world.allow("acme", limit(2_000))
    await sending.turn()
    assert (await sweep.turn()).new == 0
    world.use("acme", 1_700)
    assert (await sweep.turn()).new == 1
    await sending.turn()
    assert [notice.body.count('"of":"2000"') for notice in world.receiver.taken] == [1]


async def test_a_failure_is_repeated_with_growing_pauses_for_three_days_and_then_dead(
    world: NoticeWorld, caplog: pytest.LogCaptureFixture
) -> None:
    world.receiver.answers = ["refused"] * 100
    _, sending = world.notifier()
    began_ms, times = world.clock.now_ms(), []
    while (row := (await world.rows())[0]).state is DeliveryState.WAITING:
        world.clock.ms = row.due_ms
        if await sending.turn():
            times.append(world.clock.now_ms() - began_ms)

    assert [after - before for before, after in pairwise(times)] == list(PAUSES_MS)
    assert 2.9 * DAY_MS < times[-1] < 3.1 * DAY_MS
    assert (row.state, row.detail) == (DeliveryState.DEAD, "the receiver's answer: refused")
    assert (await world.outbox.counts()).dead == 1
    # What a receiver answers may name a customer.
    assert ("a notice is dead" in caplog.text, "refused" in caplog.text) == (True, False)


async def test_a_dead_notice_is_sent_again_on_request(world: NoticeWorld) -> None:
    world.receiver.answers = ["refused"] * (len(PAUSES_MS) + 1)
    _, sending = world.notifier()
    while (row := (await world.rows())[0]).state is DeliveryState.WAITING:
        world.clock.ms = row.due_ms
        await sending.turn()
    assert await world.outbox.retry("ntc_unknown", world.clock.now_ms()) == 0
    assert await world.outbox.retry(row.notice.id, world.clock.now_ms()) == 1
    await sending.turn()
    assert list(world.receiver.bodies()) == [row.notice.id]


async def test_a_lost_answer_makes_the_same_bytes_come_again_under_the_same_id(world: NoticeWorld) -> None:
    world.receiver.answers = ["lost"]
    _, sending = world.notifier()
    await sending.turn()
    world.clock.advance(PAUSES_MS[0])
    await sending.turn()
    first, second = world.receiver.taken
    assert first == second


async def test_nobody_to_write_to_is_no_failure_and_not_asked_again(world: NoticeWorld) -> None:
    world.receiver.answers = ["nobody"]
    sweep, sending = world.notifier()
    await sending.turn()
    await sweep.turn()
    assert await sending.turn() == 0
    assert [row.state for row in await world.rows()] == [DeliveryState.UNADDRESSED]


async def test_what_cannot_be_asked_for_is_asked_again_and_counts_as_no_failure(world: NoticeWorld) -> None:
    state = world.view.server.at(0)
    checkpoint, state.checkpoint = state.checkpoint, None
    _, sending = world.notifier()
    await sending.turn()
    (row,) = await world.rows()
    assert (row.state, row.failures, row.due_ms > world.clock.now_ms()) == (DeliveryState.WAITING, 0, True)
    state.checkpoint = checkpoint
    world.clock.ms = row.due_ms
    await sending.turn()
    assert len(world.receiver.taken) == 1


async def test_two_senders_at_once_send_one_notice_once(world: NoticeWorld) -> None:
    for number in range(30):
        world.use(f"acme{number}", 1_000)
    await world.notifier()[0].turn()
    senders = [world.notifier()[1] for _ in range(2)]
    while any(await asyncio.gather(*(sending.turn() for sending in senders))):
        pass
    bodies = world.receiver.bodies()
    assert (len(bodies), set(bodies.values())) == (61, {1})


class Dying(Receiver):
    """A process that ends while the receiver is asked."""

    async def send(self, notice: object) -> bool:  # noqa: ARG002  # a protocol
        raise KeyboardInterrupt


async def test_a_dead_senders_claim_runs_out(world: NoticeWorld) -> None:
    _, dying = world.notifier(channel=Dying())
    with pytest.raises(KeyboardInterrupt):
        await dying._deliver((await world.outbox.claim(world.clock.now_ms(), world.clock.now_ms() + CLAIM_MS, 1))[0])
    _, sending = world.notifier()
    assert await sending.turn() == 0
    world.clock.advance(CLAIM_MS)
    assert await sending.turn() == 1
    assert len(world.receiver.taken) == 1


async def test_who_was_overtaken_settles_nothing(world: NoticeWorld) -> None:
    now_ms = world.clock.now_ms()
    (slow,) = await world.outbox.claim(now_ms, now_ms + 1, 1)
    (quick,) = await world.outbox.claim(now_ms + 1, now_ms + MINUTE_MS, 1)
    assert not await world.outbox.settle(slow, DeliveryState.DEAD, "", now_ms)
    assert not await world.outbox.postpone(slow, now_ms + HOUR_MS, 1, "")
    assert await world.outbox.settle(quick, DeliveryState.SENT, "", now_ms)
    assert [row.state for row in await world.rows()] == [DeliveryState.SENT]


async def test_a_second_channel_has_a_delivery_of_its_own(world: NoticeWorld) -> None:
    both = (ChannelName.WEBHOOK, ChannelName.FILE)
    sweep, sending = world.notifier(channels=both)
    await sweep.turn()
    world.receiver.answers = ["refused"]
    await sending.turn()
    rows = await world.rows()
    assert len({row.notice.id for row in rows}) == 1
    assert sorted(row.state for row in rows) == [DeliveryState.SENT, DeliveryState.WAITING]


async def test_an_outbox_that_does_not_answer_ends_the_turn_only(world: NoticeWorld) -> None:
    class Away:
        async def claim(self, *_: object) -> object:
            raise Transient("PostgreSQL does not answer")

    _, sending = world.notifier(outbox=Away())
    with pytest.raises(Transient):
        await sending.turn()


async def test_a_receiver_that_hangs_holds_up_no_other_channel(world: NoticeWorld) -> None:
    mail, hangs = Receiver(), asyncio.Event()

    class Hanging:
        async def send(self, _: object) -> bool:
            await hangs.wait()
            return True

    channels = (ChannelName.WEBHOOK, ChannelName.MAIL)
    sweep, _ = world.notifier(channels=channels)
    for each in range(SENT_AT_ONCE):
        world.use(f"account-{each}", 850)
    await sweep.turn()
    _, sending = world.notifier(channels=channels)
    sending._channels = {ChannelName.WEBHOOK: Hanging(), ChannelName.MAIL: mail}
    stuck = asyncio.create_task(sending.turn(ChannelName.WEBHOOK))
    while await asyncio.wait_for(sending.turn(ChannelName.MAIL), 60):
        pass
    assert (len(mail.taken), stuck.done()) == (SENT_AT_ONCE + 1, False)
    hangs.set()
    assert await stuck == SENT_AT_ONCE


async def test_of_a_long_answer_the_beginning_is_kept(world: NoticeWorld) -> None:
    class Talking:
        async def send(self, _: object) -> bool:
            raise Transient("no " * 100_000)

    await world.notifier(channel=Talking())[1].turn()
    (row,) = await world.rows()
    assert row.detail == ("no " * 100_000)[:500]
