"""The fold on seeded traffic against an oracle that shares no code with it (I6)."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import pytest

from aggregators.codec import parse_cell_field, parse_cell_text, parse_report_field, parse_report_text, parse_value
from oracle.model import Oracle
from oracle.records import Place
from oracle.rules import RejectedError, decode, partition_of, time_us_of
from pipeline.rollup.processor import RollupSettings
from schemas.control import BindingRecord, CloseRecord, DedupDecision, DedupDecisionRecord, FlushRecord
from schemas.log import EVENTS_TOPIC, REJECTED_TOPIC
from schemas.periods import Billing, Binding, Interval
from sinks.redis.fake import FakeLiveView
from tests.traffic.generate import HOUR_US, METER_SET, Rates, TrafficRecord, account_name, records
from tests.worlds.deployment import World

MARCH_MS = 1_772_323_200_000  # 2026-03-01T00:00:00Z
PARTITIONS = 3
# Two hours, so marks expire within a run. The promise does not cover repetitions after that with another event time,
# and each arrival of an event without a time has another one.
SHORT_WINDOW: Final = {**METER_SET, "policy": {**METER_SET["policy"], "window_ms": 2 * 3_600_000}}
SHORT_RATES: Final = Rates(duplicate=0.1, retry=0, conflict=0, shared_id=0, ahead=0.05, far_late=0.05, timeless=0)


class Traffic(NamedTuple):
    """The traffic of one test: what is sent, over which time, under which meter set."""

    meter_set: Mapping[str, Any] = METER_SET
    rates: Rates = Rates(far_late=0.05)
    span_us: int = 5 * HOUR_US


LONG, SHORT = Traffic(), Traffic(SHORT_WINDOW, SHORT_RATES, 12 * HOUR_US)
# An arrival hour and a flush contain many report buckets, so a cell occurs in several of them.
REPORTED: Final = Traffic(
    {
        **METER_SET,
        "meters": [{**meter, "stripe_event_name": meter["slug"]} for meter in METER_SET["meters"]],
        "policy": {**METER_SET["policy"], "report_interval_ms": 60_000},
    }
)


async def _loaded(
    seed: int, count: int, start_ms: int, *, controls: bool = False, traffic: Traffic = LONG, all_judged: bool = False
) -> tuple[World, Oracle]:
    """A log and an oracle with the same records, on request with bindings and closings."""
    # The dedup window before the first meter set shapes the first slice; the traffic begins after that slice.
    world = World(start_ms - 40 * 3_600_000, PARTITIONS)
    await world.start(traffic.meter_set)
    world.clock.ms = start_ms
    oracle = Oracle(traffic.meter_set, partitions=PARTITIONS)
    chance = random.Random(seed)
    policy = traffic.meter_set["policy"]
    judge = _Judge(world, oracle, chance, policy["window_ms"] - policy["future_ms"])
    for partition in range(PARTITIONS):
        oracle.tick(partition, start_ms)
    if controls:
        await _give_all_a_payer(world, oracle)
    sent = records(
        seed, 20, count, start_ms * 1000, partitions=PARTITIONS, span_us=traffic.span_us, rates=traffic.rates
    )
    for record in sent:
        world.clock.ms = max(world.clock.ms, record.sent_ms)
        if controls and chance.random() < 0.2:
            await _bind_close_or_flush(world, oracle, chance)
        offset = await world.log.append(
            EVENTS_TOPIC, record.partition, record.value, key=record.key, headers=tuple(record.headers)
        )
        oracle.feed(record.partition, offset, world.clock.ms, record.value, record.headers)
        judge.note(record, offset)
        if chance.random() < 0.3:
            await judge.some(record.partition)
    await judge.rest(everything=all_judged)
    return world, oracle


class _Judge:
    """Appends dedup decisions as a resolver does: early or late, in groups, some twice, some for no event.

    The oracle knows whether an event is the first of its identity. Duplicates get decisions too: the fold defers a
    duplicate only if its mark has expired, and ignores a decision for any other duplicate.
    """

    def __init__(self, world: World, oracle: Oracle, chance: random.Random, window_ms: int) -> None:
        self.world, self.oracle, self.chance, self.window_ms = world, oracle, chance, window_ms
        self.waiting: dict[int, list[tuple[Place, DedupDecision]]] = {partition: [] for partition in range(PARTITIONS)}
        self.given: dict[int, list[tuple[Place, DedupDecision]]] = {partition: [] for partition in range(PARTITIONS)}

    def note(self, record: TrafficRecord, offset: int) -> None:
        try:
            bodies = decode(record.value)
        except RejectedError:
            return
        for index, body in enumerate(bodies):
            place = Place(record.partition, offset, index)
            judged = self.oracle.rulings.get(place)
            if judged is None or judged.outcome not in ("deferred", "duplicate"):
                continue
            if body.get("time") is None:
                continue
            time_us = time_us_of(body["time"])
            if time_us < (self.oracle.stream_times[record.partition] - self.window_ms) * 1000:
                decision = DedupDecision(
                    position=offset << 16 | index, account=judged.account, time_us=time_us,
                    new=judged.outcome == "deferred", metered=True, quarantine=body["type"] == "seats.changed",
                )  # fmt: skip
                self.waiting[record.partition].append((place, decision))

    async def some(self, partition: int) -> None:
        waiting = self.waiting[partition]
        self.chance.shuffle(waiting)
        kept = self.chance.randrange(len(waiting) + 1)
        await self._give(partition, waiting[kept:])
        del waiting[kept:]
        if self.given[partition] and self.chance.random() < 0.3:
            await self._give(partition, self.chance.sample(self.given[partition], 1))

    async def rest(self, *, everything: bool) -> None:
        """Decides all remaining duplicates, because the oracle counts those at once; on request the others too."""
        for partition, waiting in self.waiting.items():
            await self._give(partition, [each for each in waiting if everything or not each[1].new])
            # Decisions for events that do not exist or are not deferred: they change nothing.
            for position in (1 << 50, 0):
                nowhere = DedupDecision(
                    position=position, account=_home(partition), time_us=0, new=True, metered=True, quarantine=False
                )
                await self.world.control(partition, DedupDecisionRecord(decisions=(nowhere,)))

    async def _give(self, partition: int, chosen: list[tuple[Place, DedupDecision]]) -> None:
        if not chosen:
            return
        record = DedupDecisionRecord(decisions=tuple(decision for _, decision in chosen))
        offset = await self.world.control(partition, record)
        for index, (place, _) in enumerate(chosen):
            self.oracle.resolve(place, offset, index, self.world.clock.ms)
        self.given[partition] += chosen


def _home(partition: int) -> str:
    return next(name for name in map(account_name, range(100)) if partition_of(name, PARTITIONS) == partition)


async def _give_all_a_payer(world: World, oracle: Oracle) -> None:
    """Gives every account a payer, so that no binding causes a restatement."""
    for account in map(account_name, range(20)):
        partition, free = partition_of(account, PARTITIONS), Binding(effective_from_ms=0, billing=Billing.FREE)
        await world.control(partition, BindingRecord(account=account, revision=1, binding=free))
        oracle.bind(partition, account, free.model_dump(mode="json"), world.clock.ms)


async def _bind_close_or_flush(world: World, oracle: Oracle, chance: random.Random) -> None:
    """Gives one account another anchor, possibly within an hour, closes one of its periods, or flushes it."""
    account, now_ms = account_name(chance.randrange(20)), world.clock.ms
    partition = partition_of(account, PARTITIONS)
    if chance.random() < 0.3:
        await world.control(partition, FlushRecord(account=account, revision=world.revision(account) + 1))
        oracle.flush(partition, account, now_ms)
        return
    if chance.random() < 0.2:
        instant_ms = now_ms - chance.randrange(-2, 3) * 86_400_000
        closed = CloseRecord(account=account, revision=world.revision(account) + 1, instant_ms=instant_ms)
        await world.control(partition, closed)
        oracle.close(partition, account, instant_ms, now_ms)
        return
    binding = Binding(
        effective_from_ms=(now_ms // 60_000 + chance.randrange(-300, 300)) * 60_000,
        anchor_ms=(now_ms // 60_000 + chance.randrange(-10_000, 10_000)) * 60_000,
        interval=chance.choice(list(Interval)),
        interval_count=chance.choice([1, 1, 1, 2]),
        billing=Billing.FREE,
    )
    bound = BindingRecord(account=account, revision=world.revision(account) + 1, binding=binding)
    await world.control(partition, bound)
    oracle.bind(partition, account, binding.model_dump(mode="json"), now_ms)


def _reported(store: FakeLiveView, account: str, before_ms: int) -> dict[tuple[str, int], int]:
    """The changes of an account's totals in the report buckets that begin before an instant."""
    reported: dict[tuple[str, int], int] = {}
    for partition in store.server.partitions.values():
        for (bucket_ms, field), text in partition.reports.items():
            # A negative key is of the flushes themselves.
            if not 0 <= bucket_ms < before_ms or (key := parse_report_field(field)).account != account:
                continue
            name, value = (key.meter, key.period_start_ms), parse_report_text(text)
            reported[name] = reported.get(name, 0) + value.current_minor - value.base_minor
    return {name: minor for name, minor in reported.items() if minor}


