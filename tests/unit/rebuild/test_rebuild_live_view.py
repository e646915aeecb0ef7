"""The live view rebuilt from the log on fakes: equal to the byte, wherever it is cut, while traffic goes on."""

from __future__ import annotations

import copy
import inspect
import uuid
from collections.abc import Coroutine, Generator
from typing import Any

import pytest

from pipeline.rebuild.limits import RebuildLimits
from pipeline.rebuild.live_view import LiveViewRebuild
from pipeline.rollup.relays import ReportRelay
from schemas.errors import Fenced, OperatorNeeded
from schemas.log import EVENTS_TOPIC, POSITION_MAX, REJECTED_TOPIC, REPORTS_TOPIC, Record
from schemas.rebuild import RebuildClaim
from schemas.rollup import Checkpoint
from sinks.clickhouse.claimed import ClaimedStore
from sinks.clickhouse.fake import FakeClickHouse
from sinks.redis.fake import FakeLiveView
from tests.traffic.generate import HOUR_US, METER_SET, TrafficRecord, records
from tests.worlds.deployment import SECRET, STORES, World, hourly_relay

MARCH_MS = 1_772_323_200_000
PARTITIONS = 2
REPORTED = copy.deepcopy(METER_SET)
for _meter in REPORTED["meters"]:
    _meter["stripe_event_name"] = _meter["slug"]
LIMITS = RebuildLimits(records_max=7, events_max=40, cells_max=30)


class Crash(BaseException):
    """The process ends here."""


class Crashing:
    """Wraps a store or the log; the n-th call of all of them raises before it acts, or after. A fake that works in
    steps, as a server does, may also end between two of them."""

    def __init__(self, inner: Any, countdown: list[int], *, after: bool) -> None:
        self._inner, self._countdown, self._after = inner, countdown, after

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name == "built":
            return lambda generation: Crashing(found(generation), self._countdown, after=self._after)
        if isinstance(self._inner, FakeLiveView) and name in STORES:
            return Crashing(found, self._countdown, after=self._after)
        if not inspect.iscoroutinefunction(found) or name == "close":
            return found

        async def call(*arguments: Any, **named: Any) -> Any:
            self._countdown[0] -= 1
            if not self._countdown[0] and not self._after:
                raise Crash
            answer = await _Steps(found(*arguments, **named), self._countdown)
            if not self._countdown[0]:
                raise Crash
            return answer

        return call


class _Steps:
    """A call that is waited for; each time it lets others run it may be the last."""

    def __init__(self, call: Coroutine[Any, Any, Any], countdown: list[int]) -> None:
        self._call, self._countdown = call, countdown

    def __await__(self) -> Generator[Any, Any, Any]:
        if not self._countdown[0]:
            return (yield from self._call.__await__())
        while True:
            try:
                waited = self._call.send(None)
            except StopIteration as end:
                return end.value
            self._countdown[0] -= 1
            if not self._countdown[0]:
                self._call.close()
                raise Crash
            yield waited


