"""`MeasureArchive` on ClickHouse."""

# ruff: noqa: S608  # every value in these statements is a number or went through quoted_text or json_literal
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from schemas.adjustments import ADJUSTED_PREFIX
from schemas.clock import SECOND_US
from schemas.measures import ArchivedAdjustment, ArchivedSample, MeasureArchive, MeasuredSpan
from schemas.meters import SPAN_S_MAX, Meter, path_keys
from sinks.clickhouse.client import ClickHouse, json_literal, quoted_text
from sinks.clickhouse.event_values import judged_source
from sinks.clickhouse.recount import counted_events

_PLAIN_INSTANT: Final = (
    r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}([.][0-9]{1,6})?(Z|[+-][0-9]{2}:[0-9]{2})$"
)
# The events that a correction has voided: of the records with one name the first counts, whatever its event. The last
# correction of an event decides.
_NAMED = (
    "SELECT account, JSONExtractString(value, 'event') AS id, JSONExtractString(value, 'kind') AS does, "
    "JSONExtractBool(value, 'counts') AS counts, position FROM control_log FINAL WHERE kind = 'correction' "
    "ORDER BY position LIMIT 1 BY account, JSONExtractString(value, 'correction')"
)
_VOIDED = f"SELECT account, id FROM ({_NAMED}) WHERE counts GROUP BY account, id HAVING argMax(does, position) = 'void'"


class ClickHouseMeasures(MeasureArchive):
    """Reads from one `ClickHouse`, which the caller closes."""

    def __init__(self, clickhouse: ClickHouse) -> None:
        self._clickhouse = clickhouse

    async def sampled(
        self, partition: int, meter: Meter, spans: Sequence[MeasuredSpan], since: int, before: int
    ) -> Mapping[str, int]:
        """See `MeasureArchive`."""
        chosen = f"partition = {int(partition)} AND type = {quoted_text(meter.event_type)}"
        within = f"position >= {int(since)} AND position < {int(before)}"
        rows = await self._clickhouse.rows(
            f"SELECT account, min({_covers_from_us(meter)}) FROM ({counted_events(chosen)}) "
            f"WHERE {within} AND {_within(spans)} GROUP BY account"
        )
        found = {str(account): int(time_us) for account, time_us in rows}
        # A correction changes what a sample was, whenever that was.
        for account, time_us in (await self._corrected(partition, meter, within)).items():
            found[account] = min(time_us, found.get(account, time_us))
        return found

    async def corrected(self, partition: int, meter: Meter, since_ms: int, before: int) -> Mapping[str, int]:
        """See `MeasureArchive`."""
        within = f"stream_time_ms >= {int(since_ms)} AND position < {int(before)}"
        return await self._corrected(partition, meter, within)

    async def _corrected(self, partition: int, meter: Meter, within: str) -> Mapping[str, int]:
        events = (
            "SELECT account, JSONExtractString(value, 'event') AS id FROM control_log FINAL "
            f"WHERE kind = 'correction' AND partition = {int(partition)} AND {within}"
        )
        rows = await self._clickhouse.rows(
            f"SELECT account, min({_covers_from_us(meter)}) FROM usage_events FINAL "
            f"WHERE partition = {int(partition)} AND type = {quoted_text(meter.event_type)} "
            f"AND (account, id) IN ({events}) GROUP BY account"
        )
        return {str(account): int(time_us) for account, time_us in rows}

    async def samples(
        self,
        partition: int,
        meter: Meter,
        spans: Sequence[MeasuredSpan],
        accounts: Sequence[str],
        from_us: int,
        before: int,
        rows_max: int,
        until_us: int | None = None,
    ) -> Sequence[ArchivedSample]:
        """See `MeasureArchive`."""
        chosen = (
            f"partition = {int(partition)} AND type = {quoted_text(meter.event_type)} "
            f"AND account IN (SELECT arrayJoin({json_literal(list(accounts), 'Array(String)')})) "
            f"AND (account, id) NOT IN ({_VOIDED})"
        )
        fields = "account, time_us, arrived, data"
        columns = fields.replace("time_us", "toUnixTimestamp64Micro(time) AS time_us")
        source = f"SELECT {columns} FROM ({counted_events(chosen)}) WHERE position < {int(before)} AND {_within(spans)}"
        ends = "" if until_us is None else f" AND time_us < {int(until_us)}"
        statement = f"SELECT * FROM ({source}) WHERE time_us >= {int(from_us)}{ends}"
        if meter.start_path is None:
            earlier = f"SELECT * FROM ({source}) WHERE time_us < {int(from_us)}{_reaches(meter, from_us)}"
            statement += (
                f" UNION ALL SELECT {fields} FROM ({judged_source(earlier, meter, _apart(meter))}) "
                "ORDER BY time_us DESC, arrived DESC LIMIT 1 BY account, texts, usable"
            )
        rows = await self._clickhouse.rows(f"SELECT * FROM ({statement}) LIMIT {int(rows_max)}")
        return [ArchivedSample(str(row[0]), int(row[1]), int(row[2]), str(row[3])) for row in rows]

    async def bound(self, partition: int, since: int, before: int) -> Mapping[str, int]:
        """See `MeasureArchive`."""
        rows = await self._clickhouse.rows(
            "SELECT account, min(JSONExtractInt(value, 'binding', 'effective_from_ms')) FROM control_log FINAL "
            f"WHERE kind = 'binding' AND partition = {int(partition)} AND position >= {int(since)} "
            f"AND position < {int(before)} GROUP BY account"
        )
        return {str(account): int(from_ms) for account, from_ms in rows}

    async def told(
        self,
        partition: int,
        accounts: Sequence[str],
        prefix: str,
        before: int,
        from_us: int = 0,
        until_us: int | None = None,
        rows_max: int | None = None,
    ) -> Sequence[ArchivedAdjustment]:
        """See `MeasureArchive`."""
        ends = "" if until_us is None else f"AND time < fromUnixTimestamp64Micro({int(until_us)}, 'UTC') "
        limit = "" if rows_max is None else f" LIMIT {int(rows_max)}"
        rows = await self._clickhouse.rows(
            f"SELECT account, id, data FROM usage_events FINAL WHERE partition = {int(partition)} "
            f"AND account IN (SELECT arrayJoin({json_literal(list(accounts), 'Array(String)')})) "
            f"AND startsWith(id, {quoted_text(prefix)}) AND startsWith(type, {quoted_text(ADJUSTED_PREFIX)}) "
            f"AND position < {int(before)} "
            f"AND time >= fromUnixTimestamp64Micro({int(from_us)}, 'UTC') {ends}ORDER BY position{limit}"
        )
        return [ArchivedAdjustment(str(account), str(identifier), str(data)) for account, identifier, data in rows]