def _totals(store: FakeLiveView) -> dict[tuple[str, str, int], int]:
    return {
        (key.account, meter, key.period_start_ms): parse_value(text).minor
        for partition in store.server.partitions.values()
        for key, fields in partition.totals.items()
        for meter, text in fields.items()
    }


def _cells(store: FakeLiveView) -> dict[tuple[str, str, int, int, str, int], int]:
    cells = {}
    for partition in store.server.partitions.values():
        for bucket_field, text in partition.cells.items():
            key = parse_cell_field(bucket_field.field)
            value = parse_cell_text(text)[3].minor
            cells[key.account, key.meter, key.period_start_ms, key.hour_ms, key.dimensions, bucket_field.bucket_ms] = (
                value
            )
    return cells


async def _reasons(world: World) -> list[tuple[int, int, int, str]]:
    """(partition, offset, index, reason) of every quarantined event, without repetitions."""
    reasons = set()
    for partition in range(PARTITIONS):
        for record in await world.records(partition, REJECTED_TOPIC):
            headers = {name: value.decode() for name, value in record.headers}
            reasons.add(
                (
                    int(headers["tidemark-partition"]),
                    int(headers["tidemark-offset"]),
                    int(headers["tidemark-index"]),
                    headers["tidemark-reason"],
                )
            )
    return sorted(reasons)


