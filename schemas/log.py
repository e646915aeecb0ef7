"""The log: its records, its topics, and the protocol that its drivers implement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

EVENTS_TOPIC: Final = "usage.events"
INBOX_TOPIC: Final = "usage.inbox"
REJECTED_TOPIC: Final = "usage.rejected"
REPORTS_TOPIC: Final = "billing.reports"
BILLING_EVENTS_TOPIC: Final = "billing.events"

Headers = tuple[tuple[str, bytes], ...]

POSITION_INDEX_BITS: Final = 16
POSITION_BITS: Final = 56
POSITION_MAX: Final = (1 << POSITION_BITS) - 1
RECORD_EVENTS_MAX: Final = 1 << POSITION_INDEX_BITS
OFFSET_MAX: Final = POSITION_MAX >> POSITION_INDEX_BITS


class Record(NamedTuple):
    """One record of a partition. `timestamp_ms` is the log's append time (LogAppendTime), never the producer's."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers = ()

    @property
    def next_offset(self) -> int:
        """The offset to read after this record. Only this property adds one to an offset."""
        return self.offset + 1


class Bounds(NamedTuple):
    """A partition has records at offsets in `[first, next)`."""

    first: int
    next: int


def position(offset: int, index: int = 0) -> int:
    """One integer that orders all events of a partition: 40 bits of offset, 16 bits of index within the record.
    `POSITION_BITS` is 56, so (generation, position) fits into a version of 64 bits."""
    return offset << POSITION_INDEX_BITS | index


def offset_of(event_position: int) -> int:
    """The record offset of a position."""
    return event_position >> POSITION_INDEX_BITS


def index_of(event_position: int) -> int:
    """The index within the record of a position."""
    return event_position & (RECORD_EVENTS_MAX - 1)


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """A topic and its required settings; `doctor` compares them with the broker's. `retention_ms` -1 keeps records for
    ever. Every topic has LogAppendTime."""

    name: str
    partitions: int
    retention_ms: int
    replication: int = 1
    min_insync_replicas: int = 1
    record_bytes_max: int = 8 * 1024 * 1024


class Log(Protocol):
    """A partitioned durable log: embedded (SQLite), Kafka, or the in-memory fake.

    Every method may raise `Transient` after the driver's own bounded retries.
    """

    async def start(self) -> None:
        """Connect. Call this once before all other methods, in the event loop that uses the log."""
        ...

    async def close(self) -> None:
        """Flush appended records and release everything. Safe to call twice."""
        ...

    async def create_topics(self, specs: Sequence[TopicSpec]) -> None:
        """Create the topics that are missing; existing topics never change. Raises `OperatorNeeded` if an existing
        topic has another number of partitions."""
        ...

    async def partition_count(self, topic: str) -> int:
        """How many partitions `topic` has; 0 if the topic does not exist."""
        ...

    async def topic_settings(self, topic: str) -> Mapping[str, str]:
        """The topic's settings by Kafka's names (`message.timestamp.type`, `retention.ms`, …)."""
        ...

    async def append(
        self, topic: str, partition: int, value: bytes, *, key: bytes | None = None, headers: Headers = ()
    ) -> int:
        """Append one record and return its offset once it is durable (fsync, or all in-sync replicas).

        The driver batches concurrent calls. After an error the record may or may not be in the log.
        Raises `InvalidInput` if the record is over the topic's size limit.
        """
        ...

    async def bounds(self, topic: str, partition: int) -> Bounds:
        """First and next offset of a partition."""
        ...

    async def read(self, topic: str, partition: int, offset: int, records_max: int = 500) -> list[Record]:
        """Up to `records_max` records from `offset` on; empty at the end. Offsets need not be contiguous."""
        ...

    async def committed(self, group: str, topic: str, partition: int) -> int | None:
        """The group's committed offset, or None. Only a hint for lag graphs: reading never starts there."""
        ...
