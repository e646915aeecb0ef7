"""Reads the quarantine: what stands in `usage.rejected`, entry by entry."""

from __future__ import annotations

from typing import NamedTuple

from pipeline.logs.quarantine import Header
from schemas.log import REJECTED_TOPIC, Record

READ_RECORDS_MAX = 1_000


class QuarantineEntry(NamedTuple):
    """An event in the quarantine. (topic, partition, offset, place) is the original position and the identity."""

    topic: str
    partition: int
    offset: int
    place: int
    reason: str
    detail: str
    stream_time_ms: int
    value: bytes
    cut: bool

    @property
    def position(self) -> str:
        """The identity as a text that a person can copy."""
        return f"{self.topic}-{self.partition}@{self.offset}.{self.place}"

    def text(self) -> str:
        """The original bytes as text; invalid UTF-8 is replaced."""
        return self.value.decode("utf-8", "replace")

    def as_json(self) -> dict[str, object]:
        """The entry as a JSON object."""
        return {**self._asdict(), "value": self.text()}


def quarantine_entry(record: Record) -> QuarantineEntry:
    """Read a record of `usage.rejected`.

    Events that the gateway refused were in no other topic; their position is the position in `usage.rejected`.
    """
    headers = {name: value.decode("utf-8", "replace") for name, value in record.headers}
    placed = Header.OFFSET in headers
    return QuarantineEntry(
        headers.get(Header.TOPIC, "") if placed else headers.get(Header.SOURCE, REJECTED_TOPIC),
        int(headers[Header.PARTITION]) if placed else record.partition,
        int(headers[Header.OFFSET]) if placed else record.offset,
        int(headers.get(Header.INDEX, 0)),
        headers.get(Header.REASON, ""),
        headers.get(Header.DETAIL, ""),
        int(headers.get(Header.STREAM_TIME_MS, record.timestamp_ms)),
        record.value or b"",
        Header.CUT_AT_BYTES in headers,
    )
