"""Lets the Kafka client read records whose header names are not UTF-8.

Any producer may write one and the broker does not look, but aiokafka decodes the names strictly. It fails at such a
record on every read, so that nothing behind it would ever be read. There is no setting for it: what it takes batches
apart with is replaced here, and does what it always did until a batch turns out to hold such a name.
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

# Every batch begins with its offset and the count of the bytes after these two; the format's number follows later.
BATCH_START: Final = struct.Struct(">qi")
FORMAT_AT: Final = 16
# The first format with headers.
FORMAT_WITH_HEADERS: Final = 2


def read_any_header_name() -> None:
    """Have every consumer of this process read such records, the bytes in question as U+FFFD. Safe to call again."""
    fetcher.MemoryRecords = ReadableRecords


class ReadableRecords:
    """The client's batches of one answer, in its own terms."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0
        self._batches = MemoryRecords(data)

    def has_next(self) -> bool:
        """Whether a whole batch is left."""
        return bool(self._batches.has_next())

    def size_in_bytes(self) -> int:
        """The size of the answer."""
        return int(self._batches.size_in_bytes())

    def next_batch(self) -> Any:
        """The next whole batch, None where there is none."""
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
    """The client's own batch, read to the end in any case."""

    def __init__(self, batch: Any, data: memoryview) -> None:
        self._batch = batch
        self._data = data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __iter__(self) -> Iterator[Any]:
        read = 0
        try:
            for record in self._batch:
                read += 1
                yield record
        except (UnicodeDecodeError, CorruptRecordException):
            # The client's parser in Python, used where there is no compiled one, calls such a name corrupt. What really
            # is corrupt is refused here too, with the same error.
            yield from islice(LenientBatch(self._data), read, None)


class LenientBatch(_DefaultRecordBatchPy):  # type: ignore[misc]  # the library has no types
    """The client's batch in Python, which also checks and decompresses; only a record is taken apart differently."""

    _pos: int

    def _read_msg(self) -> Any:
        cursor = _Cursor(self._buffer, self._pos)
        length = cursor.number()
        start = cursor.position
        cursor.number()  # attributes, which the format does not use yet
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
    """Reads the parts of a record one after the other."""

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


__all__ = ["LenientBatch", "ReadableBatch", "ReadableRecords", "read_any_header_name"]
