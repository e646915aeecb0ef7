"""Totals of periods that ended long ago leave the live view (S7): by stream time alone, slowly, never early."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from aggregators.partitioning import partition_of
from aggregators.periods import period_at
from pipeline.logs.control_records import append_everywhere
from pipeline.rollup.processor import RollupProcessor, RollupSettings
from reconciler.causes import Cause, Pair, Verdict
from schemas.clock import DAY_MS, HOUR_MS, MINUTE_MS
from schemas.control import BindingRecord, CloseRecord, Tick
from schemas.log import EVENTS_TOPIC
from schemas.meters import GRACE_MAX_MS, Policy
from schemas.periods import AccountState, Binding, Interval
from schemas.rollup import Changes, Checkpoint, RankingKey, TotalKey
from sinks.redis.fake import FakeLiveView, FakeServer, FakeState
from tests.traffic.generate import rfc3339
from tests.worlds.deployment import SECRET, World
from tests.worlds.gateway import event, running
from tests.worlds.reconciler import DECEMBER_MS, METER_SET, NOVEMBER_MS, START_MS, Deployment, settled

KEPT_MS: Final = Policy().periods_kept_ms
FOR_EVER: Final = {**METER_SET, "policy": {"keep_periods_ms": 36_600 * DAY_MS}}
PARTITIONS: Final = 2


class CountingState(FakeState):
    """Records how many totals left with each commit."""

    def __init__(self, server: FakeServer) -> None:
        super().__init__(server)
        self.retired: list[int] = []

    async def commit(self, partition: int, believed: Checkpoint, changes: Changes) -> None:
        await super().commit(partition, believed, changes)
        self.retired.append(len(changes.retired))


async def months(seed: int, meter_set: Mapping[str, Any]) -> World:
    """Half a year of usage of 25 accounts with new bindings, closings, bursts and silences."""
    chance = random.Random(seed)
    world = World(START_MS, PARTITIONS)
    await world.start(meter_set)
    for number in range(120):
        world.clock.ms += chance.choice([MINUTE_MS, 10 * HOUR_MS, 2 * DAY_MS, 4 * DAY_MS])
        account = f"acct-{chance.randrange(25)}"
        partition = partition_of(account, PARTITIONS)
        if chance.random() < 0.3:
            binding = _binding(chance, world.clock.ms)
            bound = BindingRecord(account=account, revision=world.revision(account), binding=binding)
            await world.control(partition, bound)
        if chance.random() < 0.05:
            instant_ms = world.clock.ms - chance.randrange(20) * DAY_MS
            closed = CloseRecord(account=account, revision=world.revision(account), instant_ms=instant_ms)
            await world.control(partition, closed)
        if chance.random() < 0.2:
            await append_everywhere(world.log, SECRET, _tick(world))
            continue
        accounts = [f"acct-{chance.randrange(25)}" for _ in range(chance.choice([1, 3, 40]))]
        members = [each for each in accounts if partition_of(each, PARTITIONS) == partition]
        batch = [_usage(f"{number}/{index}", each, world.clock.ms) for index, each in enumerate(members)]
        if batch:
            await world.log.append(EVENTS_TOPIC, partition, json.dumps(batch).encode())
    world.clock.ms += KEPT_MS
    for _ in range(30):
        await append_everywhere(world.log, SECRET, _tick(world))
        world.clock.ms += DAY_MS
    return world


def _tick(world: World) -> Tick:
    return Tick(log_id=world.log_id, partitions=PARTITIONS)


def _binding(chance: random.Random, now_ms: int) -> Binding:
    minutes = now_ms // MINUTE_MS + chance.randrange(-1_000, 40_000)
    return Binding(
        effective_from_ms=minutes * MINUTE_MS,
        anchor_ms=chance.choice([0, minutes * MINUTE_MS]),
        interval=chance.choice([Interval.DAY, Interval.WEEK, Interval.MONTH, Interval.MONTH]),
    )


def _usage(event_id: str, account: str, now_ms: int) -> dict[str, Any]:
    data = {"gb": "1.5", "user": event_id, "region": "eu"}
    return {**event(event_id, type="request", subject=account, data=data), "time": rfc3339(now_ms * 1000)}


async def folded(world: World, settings: RollupSettings | None = None) -> FakeLiveView:
    store = FakeLiveView()
    other = World(0, PARTITIONS, store)
    other.log = world.log
    await other.fold_all(other.rollup(settings))
    return store


@pytest.mark.parametrize("seed", range(6))
async def test_exactly_what_is_due_leaves_and_the_rest_is_unchanged(seed: int) -> None:
    """Compared with a meter set that keeps everything: equal totals remain, and the others ended long ago."""
    some = await folded(await months(seed, METER_SET))
    everything = await folded(await months(seed, FOR_EVER))

    gone = 0
    for partition in range(PARTITIONS):
        left, all_ = some.server.partitions[partition], everything.server.partitions[partition]
        assert left.checkpoint is not None
        assert left.totals.items() <= all_.totals.items()
        assert left.due.keys() == left.totals.keys()
        for key in all_.totals.keys() - left.totals.keys():
            end_ms = period_at(left.accounts.get(key.account) or AccountState(), key.period_start_ms).end_ms
            assert end_ms + KEPT_MS <= left.checkpoint.stream_time_ms
            gone += 1
        assert {(key.account, key.period_start_ms) for key in left.uniques} <= set(left.totals)
        assert {TotalKey(each, key.period_start_ms) for key, ranked in left.rankings.items() for each in ranked} == set(
            left.totals
        )
        assert left.checkpoint.counters == all_.checkpoint.counters if all_.checkpoint else False
    assert gone > 20


@pytest.mark.parametrize("seed", range(6))
async def test_what_leaves_does_not_depend_on_flush_boundaries(seed: int) -> None:
    """Workers that die at any record remove the same totals and write the same due times (I7)."""
    world = await months(seed, METER_SET)
    straight = await folded(world)
    broken = FakeLiveView()
    chance = random.Random(seed)
    for partition in range(PARTITIONS):
        end = (await world.log.bounds(EVENTS_TOPIC, partition)).next
        offset = 0
        while offset < end:
            settings = RollupSettings(chance.choice([1, 5, 20_000]), chance.choice([3, 500]))
            worker = RollupProcessor(world.log, broken.state, world.clock, SECRET, settings)
            offset = await worker.start_offset(partition)
            for _ in range(chance.randrange(1, 6)):
                if batch := await world.log.read(EVENTS_TOPIC, partition, offset, chance.randrange(1, 40)):
                    await worker.step(partition, batch)
                    offset = worker.checkpoints[partition].next_offset

    assert broken.server.partitions == straight.server.partitions


async def test_end_of_all_accounts_months_is_spread_over_many_commits() -> None:
    """One total leaves per record, or one per event of a larger record, however many accounts there are."""
    store = FakeLiveView()
    state = store.state = CountingState(store.server)
    world = World(START_MS, 1, store)
    await world.start(METER_SET)
    batch = [_usage(str(number), f"acct-{number}", world.clock.ms) for number in range(300)]
    await world.log.append(EVENTS_TOPIC, 0, json.dumps(batch).encode())
    world.clock.ms = DECEMBER_MS + KEPT_MS
    for _ in range(100):
        await append_everywhere(world.log, SECRET, Tick(log_id=world.log_id, partitions=1))
    batch = [_usage(f"late {number}", "acct-1", world.clock.ms) for number in range(160)]
    await world.log.append(EVENTS_TOPIC, 0, json.dumps(batch).encode())
    await world.fold_all(world.rollup(RollupSettings(flush_events_max=1)))

    assert sum(state.retired) == 100 + 11
    assert len(store.server.partitions[0].totals) == 300 - 111 + 1


async def lengthened(deployment: Deployment) -> TotalKey:
    """A total of a year. One binding would end the period after two days, and a second binding replaces that one."""
    yearly = {"anchor_ms": NOVEMBER_MS, "interval": Interval.YEAR}
    # The account has a payer, so no binding causes a restatement.
    await deployment.bind("eve")
    await deployment.bind("eve", **yearly)
    await deployment.advance(HOUR_MS)
    cut_ms = START_MS + 2 * DAY_MS
    await deployment.bind("eve", effective_from_ms=cut_ms, anchor_ms=cut_ms)
    await deployment.emit("eve", gb="1", user="u1", region="eu")
    await deployment.bind("eve", effective_from_ms=START_MS + DAY_MS, **yearly)
    await deployment.fold()
    (key,) = [
        key for key in deployment.store.server.partitions[deployment.partition("eve")].totals if key.account == "eve"
    ]
    deployment.clock.ms = cut_ms + KEPT_MS - HOUR_MS
    return key


async def test_total_whose_period_became_longer_stays_until_that_period_ended_long_enough_ago() -> None:
    """A binding that would cut the period is replaced before it takes effect."""
    deployment = await Deployment().start()
    key = await lengthened(deployment)
    await deployment.advance(HOUR_MS)
    await deployment.fold()
    partition = deployment.store.server.partitions[deployment.partition("eve")]
    end_ms = period_at(partition.accounts["eve"], key.period_start_ms).end_ms
    assert end_ms > deployment.clock.ms
    assert (partition.totals[key]["requests"], partition.due[key]) == ("1", end_ms + KEPT_MS)
    assert partition.rankings[RankingKey("requests", key.period_start_ms)] == {"eve": 1}

    await deployment.advance(end_ms + KEPT_MS - deployment.clock.ms - 1)
    await deployment.fold()
    assert key in partition.totals
    await deployment.advance(1)
    await deployment.fold()
    assert key not in partition.totals
    assert RankingKey("requests", key.period_start_ms) not in partition.rankings


@pytest.mark.parametrize("order", [-1, 1], ids=["binding first", "binding last"])
async def test_period_cut_in_the_flush_that_examines_it_is_due_by_its_place_in_the_log(order: int) -> None:
    """One flush or one flush per record: the due time is the same."""
    deployment = await Deployment().start()
    key = await lengthened(deployment)
    now_ms = deployment.clock.ms
    steps = [deployment.bind("eve", effective_from_ms=now_ms, interval="week"), deployment.advance(HOUR_MS)]
    for step in steps[::-order]:
        await step
    singly = World(0, deployment.world.partitions)
    worker = RollupProcessor(deployment.log, singly.store.state, deployment.clock, SECRET)
    partition = deployment.partition("eve")
    await worker.start_offset(partition)
    for record in await deployment.world.records(partition):
        await worker.step(partition, [record])
    await deployment.fold()

    assert isinstance(singly.store, FakeLiveView)
    assert singly.store.server.partitions[partition] == deployment.store.server.partitions[partition]
    assert deployment.store.server.partitions[partition].due[key] > now_ms


async def test_reconciler_calls_a_total_that_left_unchecked_and_never_missing() -> None:
    """The recount still has the total; Redis need not. Live totals are compared as usual."""
    deployment = await settled()
    await deployment.emit("ada", gb="1", user="u1", region="eu")
    await deployment.settle()
    await deployment.advance(DECEMBER_MS + KEPT_MS - deployment.clock.ms)
    await deployment.emit("ada", gb="2", user="u1", region="eu")
    await deployment.settle()

    report = await deployment.reconcile()
    redis = [row for row in report.rows if row.pair is Pair.REDIS]
    assert {(row.cause, "keep_periods_ms" in row.detail) for row in redis} == {(Cause.UNCHECKED, True)}
    assert (report.verdict, report.differences) == (Verdict.INCOMPLETE, 0)
    later = await deployment.reconcile(from_ms=DECEMBER_MS)
    assert [row for row in later.rows if row.pair is Pair.REDIS] == []


async def test_live_usage_of_a_period_that_left_is_refused_and_not_zero(tmp_path: Path) -> None:
    """The gateway's clock is months behind the log."""
    async with running(tmp_path) as gateway:
        await gateway.post(event("1"))
        gateway.world.clock.ms += 10 * DAY_MS + KEPT_MS
        await append_everywhere(
            gateway.world.log,
            SECRET,
            Tick(log_id=gateway.world.log_id, partitions=gateway.world.partitions),
        )
        await gateway.world.fold_all()
        gateway.world.clock.ms -= 10 * DAY_MS + KEPT_MS

        answer = await gateway.get("/v1/accounts/acme/usage")

    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_live")


@pytest.mark.parametrize("keep_ms", [0, 10 * DAY_MS], ids=["nothing", "less than any grace"])
def test_periods_stay_until_they_are_certainly_closed(keep_ms: int) -> None:
    """A total that can still change never leaves, however short the configured span is."""
    assert Policy(keep_periods_ms=keep_ms).periods_kept_ms == GRACE_MAX_MS + Policy().window_ms
