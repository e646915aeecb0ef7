"""Staging tables and their exchange: the same tests for the in-memory fake and ClickHouse's engine."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from schemas.aggregations import Aggregation
from schemas.analytics import ArchivePosition, ControlRow, DedupDecisionRow, DedupOutcome, UsageQuery
from schemas.clock import DAY_MS
from schemas.log import position
from schemas.rebuild import AnalyticalStore, Building, RowRecounts, TableStaging
from sinks.clickhouse.client import ClickHouse
from sinks.clickhouse.fake import FakeClickHouse
from sinks.clickhouse.fake_staging import FakeStaging
from sinks.clickhouse.reader import ClickHouseReader
from sinks.clickhouse.staging import ClickHouseStaging
from sinks.clickhouse.writer import ClickHouseStore
from tests.conformance.clickhouse_rows import CALLS, EVERY, MONTH, NOW_MS, USERS, cell, event, ms, request_of

HOURLY = ("usage_duplicates", "usage_hourly")
ARCHIVE = ("usage_events", "dedup_decisions", "control_log", "archive_positions")
NOON, ONE = ms("2026-11-21T12:00"), ms("2026-11-21T13:00")


class Staged(NamedTuple):
    """A store, its reader, and its staging tables."""

    store: AnalyticalStore
    reader: RowRecounts
    staging: TableStaging

    async def values(self) -> dict[str, int]:
        return {key.account: value for key, value in (await self.reader.hourly_cells(3)).items()}


@pytest.fixture(params=["fake", "service"])
def staged(request: pytest.FixtureRequest) -> Staged:
    if request.param == "fake":
        fake = FakeClickHouse()
        return Staged(fake, fake, FakeStaging(fake))
    opened: ClickHouse = request.getfixturevalue("clickhouse")
    return Staged(ClickHouseStore(opened), ClickHouseReader(opened), ClickHouseStaging(opened))


async def test_staging_table_is_invisible_until_it_is_exchanged(staged: Staged) -> None:
    await staged.store.insert_hourly([cell("tokens", 7, version=9, account="wrong")])
    assert await staged.staging.building(HOURLY) is None

    begun = await staged.staging.begin(HOURLY, "first")
    await staged.staging.beside(HOURLY).insert_hourly([cell("tokens", 5, version=1)])
    await staged.store.insert_hourly([cell("tokens", 6, version=2, account="late")])

    assert begun == Building("first", frozenset(), frozenset(HOURLY))
    assert await staged.values() == {"wrong": 7, "late": 6}
    await staged.staging.swap("usage_hourly")
    assert await staged.values() == {"acme": 5}
    await staged.store.insert_hourly([cell("tokens", 8, version=3)])
    assert await staged.values() == {"acme": 8}


async def test_crash_at_any_step_is_detected_from_the_tables(staged: Staged) -> None:
    """A repeated exchange changes nothing; the first rebuild's note stays until the last staging table is gone."""
    await staged.staging.begin(HOURLY, "first")
    assert await staged.staging.begin(HOURLY, "second") == Building("first", frozenset(), frozenset(HOURLY))
    await staged.staging.beside(HOURLY).insert_hourly([cell("tokens", 5)])
    await staged.staging.swap("usage_hourly")
    await staged.staging.swap("usage_hourly")

    assert await staged.values() == {"acme": 5}
    swapped = frozenset({"usage_hourly"})
    assert await staged.staging.building(HOURLY) == Building("first", swapped, frozenset(HOURLY))
    await staged.staging.swap("usage_duplicates")
    await staged.staging.drop(["usage_hourly"])
    left = frozenset({"usage_duplicates"})
    assert await staged.staging.begin(HOURLY, "third") == Building("first", frozenset(HOURLY), left)
    await staged.staging.drop(HOURLY)
    await staged.staging.drop(HOURLY)
    assert await staged.staging.building(HOURLY) is None


async def test_later_rebuild_of_fewer_tables_starts_again(staged: Staged) -> None:
    """The live table has the note of the rebuild that made it; the next rebuild has another number."""
    await staged.staging.begin(HOURLY, "first")
    for table in HOURLY:
        await staged.staging.swap(table)
    await staged.staging.drop(HOURLY)

    for note, tables in (("second", HOURLY[1:]), ("third", HOURLY)):
        staging_tables = frozenset(tables)
        assert await staged.staging.begin(tables, note) == Building(note, frozenset(), staging_tables)
        assert await staged.staging.building(HOURLY) == Building(note, frozenset(), staging_tables)
        await staged.staging.swap("usage_hourly")
        assert await staged.staging.building(HOURLY) == Building(note, frozenset({"usage_hourly"}), staging_tables)
        await staged.staging.drop(HOURLY)


