"""`SnapshotStore` on ClickHouse. A chunk is a row; a snapshot is a partition of the table."""

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
    """Stores snapshots in the table `snapshots`."""

    def __init__(self, clickhouse: ClickHouse) -> None:
        self._clickhouse = clickhouse

    async def insert_chunks(self, at: Snapshot, first_number: int, chunks: Sequence[str]) -> None:
        rows = [(*at[:3], number, 0, data) for number, data in enumerate(chunks, first_number)]
        await self._clickhouse.insert_lines("snapshots", _COLUMNS, _ENCODER.encode_lines(rows))

    async def complete(self, at: Snapshot) -> None:
        row = (*at[:3], at.chunks, 1, msgspec.json.encode(at).decode())
        await self._clickhouse.insert_lines("snapshots", _COLUMNS, _ENCODER.encode(row))

    async def snapshots(self, partition: int) -> Sequence[Snapshot]:
        heads = await self._clickhouse.rows(
            "SELECT data FROM snapshots FINAL WHERE partition = {partition:UInt16} AND last = 1",
            {"partition": partition},
        )
        counts = await self._clickhouse.rows(
            "SELECT next_offset, name, count() FROM snapshots FINAL WHERE partition = {partition:UInt16} "
            "AND last = 0 GROUP BY next_offset, name",
            {"partition": partition},
        )
        stored = {(int(next_offset), str(name)): int(count) for next_offset, name, count in counts}
        snapshots = [msgspec.json.decode(str(data), type=Snapshot) for (data,) in heads]
        return sorted((one for one in snapshots if stored.get(one[1:3], 0) == one.chunks), reverse=True)

    async def chunks(self, at: Snapshot, first_number: int, count_max: int) -> Sequence[str]:
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
        rows = await self._clickhouse.rows(
            "SELECT DISTINCT next_offset, name FROM snapshots WHERE partition = {partition:UInt16}",
            {"partition": partition},
        )
        names = {snapshot[1:3] for snapshot in kept}
        newest = max((snapshot.next_offset for snapshot in kept), default=0)
        for next_offset, name in rows:
            if int(next_offset) < newest and (int(next_offset), str(name)) not in names:
                dropped = f"({int(partition)}, {int(next_offset)}, {quoted_text(str(name))})"
                await self._clickhouse.command(f"ALTER TABLE snapshots DROP PARTITION {dropped}")
