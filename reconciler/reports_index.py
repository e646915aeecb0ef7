"""Reads `billing.reports`: the intents, their attempts and their outcomes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from aggregators.report_records import ReportedIntent, ReportedIntents, parse_entries
from schemas.errors import OperatorNeeded
from schemas.log import REPORTS_TOPIC, Log

READ_RECORDS_MAX: Final = 2_000


class ReportsIndex:
    """The intents of `billing.reports`. Memory grows with the topic, up to `entries_max` entries per partition."""

    def __init__(self, log: Log, entries_max: int) -> None:
        self._log = log
        self._entries_max = entries_max
        self._read_to: dict[int, int] = {}
        self._entries: dict[int, int] = {}
        self._reported = ReportedIntents()

    async def catch_up(self, partition: int) -> None:
        """Read all records that were appended since the last call. Raises `OperatorNeeded` over the limit, and for an
        entry of an unknown shape."""
        bounds = await self._log.bounds(REPORTS_TOPIC, partition)
        offset = max(self._read_to.get(partition, 0), bounds.first)
        while offset < bounds.next:
            records = await self._log.read(REPORTS_TOPIC, partition, offset, READ_RECORDS_MAX)
            if not records:
                break
            for record in records:
                entries = parse_entries(record.value)
                self._count(partition, len(entries))
                for entry in entries:
                    self._reported.add(partition, entry)
            offset = records[-1].next_offset
        self._read_to[partition] = max(offset, bounds.next)

    def reported(self, partition: int | None = None) -> Iterator[ReportedIntent]:
        """All intents of one partition or of all partitions, in the log's order."""
        return (reported for reported in self._reported if partition in (None, reported.partition))

    def get(self, identifier: str) -> ReportedIntent | None:
        """The intent with this identifier, or None."""
        return self._reported.get(identifier)

    def _count(self, partition: int, entries: int) -> None:
        self._entries[partition] = self._entries.get(partition, 0) + entries
        if self._entries[partition] > self._entries_max:
            raise OperatorNeeded(
                f"billing.reports/{partition} holds more than {self._entries_max} entries: raise reports_max, which "
                "costs about 2 kB of memory an entry"
            )
