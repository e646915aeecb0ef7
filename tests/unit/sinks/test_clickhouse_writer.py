"""How the writer cuts rows into inserts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import msgspec
import pytest

from schemas.analytics import EventRow
from sinks.clickhouse import writer
from sinks.clickhouse.client import ClickHouse
from sinks.clickhouse.writer import ClickHouseStore
from tests.conformance.clickhouse_rows import event


class Bodies:
    """A ClickHouse client that keeps the bodies of its inserts."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    async def insert_lines(self, table: str, columns: Sequence[str], lines: bytes) -> None:
        assert table == "usage_events"
        assert tuple(columns) == EventRow._fields
        self.bodies.append(lines)

    def positions(self) -> list[list[int]]:
        """The positions of the rows of each insert."""
        column = EventRow._fields.index("position")
        return [[msgspec.json.decode(line)[column] for line in body.splitlines()] for body in self.bodies]


@pytest.mark.parametrize(
    ("rows_max", "bytes_max", "expected"),
    [(200_000, 1 << 20, [25]), (20, 1 << 20, [20, 5]), (200_000, 1_000, [15, 10])],
    ids=["one insert", "by rows", "by bytes"],
)
async def test_rows_are_cut_into_inserts_by_number_and_bytes(
    monkeypatch: pytest.MonkeyPatch, rows_max: int, bytes_max: int, expected: list[int]
) -> None:
    """Large inserts cost ClickHouse less per row; the limits bound the memory. No row is lost at a cut."""
    monkeypatch.setattr(writer, "ENCODED_ROWS", 5)
    monkeypatch.setattr(writer, "INSERT_ROWS_MAX", rows_max)
    monkeypatch.setattr(writer, "INSERT_BYTES_MAX", bytes_max)
    client = Bodies()
    rows = [event(number, {}) for number in range(25)]

    await ClickHouseStore(cast("ClickHouse", client)).insert_events(rows)

    positions = client.positions()
    assert [len(numbers) for numbers in positions] == expected
    assert [number for numbers in positions for number in numbers] == [row.position for row in rows]


async def test_no_rows_are_no_insert() -> None:
    """ClickHouse refuses an insert without rows."""
    client = Bodies()

    await ClickHouseStore(cast("ClickHouse", client)).insert_events([])

    assert client.bodies == []
