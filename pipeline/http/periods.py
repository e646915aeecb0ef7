"""`GET /v1/usage/periods`: what each billing period of an account counted, and what was carried into it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import Query
from starlette.responses import Response

from aggregators.instants import format_instant_ms
from aggregators.levels import standing
from aggregators.partitioning import partition_of
from aggregators.periods import is_closed, period_at
from aggregators.quantities import decimal_text
from pipeline.http import models
from pipeline.http.dependencies import Analytics, GatewayDependencies, Live, Reader
from pipeline.http.errors import ApiError, json_answer, retry_after
from pipeline.http.queries import PeriodParameters
from pipeline.http.usage import known_meter, relayed_up_to
from schemas.analytics import PERIODS_MAX, PeriodLevel, PeriodQuery, PeriodUsage
from schemas.meters import Meter
from schemas.periods import AccountState, Period


class PeriodsEndpoint:
    """The handler. An app has one object."""

    def __init__(self, dependencies: GatewayDependencies) -> None:
        self._dependencies = dependencies

    async def periods(
        self, key: Reader, reader: Analytics, live: Live, parameters: Annotated[PeriodParameters, Query()]
    ) -> Response:
        """What each billing period of an account counted of a meter, and of that what was carried in from earlier
        periods. Periods without usage have no row, unless a level stands in them."""
        account = parameters.account if parameters.account is not None else key.account
        if account is None:
            raise ApiError(400, "bad_parameter", "account: is missing: periods belong to an account", "account")
        if parameters.from_ >= parameters.to:
            raise ApiError(400, "bad_parameter", "to: must be later than `from`; the range is [from, to)", "to")
        meter = known_meter(await self._dependencies.meter_set(), parameters.meter)
        partition = partition_of(account, self._dependencies.genesis.partitions)
        # Read before the rows, so the rows are never older.
        complete_up_to_ms = await relayed_up_to(self._dependencies.hourly, [partition])
        _, states = await live.accounts.accounts(partition, [account])
        # A row has the end that its period had when the row was written. A later binding may have moved the end.
        from_ms = period_at(states[account], parameters.from_).start_ms
        query, levels = PeriodQuery(meter.slug, account, from_ms, parameters.to), list[PeriodLevel]()
        if meter.carry_over:
            levels, periods = [*await reader.period_levels(meter.slug, account, parameters.to)], list[PeriodUsage]()
        else:
            periods = [*await reader.period_usage(query, meter.aggregation)]
        _check_size(periods)
        # Read after the rows, so the account's state knows every period that has a row.
        checkpoint, states = await live.accounts.accounts(partition, [account])
        if checkpoint is None or checkpoint.meter_set is None:
            message = "nothing has been counted on this account's partition yet: is a worker running?"
            raise ApiError(503, "not_counted_yet", message, headers=retry_after(5))
        grace_ms, now_ms = checkpoint.meter_set.policy.grace_ms, checkpoint.stream_time_ms
        periods = [row._replace(period=_present(row.period, states[account])) for row in periods]
        levels = [each._replace(period=_present(each.period, states[account])) for each in levels]
        periods += standing(levels, states[account], min(parameters.to, now_ms + 1))
        periods = [row for row in periods if row.period.end_ms > parameters.from_]
        _check_size(periods)
        closed = [is_closed(states[account], row.period, grace_ms, now_ms) for row in periods]
        return json_answer(
            models.Periods(
                meter=meter.slug,
                unit=meter.unit,
                aggregation=meter.aggregation.value,
                account=account,
                complete_up_to=None if complete_up_to_ms is None else format_instant_ms(complete_up_to_ms),
                periods=[_row(row, meter, done) for row, done in zip(periods, closed, strict=True)],
            )
        )


def _check_size(periods: Sequence[PeriodUsage]) -> None:
    if len(periods) > PERIODS_MAX:
        message = f"the answer has more than {PERIODS_MAX} periods: ask for less time"
        raise ApiError(400, "answer_too_large", message, "to")


def _present(written: Period, state: AccountState) -> Period:
    """The period with its present end. A period that starts before the oldest binding that the state keeps has ended
    long ago, and its end stays as written."""
    present = period_at(state, written.start_ms)
    return present if present.start_ms == written.start_ms else written


def _row(row: PeriodUsage, meter: Meter, closed: bool) -> models.PeriodRow:
    carried = row.carried_minor if row.carried_minor is not None else meter.aggregation.rule.empty_minor
    return models.PeriodRow(
        period_start=format_instant_ms(row.period.start_ms),
        period_end=format_instant_ms(row.period.end_ms),
        state="closed" if closed else "open",
        value=decimal_text(row.value_minor, meter.scale),
        carried_in=None if carried is None else decimal_text(carried, meter.scale),
    )
