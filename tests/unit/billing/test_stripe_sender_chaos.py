"""Random crashes, rebalances and lost answers, drawn from a seed: Stripe counts each intent exactly once."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from decimal import Decimal

from hypothesis import given, settings
from hypothesis import strategies as st

from aggregators.intents import parts_of
from schemas.clock import HOUR_MS, MINUTE_MS
from schemas.errors import Transient
from schemas.log import REPORTS_TOPIC
from schemas.periods import Billing
from schemas.reports import Intent, OutcomeStatus
from sinks.stripe.fake import FakeFault
from tests.worlds.sender import (
    Bench,
    Crash,
    make_intent,
)

# A value of 19 digits is sent in two parts.
LONG = 1_234_567_890_123_456_789
FAULTS = [
    FakeFault.LOST_ANSWER,
    FakeFault.NO_ANSWER,
    FakeFault.SERVER_ERROR,
    FakeFault.SERVER_ERROR_AFTER_COMMIT,
    FakeFault.RATE_LIMITED,
    FakeFault.CONFLICT,
]


class Chaos:
    """Draws all faults from one seed and does not know how the sender works."""

    def __init__(self, bench: Bench, rng: random.Random) -> None:
        self.bench = bench
        self.rng = rng
        self.published: dict[str, Intent] = {}
        self.owners = [bench.sender]
        self.offsets = [dict(bench.offsets)]

    async def happen(self) -> None:
        """One random fault or step."""
        bench, rng = self.bench, self.rng
        thing = rng.random()
        if thing < 0.25:
            await self._publish()
        elif thing < 0.85:
            await self._run()
        elif thing < 0.93:
            bench.clock.advance(rng.choice([1_000, MINUTE_MS, 20 * MINUTE_MS, 3 * HOUR_MS, 30 * HOUR_MS]))
        else:
            await self._another_owner(keep_old=rng.random() < 0.5)

    async def _publish(self) -> None:
        rng = self.rng
        if self.published and rng.random() < 0.2:
            intents = [rng.choice(list(self.published.values()))]
        else:
            account = rng.choice("abcd")
            # In another hour: beside a long value, a double at Stripe does not show a short one.
            delta, bucket = (LONG, 1) if rng.random() < 0.03 else (rng.choice([1, 1, 2, 5, -1]), 0)
            intents = list(parts_of(make_intent(f"i{len(self.published)}", account, delta, bucket)))
        for intent in intents:
            self.published[intent.identifier] = intent
            await self.bench.publish(intent, partition="abcd".index(intent.account) % 2)

    async def _run(self) -> None:
        """One or two senders read some records of a partition; at most one of them really owns the partition."""
        chosen = self.rng.sample(range(len(self.owners)), min(len(self.owners), self.rng.choice([1, 1, 2])))
        ends = await asyncio.gather(*(self._feed(owner) for owner in chosen))
        dead = [owner for owner, survived in zip(chosen, ends, strict=True) if not survived]
        for owner in sorted(dead, reverse=True):
            del self.owners[owner], self.offsets[owner]
        if dead:
            await self._another_owner(keep_old=True)

    async def _feed(self, owner: int) -> bool:
        """Whether the sender survived its records."""
        sender, offsets, partition = self.owners[owner], self.offsets[owner], self.rng.randrange(2)
        records = await self.bench.log.read(REPORTS_TOPIC, partition, offsets[partition], self.rng.randrange(1, 9))
        try:
            if records:
                await sender.step(partition, records)
                offsets[partition] = records[-1].next_offset
            else:
                await sender.idle(partition)
        except (Crash, Transient):
            return False
        return True

    async def _another_owner(self, *, keep_old: bool) -> None:
        if not keep_old or len(self.owners) >= 3:
            self.owners.clear()
            self.offsets.clear()
        self.bench.sender = self.bench.new_sender()
        await self.bench.assign()
        self.owners.append(self.bench.sender)
        self.offsets.append(dict(self.bench.offsets))

    def fail_append(self, _value: bytes) -> tuple[str, Exception] | None:
        """Some appends fail, before or after they are durable, with or without a crash."""
        if self.rng.random() >= 0.06:
            return None
        error = Crash() if self.rng.random() < 0.5 else Transient("the log did not answer")
        return self.rng.choice(["before", "after"]), error


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
async def test_random_crashes_rebalances_and_lost_answers_never_count_twice(seed: int) -> None:
    """Stripe never counts an intent twice. In the end each intent has arrived once, or is on hold as undecidable."""
    rng = random.Random(seed)
    bench = await Bench(partitions=2).start()
    bench.billing["d"] = (Billing.MAPPED, "cus_a")
    chaos = Chaos(bench, rng)
    bench.log.hook = chaos.fail_append
    bench.stripe.fault = lambda _event: rng.choice(FAULTS) if rng.random() < 0.4 else None
    for _ in range(120):
        try:
            await chaos.happen()
        except (Crash, Transient):
            continue

    bench.log.hook = lambda _value: None
    bench.stripe.fault = lambda _event: None
    await bench.restart()
    await bench.settle(rounds=300, step_ms=5 * MINUTE_MS)

    # An append that failed before it was durable published nothing.
    chaos.published = {entry.identifier: entry for entry in await bench.entries() if isinstance(entry, Intent)}
    counted = bench.counted()
    on_hold = set(chaos.published) - set(await bench.outcomes())
    assert max(counted.values(), default=0) <= 1, f"counted twice, seed {seed}"
    assert all(outcome.status is OutcomeStatus.ACCEPTED for outcome in (await bench.outcomes()).values())
    assert set(chaos.published) - on_hold <= set(counted), f"missing, seed {seed}"
    assert bench.sender.status().held.get("unknown", 0) == len(on_hold), f"stuck without a reason, seed {seed}"
    _check_sums(bench, chaos, on_hold)


def _check_sums(bench: Bench, chaos: Chaos, on_hold: set[str]) -> None:
    """Stripe's sum for each customer is the intended one, except for intents on hold."""
    customers = {"a": "cus_a", "b": "cus_b", "c": "cus_c", "d": "cus_a"}
    expected: defaultdict[str, Decimal] = defaultdict(Decimal)
    for intent in chaos.published.values():
        if intent.identifier not in on_hold:
            expected[customers[intent.account]] += Decimal(intent.delta_minor).scaleb(-intent.scale)
    sums: defaultdict[str, Decimal] = defaultdict(Decimal)
    for item in bench.stripe.accepted():
        if item.event.identifier not in on_hold:
            sums[item.event.stripe_customer] += Decimal(item.event.value)
    assert {key: value for key, value in expected.items() if value} == {
        key: value for key, value in sums.items() if value
    }
