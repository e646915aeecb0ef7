"""`MeasuredRecount` on ClickHouse: the SQL of the recount reads samples and adjustments."""

# ruff: noqa: S608  # every value in these statements is a number or went through quoted_text or json_literal
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from schemas.adjustments import adjusted_type, adjusting
from schemas.clock import MILLISECOND_US
from schemas.measured_recount import Adjusted, MeasuredPage, MeasuredRecount, RecountedSample, UsageKey
from schemas.meters import Meter
from sinks.clickhouse.client import ClickHouse, json_literal, quoted_text
from sinks.clickhouse.reader import NOT_EMPTIED
from sinks.clickhouse.recount import counted_events, read_as

# Behind the names of all dimensions.
_LAST: Final = "~"


class ClickHouseMeasuredRecount(MeasuredRecount):
    """Reads from one `ClickHouse`, which the caller closes."""

    def __init__(self, clickhouse: ClickHouse) -> None:
        self._clickhouse = clickhouse

    async def measured_accounts(self, partition: int, meter: Meter, after: str, accounts_max: int) -> Sequence[str]:
        """See `MeasuredRecount`."""
        types = ", ".join(map(quoted_text, (meter.event_type, adjusted_type(meter.slug))))
        rows = await self._clickhouse.rows(
            f"SELECT DISTINCT account FROM usage_events WHERE partition = {int(partition)} AND type IN ({types}) "
            f"AND account > {quoted_text(after)} ORDER BY account LIMIT {int(accounts_max)}"
        )
        return [str(account) for (account,) in rows]

    async def samples_of(self, page: MeasuredPage, rows_max: int) -> Sequence[RecountedSample]:
        """See `MeasuredRecount`."""
        meter = form = page.meter
        path = meter.series_path or meter.session_path or meter.start_path
        if path is not None:
            form = meter.model_copy(update={"dimensions": {**meter.dimensions, _LAST: path}})
        spanned = " OR ".join(f"(arrived >= {int(start)} AND arrived < {int(end)})" for start, end in page.spans) or "0"
        counted = counted_events(_chosen(page, meter.event_type))
        source = read_as(form, f"SELECT * FROM ({counted}) WHERE position < {int(page.before)} AND ({spanned})")
        filled = "notEmpty(dimensions[-1])" if meter.session_path is not None else "1"
        corrected = (
            "(account, id) IN (SELECT account, JSONExtractString(value, 'event') FROM control_log FINAL "
            f"WHERE kind = 'correction' AND partition = {int(page.partition)})"
        )
        of_page = f"time_us >= {int(page.from_ms) * MILLISECOND_US}"
        statement = f"SELECT * FROM ({source}) WHERE {filled} AND ({of_page} OR {corrected})"
        if meter.start_path is None:
            statement += (
                f" UNION ALL SELECT * FROM ({source}) WHERE {filled} AND NOT {of_page} AND NOT {corrected} "
                "ORDER BY time_us DESC, arrived DESC LIMIT 1 BY account, dimensions"
            )
        columns = "account, id, time_us, arrived, stream_time_ms, minor, dimensions"
        rows = await self._clickhouse.rows(f"SELECT {columns} FROM ({statement}) LIMIT {int(rows_max)}")
        return [
            RecountedSample(
                str(row[0]), str(row[1]), int(row[2]), int(row[3]), int(row[4]), int(row[5]),
                _dimensions(meter, row[6]), str(row[6][-1]) if path is not None else "",
            )
            for row in rows
        ]  # fmt: skip

    async def adjusted(self, page: MeasuredPage, rows_max: int) -> Sequence[Adjusted]:
        """See `MeasuredRecount`."""
        form = adjusting(page.meter) or page.meter
        counted = counted_events(_chosen(page, form.event_type), "'counted', ''")
        source = read_as(form, f"SELECT * FROM ({counted}) WHERE arrived < {int(page.before)}")
        rows = await self._clickhouse.rows(
            f"SELECT account, dimensions, time_ms, stream_time_ms, minor FROM ({source}) "
            f"WHERE time_ms >= {int(page.from_ms)} LIMIT {int(rows_max)}"
        )
        return [
            # Without a decision there is no time of a decision.
            Adjusted(str(row[0]), _dimensions(form, row[1]), int(row[2]), int(row[3]) or None, int(row[4]))
            for row in rows
        ]

    async def usage_by_hour(self, page: MeasuredPage, before_ms: int) -> Mapping[UsageKey, int]:
        """See `MeasuredRecount`."""
        rows = await self._clickhouse.rows(
            f"SELECT account, dimensions, hour_ms, sum(value_minor) FROM usage_hourly FINAL "
            f"WHERE meter = {quoted_text(page.meter.slug)} AND {_accounts(page.accounts)} "
            f"AND partition = {int(page.partition)} AND hour_ms >= {int(page.from_ms)} "
            f"AND arrival_bucket_ms < {int(before_ms)} AND {NOT_EMPTIED} GROUP BY account, dimensions, hour_ms"
        )
        return {UsageKey(str(row[0]), str(row[1]), int(row[2])): int(row[3]) for row in rows}


def _chosen(page: MeasuredPage, event_type: str) -> str:
    return f"partition = {int(page.partition)} AND type = {quoted_text(event_type)} AND {_accounts(page.accounts)}"


def _accounts(accounts: Sequence[str]) -> str:
    return f"account IN (SELECT arrayJoin({json_literal(list(accounts), 'Array(String)')}))"


def _dimensions(meter: Meter, values: Sequence[str]) -> str:
    named = dict(zip(sorted(meter.dimensions), values, strict=False))
    return msgspec.json.encode(named, order="sorted").decode()
