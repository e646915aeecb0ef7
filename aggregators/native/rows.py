"""Rows of the archive by the C core: the bytes of records to blocks of ClickHouse's Native format."""

from __future__ import annotations

from ctypes import c_uint8

from aggregators.native.interface import Core, texts
from schemas.analytics import EventBlock, EventRow


class RowCore(Core):
    """A core that writes the events it takes as rows of `usage_events`."""

    def put(self, row: EventRow) -> None:
        """Add a row that Python made."""
        five = texts(row.account, row.id, row.type, row.source, row.data)
        numbers = (row.time_us, row.position, row.stream_time_ms, row.deferred)
        if not self._library.tm_row(self._handle, five, *numbers):
            raise MemoryError("the C core has no memory")

    @property
    def rows(self) -> int:
        """How many rows there are since the last block."""
        count: int = self._library.tm_rows(self._handle)
        return count

    def block(self) -> EventBlock:
        """All rows since the last block."""
        rows, body = self.rows, bytearray(self._library.tm_block_bytes(self._handle))
        size = self._library.tm_block(self._handle, (c_uint8 * len(body)).from_buffer(body), len(body))
        return EventBlock(rows, memoryview(body)[:size])
