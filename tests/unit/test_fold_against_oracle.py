"""The fold on seeded traffic against an oracle that shares no code with it."""

from __future__ import annotations

import random

import pytest

from aggregators.fields import parse_cell_field, parse_cell_text, parse_value
from oracle.model import Oracle
from oracle.rules import partition_of
from pipeline.processors.rollup import RollupSettings
from schemas.control import AccountRecord, CloseRecord
from schemas.log import EVENTS_TOPIC, REJECTED_TOPIC
from schemas.periods import Binding, Interval
from sinks.redis.memory import MemoryRollupStore
from tests.traffic.generate import CATALOG, HOUR_US, account_name, records
from tests.worlds import World

MARCH_MS = 1_772_323_200_000  # 2026-03-01T00:00:00Z: the traffic crosses into April's hours through its late events
PARTITIONS = 3


async def _loaded(seed: int, count: int, start_ms: int, *, controls: bool = False) -> tuple[World, Oracle]:
    """The same records in a log and in the oracle, on request with bindings and closings among them."""
    world = World(start_ms, PARTITIONS)
    await world.start(CATALOG)
    oracle = Oracle(CATALOG, partitions=PARTITIONS)
    chance = random.Random(seed)
    for partition in range(PARTITIONS):
        oracle.tick(partition, start_ms)
    for record in records(seed, 20, count, start_ms * 1000, partitions=PARTITIONS, span_us=5 * HOUR_US):
        world.clock.ms = max(world.clock.ms, record.sent_ms)
        if controls and chance.random() < 0.2:
            await _bind_or_close(world, oracle, chance)
        offset = await world.log.append(
            EVENTS_TOPIC, record.partition, record.value, key=record.key, headers=tuple(record.headers)
        )
        oracle.feed(record.partition, offset, world.clock.ms, record.value, record.headers)
    return world, oracle


async def _bind_or_close(world: World, oracle: Oracle, chance: random.Random) -> None:
    """Some account gets another anchor, also within an hour, or one of its periods is closed."""
    account, now_ms = account_name(chance.randrange(20)), world.clock.ms
    partition = partition_of(account, PARTITIONS)
    if chance.random() < 0.2:
        instant_ms = now_ms - chance.randrange(-2, 3) * 86_400_000
        await world.control(partition, CloseRecord(account=account, instant_ms=instant_ms))
        oracle.close(partition, account, instant_ms, now_ms)
        return
    binding = Binding(
        effective_from_ms=(now_ms // 60_000 + chance.randrange(-300, 300)) * 60_000,
        anchor_ms=(now_ms // 60_000 + chance.randrange(-10_000, 10_000)) * 60_000,
        interval=chance.choice(list(Interval)),
        interval_count=chance.choice([1, 1, 1, 2]),
    )
    await world.control(partition, AccountRecord(account=account, binding=binding))
    oracle.bind(partition, account, binding.model_dump(mode="json"), now_ms)


def _totals(store: MemoryRollupStore) -> dict[tuple[str, str, int], int]:
    return {
        (key.account, meter, key.period_start_ms): parse_value(text).minor
        for held in store._partitions.values()
        for key, fields in held.totals.items()
        for meter, text in fields.items()
    }


def _cells(store: MemoryRollupStore) -> dict[tuple[str, str, int, int, str, int], int]:
    found = {}
    for held in store._partitions.values():
        for bucket_field, text in held.cells.items():
            key = parse_cell_field(bucket_field.field)
            value = parse_cell_text(text)[3].minor
            found[key.account, key.meter, key.period_start_ms, key.hour_ms, key.dimensions, bucket_field.bucket_ms] = (
                value
            )
    return found


async def _reasons(world: World) -> list[tuple[int, int, int, str]]:
    """(partition, offset, index, reason) of everything in quarantine, each position once."""
    found = set()
    for partition in range(PARTITIONS):
        for record in await world.records(partition, REJECTED_TOPIC):
            headers = {name: value.decode() for name, value in record.headers}
            found.add(
                (
                    int(headers["tidemark-partition"]),
                    int(headers["tidemark-offset"]),
                    int(headers["tidemark-index"]),
                    headers["tidemark-reason"],
                )
            )
    return sorted(found)


def _assert_equal(world: World, oracle: Oracle) -> None:
    store = world.store
    assert isinstance(store, MemoryRollupStore)
    counters = {partition: held.fence.counters._asdict() for partition, held in store._partitions.items() if held.fence}
    assert oracle.counters == counters
    totals = {(account, meter, period[0]): value for (account, meter, period), value in oracle.totals.items()}
    assert totals == _totals(store)
    cells = {
        (account, meter, period[0], hour, dimensions, bucket): value
        for (account, meter, period, hour, dimensions, bucket), value in oracle.cells.items()
        if value
    }
    assert cells == {key: value for key, value in _cells(store).items() if value}


@pytest.mark.parametrize("controls", [False, True], ids=["calendar months", "bindings and closings"])
@pytest.mark.parametrize("seed", range(8))
async def test_any_traffic_is_counted_as_the_oracle_counts_it(seed: int, controls: bool) -> None:
    """Totals, cells, counters and reasons, at a month's end, whatever the batches hold."""
    world, oracle = await _loaded(seed, 2_000, MARCH_MS - 2 * 3_600_000, controls=controls)

    await world.fold_all()

    _assert_equal(world, oracle)
    expected = sorted(
        (place.partition, place.offset, place.event_index, verdict.reason)
        for place, verdict in oracle.verdicts.items()
        if verdict.reason
    )
    assert expected == await _reasons(world)


@pytest.mark.parametrize("seed", range(8))
async def test_flush_boundaries_and_restarts_change_nothing(seed: int) -> None:
    """Workers that die at any record boundary, with repeated records, leave the same state to the byte (I7)."""
    world, oracle = await _loaded(seed, 1_000, MARCH_MS - 2 * 3_600_000, controls=bool(seed % 2))
    straight = World(0, PARTITIONS)
    straight.log, straight.store = world.log, MemoryRollupStore()
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
                    offset = worker.fences[partition].next_offset

    _assert_equal(world, oracle)
    assert isinstance(world.store, MemoryRollupStore)
    assert isinstance(straight.store, MemoryRollupStore)
    assert straight.store._partitions == world.store._partitions
