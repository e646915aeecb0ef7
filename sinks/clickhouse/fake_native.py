"""Reads blocks of ClickHouse's Native format: clickhouse.com/docs/interfaces/formats/Native. For the fake only."""

from __future__ import annotations

from collections.abc import Callable
from struct import unpack_from
from typing import Final

from schemas.analytics import EventBlock, EventRow

_NUMBERS: Final = {"Int64": ("<q", 8), "UInt64": ("<Q", 8), "UInt16": ("<H", 2), "Bool": ("<?", 1)}


class _Reader:
    def __init__(self, block: memoryview) -> None:
        self.block = block
        self.at = 0

    def length(self) -> int:
        value = shift = 0
        while True:
            byte = self.block[self.at]
            self.at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7

    def text(self) -> str:
        size = self.length()
        self.at += size
        return bytes(self.block[self.at - size : self.at]).decode()

    def number(self, form: str, size: int) -> int:
        self.at += size
        value: int = unpack_from(form, self.block, self.at - size)[0]
        return value

    def column(self, kind: str) -> Callable[[], object]:
        return self.text if kind == "String" else lambda: self.number(*_NUMBERS[kind])


def rows_of(block: EventBlock) -> list[EventRow]:
    """The rows of a block of event rows. Raises `ValueError` if the block is something else."""
    reader = _Reader(block.native)
    width, rows = reader.length(), reader.length()
    columns: dict[str, list[object]] = {}
    for _ in range(width):
        name, kind = reader.text(), reader.text()
        read = reader.column(kind)
        columns[name] = [read() for _ in range(rows)]
    if rows != block.rows or reader.at != len(block.native) or tuple(columns) != EventRow._fields:
        raise ValueError("this is no block of event rows")
    return [EventRow(*values) for values in zip(*columns.values(), strict=True)]
