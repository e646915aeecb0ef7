"""The live usage that checks read: from Redis or from memory, and at which rate it rises."""

from __future__ import annotations

from typing import Any, cast

import msgspec
import pytest

from aggregators.partitioning import partition_of
from aggregators.periods import period_at
from pipeline.access.usage import AGE_MS_MAX, LiveUsageSource
from schemas.clock import DAY_MS, MINUTE_MS, SECOND_MS
from schemas.errors import Transient
from schemas.live_view import LiveTotals
from schemas.meters import MeterSet
from schemas.periods import AccountState, Binding, Interval
from schemas.rollup import Checkpoint, Counters, TotalKey
from tests.worlds.gateway import NOW_MS

METERS = MeterSet.model_validate(
    {"version": 1, "meters": [{"slug": "calls", "event_type": "call", "aggregation": "count", "unit": "calls"}]}
)
EMPTY = Checkpoint("log-1", 1, False, "", 1, 0, NOW_MS, "", METERS, Counters(), ())


class Live:
    """Redis with one account and one total; the clock too."""

    def __init__(self) -> None:
        self.now, self.calls, self.complete_up_to_ms, self.reads = NOW_MS, 0, NOW_MS, 0
        self.checkpoint: Checkpoint | None = EMPTY
        self.state = AccountState()
        self.source = LiveUsageSource(cast("LiveTotals", self), 1, self)

    def now_ms(self) -> int:
        return self.now

    async def sleep(self, duration_s: float) -> None:
        raise NotImplementedError

    async def account_total(self, partition: int, key: TotalKey) -> Any:
        assert partition == partition_of("acme", 1)
        self.reads += 1
        if self.checkpoint is None:
            return None, self.state, {}
        at = msgspec.structs.replace(self.checkpoint, stream_time_ms=self.complete_up_to_ms)
        calls = self.calls if key == TotalKey("acme", period_at(self.state, self.now).start_ms) else 0
        return at, self.state, {"calls": str(calls)}

    async def later(self, ms: int, calls: int = 0) -> Any:
        """Ask after a while in which calls were counted."""
        self.now += ms
        self.complete_up_to_ms += ms
        self.calls += calls
        return await self.source("acme", "calls")


async def test_redis_is_asked_again_when_the_answer_is_old_or_a_fresh_one_is_wanted() -> None:
    live = Live()
    first = await live.later(0, 5)
    cached = await live.later(AGE_MS_MAX, 5)
    fresh = await live.source("acme", "calls", fresh=True)
    old = await live.later(AGE_MS_MAX + 1, 5)

    assert [(int(each.used), each.is_cached) for each in (first, cached, fresh, old)] == [
        (5, False), (5, True), (10, False), (15, False),
    ]  # fmt: skip
    assert first.complete_up_to_ms == NOW_MS


async def test_the_usage_is_that_of_the_accounts_own_period() -> None:
    """Redis is asked twice only if another period runs than at the last read."""
    live = Live()
    anchor_ms = NOW_MS - DAY_MS
    weekly = AccountState(bindings=(Binding(effective_from_ms=anchor_ms, anchor_ms=anchor_ms, interval=Interval.WEEK),))
    seen = []
    for ms, state in ((0, AccountState()), (SECOND_MS, weekly), (SECOND_MS, weekly), (8 * DAY_MS, weekly)):
        live.state = state
        answer = await live.later(ms, 5)
        seen.append((int(answer.used), answer.period_end_ms == period_at(state, live.now).end_ms, live.reads))

    assert seen == [(5, True, 1), (10, True, 3), (15, True, 4), (20, True, 6)]


RATES: dict[str, tuple[list[tuple[int, int]], str | None]] = {
    # The steps: after so many milliseconds, so many calls more; then the usage of a minute.
    "one answer": ([(0, 5)], None),
    "too short": ([(0, 5), (SECOND_MS - 1, 5)], None),
    "half a minute": ([(0, 5), (30 * SECOND_MS, 20)], "40"),
    "steady": ([(0, 5), *[(20 * SECOND_MS, 10)] * 30], "30"),
    "it rose, and the minute is over": ([(0, 0), (MINUTE_MS, 600), *[(20 * SECOND_MS, 0)] * 9], "0"),
    "too long ago": ([(0, 5), (4 * MINUTE_MS, 20)], None),
    "it sank": ([(0, 50), (30 * SECOND_MS, -20)], "0"),
    "another period": ([(0, 5), (40 * DAY_MS, 5)], None),
}


@pytest.mark.parametrize(("steps", "rate"), RATES.values(), ids=RATES)
async def test_the_rate_is_that_of_the_last_minutes(steps: list[tuple[int, int]], rate: str | None) -> None:
    live = Live()
    for ms, calls in steps:
        answer = await live.later(ms, calls)

    assert (None if answer.a_minute is None else f"{answer.a_minute:f}") == rate


async def test_before_anything_was_counted_there_is_no_usage() -> None:
    live = Live()
    live.checkpoint = None
    with pytest.raises(Transient, match="is a worker running"):
        await live.later(0)