class Rebuilt(World):
    """A world with ClickHouse, a worker that starts again when fenced, and traffic in portions."""

    def __init__(self, events: int = 1_200, seed: int = 7) -> None:
        super().__init__(MARCH_MS, PARTITIONS)
        self.live = FakeLiveView()
        self.store = self.live
        self.clickhouse = FakeClickHouse()
        self.left: list[TrafficRecord] = list(
            records(seed, 12, events, MARCH_MS * 1000, partitions=PARTITIONS, span_us=5 * HOUR_US)
        )
        self.count = len(self.left)

    async def feed(self, share: float) -> None:
        """Append a share of all traffic; more than is left is a mistake of the test."""
        count = int(share * self.count)
        assert 0 < count <= len(self.left)
        portion, self.left = self.left[:count], self.left[count:]
        for record in portion:
            self.clock.ms = max(self.clock.ms, record.sent_ms)
            await self.log.append(
                EVENTS_TOPIC, record.partition, record.value, key=record.key, headers=tuple(record.headers)
            )

    async def work(self) -> None:
        """A worker reads to the end of the log and relays."""
        await self.fold_all()
        for partition in range(PARTITIONS):
            live = self.store
            await hourly_relay(live, self.clickhouse).relay(partition)
            await ReportRelay(live.reports, live.accounts, self.log).relay(partition)

    def command(self) -> tuple[FakeLiveView, RebuildClaim]:
        """The live view as the rebuild command that is started now has it, and what it claimed."""
        token = uuid.uuid4().hex[:16]
        live = self.live.claiming(token)
        return live, RebuildClaim(token, live.rebuilds.check_claim)

    def rebuild(self, countdown: int = 0, *, after: bool = False) -> LiveViewRebuild:
        left = [countdown]
        live, claim = self.command()
        log, store, hourly = (
            Crashing(each, left, after=after) for each in (self.log, live, ClaimedStore(self.clickhouse, claim))
        )
        return LiveViewRebuild(log, store, hourly, self.clock, SECRET, LIMITS)

    async def straight(self) -> FakeLiveView:
        """The same log, folded in one go by a worker that never stopped."""
        other = World(0, PARTITIONS)
        other.log, store = self.log, FakeLiveView()
        other.store = store
        await other.fold_all()
        return store

    async def assert_equal(self) -> None:
        """Live view as folded straight; usage_hourly as relayed straight; each intent's content once."""
        await self.work()
        expected = await self.straight()
        for partition in range(PARTITIONS):
            here, there = self.live.server.partitions[partition], expected.server.partitions[partition]
            assert here.checkpoint is not None
            assert here.checkpoint.counters.conserved
            assert same_but_generation(here.checkpoint) == same_but_generation(there.checkpoint)
            for view in ("marks", "totals", "rankings", "uniques", "accounts"):
                assert getattr(here, view) == getattr(there, view), view
        relayed = FakeClickHouse()
        for partition in range(PARTITIONS):
            await hourly_relay(expected, relayed).relay(partition)
        assert contents(self.clickhouse) == contents(relayed)
        assert self.clickhouse.duplicates == relayed.duplicates

    async def identifiers(self) -> list[bytes | None]:
        return [record.value for partition in range(PARTITIONS) for record in await self.of(REPORTS_TOPIC, partition)]

    async def of(self, topic: str, partition: int) -> list[Record]:
        return await self.records(partition, topic)


def same_but_generation(checkpoint: Checkpoint | None) -> tuple[object, ...]:
    assert checkpoint is not None
    return (
        checkpoint.next_offset,
        checkpoint.stream_time_ms,
        checkpoint.counters,
        checkpoint.slices,
        checkpoint.meter_set,
        checkpoint.log_id,
    )


def contents(clickhouse: FakeClickHouse) -> dict[object, object]:
    """Cells without the generation in their versions."""
    return {key: row._replace(version=row.version & POSITION_MAX) for key, row in clickhouse.cells.items()}


async def loaded(share: float) -> Rebuilt:
    world = Rebuilt()
    await world.start(REPORTED)
    await world.feed(share)
    await world.work()
    return world


async def test_rebuilt_view_equals_the_one_it_replaces() -> None:
    """I7: nothing but the generation differs, and the keys beside are gone."""
    world = await loaded(0.6)
    await world.feed(0.3)

    assert await world.rebuild().run() == 2
    await world.assert_equal()
    assert await world.live.rebuilds.rebuilding() is None
    assert not any(world.live.server.built.values())


async def test_nothing_that_went_out_goes_out_again() -> None:
    """Intents and quarantine entries of what the live view had counted are there once."""
    world = await loaded(0.9)
    intents = await world.identifiers()
    rejected = [await world.of(REJECTED_TOPIC, partition) for partition in range(PARTITIONS)]
    assert intents
    assert any(rejected)

    await world.rebuild().run()
    await world.work()

    assert await world.identifiers() == intents
    assert [await world.of(REJECTED_TOPIC, partition) for partition in range(PARTITIONS)] == rejected


async def test_lost_view_is_rebuilt_with_the_same_intents_above_all_rows_that_were_relayed() -> None:
    """Redis is empty: the generation comes from usage_hourly, so that open cells win over their older rows."""
    world = await loaded(0.5)
    await world.rebuild().run()
    await world.work()
    before = set(await world.identifiers())
    world.live.server.empty()
    await world.feed(0.4)

    assert await world.rebuild().run() == 3
    await world.assert_equal()
    assert before <= set(await world.identifiers())


