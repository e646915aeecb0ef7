"""Reads `billing.reports`: the intents, what was sent for them, and their outcomes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from aggregators.report_records import ReportedIntent, ReportedIntents, parse_entries
from schemas.errors import OperatorNeeded
from schemas.log import REPORTS_TOPIC, Log

READ_RECORDS_MAX: Final = 2_000


class ReportsIndex:
    """Everything that was read of `billing.reports`; grows with the topic, up to `entries_max` per partition."""

    def __init__(self, log: Log, entries_max: int) -> None:
        self._log = log
        self._entries_max = entries_max
        self._read_to: dict[int, int] = {}
        self._entries: dict[int, int] = {}
        self._reported = ReportedIntents()

    async def catch_up(self, partition: int) -> None:
        """Read what was appended since the last call, up to the end as it is now.

        Raises `OperatorNeeded` over the limit, or for an entry this version does not know.
        """
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
        """Each intent once, of one partition or of all, in the log's order."""
        return (reported for reported in self._reported if partition in (None, reported.partition))

    def _count(self, partition: int, entries: int) -> None:
        self._entries[partition] = self._entries.get(partition, 0) + entries
        if self._entries[partition] > self._entries_max:
            raise OperatorNeeded(
                f"billing.reports/{partition} holds more than {self._entries_max} entries: raise reports_max, which "
                "costs about 2 kB of memory an entry"
            )
