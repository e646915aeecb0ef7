"""`UsageReader` on ClickHouse: usage queries, recounts, conflicts and positions."""

from __future__ import annotations

import zoneinfo
from collections.abc import Mapping, Sequence
from itertools import compress
from typing import Any, Final

import msgspec

from schemas.aggregations import Aggregation
from schemas.analytics import (
    CONFLICT_FIELDS,
    PERIODS_MAX,
    USAGE_ROWS_MAX,
    ArchivePosition,
    Conflict,
    Conflicts,
    ControlRow,
    HourlyRow,
    PeriodLevel,
    PeriodQuery,
    PeriodUsage,
    RecountKey,
    RecountRequest,
    UsageQuery,
    UsageReader,
    UsageRow,
    Window,
)
from schemas.clock import HOUR_MS
from schemas.control import ControlKind, MeterSetRecord
from schemas.errors import InvalidInput
from schemas.log import POSITION_BITS, POSITION_MAX
from schemas.meters import Meter
from schemas.periods import Period
from sinks.clickhouse.client import ClickHouse, quoted_text
from sinks.clickhouse.recount import (
    Statements,
    cell_statements,
    counted_events,
    distinct_source,
    distinct_statements,
    row_statements,
    total_statements,
)

# A restatement that moves a cell's usage to another period leaves the cell with an empty period (end = start).
NOT_EMPTIED: Final = "period_end_ms > period_start_ms"

_dimension_json: Final = msgspec.json.Encoder(order="sorted").encode


