"""Usage answers: windows, time zones, groups and the aggregations, on the fake and on the real engine."""

from __future__ import annotations

import functools
import json

import pytest

from schemas.aggregations import Aggregation
from schemas.analytics import (
    ControlRow,
    DedupDecisionRow,
    DedupOutcome,
    PeriodLevel,
    PeriodQuery,
    PeriodUsage,
    UsageQuery,
    UsageRow,
    Window,
)
from schemas.clock import DAY_MS, HOUR_MS
from schemas.errors import InvalidInput
from schemas.meters import MeterSet
from schemas.periods import Period
from tests.conformance.clickhouse_rows import (
    MONTH,
    NOW_MS,
    USERS,
    Both,
    cell,
    event,
    ms,
)


async def test_usage_merges_arrival_buckets_by_aggregation(both: Both) -> None:
    """Count and sum add; max and min take the extreme; latest takes the last by event time and position."""
    eleven = ms("2026-11-21T11:00")
    for aggregation in (Aggregation.SUM, Aggregation.MAX, Aggregation.MIN, Aggregation.LATEST):
        name = aggregation.value
        await both.store.insert_hourly(
            [
                cell(name, 5, aggregation=aggregation, latest=(9, 1)),
                cell(name, 3, aggregation=aggregation, latest=(10, 1), bucket_ms=eleven),
                cell(name, 4, aggregation=aggregation, latest=(9, 2), bucket_ms=eleven + HOUR_MS),
            ]
        )

    async def value(aggregation: Aggregation) -> int:
        (row,) = await both.reader.usage(UsageQuery(aggregation.value, MONTH.start_ms, MONTH.end_ms), aggregation)
        return row.value_minor

    assert await value(Aggregation.SUM) == 12
    assert await value(Aggregation.MAX) == 5
    assert await value(Aggregation.MIN) == 3
    assert await value(Aggregation.LATEST) == 3


async def test_of_equal_times_and_positions_latest_takes_the_greatest_account(both: Both) -> None:
    """Two accounts of two partitions may tie; the answer must not depend on the order of reading."""
    for partition, account in enumerate(("b", "c", "a")):
        await both.store.insert_hourly(
            [cell("seats", partition, aggregation=Aggregation.LATEST, account=account, latest=(9, 1))]
        )

    (row,) = await both.reader.usage(UsageQuery("seats", MONTH.start_ms, MONTH.end_ms), Aggregation.LATEST)
    assert row.value_minor == 1


async def test_usage_by_day_and_month_follows_the_requested_time_zone_through_both_clock_changes(both: Both) -> None:
    """A day of 23 hours and one of 25; windows begin at local midnight."""
    hours = [ms("2026-03-28T23:00"), ms("2026-03-29T21:00"), ms("2026-03-29T22:00"), ms("2026-10-24T22:00")]
    hours += [ms("2026-10-25T22:00"), ms("2026-10-25T23:00")]
    await both.store.insert_hourly([cell("tokens", 1 << n, hour_ms=hour_ms) for n, hour_ms in enumerate(hours)])
    query = UsageQuery("tokens", ms("2026-03-01"), ms("2026-12-01"), "acme", Window.DAY, "Europe/Berlin")

    days = await both.reader.usage(query, Aggregation.SUM)
    months = await both.reader.usage(query._replace(window=Window.MONTH), Aggregation.SUM)

    assert [
        UsageRow(ms("2026-03-28T23:00"), {}, 1 + 2),
        UsageRow(ms("2026-03-29T22:00"), {}, 4),
        UsageRow(ms("2026-10-24T22:00"), {}, 8 + 16),
        UsageRow(ms("2026-10-25T23:00"), {}, 32),
    ] == days
    assert [(ms("2026-02-28T23:00"), 7), (ms("2026-09-30T22:00"), 56)] == [
        (row.window_start_ms, row.value_minor) for row in months
    ]


async def test_usage_by_hour_and_groups_excludes_what_was_not_requested(both: Both) -> None:
    """`[from, to)`, one account, one meter; an unknown dimension is the empty text."""
    ten = ms("2026-11-21T10:00")
    await both.store.insert_hourly(
        [
            cell("tokens", 1, dimensions='{"region":"eu"}'),
            cell("tokens", 2, dimensions='{"region":"us"}'),
            cell("tokens", 4, account="other", dimensions='{"region":"eu"}'),
            cell("tokens", 8, hour_ms=ten + HOUR_MS, dimensions='{"region":"eu"}'),
            cell("calls", 16),
        ]
    )
    query = UsageQuery("tokens", ten, ten + HOUR_MS, window=Window.HOUR, group_by=("region", "account", "model"))

    rows = await both.reader.usage(query, Aggregation.SUM)

    assert [
        UsageRow(ten, {"region": "eu", "account": "acme", "model": ""}, 1),
        UsageRow(ten, {"region": "eu", "account": "other", "model": ""}, 4),
        UsageRow(ten, {"region": "us", "account": "acme", "model": ""}, 2),
    ] == rows
    assert await both.reader.usage(query._replace(account="nobody"), Aggregation.SUM) == []
    assert await both.reader.usage(query, Aggregation.SUM, rows_max=1) == list(rows)[:2]


