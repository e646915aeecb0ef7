"""The hours of a billing period, and the events of an hour that a meter counts, on the real engine."""

from __future__ import annotations

import pytest

from schemas.aggregations import Aggregation
from schemas.clock import HOUR_MS
from schemas.meters import Filter, FilterOperator, Meter
from schemas.usage_evidence import HourUsage
from sinks.clickhouse.client import ClickHouse
from sinks.clickhouse.evidence import ClickHouseEvidence
from sinks.clickhouse.writer import ClickHouseStore
from tests.conformance.clickhouse_rows import (
    CALLS,
    MONTH,
    NOW_MS,
    OCTOBER,
    PEAK,
    STORED,
    TOKENS,
    USERS,
    cell,
    event,
    ms,
)

HOUR = ms("2026-11-21T10:00")


async def test_the_hours_of_a_period_add_up_to_it(clickhouse: ClickHouse) -> None:
    """Late usage is in the hour of its own time. Other accounts, meters and periods are not."""
    late = ms("2026-10-31T23:00")
    await ClickHouseStore(clickhouse).insert_hourly(
        [
            cell("tokens", 5), cell("tokens", 7, bucket_ms=ms("2026-11-21T11:00")),
            cell("tokens", 11, hour_ms=late), cell("tokens", 13, hour_ms=HOUR + HOUR_MS),
            cell("tokens", 17, account="globex"), cell("other", 19),
            cell("tokens", 23, hour_ms=late)._replace(period_start_ms=OCTOBER.start_ms, period_end_ms=OCTOBER.end_ms),
        ]
    )  # fmt: skip
    evidence = ClickHouseEvidence(clickhouse)

    hours = await evidence.hours("acme", TOKENS, MONTH, -1, 10)

    assert hours == [HourUsage(late, 11), HourUsage(HOUR, 12), HourUsage(HOUR + HOUR_MS, 13)]
    assert await evidence.hours("acme", TOKENS, MONTH, HOUR, 10) == [HourUsage(HOUR + HOUR_MS, 13)]
    assert await evidence.hours("acme", TOKENS, MONTH, -1, 1) == [HourUsage(late, 11)]


async def test_of_a_meter_that_does_not_add_an_hour_has_its_own_value(clickhouse: ClickHouse) -> None:
    await ClickHouseStore(clickhouse).insert_hourly(
        [cell("peak", value, aggregation=Aggregation.MAX, bucket_ms=HOUR + value * HOUR_MS) for value in (5, 9, 7)]
    )

    assert await ClickHouseEvidence(clickhouse).hours("acme", PEAK, MONTH, -1, 10) == [HourUsage(HOUR, 9)]


SPENT = TOKENS.model_copy(
    update={"slug": "spent", "filters": (Filter(path="$.model", operator=FilterOperator.EQUAL, values=("small",)),)}
)
SMALL = Meter(
    slug="small", event_type="llm", aggregation=Aggregation.COUNT,
    filters=(Filter(path="$.model", operator=FilterOperator.EQUAL, values=("small",)),),
)  # fmt: skip


@pytest.mark.parametrize(
    ("meter", "found"),
    [
        (TOKENS, [("a", "1.5"), ("e7", "2")]),
        (CALLS, [("a", "1"), ("b'; --", "1"), ("e7", "1")]),
        (USERS, [("b'; --", "ann")]),
        (SMALL, [("e7", "1")]),
        (SPENT, [("adj", "-0.5"), ("e7", "2")]),
        (STORED, [("stored", "7.5")]),
    ],
    ids=["sum", "count", "unique", "filter", "adjusted", "measured"],
)
async def test_the_events_of_an_hour_that_a_meter_counts(
    clickhouse: ClickHouse, meter: Meter, found: list[tuple[str, str]]
) -> None:
    """Each once, by id, also if it arrived again; events that the meter cannot use are not, and samples add nothing."""
    await ClickHouseStore(clickhouse).insert_events(
        [
            event(7, {"tokens": 2, "model": "small"}), event(1, {"tokens": 1.5}, event_id="a"),
            event(2, {"tokens": 99}, event_id="a"), event(3, {"user": "ann"}, event_id="b'; --"),
            event(4, {"tokens": 3}, time_ms=HOUR - 1), event(5, {"tokens": 3}, time_ms=HOUR + HOUR_MS),
            event(6, {"tokens": 3}, account="globex"), event(8, {"tokens": 3}, event_type="other"),
            event(9, {"quantity": "-0.5"}, event_id="adj", event_type="tidemark.adjusted.spent"),
            event(10, {"quantity": "7.5"}, event_id="stored", event_type="tidemark.adjusted.stored"),
        ]
    )  # fmt: skip
    evidence = ClickHouseEvidence(clickhouse)

    events = await evidence.events("acme", meter, HOUR, "", 10)

    assert [(each.id, each.value) for each in events] == found
    assert {each.time_us // 1_000 for each in events} == {NOW_MS}
    assert await evidence.events("acme", meter, HOUR, found[0][0], 10) == events[1:]
    assert len(await evidence.events("acme", meter, HOUR, "", 1)) == 1
