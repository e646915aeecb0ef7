"""The totals of past periods: those that the usage API answers, for every aggregation, on the service."""

from __future__ import annotations

from decimal import Decimal
from typing import Final

from schemas.aggregations import Aggregation
from schemas.analytics import HourlyRow, PeriodQuery, RelayPosition
from schemas.backtest import PeriodTotal
from schemas.clock import HOUR_MS
from sinks.clickhouse.client import ClickHouse
from sinks.clickhouse.period_totals import ClickHousePeriodTotals
from sinks.clickhouse.reader import ClickHouseReader
from sinks.clickhouse.writer import ClickHouseStore
from tests.conformance.clickhouse_rows import MONTH, NOW_MS, OCTOBER, cell

# Two cells of November, of which the second came first for `latest`; one of October; of the second account a hostile
# name. By aggregation: the total of November in units of 0.001.
NOVEMBER: Final = {
    Aggregation.SUM: 7_500, Aggregation.COUNT: 7_500, Aggregation.UNIQUE: 7_500, Aggregation.MAX: 5_000,
    Aggregation.MIN: 2_500, Aggregation.LATEST: 2_500, Aggregation.TIME_WEIGHTED: 7_500, Aggregation.DURATION: 7_500,
    Aggregation.PEAK: 7_500,
}  # fmt: skip
HOSTILE: Final = "o'hara\\ \n\U0001f600"
METERS: Final = {aggregation.value: aggregation for aggregation in Aggregation}
YEAR_MS: Final = 366 * 24 * HOUR_MS


def rows() -> list[HourlyRow]:
    """The cells of both accounts."""
    made: list[HourlyRow] = []
    for meter, aggregation in METERS.items():
        for account in ("acme", HOSTILE):
            common = {"aggregation": aggregation, "account": account}
            made.append(cell(meter, 2_500, latest=(2, 2), **common))  # type: ignore[arg-type]  # the values fit
            made.append(cell(meter, 5_000, latest=(1, 9), hour_ms=NOW_MS - NOW_MS % HOUR_MS - HOUR_MS, **common))  # type: ignore[arg-type]  # as above
        october = cell(meter, 1, aggregation=aggregation, hour_ms=OCTOBER.start_ms)
        made.append(october._replace(period_start_ms=OCTOBER.start_ms, period_end_ms=OCTOBER.end_ms))
        # A restatement has emptied this cell.
        made.append(cell(meter, 9, account="moved", aggregation=aggregation)._replace(period_end_ms=MONTH.start_ms))
    return made


async def test_totals_of_every_aggregation_are_those_of_the_usage_api(clickhouse: ClickHouse) -> None:
    store, reader, totals = (
        ClickHouseStore(clickhouse),
        ClickHouseReader(clickhouse),
        ClickHousePeriodTotals(clickhouse),
    )
    await store.insert_hourly(rows())

    found = await totals.totals(["acme", HOSTILE, "moved", "nobody"], METERS, OCTOBER.start_ms, NOW_MS + YEAR_MS)

    thousandth = Decimal("0.001")
    assert sorted(found) == sorted(
        [
            *(PeriodTotal(account, meter, MONTH, NOVEMBER[aggregation] * thousandth)
              for meter, aggregation in METERS.items() for account in ("acme", HOSTILE)),
            *(PeriodTotal("acme", meter, OCTOBER, thousandth) for meter in METERS),
        ]
    )  # fmt: skip
    for meter, aggregation in METERS.items():
        query = PeriodQuery(meter, "acme", OCTOBER.start_ms, NOW_MS + YEAR_MS)
        answered = {
            each.period: each.value_minor * thousandth for each in await reader.period_usage(query, aggregation)
        }
        assert answered == {
            each.period: each.quantity for each in found if (each.account, each.meter) == ("acme", meter)
        }


async def test_only_periods_of_the_span_and_the_meters_and_accounts_that_were_asked_for(clickhouse: ClickHouse) -> None:
    store, totals = ClickHouseStore(clickhouse), ClickHousePeriodTotals(clickhouse)
    await store.insert_hourly(rows())
    meters = {"sum": Aggregation.SUM}

    november = await totals.totals(["acme"], meters, OCTOBER.end_ms, NOW_MS)
    october = await totals.totals(["acme"], meters, OCTOBER.end_ms - 1, MONTH.start_ms)

    assert ([MONTH], [OCTOBER]) == ([each.period for each in november], [each.period for each in october])
    assert [] == await totals.totals([], meters, 0, NOW_MS)
    assert {"sum": OCTOBER.start_ms} == await totals.first_usage_ms(["sum", "unknown"])
    assert {} == await totals.first_usage_ms([])


async def test_usage_is_complete_up_to_where_the_slowest_partition_is(clickhouse: ClickHouse) -> None:
    store, totals = ClickHouseStore(clickhouse), ClickHousePeriodTotals(clickhouse)
    await store.save_relayed(RelayPosition(0, 1, 500))
    assert (500, 0) == (await totals.complete_up_to_ms(1), await totals.complete_up_to_ms(2))

    await store.save_relayed(RelayPosition(1, 1, 400))

    assert 400 == await totals.complete_up_to_ms(2)