async def test_row_of_the_highest_version_wins_in_a_staging_table_too(staged: Staged) -> None:
    """A staging table has the engine, the order and the columns of its live table."""
    await staged.staging.begin(HOURLY, "first")
    staging_store = staged.staging.beside(HOURLY)
    await staging_store.insert_hourly([cell("tokens", 5, version=2)])
    await staging_store.insert_hourly([cell("tokens", 4, version=1), cell("tokens", 3, account="zoe")])
    await staged.staging.swap("usage_hourly")

    assert await staged.values() == {"acme": 5, "zoe": 3}
    assert await staged.store.latest_generation() == 0


async def test_account_for_the_resumption_is_a_fixed_number_before_the_last(staged: Staged) -> None:
    """In byte order, each account once, for any number of its months and meters."""
    await staged.staging.begin(HOURLY, "first")
    rows = [
        cell(meter, 5, account=account, bucket_ms=NOON + month * 31 * DAY_MS)
        for account in ("a", "b", "B", "ä", "\uffff", "\U0001f600")
        for meter in ("tokens", "calls")
        for month in (0, 1)
    ]
    elsewhere = [cell("tokens", 5, account=name, partition=4) for name in ("y", "z")]
    await staged.staging.beside(HOURLY).insert_hourly([*rows, *elsewhere])

    accounts = [await staged.staging.account_before_last(3, count) for count in range(1, 8)]
    assert accounts == ["\U0001f600", "\uffff", "ä", "b", "a", "B", ""]
    assert await staged.staging.account_before_last(5, 1) == ""


async def test_generations_are_read_from_the_table_that_is_written(staged: Staged) -> None:
    """A wrong live table is no reason to refuse its replacement."""
    await staged.store.insert_hourly([cell("tokens", 1, version=64 << 56, bucket_ms=NOON)])
    await staged.staging.begin(HOURLY, "first")
    staging_store = staged.staging.beside(HOURLY)
    await staging_store.insert_hourly([cell("tokens", 1, version=2 << 56, bucket_ms=NOON)])

    assert [await store.generation_since(3, NOON) for store in (staged.store, staging_store)] == [64, 2]
    assert [await store.latest_generation() for store in (staged.store, staging_store)] == [64, 2]


async def test_cells_with_later_events_are_carried_over(staged: Staged) -> None:
    await staged.staging.begin(HOURLY, "first")
    old = [("a", 9), ("b", 10), ("c", 11)]
    await staged.store.insert_hourly(
        [cell("tokens", at, account=name, version=7 << 56 | at) for name, at in old]
        + [cell("tokens", 1, account="elsewhere", version=99, partition=4)]
    )
    await staged.staging.swap("usage_hourly")
    await staged.staging.carry_over(3, 10)

    assert await staged.values() == {"b": 10, "c": 11}
    assert await staged.reader.hourly_cells(4) == {}


async def test_staging_archive_has_its_own_positions_controls_and_events(staged: Staged) -> None:
    await staged.store.insert_events([event(1, {}, account="old")])
    await staged.store.save_position(ArchivePosition(3, 50, NOW_MS, "log"))
    await staged.staging.begin(ARCHIVE, "first")
    staging_store = staged.staging.beside(ARCHIVE)

    assert await staging_store.load_position(3) is None
    await staging_store.insert_events([event(1, {})._replace(deferred=True), event(2, {}, account="new")])
    await staging_store.insert_dedup_decisions([DedupDecisionRow(3, 1, "acme", 4, NOW_MS, DedupOutcome.COUNTED)])
    await staging_store.insert_controls([ControlRow(3, 0, "meter_set", "", NOW_MS, "{}")])
    await staging_store.save_position(ArchivePosition(3, 2, NOW_MS, "log"))
    assert (await staging_store.load_position(3)) == ArchivePosition(3, 2, NOW_MS, "log")
    assert len(await staging_store.load_controls(3, 10)) == 1
    assert await staged.store.load_controls(3, 10) == []
    assert await staged.reader.archived_accounts(3, "", 10) == ["old"]

    for table in ARCHIVE:
        await staged.staging.swap(table)
    assert await staged.reader.archived_accounts(3, "", 10) == ["acme", "new"]
    assert await staged.reader.archived_events(3, 10) == 2
    assert await staged.store.load_position(3) == ArchivePosition(3, 2, NOW_MS, "log")


