"""`GET /v1/usage` (ClickHouse, over time) and `GET /v1/usage/current` (Redis, the current period).

Every answer has `complete_up_to`: all events that arrived in the log before that instant, and that are counted in the
answer's periods or hours, are in the answer (I11).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from typing import Annotated, Any, Final, NamedTuple
from zoneinfo import ZoneInfo

from fastapi import Query
from starlette.responses import Response

from aggregators.bindings import is_payable_in
from aggregators.codec import parse_value
from aggregators.deferred import complete_up_to_ms
from aggregators.instants import format_instant_ms
from aggregators.partitioning import partition_of
from aggregators.periods import is_closed, open_period, period_at
from aggregators.quantities import decimal_text
from pipeline.http import models
from pipeline.http.api_keys import ApiKey
from pipeline.http.cursors import continued, cursor_behind
from pipeline.http.dependencies import Analytics, GatewayDependencies, Live, LiveUsage, Reader
from pipeline.http.errors import ApiError, json_answer, retry_after
from pipeline.http.queries import AccountInPath, AccountParameters, UsageParameters
from schemas.analytics import (
    USAGE_ROWS_MAX,
    ArchivePosition,
    HourlyStore,
    RelayPosition,
    UsageQuery,
    UsageReader,
    UsageRow,
    Window,
)
from schemas.clock import DAY_MS
from schemas.events import NAME_CHARACTERS_MAX
from schemas.meters import Meter, MeterSet, Policy
from schemas.periods import AccountState, Period
from schemas.rollup import Checkpoint, TotalKey, Waiting

# Limit of reads for one answer. A binding between two reads may change the account's period, so the read repeats.
READS_MAX: Final = 4
SPAN_DAYS_MAX: Final = {Window.HOUR: 366, Window.DAY: 3_660, Window.MONTH: 36_600, None: 36_600}
ACCOUNT_DIMENSION: Final = "account"


class Counted(NamedTuple):
    """The data of an answer on current usage."""

    state: AccountState
    period: Period
    now_ms: int
    before: Checkpoint
    waiting: Waiting
    checkpoint: Checkpoint
    totals: Mapping[str, str]


class UsageEndpoints:
    """The handlers. An app has one object."""

    def __init__(self, dependencies: GatewayDependencies) -> None:
        self._dependencies = dependencies

    async def over_time(
        self, key: Reader, reader: Analytics, parameters: Annotated[UsageParameters, Query()]
    ) -> Response:
        """The usage of one meter over time, from ClickHouse. Rows are sorted by window and groups. Windows without
        usage have no row."""
        query, meter = usage_query(parameters, await self._dependencies.meter_set(), key)
        # Read before the rows, so the rows are never older.
        complete_up_to_ms = await self._complete_up_to_ms(reader, query, meter)
        limit = parameters.limit or USAGE_ROWS_MAX
        rows = await reader.usage(query, meter.aggregation, limit)
        if len(rows) > limit and parameters.limit is None and parameters.cursor is None:
            # Without a limit the client does not expect pages: a part of the answer would be taken for the whole.
            message = f"the answer has more than {limit} rows: ask for pages with `limit`, or for less"
            raise ApiError(400, "answer_too_large", message, "limit")
        answer = models.UsageOverTime.model_construct(
            meter=meter.slug,
            unit=meter.unit,
            aggregation=meter.aggregation.value,
            account=query.account,
            from_=format_instant_ms(query.from_ms),
            to=format_instant_ms(query.to_ms),
            window=query.window.value if query.window else None,
            timezone=query.time_zone,
            group_by=list(query.group_by),
            complete_up_to=_instant(complete_up_to_ms),
            rows=[_row(row, meter) for row in rows[:limit]],
        )
        if len(rows) > limit:
            answer = answer.model_copy(update={"next_cursor": cursor_behind(query, rows[limit - 1])})
        return json_answer(answer)

    async def current(self, _key: Reader, live: Live, parameters: Annotated[AccountParameters, Query()]) -> Response:
        """The account's usage in the current period, live from Redis."""
        return await self._current(live, parameters.account)

    async def current_by_path(self, _key: Reader, live: Live, account: AccountInPath) -> Response:
        """The account's usage in the current period, live from Redis. A client may change the names `.` and `..` in a
        path before it sends them; `/v1/usage/current` takes every name."""
        if not 0 < len(account) <= NAME_CHARACTERS_MAX:
            raise ApiError(400, "bad_parameter", f"must have 1 to {NAME_CHARACTERS_MAX} characters", "account")
        return await self._current(live, account)

    async def _current(self, live: LiveUsage, account: str) -> Response:
        counted = await self.counted(live, account)
        period, checkpoint, waiting = counted.period, counted.checkpoint, counted.waiting
        if (
            checkpoint.meter_set
            and period.end_ms + checkpoint.meter_set.policy.periods_kept_ms <= checkpoint.stream_time_ms
        ):
            message = "the log is far ahead of this gateway's clock: the live view no longer has the current period"
            raise ApiError(503, "not_live", f"{message}; use GET /v1/usage", headers=retry_after(60))
        deferred = {"deferred": waiting.events} if waiting.events else {}
        return json_answer(
            models.CurrentUsage(
                account=account,
                period_start=format_instant_ms(period.start_ms),
                period_end=format_instant_ms(period.end_ms),
                **_state(counted),
                complete_up_to=format_instant_ms(complete_up_to_ms(counted.before, waiting, checkpoint)),
                **deferred,
                meters=[
                    models.MeterValue(
                        meter=meter.slug,
                        value=live_value(counted.totals.get(meter.slug), meter),
                        unit=meter.unit,
                        aggregation=meter.aggregation.value,
                    )
                    for meter in (checkpoint.meter_set.meters if checkpoint.meter_set else ())
                ],
            )
        )

    async def counted(self, live: LiveUsage, account: str) -> Counted:
        """The account's period and the totals of that period. Reads again if a binding changed the period meanwhile.

        Raises `ApiError` 503 if nothing was counted yet, and `Transient`."""
        partition = partition_of(account, self._dependencies.genesis.partitions)
        now_ms = self._dependencies.clock.now_ms()
        first, states = await live.accounts.accounts(partition, [account])
        for _ in range(READS_MAX):
            period = period_at(states[account], now_ms)
            total = TotalKey(account, period.start_ms)
            before, waiting = await live.deferred.waiting(partition, account)
            checkpoint, totals = await live.totals.account_totals(partition, [total])
            if first is None or checkpoint is None or before is None:
                message = "nothing has been counted on this account's partition yet: is a worker running?"
                raise ApiError(503, "not_counted_yet", message, headers=retry_after(5))
            counted = Counted(states[account], period, now_ms, before, waiting, checkpoint, totals.get(total, {}))
            if (first.generation, first.next_offset) == (checkpoint.generation, checkpoint.next_offset):
                return counted
            first, states = await live.accounts.accounts(partition, [account])
            if period_at(states[account], now_ms) == period:
                return counted._replace(state=states[account])
        message = "the account's periods are changing: send the request again"
        raise ApiError(503, "not_live", message, headers=retry_after(1))

    async def _complete_up_to_ms(self, reader: UsageReader, query: UsageQuery, meter: Meter) -> int | None:
        """The stream time up to which the answer's stores are complete. None if a partition is missing in a store."""
        partitions = self._dependencies.genesis.partitions
        wanted = range(partitions) if query.account is None else [partition_of(query.account, partitions)]
        relayed_ms = await relayed_up_to(self._dependencies.hourly, wanted)
        if not meter.aggregation.rule.distinct or relayed_ms is None:
            return relayed_ms
        # Distinct values are counted from usage_events, so the archive's position counts too.
        archived_ms = _least(await reader.archive_positions(), wanted)
        return None if archived_ms is None else min(relayed_ms, archived_ms)


