"""`SnapshotStore` on ClickHouse: chunks as rows, a snapshot as a partition of its table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from schemas.snapshots import Snapshot
from sinks.clickhouse.client import ClickHouse, quoted_text

_COLUMNS: Final = ("partition", "next_offset", "name", "number", "last", "data")
_ENCODER: Final = msgspec.json.Encoder()
_WHERE: Final = (
    "FROM snapshots FINAL WHERE partition = {partition:UInt16} AND next_offset = {next_offset:UInt64} "
    "AND name = {name:String}"
)


class ClickHouseSnapshots:
    """Keeps snapshots in the table `snapshots`."""

    def __init__(self, clickhouse: ClickHouse) -> None:
        self._clickhouse = clickhouse

    async def insert_chunks(self, at: Snapshot, first_number: int, chunks: Sequence[str]) -> None:
        """As `SnapshotStore` says."""
        rows = [(*at[:3], number, 0, data) for number, data in enumerate(chunks, first_number)]
        await self._clickhouse.insert_lines("snapshots", _COLUMNS, _ENCODER.encode_lines(rows))

    async def complete(self, at: Snapshot) -> None:
        """As `SnapshotStore` says."""
        row = (*at[:3], at.chunks, 1, msgspec.json.encode(at).decode())
        await self._clickhouse.insert_lines("snapshots", _COLUMNS, _ENCODER.encode(row))

    async def snapshots(self, partition: int) -> Sequence[Snapshot]:
        """As `SnapshotStore` says."""
        heads = await self._clickhouse.rows(
            "SELECT data FROM snapshots FINAL WHERE partition = {partition:UInt16} AND last = 1",
            {"partition": partition},
        )
        counts = await self._clickhouse.rows(
            "SELECT next_offset, name, count() FROM snapshots FINAL WHERE partition = {partition:UInt16} "
            "AND last = 0 GROUP BY next_offset, name",
            {"partition": partition},
        )
        held = {(int(next_offset), str(name)): int(count) for next_offset, name, count in counts}
        found = [msgspec.json.decode(str(data), type=Snapshot) for (data,) in heads]
        return sorted((each for each in found if held.get(each[1:3], 0) == each.chunks), reverse=True)

    async def chunks(self, at: Snapshot, first_number: int, count_max: int) -> Sequence[str]:
        """As `SnapshotStore` says."""
        rows = await self._clickhouse.rows(
            f"SELECT data {_WHERE} AND last = 0 AND number >= {{first:UInt32}} ORDER BY number LIMIT {{count:UInt32}}",
            {
                "partition": at.partition,
                "next_offset": at.next_offset,
                "name": at.name,
                "first": first_number,
                "count": count_max,
            },
        )
        return [str(data) for (data,) in rows]

    async def keep(self, partition: int, kept: Sequence[Snapshot]) -> None:
        """As `SnapshotStore` says."""
        rows = await self._clickhouse.rows(
            "SELECT DISTINCT next_offset, name FROM snapshots WHERE partition = {partition:UInt16}",
            {"partition": partition},
        )
        names = {each[1:3] for each in kept}
        newest = max((each.next_offset for each in kept), default=0)
        for next_offset, name in rows:
            if int(next_offset) < newest and (int(next_offset), str(name)) not in names:
                dropped = f"({int(partition)}, {int(next_offset)}, {quoted_text(str(name))})"
                await self._clickhouse.command(f"ALTER TABLE snapshots DROP PARTITION {dropped}")
