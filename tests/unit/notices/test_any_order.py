"""Whatever happens in whatever order: each threshold that was reached and stays so is delivered under one id, and none
that was not reached.

The oracle keeps plain numbers: what each account used and may use in which month. It shares no code with the notifier.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.notices import truth as truth_module
from pipeline.notices.sending import CLAIM_MS, PAUSES_MS
from pipeline.notices.truth import Truth
from schemas.clock import DAY_MS, MINUTE_MS
from schemas.notices import DeliveryState, Notice
from tests.worlds.crashing import Crash, Crashing
from tests.worlds.notices import NoticeWorld, Receiver, limit

ACCOUNTS = ("acme", "globex")
PERCENTS = (80, 100)
DEFAULT_LIMIT = 1_000

Fact = tuple[str, int, int]


class Oracle:
    """What is so: usage by account and month, and limits by account."""

    def __init__(self) -> None:
        self.month = 11
        self.used: Counter[tuple[str, int]] = Counter()
        self.limits = dict.fromkeys(ACCOUNTS, DEFAULT_LIMIT)

    def reached(self) -> set[Fact]:
        """The thresholds that are reached in the running month."""
        return {
            (account, self.month, percent)
            for account in ACCOUNTS
            for percent in PERCENTS
            if self.limits[account] > 0 and self.used[account, self.month] * 100 >= self.limits[account] * percent
        }


class Checking(Receiver):
    """A receiver that asks the oracle about each notice at the moment it comes."""

    def __init__(self, oracle: Oracle) -> None:
        super().__init__()
        self.oracle = oracle
        self.facts: dict[str, Fact] = {}

    async def send(self, notice: Notice) -> bool:
        data = json.loads(notice.body)["data"]
        fact = (data["account"], int(data["period_start"][5:7]), data["percent"])
        assert fact in self.oracle.reached(), "a threshold that is not reached is noticed"
        assert self.facts.setdefault(notice.id, fact) == fact
        return await super().send(notice)


OPERATIONS = st.one_of(
    st.tuples(st.just("use"), st.sampled_from(ACCOUNTS), st.sampled_from([0, 799, 800, 999, 1_000, 1_600, 4_000])),
    st.tuples(st.just("allow"), st.sampled_from(ACCOUNTS), st.sampled_from([0, 500, 1_000, 1_250, 2_000, 5_000])),
    st.tuples(st.just("answers"), st.lists(st.sampled_from(["lost", "refused", ""]), max_size=3), st.none()),
    st.tuples(st.just("wait"), st.sampled_from([1, MINUTE_MS, CLAIM_MS, DAY_MS // 2]), st.none()),
    st.tuples(st.just("month"), st.none(), st.none()),
    st.tuples(st.sampled_from(["sweep", "send"]), st.integers(0, 1), st.one_of(st.none(), st.integers(1, 6))),
    st.tuples(st.just("both"), st.none(), st.none()),
)


async def play(operations: list[tuple[str, Any, Any]]) -> None:
    world, oracle = NoticeWorld(), Oracle()
    await world.begin()
    receiver = Checking(oracle)
    processes = [world.notifier(channel=receiver) for _ in range(2)]
    crashes = lost = 0
    # The first of December is ten days away; the months are told apart by their number.
    for operation, first, second in operations:
        if operation == "use":
            oracle.used[first, oracle.month] = second
            world.use(first, second)
        elif operation == "allow":
            oracle.limits[first] = second
            await world.allow(first, limit(second))
        elif operation == "answers":
            receiver.answers = list(first)
            lost += first.count("lost")
        elif operation == "wait":
            world.clock.advance(first)
            oracle.month = 11 if world.clock.now_ms() < DECEMBER_MS else 12
        elif operation == "month" and oracle.month == 11:
            world.clock.ms = DECEMBER_MS
            oracle.month = 12
        elif operation == "both":
            turns = [turn() for sweep, sending in processes for turn in (sending.turn, sweep.turn)]
            await asyncio.gather(*turns)
        elif operation in ("sweep", "send"):
            crashes += await run(world, receiver, processes, (operation, first, second))
    await settle(world, receiver, oracle)

    for identifier, taken in receiver.bodies().items():
        assert taken <= 1 + lost + crashes, f"{identifier} came {taken} times"
    assert len(set(receiver.facts.values())) == len(receiver.facts), "one threshold has two ids"


DECEMBER_MS = 1_796_083_200_000


async def run(world: NoticeWorld, receiver: Receiver, processes: list[Any], what: tuple[str, int, int | None]) -> int:
    """One turn of one process, which may end at a call. Returns whether it did; then another takes its place."""
    operation, number, ends_at = what
    if ends_at is None:
        sweep, sending = processes[number]
        await (sweep.turn() if operation == "sweep" else sending.turn())
        return 0
    countdown = [ends_at]
    outbox, channel = (Crashing(each, countdown, after=ends_at % 2 == 0) for each in (world.outbox, receiver))
    sweep, sending = world.notifier(outbox=outbox, channel=channel)
    with contextlib.suppress(Crash):
        await (sweep.turn() if operation == "sweep" else sending.turn())
        return 0
    processes[number] = world.notifier(channel=receiver)
    return 1


async def settle(world: NoticeWorld, receiver: Checking, oracle: Oracle) -> None:
    """Nothing fails any more: what is reached was or is delivered."""
    receiver.answers = []
    await world.outbox.retry("", world.clock.now_ms())
    sweep, sending = world.notifier(channel=receiver)
    await sweep.turn()
    while waiting := [row.due_ms for row in await world.rows() if row.state is DeliveryState.WAITING]:
        world.clock.ms = max(world.clock.now_ms(), min(waiting))
        oracle.month = 11 if world.clock.now_ms() < DECEMBER_MS else 12
        await sending.turn()
    await sweep.turn()
    while await sending.turn():
        pass
    delivered = {receiver.facts[identifier] for identifier in receiver.bodies()}
    assert oracle.reached() <= delivered


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(OPERATIONS, min_size=4, max_size=30))
def test_each_threshold_is_delivered_under_one_id_and_no_other_is(operations: list[tuple[str, Any, Any]]) -> None:
    asyncio.run(play(operations))


def broken_by(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Take one safeguard away."""
    if name == "truth":

        async def always(_self: Truth, _notice: Notice) -> str:
            return ""

        monkeypatch.setattr(truth_module.Truth, "why_not", always)
    elif name == "revival":
        from sinks.sql import notices

        monkeypatch.setattr(notices, "_REVIVED", DeliveryState.DEAD.value)
    elif name == "identity":
        from itertools import count

        from aggregators import notices as made

        numbers = count()
        monkeypatch.setattr(made, "notice_id", lambda *_: f"ntc_{next(numbers)}")


