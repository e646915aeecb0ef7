"""`GET /v1/usage/top`: the accounts with the greatest totals of a meter in one period, from Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Annotated, Final, NamedTuple

from fastapi import Query
from starlette.responses import Response

from aggregators.codec import parse_value
from aggregators.deferred import complete_up_to_ms
from aggregators.instants import format_instant_ms
from aggregators.periods import period_at
from aggregators.quantities import decimal_text
from pipeline.http import models
from pipeline.http.dependencies import GatewayDependencies, Live, LiveUsage, Reader
from pipeline.http.errors import ApiError, json_answer, retry_after
from pipeline.http.queries import MeterInPath, TopOfMeterParameters, TopParameters
from pipeline.http.usage import known_meter
from schemas.meters import Meter
from schemas.periods import AccountState
from schemas.rollup import RankingKey, TotalKey

# Limit of reads of a partition. Accounts whose usage moves to another period between two reads make the read repeat.
READS_MAX: Final = 4


class _Ranked(NamedTuple):
    """The greatest totals of one partition in minor units, and how complete they are."""

    totals: Mapping[str, int]
    complete_up_to_ms: int


class TopEndpoints:
    """The handlers. An app has one object."""

    def __init__(self, dependencies: GatewayDependencies) -> None:
        self._dependencies = dependencies

    async def top(self, key: Reader, live: Live, parameters: Annotated[TopParameters, Query()]) -> Response:
        """The accounts with the greatest totals of a meter, live from Redis. The accounts compared are those whose
        billing period starts at the same instant. Equal totals are sorted by the account's name in UTF-8."""
        return await self._top(key, live, parameters.meter, parameters)

    async def top_by_path(
        self, key: Reader, live: Live, meter: MeterInPath, parameters: Annotated[TopOfMeterParameters, Query()]
    ) -> Response:
        """The same answer as `GET /v1/usage/top`."""
        return await self._top(key, live, meter, parameters)

    async def _top(self, key: Reader, live: LiveUsage, slug: str, parameters: TopOfMeterParameters) -> Response:
        if key.account is not None:
            message = f"key {key.id} belongs to one account: ask GET /v1/usage/current for that account"
            raise ApiError(403, "forbidden", message)
        meter = known_meter(await self._dependencies.meter_set(), slug)
        calendar_month = period_at(AccountState(), self._dependencies.clock.now_ms())
        start_ms = calendar_month.start_ms if parameters.period is None else parameters.period
        partitions = range(self._dependencies.genesis.partitions)
        read = (self._ranked(live, partition, meter, start_ms, parameters.limit) for partition in partitions)
        ranked = await asyncio.gather(*read)
        totals = [total for part in ranked for total in part.totals.items()]
        if not totals and start_ms != calendar_month.start_ms:
            message = "no account has usage of this meter in a period that starts then; old periods leave Redis"
            raise ApiError(404, "unknown_period", message, "period")
        totals.sort(key=lambda total: (-total[1], total[0].encode()))
        return json_answer(
            models.Top(
                meter=meter.slug,
                unit=meter.unit,
                aggregation=meter.aggregation.value,
                period_start=format_instant_ms(start_ms),
                compared="accounts whose billing period starts at period_start",
                complete_up_to=format_instant_ms(min(part.complete_up_to_ms for part in ranked)),
                accounts=[
                    models.TopAccount(account=account, value=decimal_text(minor, meter.scale))
                    for account, minor in totals[: parameters.limit]
                ],
            )
        )

    async def _ranked(self, live: LiveUsage, partition: int, meter: Meter, start_ms: int, limit: int) -> _Ranked:
        """The ranking's order is that of floats; the exact totals are read and sorted again."""
        for _ in range(READS_MAX):
            before, waiting = await live.deferred.waiting(partition)
            ranking = await live.totals.ranking(partition, RankingKey(meter.slug, start_ms), limit)
            keys = [TotalKey(account, start_ms) for account, _ in ranking]
            checkpoint, texts = await live.totals.account_totals(partition, keys)
            if before is None or checkpoint is None:
                message = f"nothing has been counted on partition {partition} yet: is a worker running?"
                raise ApiError(503, "not_counted_yet", message, headers=retry_after(5))
            values = {key.account: texts[key].get(meter.slug) for key in keys}
            totals = {account: parse_value(text).minor for account, text in values.items() if text is not None}
            if len(totals) == len(keys):
                return _Ranked(totals, complete_up_to_ms(before, waiting, checkpoint))
        message = "the accounts' periods are changing: send the request again"
        raise ApiError(503, "not_live", message, headers=retry_after(1))
