"""`UsageEvidence` on ClickHouse."""

from __future__ import annotations

from collections.abc import Sequence

from schemas.adjustments import forms_of
from schemas.clock import HOUR_MS, MILLISECOND_US
from schemas.meters import Meter
from schemas.periods import Period
from schemas.usage_evidence import ArchivedEvent, Arrivals, EventUsage, HourUsage, Repeat, UsageEvidence
from sinks.clickhouse.client import ClickHouse, json_literal, quoted_text
from sinks.clickhouse.reader import NOT_EMPTIED
from sinks.clickhouse.recount import event_source


class ClickHouseEvidence(UsageEvidence):
    """Reads from one `ClickHouse`, which the caller closes."""

    def __init__(self, clickhouse: ClickHouse) -> None:
        self._clickhouse = clickhouse

    async def hours(
        self, account: str, meter: Meter, span: Period, after_ms: int, rows_max: int
    ) -> Sequence[HourUsage]:
        """See `UsageEvidence`."""
        value = f"toInt256({meter.aggregation.rule.merged_sql})"
        rows = await self._clickhouse.rows(
            f"SELECT hour_ms, {value} FROM usage_hourly FINAL WHERE meter = {{meter:String}} "  # noqa: S608  # constants
            f"AND account = {{account:String}} AND {NOT_EMPTIED} AND hour_ms > {{after:Int64}} "
            "AND period_start_ms >= {from:Int64} AND period_start_ms < {to:Int64} "
            f"GROUP BY hour_ms ORDER BY hour_ms LIMIT {int(rows_max)}",
            {"meter": meter.slug, "account": account, "after": after_ms, "from": span.start_ms, "to": span.end_ms},
        )
        return [HourUsage(int(hour_ms), int(minor)) for hour_ms, minor in rows]

    async def events(
        self, account: str, meter: Meter, hour_ms: int, after: str, rows_max: int, span: Period | None = None
    ) -> Sequence[EventUsage]:
        """See `UsageEvidence`."""
        start_us, end_us = hour_ms * MILLISECOND_US, (hour_ms + HOUR_MS) * MILLISECOND_US
        condition = (
            f"account = {quoted_text(account)} AND {_has_type(meter)} "
            f"AND time >= fromUnixTimestamp64Micro({start_us}, 'UTC') "
            f"AND time < fromUnixTimestamp64Micro({end_us}, 'UTC') AND id > {quoted_text(after)}"
        )
        names = f"SELECT id, partition, position AS arrived FROM usage_events FINAL WHERE {condition}"  # noqa: S608
        rows = await self._clickhouse.rows(
            f"SELECT id, time_us, value FROM ({event_source(meter, condition)}) AS counted "  # noqa: S608  # quoted
            f"INNER JOIN ({names}) AS named USING (partition, arrived) {_counted_in(account, meter, hour_ms, span)}"
            f"ORDER BY id LIMIT {int(rows_max)}"
        )
        return [EventUsage(str(identifier), int(time_us), str(value)) for identifier, time_us, value in rows]

    async def arrivals(self, account: str, event_type: str, span: Period) -> Arrivals:
        """See `UsageEvidence`."""
        chosen = (
            "account = {account:String} AND type = {type:String} "
            "AND time >= fromUnixTimestamp64Milli({from:Int64}, 'UTC') "
            "AND time < fromUnixTimestamp64Milli({to:Int64}, 'UTC')"
        )
        parameters = {"account": account, "type": event_type, "from": span.start_ms, "to": span.end_ms}
        ((events, deferred),) = await self._clickhouse.rows(
            f"SELECT count(), countIf(deferred = 1) FROM usage_events FINAL WHERE {chosen}",  # noqa: S608  # constants
            parameters,
        )
        # The view joins each arrival with the event that counted; the table alone has no index by account.
        ((repeats, conflicts),) = await self._clickhouse.rows(
            f"SELECT count(), countIf(conflict) FROM duplicates WHERE {chosen}",  # noqa: S608  # constants
            parameters,
        )
        return Arrivals(int(events), int(repeats), int(conflicts), int(deferred))

    async def event(self, account: str, identifier: str) -> ArchivedEvent | None:
        """See `UsageEvidence`."""
        rows = await self._clickhouse.rows(
            "SELECT first.account, first.id, first.type, first.source, toUnixTimestamp64Micro(first.time), first.data, "
            "first.partition, first.position, toUnixTimestamp64Milli(first.stream_time), first.deferred, "
            "judged.decided_ms, judged.outcome FROM (SELECT * FROM usage_events FINAL "
            "WHERE account = {account:String} AND id = {id:String}) AS first "
            "LEFT JOIN (SELECT partition, position, account, toNullable(stream_time_ms) AS decided_ms, outcome "
            "FROM dedup_decisions FINAL) AS judged ON judged.partition = first.partition "
            "AND judged.position = first.position AND judged.account = first.account LIMIT 1",
            {"account": account, "id": identifier},
        )
        if not rows:
            return None
        (row,) = rows
        is_deferred, arrived_ms = bool(row[9]), int(row[8])
        decided_ms = None if row[10] is None else int(row[10])
        counted_ms = decided_ms if is_deferred else arrived_ms
        return ArchivedEvent(
            account=str(row[0]),
            id=str(row[1]),
            type=str(row[2]),
            source=str(row[3]),
            time_us=int(row[4]),
            data=str(row[5]),
            partition=int(row[6]),
            position=int(row[7]),
            arrived_ms=arrived_ms,
            is_deferred=is_deferred,
            counted_ms=counted_ms,
            outcome=str(row[11]),
        )

    async def accounts_of(self, identifier: str, rows_max: int) -> Sequence[str]:
        """See `UsageEvidence`."""
        rows = await self._clickhouse.rows(
            "SELECT DISTINCT account FROM usage_events WHERE id = {id:String} ORDER BY account LIMIT {most:UInt64}",
            {"id": identifier, "most": rows_max},
        )
        return [str(account) for (account,) in rows]

    async def repeats(self, account: str, identifiers: Sequence[str], rows_max: int) -> Sequence[Repeat]:
        """See `UsageEvidence`."""
        named = json_literal(list(identifiers), "Array(String)")
        rows = await self._clickhouse.rows(
            "SELECT id, toUnixTimestamp64Milli(stream_time) AS again_ms, conflict FROM duplicates "  # noqa: S608  # quoted
            f"WHERE account = {{account:String}} AND id IN (SELECT arrayJoin({named})) "
            f"ORDER BY id, again_ms LIMIT {int(rows_max)}",
            {"account": account},
        )
        return [Repeat(str(identifier), int(again_ms), bool(conflict)) for identifier, again_ms, conflict in rows]

    async def used(self, meter: Meter, event: ArchivedEvent) -> EventUsage | None:
        """See `UsageEvidence`."""
        condition = f"account = {quoted_text(event.account)} AND id = {quoted_text(event.id)} AND {_has_type(meter)}"
        rows = await self._clickhouse.rows(f"SELECT time_us, value FROM ({event_source(meter, condition)}) LIMIT 1")  # noqa: S608  # quoted
        return EventUsage(event.id, int(rows[0][0]), str(rows[0][1])) if rows else None

    async def periods(self, account: str, meter: Meter, hour_ms: int, arrived_ms: int) -> Sequence[Period]:
        """See `UsageEvidence`."""
        rows = await self._clickhouse.rows(
            "SELECT period_start_ms, argMax(period_end_ms, version) FROM usage_hourly FINAL "  # noqa: S608  # constants
            f"WHERE meter = {{meter:String}} AND account = {{account:String}} AND {NOT_EMPTIED} "
            "AND hour_ms = {hour:Int64} AND arrival_bucket_ms = {bucket:Int64} "
            "GROUP BY period_start_ms ORDER BY period_start_ms LIMIT 10",
            {
                "meter": meter.slug, "account": account, "hour": hour_ms,
                "bucket": arrived_ms - arrived_ms % HOUR_MS,
            },
        )  # fmt: skip
        return [Period(int(start_ms), int(end_ms)) for start_ms, end_ms in rows]


def _has_type(meter: Meter) -> str:
    """SQL: events of the type add to the meter."""
    return f"type IN ({', '.join(quoted_text(form.event_type) for form in forms_of(meter))})"


def _counted_in(account: str, meter: Meter, hour_ms: int, span: Period | None) -> str:
    """SQL: the event arrived in an hour whose usage is counted in the span."""
    if span is None:
        return ""
    return (
        f"WHERE stream_time_ms - positiveModulo(stream_time_ms, {HOUR_MS}) IN (SELECT arrival_bucket_ms "  # noqa: S608  # quoted
        f"FROM usage_hourly FINAL WHERE meter = {quoted_text(meter.slug)} AND account = {quoted_text(account)} "
        f"AND {NOT_EMPTIED} AND hour_ms = {int(hour_ms)} AND period_start_ms >= {int(span.start_ms)} "
        f"AND period_start_ms < {int(span.end_ms)}) "
    )