def _assert_equal(world: World, oracle: Oracle) -> None:
    store = world.store
    assert isinstance(store, FakeLiveView)
    counters = {
        partition: stored.checkpoint.counters._asdict()
        for partition, stored in store.server.partitions.items()
        if stored.checkpoint
    }
    assert oracle.counters == counters
    totals = {(account, meter, period[0]): value for (account, meter, period), value in oracle.totals.items()}
    assert totals == _totals(store)
    cells = {
        (account, meter, period[0], hour, dimensions, bucket): value
        for (account, meter, period, hour, dimensions, bucket), value in oracle.cells.items()
        if value
    }
    assert cells == {key: value for key, value in _cells(store).items() if value}
    if any(key.bucket_ms >= 0 for stored in store.server.partitions.values() for key in stored.reports):
        for (account, instant_ms), flushed in oracle.flushed.items():
            expected = {(meter, period[0]): minor for (_, meter, period), minor in flushed.items() if minor}
            assert expected == _reported(store, account, instant_ms)


@pytest.mark.parametrize("traffic", [LONG, SHORT, REPORTED], ids=["marks live", "marks expire", "reports every minute"])
@pytest.mark.parametrize("controls", [False, True], ids=["calendar months", "bindings and closings"])
@pytest.mark.parametrize("seed", range(8))
async def test_any_traffic_is_counted_as_the_oracle_counts_it(seed: int, controls: bool, traffic: Traffic) -> None:
    """Totals, cells, counters and reasons agree at a month's end; far-late events too, once they have decisions."""
    world, oracle = await _loaded(
        seed, 2_000, MARCH_MS - 2 * 3_600_000, controls=controls, traffic=traffic, all_judged=bool(seed % 2)
    )

    await world.fold_all()

    _assert_equal(world, oracle)
    expected = sorted(
        (place.partition, place.offset, place.event_index, decision.reason)
        for place, decision in oracle.rulings.items()
        if decision.reason
    )
    assert expected == await _reasons(world)


@pytest.mark.parametrize("seed", range(8))
async def test_flush_boundaries_and_restarts_change_nothing(seed: int) -> None:
    """Workers that die at any record boundary and read records again leave the same bytes in Redis (I7)."""
    traffic = (LONG, REPORTED, SHORT, SHORT)[seed % 4]
    world, oracle = await _loaded(seed, 1_000, MARCH_MS - 2 * 3_600_000, controls=bool(seed % 2), traffic=traffic)
    straight = World(0, PARTITIONS)
    straight.log, straight.store = world.log, FakeLiveView()
    await straight.fold_all()
    chance = random.Random(seed)

    for partition in range(PARTITIONS):
        end = (await world.log.bounds(EVENTS_TOPIC, partition)).next
        offset = 0
        while offset < end:
            worker = world.rollup(RollupSettings(flush_events_max=chance.choice([1, 50, 20_000]), cache_entries_max=40))
            offset = await worker.start_offset(partition)
            for _ in range(chance.randrange(1, 6)):
                back = max(0, offset - chance.randrange(3))
                batch = await world.log.read(EVENTS_TOPIC, partition, back, chance.randrange(1, 30))
                if batch:
                    await worker.step(partition, batch)
                    offset = worker.checkpoints[partition].next_offset

    _assert_equal(world, oracle)
    assert isinstance(world.store, FakeLiveView)
    assert isinstance(straight.store, FakeLiveView)
    assert straight.store.server.partitions == world.store.server.partitions