SCENARIOS: dict[str, list[tuple[str, Any, Any]]] = {
    "truth": [("use", "acme", 800), ("sweep", 0, None), ("allow", "acme", 5_000), ("send", 0, None)],
    "revival": [
        ("use", "acme", 800), ("sweep", 0, None), ("allow", "acme", 2_000), ("send", 0, None), ("use", "acme", 1_600),
    ],
    "identity": [("use", "acme", 800), ("sweep", 0, None), ("send", 0, None), ("sweep", 1, None), ("send", 1, None)],
}  # fmt: skip


@pytest.mark.parametrize("name", SCENARIOS)
async def test_the_oracle_sees_what_a_missing_safeguard_does(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    await play(SCENARIOS[name])
    broken_by(monkeypatch, name)
    with pytest.raises(Exception, match=r"noticed|ids|UNIQUE|assert"):
        await play(SCENARIOS[name])


def test_a_claim_lasts_longer_than_any_attempt() -> None:
    """Else two senders would send one notice although neither died."""
    from sinks.notices import mail, webhook

    stores_s = 5 * 30
    assert max(mail.TIMEOUT_S, webhook.TIMEOUT_S) + stores_s < CLAIM_MS / 1_000
    assert sum(PAUSES_MS) == pytest.approx(3 * DAY_MS, rel=0.02)
