"""`FakeClickHouse`: the three protocols of ClickHouse over dictionaries, for unit tests and the simulation.

The code is simple on purpose, so that readers can compare it with the SQL. It shares no code with the SQL or the fold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from schemas.aggregations import Aggregation, Value
from schemas.analytics import (
    CONFLICT_FIELDS,
    PERIODS_MAX,
    USAGE_ROWS_MAX,
    ArchivePosition,
    ArchiveStore,
    Conflict,
    Conflicts,
    ControlRow,
    DedupDecisionRow,
    DedupOutcome,
    DuplicateRow,
    EventBlock,
    EventRow,
    HourlyRow,
    HourlyStore,
    PeriodLevel,
    PeriodQuery,
    PeriodUsage,
    RecountKey,
    RecountRequest,
    RelayPosition,
    UsageQuery,
    UsageReader,
    UsageRow,
    Window,
    check_times,
)
from schemas.clock import HOUR_MS
from schemas.control import REPLAYED_KINDS, ControlKind, MeterSetRecord
from schemas.log import POSITION_BITS
from schemas.meters import Meter
from schemas.periods import Period
from sinks.clickhouse.fake_native import rows_of
from sinks.clickhouse.fake_recount import (
    dimensions_of,
    feeds,
    recount_cells,
    recount_distinct,
    recount_rows,
    recount_totals,
)
from sinks.clickhouse.reader import check_query


class FakeClickHouse(ArchiveStore, HourlyStore, UsageReader):
    """Keeps rows in memory only. Never raises `Transient`."""

    def __init__(self) -> None:
        self.events: dict[tuple[str, str], EventRow] = {}
        self.duplicates: dict[tuple[int, int], DuplicateRow] = {}
        self.decisions: dict[tuple[int, int, str], DedupDecisionRow] = {}
        self.cells: dict[RecountKey, HourlyRow] = {}
        self.control_log: dict[tuple[int, int], ControlRow] = {}
        self.archived: dict[int, ArchivePosition] = {}
        self.relayed: dict[int, RelayPosition] = {}
        self.rebuilt: int | None = 0

    async def migrate(self) -> None:
        """Nothing to migrate."""

    async def insert_events(self, rows: Sequence[EventRow]) -> None:
        """Keep the lowest position of each identity."""
        check_times(rows)
        for row in rows:
            stored = self.events.get((row.account, row.id))
            if stored is None or row.position <= stored.position:
                self.events[row.account, row.id] = row

    async def insert_event_blocks(self, blocks: Sequence[EventBlock]) -> None:
        """Keep the rows of the blocks as `insert_events` does."""
        for block in blocks:
            await self.insert_events(rows_of(block))

    async def insert_dedup_decisions(self, rows: Sequence[DedupDecisionRow]) -> None:
        """Keep the first decision on each event."""
        for row in rows:
            stored = self.decisions.get(row[:3])
            if stored is None or row.decision_position <= stored.decision_position:
                self.decisions[row[:3]] = row

    async def first_positions(self, identities: Sequence[tuple[str, str]]) -> Mapping[tuple[str, str], int]:
        return {identity: self.events[identity].position for identity in identities if identity in self.events}

    async def events_rebuilt(self) -> int | None:
        return self.rebuilt

    async def insert_controls(self, rows: Sequence[ControlRow]) -> None:
        """Keep one row per position."""
        self.control_log.update({(row.partition, row.position): row for row in rows})

    async def insert_hourly(self, rows: Sequence[HourlyRow]) -> None:
        """Keep the highest version of each cell."""
        for row in rows:
            key = RecountKey(*row[:3], *row[4:7])
            stored = self.cells.get(key)
            if stored is None or row.version >= stored.version:
                self.cells[key] = row

    async def insert_duplicates(self, rows: Sequence[DuplicateRow]) -> None:
        """Keep one row per position."""
        check_times(rows)
        self.duplicates.update({(row.partition, row.position): row for row in rows})

    async def save_position(self, position: ArchivePosition) -> None:
        """Keep the highest `next_offset`."""
        stored = self.archived.get(position.partition)
        if stored is None or position.next_offset >= stored.next_offset:
            self.archived[position.partition] = position

    async def load_position(self, partition: int) -> ArchivePosition | None:
        return self.archived.get(partition)

    async def load_controls(
        self, partition: int, before_position: int, accounts: Collection[str] | None = None
    ) -> Sequence[ControlRow]:
        replayed = [row for row in await self.controls(partition, before_position) if row.kind in REPLAYED_KINDS]
        return replayed if accounts is None else [row for row in replayed if row.account in ("", *accounts)]

    async def save_relayed(self, position: RelayPosition) -> None:
        """Keep the highest `next_offset`."""
        stored = self.relayed.get(position.partition)
        if stored is None or position.next_offset >= stored.next_offset:
            self.relayed[position.partition] = position

    async def load_relayed(self) -> Mapping[int, RelayPosition]:
        return dict(self.relayed)

    async def latest_generation(self) -> int:
        return max((row.version for row in self.cells.values()), default=0) >> POSITION_BITS

    async def generation_since(self, partition: int, bucket_ms: int) -> int:
        versions = (
            row.version
            for row in self.cells.values()
            if row.partition == partition and row.arrival_bucket_ms >= bucket_ms
        )
        return max(versions, default=0) >> POSITION_BITS

    async def usage(
        self, query: UsageQuery, aggregation: Aggregation, rows_max: int = USAGE_ROWS_MAX
    ) -> Sequence[UsageRow]:
        check_query(query)
        if aggregation.rule.distinct:
            return self._usage_unique(query)[: rows_max + 1]
        grouped: dict[tuple[int | None, tuple[str, ...]], list[HourlyRow]] = {}
        for row in self.cells.values():
            if row.meter == query.meter and _asked(query, row.account, row.hour_ms) and not _emptied(row):
                groups = _groups(query, row.account, dimensions_of(row.dimensions))
                grouped.setdefault((window_start_ms(query, row.hour_ms), groups), []).append(row)
        return _answer(query, {key: _merged(rows, aggregation) for key, rows in grouped.items()})[: rows_max + 1]

    async def period_usage(
        self, query: PeriodQuery, aggregation: Aggregation, rows_max: int = PERIODS_MAX
    ) -> Sequence[PeriodUsage]:
        by_period: dict[int, list[HourlyRow]] = {}
        for row in self.cells.values():
            if (row.meter, row.account) == (query.meter, query.account) and not _emptied(row):
                by_period.setdefault(row.period_start_ms, []).append(row)
        answer = []
        for start_ms, rows in sorted(by_period.items()):
            end_ms = max(rows, key=lambda row: row.version).period_end_ms
            carried = [row for row in rows if row.hour_ms + HOUR_MS <= start_ms]
            if start_ms < query.to_ms and end_ms > query.from_ms:
                carried_minor = _merged(carried, aggregation) if carried else None
                answer.append(PeriodUsage(Period(start_ms, end_ms), _merged(rows, aggregation), carried_minor))
        return answer[: rows_max + 1]

    async def period_levels(self, meter: str, account: str, to_ms: int) -> Sequence[PeriodLevel]:
        rows = [
            row for row in self.cells.values() if (row.meter, row.account) == (meter, account) and not _emptied(row)
        ]
        answer = []
        for start_ms in sorted({row.period_start_ms for row in rows if row.period_start_ms < to_ms}):
            own = max((row for row in rows if row.period_start_ms == start_ms), key=lambda row: row.version)
            until = [row for row in rows if row.period_start_ms <= start_ms]
            newest = max(until, key=lambda row: (row.latest_time_us, row.latest_position))
            answer.append(PeriodLevel(Period(start_ms, own.period_end_ms), newest.value_minor))
        return answer[-PERIODS_MAX:]

    def _usage_unique(self, query: UsageQuery) -> Sequence[UsageRow]:
        grouped: dict[tuple[int | None, tuple[str, ...]], set[tuple[str, str]]] = {}
        for arrived, event in self.counted():
            meter = self._meter_at(query.meter, event.partition, event.position)
            if self._meter_at(query.meter, event.partition, arrived) is None:
                continue
            hour_ms = event.time_us // 1000 // HOUR_MS * HOUR_MS
            if meter is None or not _asked(query, event.account, hour_ms):
                continue
            feed = feeds(event, meter)
            if feed is not None:
                key = (window_start_ms(query, hour_ms), _groups(query, event.account, dimensions_of(feed.dimensions)))
                grouped.setdefault(key, set()).add((event.account, feed.text))
        return _answer(query, {key: len(values) for key, values in grouped.items()})

    def _meter_at(self, slug: str, partition: int, position: int) -> Meter | None:
        meter_sets = [
            row
            for row in self.control_log.values()
            if row.kind == ControlKind.METER_SET and row.partition == partition and row.position < position
        ]
        if not meter_sets:
            return None
        latest = max(meter_sets, key=lambda row: row.position)
        return MeterSetRecord.model_validate_json(latest.value).meter_set.meter(slug)

    async def recount_cells(self, request: RecountRequest) -> Mapping[RecountKey, int]:
        return recount_cells(self.counted(), request)

    async def recount_rows(self, request: RecountRequest, generation: int) -> Sequence[HourlyRow]:
        return recount_rows(self.counted(), request, generation)

    async def recount_distinct(self, request: RecountRequest) -> Mapping[tuple[str, str, int], frozenset[str]]:
        return recount_distinct(self.counted(), request)

    async def archived_accounts(self, partition: int, from_account: str, count_max: int) -> Sequence[str]:
        accounts = {row.account.encode() for row in self.events.values() if row.partition == partition}
        return [account.decode() for account in sorted(accounts) if account >= from_account.encode()][:count_max]

    async def first_archived(self, partition: int) -> tuple[int, int] | None:
        rows = [row for row in self.events.values() if row.partition == partition]
        return (min(row.position for row in rows), min(row.stream_time_ms for row in rows)) if rows else None

    async def recount_totals(
        self, request: RecountRequest, before_ms: int | None = None
    ) -> Mapping[tuple[str, str, Period], int]:
        counted = [pair for pair in self.counted() if before_ms is None or pair[1].stream_time_ms < before_ms]
        return recount_totals(counted, request, before_ms)

    def counted(self, *, undecided: bool = False) -> Iterable[tuple[int, EventRow]]:
        """(position of arrival, event as it counts). A deferred event counts at the position of its dedup decision.
        With `undecided`, those that wait for their decision are there too."""
        for event in self.events.values():
            decision = self.decisions.get((event.partition, event.position, event.account))
            if not event.deferred or (undecided and decision is None):
                yield event.position, event
            elif decision is not None and decision.outcome is DedupOutcome.COUNTED:
                moved = event._replace(position=decision.decision_position, stream_time_ms=decision.stream_time_ms)
                yield event.position, moved

    async def hourly_cells(self, partition: int) -> Mapping[RecountKey, int]:
        return {
            key: row.value_minor for key, row in self.cells.items() if row.partition == partition and not _emptied(row)
        }

    async def conflicts(self, rows_max: int) -> Conflicts:
        counts: Counter[tuple[str, str]] = Counter()
        fields: dict[tuple[str, str], set[str]] = {}
        for row in self.duplicates.values():
            first = self.events.get((row.account, row.id))
            differing = [name for name in CONFLICT_FIELDS if first and getattr(first, name) != getattr(row, name)]
            if differing:
                counts[row.account, row.id] += 1
                fields.setdefault((row.account, row.id), set()).update(differing)
        rows = [
            Conflict(*identity, count, tuple(name for name in CONFLICT_FIELDS if name in fields[identity]))
            for identity, count in sorted(counts.items())
        ]
        return Conflicts(rows[:rows_max], len(rows))

    async def controls(self, partition: int, before_position: int) -> Sequence[ControlRow]:
        rows = [
            row
            for row in self.control_log.values()
            if row.partition == partition and row.position < before_position and row.kind != ControlKind.TICK
        ]
        return sorted(rows, key=lambda row: row.position)

    async def archived_events(self, partition: int, before_position: int) -> int:
        rows = (row for _, row in self.counted())
        return sum(row.partition == partition and row.position < before_position for row in rows)

    async def archive_positions(self) -> Mapping[int, ArchivePosition]:
        return dict(self.archived)

    async def close(self) -> None:
        """Nothing to release."""


def _emptied(row: HourlyRow) -> bool:
    """Whether a restatement moved all usage of the cell to another period."""
    return row.period_end_ms == row.period_start_ms


def _asked(query: UsageQuery, account: str, hour_ms: int) -> bool:
    return query.account in (None, account) and query.from_ms <= hour_ms < query.to_ms


def _groups(query: UsageQuery, account: str, dimensions: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(account if name == "account" else dimensions.get(name, "") for name in query.group_by)


def _merged(rows: Sequence[HourlyRow], aggregation: Aggregation) -> int:
    # Of equal values, the rule keeps the first; `merged_sql` takes the value of the greatest account.
    by_account = sorted(rows, key=lambda row: row.account, reverse=True)
    values = (Value(row.value_minor, row.latest_time_us, row.latest_position) for row in by_account)
    return aggregation.rule.merged(values).minor


def _answer(query: UsageQuery, values: Mapping[tuple[int | None, tuple[str, ...]], int]) -> list[UsageRow]:
    ordered = sorted(((start_ms or 0, groups), start_ms, value) for (start_ms, groups), value in values.items())
    return [
        UsageRow(start_ms, dict(zip(query.group_by, key[1], strict=True)), value)
        for key, start_ms, value in ordered
        if query.after is None or key > query.after
    ]


def window_start_ms(query: UsageQuery, hour_ms: int) -> int | None:
    """The start of the window that contains an hour: the first instant of the local day or month; None without one."""
    if query.window is None:
        return None
    if query.window is Window.HOUR:
        return hour_ms
    zone = ZoneInfo(query.time_zone)
    local = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=hour_ms)).astimezone(zone)
    start = local.replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
    if query.window is Window.MONTH:
        start = start.replace(day=1)
    return round(start.timestamp() * 1000)