class ClickHouseReader(UsageReader):
    """Reads from one `ClickHouse`. Answers contain everything that was written before the call."""

    def __init__(self, clickhouse: ClickHouse) -> None:
        self._clickhouse = clickhouse

    async def usage(
        self, query: UsageQuery, aggregation: Aggregation, rows_max: int = USAGE_ROWS_MAX
    ) -> Sequence[UsageRow]:
        """The rows of the answer, sorted by window and groups; no rows without usage.

        A window contains whole UTC hours: in a time zone whose offset is not a whole hour, an hour belongs to the day
        in which it begins. `unique` is counted over the archived events in every window. Raises `InvalidInput` if the
        query is invalid.
        """
        check_query(query)
        if aggregation.rule.distinct:
            return await self._usage_unique(query, rows_max)
        names = [name for name in query.group_by if name != "account"]
        dimensions = [f"JSONExtractString(dimensions, {quoted_text(name)})" for name in names]
        source = f"usage_hourly FINAL WHERE meter = {{meter:String}} AND {NOT_EMPTIED} AND "
        return await self._usage(query, dimensions, f"toInt256({aggregation.rule.merged_sql})", source, rows_max)

    async def _usage_unique(self, query: UsageQuery, rows_max: int) -> Sequence[UsageRow]:
        definition = await self._meter_in_force(query.meter)
        if definition is None:
            return []
        meter, in_force = definition
        names = sorted(meter.dimensions)
        dimensions = [
            f"dimensions[{names.index(name) + 1}]" if name in meter.dimensions else "''"
            for name in query.group_by
            if name != "account"
        ]
        source = f"({distinct_source(meter, in_force)}) WHERE "
        return await self._usage(query, dimensions, "toInt256(uniqExact((account, value)))", source, rows_max)

    async def _usage(
        self, query: UsageQuery, dimensions: list[str], value: str, source: str, rows_max: int
    ) -> Sequence[UsageRow]:
        pending = list(dimensions)
        groups = ["account" if name == "account" else pending.pop(0) for name in query.group_by]
        columns = ", ".join(f"{column} AS group_{number}" for number, column in enumerate([_window(query), *groups]))
        keys = ", ".join(f"group_{number}" for number in range(len(groups) + 1))
        chosen = "hour_ms >= {from:Int64} AND hour_ms < {to:Int64}"
        if query.account is not None:
            chosen += " AND account = {account:String}"
        behind = ""
        if query.after is not None:
            texts = "".join(f", {quoted_text(text)}" for text in query.after[1])
            behind = f"HAVING tuple({keys}) > tuple({int(query.after[0])}{texts}) "
        rows = await self._clickhouse.rows(
            f"SELECT {columns}, {value} FROM {source}{chosen} GROUP BY {keys} {behind}"  # noqa: S608  # quoted
            f"ORDER BY {keys} LIMIT {rows_max + 1}",
            {"meter": query.meter, "from": query.from_ms, "to": query.to_ms, "account": query.account or ""},
        )
        return [
            UsageRow(
                int(row[0]) if query.window else None,
                dict(zip(query.group_by, map(str, row[1:-1]), strict=True)),
                int(row[-1]),
            )
            for row in rows
        ]

    async def period_usage(
        self, query: PeriodQuery, aggregation: Aggregation, rows_max: int = PERIODS_MAX
    ) -> Sequence[PeriodUsage]:
        value = f"toInt256({aggregation.rule.merged_sql})"
        # A row of an earlier hour belongs to both parts: to the whole, and to what was carried in.
        parts = f"arrayJoin(if(hour_ms + {HOUR_MS} <= period_start_ms, [0, 1], [0])) AS part"
        rows = await self._clickhouse.rows(
            f"SELECT period_start_ms, argMax(period_end_ms, version), part, {value} FROM "  # noqa: S608  # constants
            f"(SELECT *, {parts} FROM usage_hourly FINAL WHERE meter = {{meter:String}} "
            f"AND account = {{account:String}} AND period_start_ms < {{to:Int64}} AND {NOT_EMPTIED}) "
            f"GROUP BY period_start_ms, part "
            f"HAVING argMax(period_end_ms, version) > {{from:Int64}} ORDER BY period_start_ms, part "
            f"LIMIT {2 * rows_max + 2}",
            {"meter": query.meter, "account": query.account, "from": query.from_ms, "to": query.to_ms},
        )
        periods: list[PeriodUsage] = []
        for start_ms, end_ms, part, minor in rows:
            if part:
                periods[-1] = periods[-1]._replace(carried_minor=int(minor))
            else:
                periods.append(PeriodUsage(Period(start_ms, end_ms), int(minor), None))
        return periods[: rows_max + 1]

    async def period_levels(self, meter: str, account: str, to_ms: int) -> Sequence[PeriodLevel]:
        newest = "(latest_time_us, latest_position)"
        rows = await self._clickhouse.rows(
            "SELECT start_ms, end_ms, argMax(minor, newest) OVER (ORDER BY start_ms) FROM "  # noqa: S608  # constants
            "(SELECT period_start_ms AS start_ms, argMax(period_end_ms, version) AS end_ms, "
            f"toInt256(argMax(value_minor, {newest})) AS minor, max({newest}) AS newest FROM usage_hourly FINAL "
            "WHERE meter = {meter:String} AND account = {account:String} AND period_start_ms < {to:Int64} "
            f"AND {NOT_EMPTIED} GROUP BY period_start_ms) ORDER BY start_ms DESC LIMIT {PERIODS_MAX}",
            {"meter": meter, "account": account, "to": to_ms},
        )
        return [PeriodLevel(Period(start_ms, end_ms), int(minor)) for start_ms, end_ms, minor in reversed(rows)]

    async def _meter_in_force(self, slug: str) -> tuple[Meter, str] | None:
        """A meter's definition and the SQL condition under which it was in force, from the archived meter sets."""
        rows = await self._clickhouse.rows(
            "SELECT partition, position, value FROM control_log FINAL WHERE kind = {kind:String} "
            "ORDER BY partition, position",
            {"kind": ControlKind.METER_SET.value},
        )
        definition: Meter | None = None
        spans: list[tuple[int, int, int]] = []
        for index, (partition, position, value) in enumerate(rows):
            meter = MeterSetRecord.model_validate_json(value).meter_set.meter(slug)
            if meter is None:
                continue
            definition = meter
            followed = index + 1 < len(rows) and rows[index + 1][0] == partition
            until = rows[index + 1][1] if followed else POSITION_MAX
            # A deferred event feeds the meter if the meter was in force at the event's arrival and at its decision.
            spans.append((partition, position, until))
        return (definition, f"({_within('arrived', spans)} AND {_within('position', spans)})") if definition else None

    async def recount_cells(self, request: RecountRequest) -> Mapping[RecountKey, int]:
        """Value per cell in minor units. A `unique` cell without a new distinct value has 0.

        Raises `OperatorNeeded` if an archived quantity is not exact or the boundaries do not cover an event.
        """
        cells = {}
        statements = cell_statements(request)
        for row in await self._rows_of(statements):
            meter = statements.meters[row[0]]
            dimensions = _dimension_json(dict(zip(sorted(meter.dimensions), row[4], strict=False))).decode()
            cells[RecountKey(row[1], meter.slug, row[2], row[3], dimensions, row[5])] = int(row[6])
        return cells

    async def recount_rows(self, request: RecountRequest, generation: int) -> Sequence[HourlyRow]:
        statements = row_statements(request)
        rows = []
        for row in await self._rows_of(statements):
            meter = statements.meters[row[0]]
            dimensions = _dimension_json(dict(zip(sorted(meter.dimensions), row[4], strict=False))).decode()
            latest = (int(row[8]), int(row[9])) if meter.aggregation.rule.ordered else (0, 0)
            version = generation << POSITION_BITS | int(row[10])
            rows.append(
                HourlyRow(
                    row[1], meter.slug, row[2], row[7], row[3], dimensions, row[5], meter.aggregation, meter.scale,
                    int(row[6]), *latest, request.partition, version,
                )
            )  # fmt: skip
        return sorted(rows, key=lambda row: row.account.encode())

    async def recount_distinct(self, request: RecountRequest) -> Mapping[tuple[str, str, int], frozenset[str]]:
        statements = distinct_statements(request)
        return {
            (row[1], statements.meters[row[0]].slug, int(row[2])): frozenset(row[3])
            for row in await self._rows_of(statements)
        }

    async def archived_accounts(self, partition: int, from_account: str, count_max: int) -> Sequence[str]:
        rows = await self._clickhouse.rows(
            "SELECT DISTINCT account FROM usage_events WHERE partition = {partition:UInt16} "
            "AND account >= {from:String} ORDER BY account LIMIT {count:UInt32}",
            {"partition": partition, "from": from_account, "count": count_max},
        )
        return [str(account) for (account,) in rows]

    async def first_archived(self, partition: int) -> tuple[int, int] | None:
        rows = await self._clickhouse.rows(
            "SELECT count(), min(position), toUnixTimestamp64Milli(min(stream_time)) FROM usage_events "
            "WHERE partition = {partition:UInt16}",
            {"partition": partition},
        )
        return (int(rows[0][1]), int(rows[0][2])) if rows[0][0] else None

    async def recount_totals(
        self, request: RecountRequest, before_ms: int | None = None
    ) -> Mapping[tuple[str, str, Period], int]:
        statements = total_statements(request, before_ms)
        return {
            (row[1], statements.meters[row[0]].slug, Period(row[2], row[3])): int(row[4])
            for row in await self._rows_of(statements)
        }

    async def _rows_of(self, statements: Statements) -> list[tuple[Any, ...]]:
        return [row for sql in statements.sql for row in await self._clickhouse.rows(sql)]

    async def hourly_cells(self, partition: int) -> Mapping[RecountKey, int]:
        wanted = f"partition = {{partition:UInt16}} AND {NOT_EMPTIED}"
        rows = await self._clickhouse.rows(
            "SELECT account, meter, period_start_ms, hour_ms, dimensions, arrival_bucket_ms, "  # noqa: S608  # constants
            f"value_minor FROM usage_hourly FINAL WHERE {wanted}",
            {"partition": partition},
        )
        return {RecountKey(*row[:6]): int(row[6]) for row in rows}

    async def conflicts(self, rows_max: int) -> Conflicts:
        rows = await self._clickhouse.rows(
            "SELECT account, id, count(), max(type != counted_type), max(source != counted_source), "
            "max(data != counted_data) FROM duplicates WHERE conflict GROUP BY account, id ORDER BY account, id "
            "LIMIT {rows_max:UInt64}",
            {"rows_max": rows_max},
        )
        events = len(rows)
        if events >= rows_max:
            counted = await self._clickhouse.rows("SELECT uniqExact(account, id) FROM duplicates WHERE conflict")
            events = max(events, int(counted[0][0]))
        conflicts = [
            Conflict(str(row[0]), str(row[1]), int(row[2]), tuple(compress(CONFLICT_FIELDS, row[3:]))) for row in rows
        ]
        return Conflicts(conflicts, events)

    async def controls(self, partition: int, before_position: int) -> Sequence[ControlRow]:
        rows = await self._clickhouse.rows(
            "SELECT partition, position, kind, account, stream_time_ms, value FROM control_log FINAL "
            "WHERE partition = {partition:UInt16} AND position < {before:UInt64} AND kind != 'tick' ORDER BY position",
            {"partition": partition, "before": before_position},
        )
        return [ControlRow(*row) for row in rows]

    async def archived_events(self, partition: int, before_position: int) -> int:
        """How many events of a partition count below a position. An identity counts once, at the position of its first
        arrival or, if that was deferred, of its dedup decision."""
        rows = await self._clickhouse.rows(
            f"SELECT count() FROM ({counted_events('partition = {partition:UInt16}')}) "  # noqa: S608  # a constant
            "WHERE position < {before:UInt64}",
            {"partition": partition, "before": before_position},
        )
        return int(rows[0][0])

    async def archive_positions(self) -> Mapping[int, ArchivePosition]:
        rows = await self._clickhouse.rows(
            "SELECT partition, next_offset, stream_time_ms, log_id FROM archive_positions FINAL"
        )
        return {int(row[0]): ArchivePosition(*row) for row in rows}

    async def close(self) -> None:
        """Release the connections. Safe to call twice."""
        await self._clickhouse.close()


