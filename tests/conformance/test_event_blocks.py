"""ClickHouse stores the same rows from the C core's blocks as from JSON lines."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from schemas.analytics import EventBlock
from sinks.clickhouse import writer
from sinks.clickhouse.client import ClickHouse
from sinks.clickhouse.fake import FakeClickHouse
from sinks.clickhouse.writer import ClickHouseStore
from tests.worlds.archiving import archived, odd_log
from tests.worlds.native import native_library

_ALL = (
    "SELECT count(), sum(cityHash64(account, id, type, source, time, data, partition, position, stream_time, deferred, "
    "payload_hash, version)) FROM usage_events FINAL"
)


class _Blocks(FakeClickHouse):
    def __init__(self) -> None:
        super().__init__()
        self.blocks: list[EventBlock] = []

    async def insert_event_blocks(self, blocks: Sequence[EventBlock]) -> None:
        self.blocks += blocks


@pytest.mark.parametrize("seed", [1, 2])
async def test_blocks_and_lines_are_stored_as_the_same_rows(
    clickhouse: ClickHouse, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Count and hash over all columns, of a log with odd and broken records, in one insert and in several."""
    if seed == 2:
        monkeypatch.setattr(writer, "INSERT_ROWS_MAX", 10)
    library, store = native_library(), ClickHouseStore(clickhouse)
    world = await odd_log(seed, oddness=(1.0, 0.1)[seed % 2], records=60)
    stored = []
    for maker in (None, library):
        await clickhouse.command("TRUNCATE TABLE usage_events")
        await clickhouse.command("TRUNCATE TABLE archive_positions")
        await clickhouse.command("TRUNCATE TABLE control_log")
        await archived(world, store, maker, random.Random(seed))
        stored.append(await clickhouse.rows(_ALL))

    assert stored[0] == stored[1]
    assert stored[0][0][0] > 50


async def test_blocks_of_several_partitions_are_one_part(clickhouse: ClickHouse) -> None:
    """Each insert makes one part in every partition of the table, of however many blocks."""
    library, made = native_library(), _Blocks()
    world = await odd_log(4, oddness=1e-9, records=40)
    await archived(world, made, library, random.Random(4), events_max=20)
    assert len(made.blocks) > 3

    await ClickHouseStore(clickhouse).insert_event_blocks(made.blocks)

    ((rows, parts, partitions),) = await clickhouse.rows(
        "SELECT sum(rows), count(), uniq(partition) FROM system.parts WHERE table = 'usage_events' AND active "
        "AND database = currentDatabase()"
    )
    assert (rows, parts) == (sum(block.rows for block in made.blocks), partitions)