def _state(counted: Counted) -> dict[str, Any]:
    """Whether the current period is open, and which period counts later usage if it is closed."""
    state, stream_time_ms = counted.state, counted.checkpoint.stream_time_ms
    policy = counted.checkpoint.meter_set.policy if counted.checkpoint.meter_set else Policy()
    if not is_closed(state, counted.period, policy.grace_ms, stream_time_ms):
        return {"state": "open"}
    carried = open_period(state, stream_time_ms)
    payable = is_payable_in(state, counted.now_ms, carried)
    return {"state": "closed", "later_usage_in": format_instant_ms(carried.start_ms) if payable else None}


async def relayed_up_to(hourly: HourlyStore | None, partitions: Collection[int]) -> int | None:
    """The stream time up to which `usage_hourly` has all usage of the partitions. None if one was never relayed."""
    return None if hourly is None else _least(await hourly.load_relayed(), partitions)


def _least(
    positions: Mapping[int, RelayPosition] | Mapping[int, ArchivePosition], partitions: Collection[int]
) -> int | None:
    times_ms = [positions[partition].stream_time_ms for partition in partitions if partition in positions]
    return min(times_ms) if len(times_ms) == len(partitions) else None


def usage_query(parameters: UsageParameters, meter_set: MeterSet | None, key: ApiKey) -> tuple[UsageQuery, Meter]:
    """The query and the meter of a request. Raises `ApiError` (400, 404) with the parameter and the remedy."""
    meter = known_meter(meter_set, parameters.meter)
    from_ms, to_ms, window = parameters.from_, parameters.to, parameters.window
    if from_ms >= to_ms:
        raise _bad("to", "must be later than `from`; the range is [from, to)")
    if to_ms - from_ms > SPAN_DAYS_MAX[window] * DAY_MS:
        raise _bad("to", f"the range is longer than {SPAN_DAYS_MAX[window]} days: ask in parts or with a wider window")
    _check_time_zone(parameters.timezone, from_ms, to_ms)
    account = parameters.account if parameters.account is not None else key.account
    group_by = _group_by(parameters.group_by, meter)
    if meter.aggregation.rule.ordered and account is None and ACCOUNT_DIMENSION not in group_by:
        message = f"a {meter.aggregation} meter has one value per account: name an account, or group by account"
        raise _bad("account", message)
    query = UsageQuery(meter.slug, from_ms, to_ms, account, window, parameters.timezone, group_by)
    return continued(query, parameters.cursor) if parameters.cursor is not None else query, meter


