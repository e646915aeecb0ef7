"""The log for a rebuild, which does not put events into the quarantine again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.ingest.quarantine import Header
from schemas.log import REJECTED_TOPIC, Bounds, Headers, Log, Record, TopicSpec


class NoQuarantineLog:
    """A `schemas.log.Log` over another log, which the caller starts and closes. Other methods do as that log."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._kept_before = 0

    def kept_before(self, offset: int) -> None:
        """Skip quarantine entries of records below `offset`: they were written before the live view's commit."""
        self._kept_before = offset

    async def start(self) -> None:
        """Do nothing: the log is started already."""

    async def close(self) -> None:
        """Do nothing: the owner closes the log."""

    async def create_topics(self, specs: Sequence[TopicSpec]) -> None:
        """As the log."""
        await self._log.create_topics(specs)

    async def partition_count(self, topic: str) -> int:
        """As the log."""
        return await self._log.partition_count(topic)

    async def topic_settings(self, topic: str) -> Mapping[str, str]:
        """As the log."""
        return await self._log.topic_settings(topic)

    async def append(
        self, topic: str, partition: int, value: bytes, *, key: bytes | None = None, headers: Headers = ()
    ) -> int:
        """As the log; does nothing and returns -1 for a quarantine entry that exists already."""
        if topic == REJECTED_TOPIC and int(dict(headers)[Header.OFFSET]) < self._kept_before:
            return -1
        return await self._log.append(topic, partition, value, key=key, headers=headers)

    async def bounds(self, topic: str, partition: int) -> Bounds:
        """As the log."""
        return await self._log.bounds(topic, partition)

    async def read(self, topic: str, partition: int, offset: int, records_max: int = 500) -> list[Record]:
        """As the log."""
        return await self._log.read(topic, partition, offset, records_max)

    async def committed(self, group: str, topic: str, partition: int) -> int | None:
        """As the log."""
        return await self._log.committed(group, topic, partition)