async def test_unique_usage_counts_distinct_values_of_each_window_while_the_meter_was_in_force(both: Both) -> None:
    """Cells contain first sightings only, so an hour's distinct values come from the events."""
    meter = USERS.model_copy(update={"dimensions": {"region": "$.region"}})
    meter_sets = [MeterSet(version=1, meters=()), MeterSet(version=2, meters=(meter,)), MeterSet(version=3, meters=())]
    await both.store.insert_controls(
        [
            ControlRow(3, at, "meter_set", "", NOW_MS, json.dumps({"meter_set": meter_set.model_dump(mode="json")}))
            for at, meter_set in zip((0, 10, 90), meter_sets, strict=True)
        ]
    )
    ten, eleven = ms("2026-11-21T10:00"), ms("2026-11-21T11:00")
    await both.store.insert_events(
        [
            event(5, {"user": "before", "region": "eu"}, time_ms=ten),
            event(11, {"user": "a", "region": "eu"}, time_ms=ten),
            event(12, {"user": "a", "region": "eu"}, time_ms=eleven),
            event(13, {"user": 7, "region": "us"}, time_ms=eleven),
            event(14, {"user": "a", "region": "eu"}, time_ms=eleven, account="other"),
            event(95, {"user": "after", "region": "eu"}, time_ms=ten),
        ]
    )
    query = UsageQuery("users", ten, eleven + HOUR_MS, window=Window.HOUR, group_by=("region",))

    by_hour = await both.reader.usage(query, Aggregation.UNIQUE)
    total = await both.reader.usage(UsageQuery("users", ten, eleven + HOUR_MS, "acme"), Aggregation.UNIQUE)

    assert [
        UsageRow(ten, {"region": "eu"}, 1),
        UsageRow(eleven, {"region": "eu"}, 2),
        UsageRow(eleven, {"region": "us"}, 1),
    ] == by_hour
    assert [UsageRow(None, {}, 2)] == total
    assert await both.reader.usage(query._replace(meter="unheard_of"), Aggregation.UNIQUE) == []


async def test_unique_usage_takes_a_deferred_event_once_its_decision_counted_it(both: Both) -> None:
    """Without a decision, as a duplicate, or without the meter at both times, the event contributes nothing."""
    meter_sets = [MeterSet(version=1, meters=(USERS,)), MeterSet(version=2, meters=())]
    await both.store.insert_controls(
        [
            ControlRow(3, at, "meter_set", "", NOW_MS, json.dumps({"meter_set": meter_set.model_dump(mode="json")}))
            for at, meter_set in zip((10, 90), meter_sets, strict=True)
        ]
    )
    ten = ms("2026-11-01T10:00")
    users = {5: "before", 11: "counted", 12: "repeated", 13: "kept out", 14: "waiting", 15: "too late"}
    await both.store.insert_events(
        [event(at, {"user": user}, time_ms=ten)._replace(deferred=True) for at, user in users.items()]
    )
    outcomes = {5: "counted", 11: "counted", 12: "duplicate", 13: "late", 15: "counted"}
    await both.store.insert_dedup_decisions(
        [
            DedupDecisionRow(3, at, "acme", 95 if at == 15 else at + 20, NOW_MS, DedupOutcome(outcome))
            for at, outcome in outcomes.items()
        ]
    )

    assert await both.reader.usage(UsageQuery("users", ten, ten + HOUR_MS), Aggregation.UNIQUE) == [
        UsageRow(None, {}, 1)
    ]


BAD_QUERIES = {
    "half hour": ({"from_ms": 1}, "whole hours"),
    "backwards": ({"to_ms": 0, "from_ms": HOUR_MS}, "before"),
    "zone": ({"time_zone": "Mars/Olympus'"}, "time zone"),
    "twice": ({"group_by": ("a", "a")}, "twice"),
}


@pytest.mark.parametrize(("change", "message"), BAD_QUERIES.values(), ids=BAD_QUERIES.keys())
async def test_invalid_usage_query_is_refused(both: Both, change: dict[str, object], message: str) -> None:
    """The query API turns the error into a 4xx."""
    query = UsageQuery("tokens", 0, HOUR_MS)._replace(**change)  # type: ignore[arg-type]  # a table of fields

    with pytest.raises(InvalidInput, match=message):
        await both.reader.usage(query, Aggregation.SUM)


HOSTILE: tuple[str, ...] = (
    "",
    "\t",
    "\n",
    " ",
    "'",
    "\\",
    "\\n",
    "a",
    "a'b",
    "a\\'b",
    "a\tb",
    "a{b:String}",
    "{",
    "é",
    "日",
    "😀",
)


