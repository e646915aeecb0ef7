"""Lets the Kafka client read records whose header names are not UTF-8.

Brokers accept such records from any producer, but aiokafka fails at them on every read, so the reader would be stuck.
aiokafka has no setting for that. This module replaces aiokafka's batch reader for batches with such names.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import islice
from typing import Any, Final

from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import _DefaultRecordBatchPy, _DefaultRecordPy
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import decode_varint

# A batch begins with its offset and the number of bytes after these two fields. `FORMAT_AT` is the version's place.
BATCH_START: Final = struct.Struct(">qi")
FORMAT_AT: Final = 16
# The first format with headers.
FORMAT_WITH_HEADERS: Final = 2


def read_any_header_name() -> None:
    """Replace invalid bytes of header names by U+FFFD in all consumers of this process. Safe to call again."""
    fetcher.MemoryRecords = ReadableRecords


class ReadableRecords:
    """The batches of one fetch response, with the interface of aiokafka's `MemoryRecords`."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0
        self._batches = MemoryRecords(data)

    def has_next(self) -> bool:
        """Whether a complete batch remains."""
        return bool(self._batches.has_next())

    def size_in_bytes(self) -> int:
        """The size of the response."""
        return int(self._batches.size_in_bytes())

    def next_batch(self) -> Any:
        """The next complete batch, or None."""
        batch = self._batches.next_batch()
        if batch is None:
            return None
        start = self._position
        _, length = BATCH_START.unpack_from(self._data, start)
        self._position = start + BATCH_START.size + length
        if self._data[start + FORMAT_AT] < FORMAT_WITH_HEADERS or batch.is_control_batch:
            return batch
        return ReadableBatch(batch, memoryview(self._data)[start : self._position])


class ReadableBatch:
    """aiokafka's batch, with a second parser for the records after an invalid header name."""

    def __init__(self, batch: Any, data: memoryview) -> None:
        self._batch = batch
        self._data = data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __iter__(self) -> Iterator[Any]:
        records_read = 0
        try:
            for record in self._batch:
                records_read += 1
                yield record
        except (UnicodeDecodeError, CorruptRecordException):
            # aiokafka's Python parser raises CorruptRecordException for such a name. LenientBatch raises the same error
            # for a record that is really corrupt.
            yield from islice(LenientBatch(self._data), records_read, None)


class LenientBatch(_DefaultRecordBatchPy):  # type: ignore[misc]  # the library has no types
    """aiokafka's Python batch, which checks and decompresses, with another parser for a record."""

    _pos: int

    def _read_msg(self) -> Any:
        cursor = _Cursor(self._buffer, self._pos)
        length = cursor.number()
        start = cursor.position
        cursor.number()  # attributes, unused by the format
        created_ms = self.first_timestamp + cursor.number()
        logged = self.timestamp_type == self.LOG_APPEND_TIME
        offset = self.base_offset + cursor.number()
        key, value = cursor.content(), cursor.content()
        headers = []
        for _ in range(cursor.number()):
            name = cursor.content() or b""
            headers.append((name.decode("utf-8", "replace"), cursor.content()))
        if cursor.position - start != length:
            raise CorruptRecordException(f"a record of {length} bytes ends after {cursor.position - start}")
        self._pos = cursor.position
        timestamp_ms = self.max_timestamp if logged else created_ms
        return _DefaultRecordPy(offset, timestamp_ms, self.timestamp_type, key, value, headers)


class _Cursor:
    """Reads the fields of a record in order."""

    def __init__(self, buffer: bytearray, position: int) -> None:
        self._buffer = buffer
        self.position = position

    def number(self) -> int:
        number, self.position = decode_varint(self._buffer, self.position)
        return int(number)

    def content(self) -> bytes | None:
        length = self.number()
        if length < 0:
            return None
        start, self.position = self.position, self.position + length
        return bytes(self._buffer[start : self.position])
