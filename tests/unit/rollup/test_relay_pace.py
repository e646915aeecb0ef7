"""How often and how much the relay to ClickHouse writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from pipeline.rollup import relays
from pipeline.rollup.relay_pace import BEHIND_INTERVAL_S, RelayPace
from schemas.analytics import DuplicateRow
from schemas.log import EVENTS_TOPIC
from sinks.clickhouse.fake import FakeClickHouse
from tests.traffic.generate import records
from tests.worlds.deployment import World, hourly_relay
from tests.worlds.reconciler import METER_SET, START_MS


@dataclass
class Situation:
    """A time, and whether the partition is behind."""

    now_s: float = 100.0
    behind: bool = True

    def pace(self) -> RelayPace:
        return RelayPace(lambda _partition: self.behind, lambda: self.now_s)


def test_a_partition_that_is_behind_is_relayed_every_ten_seconds() -> None:
    """Meanwhile the same cells change with every flush."""
    now = Situation()
    pace = now.pace()
    assert pace.due(0)

    pace.relayed(0, complete=True)
    now.now_s += BEHIND_INTERVAL_S - 0.1
    assert not pace.due(0)
    assert pace.due(1)

    now.now_s += 0.1
    assert pace.due(0)


def test_a_partition_that_has_caught_up_is_relayed_at_once() -> None:
    """Analysts see an event a second later."""
    now = Situation()
    pace = now.pace()
    pace.relayed(0, complete=True)

    now.behind = False

    assert pace.due(0)


def test_an_incomplete_relay_goes_on_at_once() -> None:
    """Otherwise a worker that changes more cells than one relay writes would fill the outbox to its cap."""
    pace = Situation().pace()

    pace.relayed(0, complete=False)

    assert pace.due(0)


class Counting(FakeClickHouse):
    """Counts the rows of each insert of duplicates."""

    def __init__(self) -> None:
        super().__init__()
        self.inserted: list[int] = []

    async def insert_duplicates(self, rows: Sequence[DuplicateRow]) -> None:
        self.inserted.append(len(rows))
        await super().insert_duplicates(rows)


async def repeated_events() -> World:
    """A log in which every event arrives twice; nothing is folded yet."""
    world = World(START_MS, 1)
    await world.start(METER_SET)
    for record in [*records(1, 40, 20, START_MS * 1000, partitions=1, span_us=1_000_000)] * 2:
        await world.log.append(EVENTS_TOPIC, record.partition, record.value, key=record.key)
    return world


async def test_one_relay_writes_all_duplicates(monkeypatch: pytest.MonkeyPatch) -> None:
    """A producer that repeats a day must not need one relay per ten thousand events."""
    monkeypatch.setattr(relays, "DUPLICATES_AT_ONCE_MAX", 7)
    world = await repeated_events()
    await world.fold_all()
    waiting = len(await world.store.outbox.duplicates(0, 1_000))
    assert waiting > 2 * 7
    clickhouse = Counting()

    relayed = await hourly_relay(world.store, clickhouse).relay(0)

    assert relayed.duplicates == sum(clickhouse.inserted) == waiting
    assert max(clickhouse.inserted) == 7
    assert await world.store.outbox.duplicates(0, 1) == []


async def test_a_saved_position_covers_the_duplicates_of_a_flush_that_ended_during_the_relay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever waits for the position finds every duplicate before it in the table."""
    world, clickhouse = await repeated_events(), Counting()
    waiting = world.store.deferred.waiting

    async def fold_meanwhile(partition: int) -> object:
        answer = await waiting(partition)
        await world.fold_all()
        return answer

    await world.rollup().start_offset(0)
    monkeypatch.setattr(world.store.deferred, "waiting", fold_meanwhile)
    relayed = await hourly_relay(world.store, clickhouse).relay(0)

    assert relayed.complete
    assert (await clickhouse.load_relayed())[0].next_offset == (await world.log.bounds(EVENTS_TOPIC, 0)).next
    assert relayed.duplicates == sum(clickhouse.inserted) > 0
