"""`ArchiveStore` and `HourlyStore` on ClickHouse.

Rows that Python made are sent as JSONCompactEachRow: msgspec encodes a row in less than a microsecond without a Python
object per value. Rows that the C core made are blocks of ClickHouse's own Native format, which ClickHouse need not
parse.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import msgspec

from schemas.analytics import (
    ArchivePosition,
    ArchiveStore,
    ControlRow,
    DedupDecisionRow,
    DuplicateRow,
    EventBlock,
    EventRow,
    HourlyRow,
    HourlyStore,
    RelayPosition,
    check_times,
)
from schemas.control import REPLAYED_KINDS
from schemas.log import POSITION_BITS
from sinks.clickhouse.client import ClickHouse, json_literal
from sinks.clickhouse.migrations import migrate
from sinks.clickhouse.table_marks import read_marks, whole_number

# The limits of one insert. ClickHouse makes parts for each insert and merges small parts again and again, so a large
# insert costs less per row. The limit of bytes bounds the memory of both sides.
INSERT_ROWS_MAX: Final = 200_000
INSERT_BYTES_MAX: Final = 64 * 1024 * 1024
# So many rows are encoded without a break for the event loop, and may exceed `INSERT_BYTES_MAX` by their size.
ENCODED_ROWS: Final = 1_000

_VALUE: Final = HourlyRow._fields.index("value_minor")
_ENCODER: Final = msgspec.json.Encoder()


class ClickHouseStore(ArchiveStore, HourlyStore):
    """Writes rows and positions. Several processes may write at once and may write the same rows.

    A call with more than `INSERT_ROWS_MAX` rows or `INSERT_BYTES_MAX` bytes runs several inserts: after `Transient`,
    repeat the whole call.
    """

    def __init__(self, clickhouse: ClickHouse, beside: Mapping[str, str] | None = None) -> None:
        """`beside` maps tables to the staging tables that are used in their place."""
        self._clickhouse = clickhouse
        self._beside = dict(beside or {})

    def _table(self, name: str) -> str:
        return self._beside.get(name, name)

    async def migrate(self) -> None:
        """Apply missing migrations. Raises `OperatorNeeded` if the schema is newer or an applied migration changed."""
        await migrate(self._clickhouse)

    async def insert_events(self, rows: Sequence[EventRow]) -> None:
        """Store events. Raises `InvalidInput`, and stores nothing, if an event's time is outside 1900 to 2299.

        While the broker's clock is right, such events do not arrive here: events before 1970 or in the future are
        quarantined earlier.
        """
        check_times(rows)
        await self._insert("usage_events", EventRow._fields, rows)

    async def insert_event_blocks(self, blocks: Sequence[EventBlock]) -> None:
        """Store the rows of blocks. No event's time is outside 1900 to 2299."""
        table, held = self._table("usage_events"), list[memoryview]()
        rows = size = 0
        for block in blocks:
            rows, size = rows + block.rows, size + len(block.native)
            if held and (rows > INSERT_ROWS_MAX or size > INSERT_BYTES_MAX):
                await self._clickhouse.insert_native(table, EventRow._fields, b"".join(held))
                held, rows, size = [], block.rows, len(block.native)
            held.append(block.native)
        if held:
            await self._clickhouse.insert_native(table, EventRow._fields, b"".join(held))

    async def insert_dedup_decisions(self, rows: Sequence[DedupDecisionRow]) -> None:
        """Store decisions. The first decision on an event in the log wins, in any order of calls."""
        await self._insert("dedup_decisions", DedupDecisionRow._fields, rows)

    async def insert_controls(self, rows: Sequence[ControlRow]) -> None:
        """Store control records."""
        await self._insert("control_log", ControlRow._fields, rows)

    async def insert_hourly(self, rows: Sequence[HourlyRow]) -> None:
        """Store cells. The highest version of a cell wins, in any order of calls."""
        # 128-bit integers are sent as text: JSON encoders and parsers support 64 bits only.
        texts = [(*row[:_VALUE], str(row[_VALUE]), *row[_VALUE + 1 :]) for row in rows]
        await self._insert("usage_hourly", HourlyRow._fields, texts)

    async def insert_duplicates(self, rows: Sequence[DuplicateRow]) -> None:
        """Store later arrivals. Raises `InvalidInput` as `insert_events`."""
        check_times(rows)
        await self._insert("usage_duplicates", DuplicateRow._fields, rows)

    async def save_position(self, position: ArchivePosition) -> None:
        """Store how far `usage_events` reaches. The highest `next_offset` wins."""
        await self._insert("archive_positions", ArchivePosition._fields, [position])

    async def load_position(self, partition: int) -> ArchivePosition | None:
        """The stored position of a partition, or None."""
        rows = await self._clickhouse.rows(
            f"SELECT partition, next_offset, stream_time_ms, log_id FROM {self._table('archive_positions')} FINAL "  # noqa: S608  # a name of ours
            "WHERE partition = {partition:UInt16}",
            {"partition": partition},
        )
        return ArchivePosition(*rows[0]) if rows else None

    async def load_controls(
        self, partition: int, before_position: int, accounts: Collection[str] | None = None
    ) -> Sequence[ControlRow]:
        of_accounts = "" if accounts is None else f"AND account IN {json_literal(['', *accounts], 'Array(String)')} "
        rows = await self._clickhouse.rows(
            f"SELECT partition, position, kind, account, stream_time_ms, value FROM {self._table('control_log')} FINAL "  # noqa: S608  # a name of ours
            "WHERE partition = {partition:UInt16} AND position < {before:UInt64} AND kind IN {kinds:Array(String)} "
            f"{of_accounts}ORDER BY position",
            {"partition": partition, "before": before_position, "kinds": [kind.value for kind in REPLAYED_KINDS]},
        )
        return [ControlRow(*row) for row in rows]

    async def first_positions(self, identities: Sequence[tuple[str, str]]) -> Mapping[tuple[str, str], int]:
        """The position of the first arrival of each (account, id). Identities that were never archived are absent."""
        literal = json_literal(list(identities), "Array(Tuple(String, String))")
        wanted = f"SELECT each.1, each.2 FROM (SELECT arrayJoin({literal}) AS each)"  # noqa: S608  # quoted
        rows = await self._clickhouse.rows(
            f"SELECT account, id, min(position) FROM usage_events WHERE (account, id) IN ({wanted}) "  # noqa: S608  # as above
            "GROUP BY account, id"
        )
        return {(str(account), str(event_id)): int(position) for account, event_id, position in rows}

    async def events_rebuilt(self) -> int | None:
        return whole_number("usage_events", await read_marks(self._clickhouse))

    async def save_relayed(self, position: RelayPosition) -> None:
        """Store how far `usage_hourly` reaches. The highest `next_offset` wins."""
        await self._insert("relay_positions", RelayPosition._fields, [position])

    async def load_relayed(self) -> Mapping[int, RelayPosition]:
        """The stored relay position of each partition that has one."""
        rows = await self._clickhouse.rows("SELECT partition, next_offset, stream_time_ms FROM relay_positions FINAL")
        return {int(row[0]): RelayPosition(*row) for row in rows}

    async def latest_generation(self) -> int:
        rows = await self._clickhouse.rows(
            f"SELECT bitShiftRight(max(version), {{bits:UInt8}}) FROM {self._table('usage_hourly')}",  # noqa: S608  # as above
            {"bits": POSITION_BITS},
        )
        return int(rows[0][0])

    async def generation_since(self, partition: int, bucket_ms: int) -> int:
        rows = await self._clickhouse.rows(
            f"SELECT bitShiftRight(max(version), {{bits:UInt8}}) FROM {self._table('usage_hourly')} "  # noqa: S608  # as above
            "WHERE partition = {partition:UInt16} AND arrival_bucket_ms >= {bucket:Int64}",
            {"bits": POSITION_BITS, "partition": partition, "bucket": bucket_ms},
        )
        return int(rows[0][0])

    async def close(self) -> None:
        """Release the connections. Safe to call twice."""
        await self._clickhouse.close()

    async def _insert(self, table: str, columns: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> None:
        lines: list[bytes] = []
        size = 0
        for start in range(0, len(rows), ENCODED_ROWS):
            lines.append(_ENCODER.encode_lines(rows[start : start + ENCODED_ROWS]))
            size += len(lines[-1])
            if size >= INSERT_BYTES_MAX or len(lines) * ENCODED_ROWS >= INSERT_ROWS_MAX:
                await self._clickhouse.insert_lines(self._table(table), columns, b"".join(lines))
                lines, size = [], 0
            await asyncio.sleep(0)
        if lines:
            await self._clickhouse.insert_lines(self._table(table), columns, b"".join(lines))
