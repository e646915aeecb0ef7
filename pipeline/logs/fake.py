"""The in-memory fake of the log: the same promises, except that it forgets with the process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.logs.limits import check_partitions, check_size, check_spec, settings_of, unknown_partition
from schemas.clock import Clock
from schemas.log import Bounds, Headers, Record, TopicSpec


@dataclass(slots=True)
class _Partition:
    records: list[Record] = field(default_factory=list)
    next_offset: int = 0
    last_ms: int = 0


class FakeLog:
    """A log in a dict. It outlives `close`, so a test can restart what uses it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._topics: dict[str, TopicSpec] = {}
        self._partitions: dict[tuple[str, int], _Partition] = {}
        self._committed: dict[tuple[str, str, int], int] = {}

    async def start(self) -> None:
        """Nothing to connect."""

    async def close(self) -> None:
        """Nothing to release; the records stay."""

    async def create_topics(self, specs: Sequence[TopicSpec]) -> None:
        """Create the topics that are missing; raises `OperatorNeeded` on another number of partitions."""
        for spec in specs:
            check_spec(spec)
            if spec.name in self._topics:
                check_partitions(spec, self._topics[spec.name].partitions)
                continue
            self._topics[spec.name] = spec
            for partition in range(spec.partitions):
                self._partitions[spec.name, partition] = _Partition()

    async def partition_count(self, topic: str) -> int:
        """How many partitions `topic` has; 0 where it does not exist."""
        return self._topics[topic].partitions if topic in self._topics else 0

    async def topic_settings(self, topic: str) -> Mapping[str, str]:
        """The settings it was created with, under Kafka's names; empty where it does not exist."""
        return settings_of(self._topics[topic]) if topic in self._topics else {}

    async def append(
        self, topic: str, partition: int, value: bytes, *, key: bytes | None = None, headers: Headers = ()
    ) -> int:
        """Append one record and return its offset; `InvalidInput` over the size limit or for an unknown partition."""
        part = self._partition(topic, partition)
        check_size(topic, self._topics[topic].record_bytes_max, value, key, headers)
        offset = part.next_offset
        part.last_ms = max(part.last_ms, self._clock.now_ms())
        part.next_offset += 1
        part.records.append(Record(topic, partition, offset, part.last_ms, key, value, headers))
        self._trim(topic, part)
        return offset

    async def bounds(self, topic: str, partition: int) -> Bounds:
        """First and next offset of a partition."""
        part = self._partition(topic, partition)
        return Bounds(part.records[0].offset if part.records else part.next_offset, part.next_offset)

    async def read(self, topic: str, partition: int, offset: int, records_max: int = 500) -> list[Record]:
        """Up to `records_max` records from `offset` on; empty at the end."""
        part = self._partition(topic, partition)
        if not part.records:
            return []
        start = max(0, offset - part.records[0].offset)
        return part.records[start : start + records_max]

    async def committed(self, group: str, topic: str, partition: int) -> int | None:
        """The group's committed offset."""
        return self._committed.get((group, topic, partition))

    async def commit(self, group: str, offsets: Mapping[tuple[str, int], int]) -> None:
        """Store a group's committed offsets by (topic, partition)."""
        for (topic, partition), offset in offsets.items():
            self._committed[group, topic, partition] = offset

    def _partition(self, topic: str, partition: int) -> _Partition:
        try:
            return self._partitions[topic, partition]
        except KeyError:
            raise unknown_partition(topic, partition) from None

    def _trim(self, topic: str, part: _Partition) -> None:
        retention_ms = self._topics[topic].retention_ms
        if retention_ms == -1:
            return
        expired = 0
        while part.records[expired].timestamp_ms < part.last_ms - retention_ms:
            expired += 1
        del part.records[:expired]
