"""`MeasuredRecount` over the dictionaries of a `FakeClickHouse`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

from schemas.analytics import EventRow
from schemas.measured_recount import Adjusted, MeasuredPage, MeasuredRecount, RecountedSample, UsageKey
from schemas.meters import Meter
from sinks.clickhouse.fake import FakeClickHouse
from sinks.clickhouse.fake_recount import feeds, sample_feed


class FakeMeasuredRecount(MeasuredRecount):
    """Reads all rows for each call."""

    def __init__(self, clickhouse: FakeClickHouse) -> None:
        self._clickhouse = clickhouse

    async def measured_accounts(self, partition: int, meter: Meter, after: str, accounts_max: int) -> Sequence[str]:
        """See `MeasuredRecount`."""
        types = (meter.event_type, f"tidemark.adjusted.{meter.slug}")
        events = self._clickhouse.events.values()
        found = {event.account for event in events if event.partition == partition and event.type in types}
        return sorted(account for account in found if account > after)[:accounts_max]

    async def samples_of(self, page: MeasuredPage, rows_max: int) -> Sequence[RecountedSample]:
        """See `MeasuredRecount`. All earlier samples are there."""
        rows = (
            RecountedSample(
                event.account, event.id, event.time_us, arrived, event.stream_time_ms, feed.minor, feed.dimensions,
                feed.text,
            )
            for arrived, event in self._of(self._clickhouse.counted(), page)
            if event.position < page.before
            and any(start <= arrived < end for start, end in page.spans)
            and (feed := sample_feed(event, page.meter))
        )  # fmt: skip
        return list(islice(rows, rows_max))

    async def adjusted(self, page: MeasuredPage, rows_max: int) -> Sequence[Adjusted]:
        """See `MeasuredRecount`."""
        counted = {(event.account, event.id) for _, event in self._clickhouse.counted()}
        rows = (
            Adjusted(
                event.account, feed.dimensions, event.time_us // 1000,
                event.stream_time_ms if (event.account, event.id) in counted else None, feed.minor,
            )
            for arrived, event in self._of(self._clickhouse.counted(undecided=True), page)
            if arrived < page.before and event.time_us >= page.from_ms * 1000 and (feed := feeds(event, page.meter))
        )  # fmt: skip
        return list(islice(rows, rows_max))

    async def usage_by_hour(self, page: MeasuredPage, before_ms: int) -> Mapping[UsageKey, int]:
        """See `MeasuredRecount`."""
        sums: dict[UsageKey, int] = {}
        for cell, minor in (await self._clickhouse.hourly_cells(page.partition)).items():
            is_of = cell.meter == page.meter.slug and cell.account in page.accounts and cell.hour_ms >= page.from_ms
            if is_of and cell.arrival_bucket_ms < before_ms:
                key = UsageKey(cell.account, cell.dimensions, cell.hour_ms)
                sums[key] = sums.get(key, 0) + minor
        return sums

    @staticmethod
    def _of(counted: Iterable[tuple[int, EventRow]], page: MeasuredPage) -> Iterable[tuple[int, EventRow]]:
        return (each for each in counted if each[1].partition == page.partition and each[1].account in page.accounts)
