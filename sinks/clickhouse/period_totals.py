"""The totals of past periods by account and meter, from `usage_hourly`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from decimal import Context, Decimal
from typing import Final

from schemas.aggregations import Aggregation
from schemas.backtest import PeriodTotal
from schemas.periods import Period
from sinks.clickhouse.client import ClickHouse, quoted_text
from sinks.clickhouse.reader import NOT_EMPTIED

# A cell's value has up to 128 bits.
_EXACT: Final = Context(prec=60)


class ClickHousePeriodTotals:
    """Implements `schemas.backtest.PeriodTotals`, whose docstrings hold. `clickhouse` may be read-only."""

    def __init__(self, clickhouse: ClickHouse) -> None:
        self._clickhouse = clickhouse

    async def totals(
        self, accounts: Sequence[str], meters: Mapping[str, Aggregation], from_ms: int, to_ms: int
    ) -> Sequence[PeriodTotal]:
        if not accounts:
            return []
        by_rule: dict[str, list[str]] = defaultdict(list)
        for meter, aggregation in meters.items():
            by_rule[aggregation.rule.merged_sql].append(meter)
        found: list[PeriodTotal] = []
        for merged_sql, slugs in by_rule.items():
            rows = await self._clickhouse.rows(
                "SELECT account, meter, period_start_ms, argMax(period_end_ms, version), any(scale), "  # noqa: S608  # quoted
                f"toInt256({merged_sql}) FROM usage_hourly FINAL WHERE meter IN ({_list(slugs)}) "
                f"AND account IN ({_list(accounts)}) AND period_start_ms < {{to:Int64}} AND {NOT_EMPTIED} "
                "GROUP BY account, meter, period_start_ms HAVING argMax(period_end_ms, version) > {from:Int64}",
                {"from": from_ms, "to": to_ms},
            )
            found += [
                PeriodTotal(str(account), str(meter), Period(start_ms, end_ms), _scaled(int(minor), scale))
                for account, meter, start_ms, end_ms, scale, minor in rows
            ]
        return found

    async def first_usage_ms(self, meters: Sequence[str]) -> Mapping[str, int]:
        if not meters:
            return {}
        rows = await self._clickhouse.rows(
            f"SELECT meter, min(hour_ms) FROM usage_hourly WHERE meter IN ({_list(meters)}) AND {NOT_EMPTIED} "  # noqa: S608  # quoted
            "GROUP BY meter"
        )
        return {str(meter): int(hour_ms) for meter, hour_ms in rows}

    async def complete_up_to_ms(self, partitions: int) -> int:
        rows = await self._clickhouse.rows("SELECT partition, stream_time_ms FROM relay_positions FINAL")
        times = {int(partition): int(stream_time_ms) for partition, stream_time_ms in rows}
        return min((times.get(partition, 0) for partition in range(partitions)), default=0)

    async def close(self) -> None:
        """Release the connections. Safe to call twice."""
        await self._clickhouse.close()


def _list(texts: Iterable[str]) -> str:
    return ", ".join(map(quoted_text, texts))


def _scaled(minor: int, scale: int) -> Decimal:
    return _EXACT.scaleb(Decimal(minor), -scale)