async def test_cells_are_recounted_as_rows_with_the_position_of_the_last_contributing_event(staged: Staged) -> None:
    """As the fold relays them: a known distinct value contributes nothing; `latest` determines the winning event."""
    await staged.store.insert_events(
        [
            event(position(1), {"tokens": 5, "user": "u1"}, event_id="1", time_ms=NOON + 2),
            event(position(2), {"tokens": "1.5", "user": "u2"}, event_id="2", time_ms=NOON + 1),
            event(position(3), {"tokens": 2, "user": "u1"}, event_id="3", time_ms=NOON + 1),
            event(position(4), {"tokens": 2, "user": "u1"}, event_id="4", time_ms=ONE, stream_time_ms=ONE),
            event(position(5), {"tokens": 9}, event_id="5", account="other"),
        ]
    )

    rows = await staged.reader.recount_rows(request_of(*EVERY, accounts=["acme"]), 2)

    by_hour = {(row.meter, row.hour_ms): row for row in rows}
    bucket = NOW_MS // 3_600_000 * 3_600_000
    assert by_hour["tokens", NOON] == (
        "acme", "tokens", *MONTH, NOON, "{}", bucket, Aggregation.SUM, 3, 8_500, 0, 0, 3, 2 << 56 | position(3),
    )  # fmt: skip
    last = by_hour["last", NOON]
    assert (last.value_minor, last.latest_position) == (5_000, position(1))
    assert last.latest_time_us == event(position(1), {}, time_ms=NOON + 2).time_us
    assert by_hour["least", NOON][9:12] == (1_500, 0, 0)
    assert by_hour["users", NOON].value_minor == 2
    assert by_hour["users", NOON].version == 2 << 56 | position(2)
    assert ("users", ONE) not in by_hour
    assert len(by_hour) == len(rows) == 11


async def test_accounts_are_sorted_by_their_bytes_and_the_first_event_is_known(staged: Staged) -> None:
    accounts = ["b", "B", "ä", "\U0001f600", "b\0", "\uffff"]
    assert await staged.reader.first_archived(3) is None
    rows = [event(number + 7, {}, account=name) for number, name in enumerate(accounts)]
    await staged.store.insert_events([*rows, event(1, {}, account="elsewhere", partition=4)])

    ordered = sorted(accounts, key=str.encode)
    assert await staged.reader.archived_accounts(3, "", 100) == ordered
    assert await staged.reader.archived_accounts(3, "b", 2) == ["b", "b\0"]
    assert await staged.reader.first_archived(3) == (7, NOW_MS)
    recounted = await staged.reader.recount_rows(request_of(CALLS), 1)
    assert [row.account for row in recounted] == ordered


async def test_distinct_values_are_read_per_period(staged: Staged) -> None:
    """The values that a restatement writes into the live view, only of the requested accounts."""
    december = MONTH.end_ms
    await staged.store.insert_events(
        [
            event(1, {"user": "u1"}),
            event(2, {"user": "u2"}),
            event(3, {"user": "u1"}, event_id="again"),
            event(4, {"user": 7}, time_ms=december, stream_time_ms=december),
            event(5, {"user": "other"}, account="elsewhere"),
            event(6, {"user": "late"}),
        ]
    )
    request = request_of(USERS, CALLS, accounts=["acme"], before_position=6)

    assert await staged.reader.recount_distinct(request) == {
        ("acme", "users", MONTH.start_ms): {"u1", "u2"},
        ("acme", "users", december): {"7"},
    }
    assert await staged.reader.recount_distinct(request_of(CALLS)) == {}


async def test_emptied_cell_is_in_no_answer_and_takes_usage_again(staged: Staged) -> None:
    """A restatement empties a cell with a period that ends where it begins, in a row of a higher version."""
    start_ms = MONTH.start_ms
    await staged.store.insert_hourly([cell("peak", -5, version=1), cell("tokens", 3, version=1)])
    await staged.store.insert_hourly([cell("peak", 0, version=2)._replace(period_end_ms=start_ms)])

    assert {key.meter: value for key, value in (await staged.reader.hourly_cells(3)).items()} == {"tokens": 3}
    query = UsageQuery("peak", NOON - DAY_MS, NOON + DAY_MS)
    assert await staged.reader.usage(query, Aggregation.MAX) == []
    await staged.store.insert_hourly([cell("peak", -9, version=3)])
    assert [row.value_minor for row in await staged.reader.usage(query, Aggregation.MAX)] == [-9]