def _within(column: str, spans: Sequence[tuple[int, int, int]]) -> str:
    """An SQL condition: the column's position lies in one of the spans (partition, after, before)."""
    conditions = (f"(partition = {span[0]} AND {column} > {span[1]} AND {column} < {span[2]})" for span in spans)
    return f"({' OR '.join(conditions)})"


def check_query(query: UsageQuery) -> None:
    """Raise `InvalidInput` if a query is invalid."""
    if query.from_ms % HOUR_MS or query.to_ms % HOUR_MS:
        raise InvalidInput("from", "from and to must be whole hours, such as 2026-11-21T10:00:00Z")
    if query.to_ms < query.from_ms:
        raise InvalidInput("to", "must not be before from")
    if query.time_zone not in zoneinfo.available_timezones():
        raise InvalidInput("time_zone", "must be a name of the time zone database, such as Europe/Berlin")
    if len(set(query.group_by)) < len(query.group_by):
        raise InvalidInput("group_by", "names a group twice")


def _window(query: UsageQuery) -> str:
    zone = quoted_text(query.time_zone)
    local = f"fromUnixTimestamp64Milli(hour_ms, {zone})"
    if query.window is None:
        return "toInt64(0)"
    if query.window is Window.HOUR:
        return "hour_ms"
    start = "toStartOfDay" if query.window is Window.DAY else "toStartOfMonth"
    return f"toUnixTimestamp64Milli(toDateTime64({start}({local}), 3, {zone}))"
