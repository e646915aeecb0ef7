"""The archive stores the same rows whether the C core makes them or Python does."""

from __future__ import annotations

import ctypes
import random

import pytest

from aggregators.meters import slow_types
from schemas.meters import MeterSet
from sinks.clickhouse.fake import FakeClickHouse
from tests.traffic.odd_records import METER_SET, NOW_MS
from tests.worlds.archiving import archived, odd_log
from tests.worlds.native import BothRows


@pytest.mark.parametrize("seed", range(6))
async def test_both_store_the_same_rows_of_any_log(library: ctypes.CDLL, seed: int) -> None:
    """Odd and broken records, bindings, closings, restatements and another meter set, in steps of any length."""
    world = await odd_log(seed, oddness=(1.0, 0.1)[seed % 2])
    chance, python, native = random.Random(seed), FakeClickHouse(), FakeClickHouse()

    await archived(world, python, None, chance)
    await archived(world, native, library, chance, events_max=chance.choice((3, 200, 20_000)))

    assert native.events == python.events
    assert native.control_log == python.control_log
    assert native.decisions == python.decisions
    assert native.archived == python.archived
    assert len(python.events) > 100


@pytest.mark.parametrize(
    "data",
    [
        '{"b":1,"a":2,"ab":3,"":4,"B":5,"é":6,"😀":7}', '{"n":-0}', '{"n":-0.0}', '{"n":0.000001}', '{"n":0.0000001}',
        '{"n":1.50}', '{"n":123456789012345678.5}', '{"n":18446744073709551616}', '{"n":1e5}',
        '{"n":[1, {"b":[ ],"a":{ }}]}',
        '{"n":{"a":1,"a":2}}', '{"a":1,"a":2}', '{"n":"\\u0041"}', '{"n":"\\/"}', '{"n":"\x7f"}', "{}", "null",
    ],
)  # fmt: skip
def test_data_is_written_as_python_writes_it(library: ctypes.CDLL, data: str) -> None:
    """The recount and the conflicts compare these texts."""
    rows = BothRows(library, METER_SET)
    event = f'{{"specversion":"1.0","id":"e","source":"s","type":"other","subject":"ada","data":{data}}}'

    assert rows.compare(0, NOW_MS, event.encode()) == 1


async def test_the_core_makes_the_rows_of_plain_events(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the comparison above would compare Python with Python. Samples and adjustments are not plain."""
    world = await odd_log(1, oddness=1e-9, records=20)
    store = FakeClickHouse()
    events = sum((record.value or b"").count(b"specversion") for record in await world.records(0))
    made = []
    monkeypatch.setattr("aggregators.native.rows.RowCore.put", lambda _core, row: made.append(row))

    await archived(world, store, library, random.Random(1))

    slow = slow_types(MeterSet.model_validate(METER_SET))
    assert len(store.events) > events // 2
    assert len([row for row in made if row.type not in slow]) < events // 10