async def test_copy_from_before_a_rebuild_is_refused_until_it_is_built_again() -> None:
    """Its rows would lose against those of the rebuilt view, and the open hours of usage_hourly stand still."""
    world = await loaded(0.5)
    older = copy.deepcopy(world.live)
    await world.rebuild().run()
    await world.feed(0.2)
    await world.work()

    world.live = world.store = older
    await world.feed(0.2)
    with pytest.raises(OperatorNeeded, match=r"generation 1, .* generation 2 .*tidemark rebuild redis"):
        await world.work()

    assert await world.rebuild().run() == 3
    await world.assert_equal()


async def test_copy_from_before_a_rebuild_is_refused_by_a_worker_that_relayed_before() -> None:
    """It may have been given the partition back without starting again."""
    world = await loaded(0.5)
    older = copy.deepcopy(world.live)
    await world.rebuild().run()
    await world.work()
    relay = hourly_relay(world.store, world.clickhouse)
    await relay.relay(0)

    world.live.server.partitions, world.live.server.live = older.server.partitions, older.server.live
    with pytest.raises(OperatorNeeded, match="rebuild redis"):
        await relay.relay(0)


async def test_worker_that_runs_on_is_fenced_by_the_swap() -> None:
    """Its next commit changes nothing; started again, it goes on at the new checkpoint."""
    world = await loaded(0.5)
    old = await world.fold_all()
    await world.rebuild().run()
    await world.feed(0.3)

    partition = 0
    came = await world.log.read(EVENTS_TOPIC, partition, old.checkpoints[partition].next_offset)
    with pytest.raises(Fenced):
        await old.step(partition, came)
    await world.assert_equal()


async def test_live_view_that_stands_far_back_is_overtaken_there_and_hours_since_are_not_held() -> None:
    """A copy older than the last rebuild, or a worker that was down for days: the worker folds and relays the rest."""
    world = await loaded(0.1)
    stood = {partition: await world.live.state.load_checkpoint(partition) for partition in range(PARTITIONS)}
    await world.feed(0.85)

    await world.rebuild().run()

    for partition in range(PARTITIONS):
        before, held = stood[partition], world.live.server.partitions[partition]
        assert before is not None
        assert held.checkpoint is not None
        assert 0 <= held.checkpoint.next_offset - before.next_offset <= LIMITS.records_max
        assert len({each.bucket_ms for each in held.dirty}) <= 2
        assert len({each.bucket_ms for each in held.reports}) <= 2
    await world.assert_equal()


async def test_rows_that_usage_hourly_lost_or_holds_wrong_are_written_again() -> None:
    """Every cell since the log began is relayed once more, under versions above all older ones."""
    world = await loaded(0.9)
    held = world.clickhouse.cells
    for number, key in enumerate(sorted(held)):
        if number % 3 == 0:
            del held[key]
        elif number % 3 == 1:
            held[key] = held[key]._replace(value_minor=-1)

    await world.rebuild().run()
    await world.assert_equal()


@pytest.mark.parametrize("after", [False, True], ids=["before the call", "after the call"])
async def test_crash_at_every_await_is_resumed_while_traffic_goes_on(after: bool) -> None:
    """Each call of each store and the log in turn is the last one of its process."""
    countdown, crashed = 1, True
    while crashed:
        world = Rebuilt(100)
        await world.start(REPORTED)
        await world.feed(0.6)
        await world.work()
        try:
            await world.rebuild(countdown, after=after).run()
            crashed = False
        except Crash:
            await world.feed(0.2)
            await world.work()
            await world.rebuild().run()
        await world.feed(0.2)
        await world.assert_equal()
        countdown += 1
    assert countdown > 50


async def test_log_without_its_start_is_refused_with_the_range() -> None:
    """Never guess: the message names what is missing."""
    world = await loaded(0.7)
    del world.log._partitions[EVENTS_TOPIC, 1].records[:5]

    with pytest.raises(
        OperatorNeeded, match=r"usage\.events-1 begins at offset 5 and there is no snapshot.*offsets 0 to 4 back"
    ):
        await world.rebuild().run()
    assert await world.live.rebuilds.rebuilding() is None


async def test_given_up_rebuild_leaves_the_live_view() -> None:
    """What was built is removed; a later rebuild begins anew."""
    world = await loaded(0.7)
    with pytest.raises(Crash):
        await world.rebuild(40).run()

    assert await world.rebuild().abandon() == 2
    assert not any(world.live.server.built.values())
    await world.assert_equal()
    assert await world.rebuild().run() >= 2
    await world.assert_equal()
