"""The log for a rebuild, which does not put events into the quarantine again."""

from __future__ import annotations

from pipeline.logs.quarantine import Header
from schemas.log import REJECTED_TOPIC, Headers, Log


class NoQuarantineLog:
    """A `schemas.log.Log` over another log, which the caller starts and closes."""

    def __init__(self, log: Log) -> None:
        self._append = log.append
        self._kept_before = 0
        self.create_topics = log.create_topics
        self.partition_count = log.partition_count
        self.topic_settings = log.topic_settings
        self.bounds = log.bounds
        self.read = log.read
        self.committed = log.committed

    def kept_before(self, offset: int) -> None:
        """Skip quarantine entries of records below `offset`: they were written before the live view's commit."""
        self._kept_before = offset

    async def start(self) -> None:
        """Do nothing: the log is started already."""

    async def close(self) -> None:
        """Do nothing: the owner closes the log."""

    async def append(
        self, topic: str, partition: int, value: bytes, *, key: bytes | None = None, headers: Headers = ()
    ) -> int:
        """Append as the log does; but skip a quarantine entry that exists already, and return -1 for it."""
        if topic == REJECTED_TOPIC and int(dict(headers)[Header.OFFSET]) < self._kept_before:
            return -1
        return await self._append(topic, partition, value, key=key, headers=headers)