@pytest.mark.parametrize("window", [None, Window.DAY])
async def test_pages_of_an_answer_are_the_answer(both: Both, window: Window | None) -> None:
    """Every row once and in order, whatever the names of the groups contain."""
    days = [ms("2026-11-20T05:00"), ms("2026-11-21T05:00")]
    names = [name for name in HOSTILE if name]
    cells = [
        cell("tokens", 1, account=account, dimensions=json.dumps({"model": model}), hour_ms=hour_ms)
        for account in names
        for model in HOSTILE[:6]
        for hour_ms in days
    ]
    await both.store.insert_hourly(cells)
    query = UsageQuery(
        "tokens", MONTH.start_ms, MONTH.end_ms, window=window, time_zone="Europe/Berlin", group_by=("account", "model")
    )

    whole = await both.reader.usage(query, Aggregation.SUM)
    paged: list[UsageRow] = []
    while page := await both.reader.usage(query, Aggregation.SUM, 10):
        paged += page[:10]
        last = paged[-1]
        query = query._replace(after=(last.window_start_ms or 0, tuple(last.groups.values())))

    assert len(whole) == len(names) * 6 * (2 if window else 1)
    assert paged == whole


@pytest.mark.parametrize("account", [name for name in HOSTILE if name])
async def test_an_account_of_any_name_is_found(both: Both, account: str) -> None:
    """A name in a statement is data."""
    await both.store.insert_hourly([cell("tokens", 7, account=account), cell("tokens", 1, account="another")])

    (row,) = await both.reader.usage(UsageQuery("tokens", MONTH.start_ms, MONTH.end_ms, account), Aggregation.SUM)
    (period,) = await both.reader.period_usage(
        PeriodQuery("tokens", account, MONTH.start_ms, MONTH.end_ms), Aggregation.SUM
    )

    assert (row.value_minor, period) == (7, PeriodUsage(MONTH, 7, None))


@pytest.mark.parametrize(
    ("aggregation", "whole", "carried"),
    [(Aggregation.SUM, 14, 9), (Aggregation.MAX, 6, 6), (Aggregation.MIN, 2, 3), (Aggregation.LATEST, 2, 6)],
)
async def test_a_period_shows_what_was_carried_into_it(
    both: Both, aggregation: Aggregation, whole: int, carried: int
) -> None:
    """Late usage keeps its hour, which lies before the period that counts it. The latest version of a cell counts."""
    before = MONTH.start_ms - HOUR_MS
    late = [
        cell("m", 3, aggregation=aggregation, hour_ms=before - HOUR_MS, latest=(1, 1)),
        cell("m", 100, aggregation=aggregation, hour_ms=before, latest=(2, 1), version=1),
        cell("m", 6, aggregation=aggregation, hour_ms=before, latest=(2, 2), version=2),
    ]
    own = [
        cell("m", 3, aggregation=aggregation, hour_ms=MONTH.start_ms, latest=(3, 1)),
        cell("m", 2, aggregation=aggregation, hour_ms=MONTH.start_ms + HOUR_MS, latest=(4, 1)),
    ]
    others = [
        cell("m", 50, aggregation=aggregation, account="other"),
        cell("another", 60, aggregation=aggregation),
        cell("m", 70, aggregation=aggregation)._replace(period_start_ms=MONTH.end_ms, period_end_ms=MONTH.end_ms),
    ]
    await both.store.insert_hourly([*late, *own, *others])

    async def periods(from_ms: int, to_ms: int) -> list[PeriodUsage]:
        return [*await both.reader.period_usage(PeriodQuery("m", "acme", from_ms, to_ms), aggregation)]

    expected = [PeriodUsage(MONTH, whole, carried)]
    assert await periods(MONTH.start_ms, MONTH.end_ms) == expected
    assert await periods(MONTH.end_ms - 1, MONTH.end_ms + 1) == expected
    assert await periods(MONTH.start_ms - 1, MONTH.start_ms + 1) == expected
    assert await periods(MONTH.end_ms, MONTH.end_ms + 1) == []
    assert await periods(MONTH.start_ms - 1, MONTH.start_ms) == []


async def test_a_level_is_that_of_the_newest_event_of_its_period_and_all_before(both: Both) -> None:
    """Late usage that a later period counts moves no level that a newer event has set."""
    after = Period(MONTH.end_ms, MONTH.end_ms + 30 * DAY_MS)
    level = functools.partial(cell, "m", aggregation=Aggregation.LATEST)
    late = level(9, latest=(2, 7))._replace(period_start_ms=after.start_ms, period_end_ms=after.end_ms)
    rows = [level(3, latest=(5, 1)), level(4, latest=(5, 2), hour_ms=MONTH.start_ms + HOUR_MS), late]
    emptied = level(70, latest=(9, 9))._replace(period_start_ms=MONTH.start_ms - 1, period_end_ms=MONTH.start_ms - 1)
    await both.store.insert_hourly([*rows, emptied, level(50, latest=(8, 8), account="other")])

    both_periods = await both.reader.period_levels("m", "acme", after.end_ms)
    first = await both.reader.period_levels("m", "acme", after.start_ms)

    assert both_periods == [PeriodLevel(MONTH, 4), PeriodLevel(after, 4)]
    assert first == [PeriodLevel(MONTH, 4)]
