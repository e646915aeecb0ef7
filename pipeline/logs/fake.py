"""The in-memory fake of the log, for tests. The fake keeps the log's promises except durability."""

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
    """A log in a dict. The records survive `close`, so a test can restart the users of the log."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._topics: dict[str, TopicSpec] = {}
        self._partitions: dict[tuple[str, int], _Partition] = {}
        self._committed: dict[tuple[str, str, int], int] = {}

    async def start(self) -> None:
        """Does nothing."""

    async def close(self) -> None:
        """Does nothing."""

    async def create_topics(self, specs: Sequence[TopicSpec]) -> None:
        for spec in specs:
            check_spec(spec)
            if spec.name in self._topics:
                check_partitions(spec, self._topics[spec.name].partitions)
                continue
            self._topics[spec.name] = spec
            for partition in range(spec.partitions):
                self._partitions[spec.name, partition] = _Partition()

    async def partition_count(self, topic: str) -> int:
        return self._topics[topic].partitions if topic in self._topics else 0

    async def topic_settings(self, topic: str) -> Mapping[str, str]:
        return settings_of(self._topics[topic]) if topic in self._topics else {}

    async def append(
        self, topic: str, partition: int, value: bytes, *, key: bytes | None = None, headers: Headers = ()
    ) -> int:
        part = self._partition(topic, partition)
        check_size(topic, self._topics[topic].record_bytes_max, value, key, headers)
        offset = part.next_offset
        part.last_ms = max(part.last_ms, self._clock.now_ms())
        part.next_offset += 1
        part.records.append(Record(topic, partition, offset, part.last_ms, key, value, headers))
        self._trim(topic, part)
        return offset

    async def bounds(self, topic: str, partition: int) -> Bounds:
        part = self._partition(topic, partition)
        return Bounds(part.records[0].offset if part.records else part.next_offset, part.next_offset)

    async def read(self, topic: str, partition: int, offset: int, records_max: int = 500) -> list[Record]:
        part = self._partition(topic, partition)
        if not part.records:
            return []
        start = max(0, offset - part.records[0].offset)
        return part.records[start : start + records_max]

    async def committed(self, group: str, topic: str, partition: int) -> int | None:
        return self._committed.get((group, topic, partition))

    async def commit(self, group: str, offsets: Mapping[tuple[str, int], int]) -> None:
        """Store the group's committed offset of each (topic, partition)."""
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