def known_meter(meter_set: MeterSet | None, slug: str) -> Meter:
    """The meter of this name. Raises `ApiError` 404 if the meter set has none."""
    meter = meter_set.meter(slug) if meter_set else None
    if meter is None:
        message = f"no meter {slug[:100]!r} in the meter set; GET /v1/meters lists them"
        raise ApiError(404, "unknown_meter", message, "meter")
    return meter


def _check_time_zone(name: str, from_ms: int, to_ms: int) -> None:
    try:
        zone = ZoneInfo(name)
    except (ValueError, OSError, KeyError):
        # OSError: the name is a folder in the time zone database.
        raise _bad("timezone", "is not a name of the IANA time zone database such as Europe/Berlin") from None
    step_ms = 30 * DAY_MS
    for instant_ms in (*range(from_ms, to_ms, step_ms), to_ms):
        offset = datetime.fromtimestamp(instant_ms / 1000, zone).utcoffset() or timedelta()
        if offset % timedelta(hours=1):
            message = "is not a whole number of hours from UTC in that range: usage is kept by the hour of UTC"
            raise _bad("timezone", message)


def _group_by(text: str, meter: Meter) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(",")) if text else ()
    known = (*sorted(meter.dimensions), ACCOUNT_DIMENSION)
    for name in names:
        if name not in known:
            raise _bad("group_by", f"{name[:100]!r} is not a dimension of {meter.slug}; they are: {', '.join(known)}")
    if len(set(names)) != len(names):
        raise _bad("group_by", "names a dimension twice")
    return names


def _bad(field: str, message: str) -> ApiError:
    return ApiError(400, "bad_parameter", f"{field}: {message}", field)


def _row(row: UsageRow, meter: Meter) -> models.UsageRowAnswer:
    value = decimal_text(row.value_minor, meter.scale)
    window_start = _instant(row.window_start_ms)
    return models.UsageRowAnswer.model_construct(window_start=window_start, groups=dict(row.groups), value=value)


def _instant(instant_ms: int | None) -> str | None:
    return None if instant_ms is None else format_instant_ms(instant_ms)


def live_value(text: str | None, meter: Meter) -> str | None:
    """A total as decimal text. Without a total, the aggregation's value of an empty period."""
    minor = meter.aggregation.rule.empty_minor if text is None else parse_value(text).minor
    return None if minor is None else decimal_text(minor, meter.scale)
