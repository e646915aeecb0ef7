"""`UsageEvidence` on ClickHouse."""

from __future__ import annotations

from collections.abc import Sequence

from schemas.clock import HOUR_MS, MILLISECOND_US
from schemas.meters import Meter
from schemas.periods import Period
from schemas.usage_evidence import EventUsage, HourUsage, UsageEvidence
from sinks.clickhouse.client import ClickHouse, quoted_text
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

    async def events(self, account: str, meter: Meter, hour_ms: int, after: str, rows_max: int) -> Sequence[EventUsage]:
        """See `UsageEvidence`."""
        start_us, end_us = hour_ms * MILLISECOND_US, (hour_ms + HOUR_MS) * MILLISECOND_US
        condition = (
            f"account = {quoted_text(account)} AND type = {quoted_text(meter.event_type)} "
            f"AND time >= fromUnixTimestamp64Micro({start_us}, 'UTC') "
            f"AND time < fromUnixTimestamp64Micro({end_us}, 'UTC') AND id > {quoted_text(after)}"
        )
        names = f"SELECT id, partition, position AS arrived FROM usage_events FINAL WHERE {condition}"  # noqa: S608
        rows = await self._clickhouse.rows(
            f"SELECT id, time_us, value FROM ({event_source(meter, condition)}) AS counted "  # noqa: S608  # quoted
            f"INNER JOIN ({names}) AS named USING (partition, arrived) ORDER BY id LIMIT {int(rows_max)}"
        )
        return [EventUsage(str(identifier), int(time_us), str(value)) for identifier, time_us, value in rows]