def _covers_from_us(meter: Meter) -> str:
    """SQL: the instant from which on a sample covers time, in microseconds. A start that is not plainly written is as
    early as it may be."""
    if meter.start_path is None:
        return "toUnixTimestamp64Micro(time)"
    keys = ", ".join(quoted_text(key) for key in path_keys(meter.start_path))
    start, first = f"JSONExtractString(data, {keys})", f"toUnixTimestamp64Micro(time) - {SPAN_S_MAX * SECOND_US}"
    read_us = f"toUnixTimestamp64Micro(parseDateTime64BestEffortOrNull({start}, 6, 'UTC'))"
    return f"if(match({start}, {quoted_text(_PLAIN_INSTANT)}), greatest(ifNull({read_us}, {first}), {first}), {first})"


def _within(spans: Sequence[MeasuredSpan]) -> str:
    spanned = (f"arrived >= {int(start)} AND arrived < {int(before)}" for start, before in spans)
    return f"({' OR '.join(spanned)})" if spans else "0"


def _apart(meter: Meter) -> list[str]:
    """The paths whose texts keep samples apart: what differs there may be of another series, or no sample at all."""
    paths = [*meter.dimensions.values(), *(condition.path for condition in meter.filters)]
    return paths + [path for path in (meter.series_path, meter.session_path) if path is not None]


def _reaches(meter: Meter, from_us: int) -> str:
    """SQL, beginning with AND: a sample from before an instant may still have effect at the instant."""
    reaches_s = meter.session_gap_s_max if meter.session_path is not None else meter.stands_s_max
    return "" if reaches_s is None else f" AND time_us >= {int(from_us) - reaches_s * SECOND_US}"
