"""Names in queries are data, on the fake and on the real engine."""

from __future__ import annotations

import pytest

from schemas.aggregations import Aggregation
from schemas.analytics import UsageQuery
from tests.conformance.clickhouse_rows import MONTH, Both, cell

NAMES = (
    "'; DROP TABLE usage_hourly; --", "' OR 1=1 --", "a\\' OR 1=1 --", 'a"b', "a`b", "{account:String}", "%s", "\\N",
    "\\", "a\tb", "a\nb", "a\0b", "ünïcode ☃ 𝟙", " ", "*", "a/b", "a%2Fb", "null", "0", "a" * 256,
)  # fmt: skip


async def test_hostile_accounts_are_found_by_their_own_names_only(both: Both) -> None:
    """One row for each name, and each query finds that row."""
    cells = [cell("tokens", 7, account=name) for name in NAMES]
    await both.store.insert_hourly([*cells, *(cell("tokens", 1, account=f"{name}!") for name in NAMES)])

    for name in NAMES:
        query = UsageQuery("tokens", MONTH.start_ms, MONTH.end_ms, name)
        (row,) = await both.reader.usage(query, Aggregation.SUM)
        assert row.value_minor == 7, name
    whole = UsageQuery("tokens", MONTH.start_ms, MONTH.end_ms)
    (row,) = await both.reader.usage(whole, Aggregation.SUM)
    assert row.value_minor == 8 * len(NAMES)


@pytest.mark.parametrize("aggregation", [Aggregation.SUM, Aggregation.UNIQUE])
async def test_hostile_meters_have_no_usage_and_do_no_harm(both: Both, aggregation: Aggregation) -> None:
    """The name comes from a query string."""
    await both.store.insert_hourly([cell("tokens", 7)])

    for name in NAMES:
        assert list(await both.reader.usage(UsageQuery(name, MONTH.start_ms, MONTH.end_ms), aggregation)) == []
    (row,) = await both.reader.usage(UsageQuery("tokens", MONTH.start_ms, MONTH.end_ms), Aggregation.SUM)
    assert row.value_minor == 7
