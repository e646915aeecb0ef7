"""One suite for the analytical store: the in-memory twin and ClickHouse's engine behind its HTTP interface."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple, Protocol

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas.analytics import (
    ArchivePosition,
    ArchiveStore,
    ControlRow,
    DrainPosition,
    DuplicateRow,
    EventRow,
    HourlyRow,
    HourlyStore,
    MeterSpan,
    RecountKey,
    RecountRequest,
    UsageQuery,
    UsageReader,
    UsageRow,
    Window,
)
from schemas.clock import DAY_MS, HOUR_MS
from schemas.errors import InvalidInput, OperatorNeeded
from schemas.meters import Aggregation, Catalog, Filter, FilterOperator, Meter
from schemas.periods import Period
from sinks.clickhouse.client import ClickHouse, open_clickhouse
from sinks.clickhouse.memory import MemoryClickHouse
from sinks.clickhouse.reader import ClickHouseReader
from sinks.clickhouse.writer import ClickHouseStore


class Store(ArchiveStore, HourlyStore, Protocol):
    """Both writing protocols."""


class Both(NamedTuple):
    """A store and its reader."""

    store: Store
    reader: UsageReader


@pytest.fixture
async def clickhouse(clickhouse_database: str) -> AsyncIterator[ClickHouse]:
    opened = open_clickhouse(clickhouse_database)
    await ClickHouseStore(opened).migrate()
    yield opened
    await opened.close()


@pytest.fixture(params=["twin", "service"])
def both(request: pytest.FixtureRequest) -> Both:
    if request.param == "twin":
        twin = MemoryClickHouse()
        return Both(twin, twin)
    opened = request.getfixturevalue("clickhouse")
    return Both(ClickHouseStore(opened), ClickHouseReader(opened))


def ms(text: str) -> int:
    """Milliseconds of a UTC time such as `2026-03-29T01:30`."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1000


NOW_MS = ms("2026-11-21T10:15")
MONTH = Period(ms("2026-11-01"), ms("2026-12-01"))
OCTOBER = Period(ms("2026-10-01"), ms("2026-11-01"))
ALL_SPANS = 1 << 50
TOKENS = Meter(slug="tokens", event_type="llm", aggregation=Aggregation.SUM, value_path="$.tokens", scale=3)
CALLS = Meter(slug="calls", event_type="llm", aggregation=Aggregation.COUNT)
PEAK = Meter(slug="peak", event_type="llm", aggregation=Aggregation.MAX, value_path="$.tokens", scale=3)
LAST = Meter(slug="last", event_type="llm", aggregation=Aggregation.LATEST, value_path="$.tokens", scale=3)
USERS = Meter(slug="users", event_type="llm", aggregation=Aggregation.UNIQUE, value_path="$.user")
FIVE = (TOKENS, CALLS, PEAK, LAST, USERS)


def event(
    number: int,
    data: object,
    *,
    account: str = "acme",
    event_id: str | None = None,
    time_ms: int = NOW_MS,
    log_time_ms: int | None = None,
    partition: int = 3,
    event_type: str = "llm",
) -> EventRow:
    text = data if isinstance(data, str) else json.dumps(data, separators=(",", ":"), sort_keys=True)
    return EventRow(
        account,
        event_id or f"e{number}",
        event_type,
        "app",
        time_ms * 1000 + number % 1000,
        text,
        partition,
        number,
        NOW_MS if log_time_ms is None else log_time_ms,
    )


def request_of(
    *meters: Meter,
    before_position: int = ALL_SPANS,
    boundaries: Mapping[str, Sequence[Period]] | None = None,
    closings: Mapping[str, Sequence[tuple[Period, int]]] | None = None,
    accounts: Sequence[str] | None = None,
    graces: Sequence[tuple[int, int]] = ((0, HOUR_MS),),
) -> RecountRequest:
    spans = [MeterSpan(meter, 0, ALL_SPANS) for meter in meters]
    return RecountRequest(3, before_position, spans, graces, boundaries or {}, closings or {}, accounts)


def cell(
    meter: str,
    value: int,
    *,
    aggregation: Aggregation = Aggregation.SUM,
    account: str = "acme",
    hour_ms: int = ms("2026-11-21T10:00"),
    bucket_ms: int = ms("2026-11-21T10:00"),
    dimensions: str = "{}",
    version: int = 1,
    latest: tuple[int, int] = (0, 0),
    partition: int = 3,
) -> HourlyRow:
    return HourlyRow(
        account, meter, *MONTH, hour_ms, dimensions, bucket_ms, aggregation, 3, value, *latest, partition, version
    )


async def test_first_arrival_of_an_event_wins_in_whatever_order_and_number_rows_come(both: Both) -> None:
    """Two archives may write the same partition, late and out of order; the lowest position stands (I3)."""
    first, later = event(5, {"tokens": 1}, event_id="same"), event(9, {"tokens": 100}, event_id="same")

    await both.store.insert_events([later])
    await both.store.insert_events([first, later])
    await both.store.insert_events([later, first])

    assert await both.reader.recount_totals(request_of(TOKENS)) == {("acme", "tokens", MONTH): 1_000}


async def test_retry_with_another_time_across_a_months_end_is_the_same_event(both: Both) -> None:
    """Identity is (account, id), not the timestamp (I3)."""
    await both.store.insert_events([event(1, {"tokens": 1}, event_id="same", time_ms=ms("2026-11-30T23:59"))])
    await both.store.insert_events([event(2, {"tokens": 1}, event_id="same", time_ms=ms("2026-12-01T00:01"))])

    assert list(await both.reader.recount_totals(request_of(CALLS))) == [("acme", "calls", MONTH)]


async def test_the_same_id_of_another_account_is_another_event(both: Both) -> None:
    """One account can never suppress another's event."""
    await both.store.insert_events([event(1, {}, event_id="same"), event(2, {}, event_id="same", account="other")])

    totals = await both.reader.recount_totals(request_of(CALLS))

    assert totals == {("acme", "calls", MONTH): 1, ("other", "calls", MONTH): 1}


async def test_event_outside_the_years_the_store_can_calculate_with_is_refused_whole(both: Both) -> None:
    """Nothing of the call is stored, so that the caller can take the event out and repeat it."""
    rows = [event(1, {}), event(2, {}, time_ms=ms("2300-01-01"))]

    with pytest.raises(InvalidInput, match="1900 to 2299"):
        await both.store.insert_events(rows)

    assert await both.reader.recount_totals(request_of(CALLS)) == {}


@pytest.mark.parametrize("time", ["1900-01-01", "1969-12-31T23:59", "2262-05-01", "2299-12-31T23:00"])
async def test_times_far_from_now_keep_their_month_and_hour(both: Both, time: str) -> None:
    """DateTime64 of microseconds reaches from 1900 to 2299, beyond what 64 bits of nanoseconds could."""
    at = datetime.fromisoformat(time)
    await both.store.insert_events([event(0, {}, time_ms=ms(time), log_time_ms=ms(time))])

    (key,) = await both.reader.recount_cells(request_of(CALLS))

    assert key.period_start_ms == ms(at.replace(day=1, hour=0, minute=0).isoformat())
    assert key.hour_ms == key.arrival_bucket_ms == ms(at.replace(minute=0).isoformat())


async def test_nothing_is_lost_between_empty_calls_and_repeated_migrations(both: Both) -> None:
    """Set-up runs at each start; an empty flush is legal."""
    await both.store.insert_events([event(1, {})])
    await both.store.migrate()
    await both.store.insert_events([])
    await both.store.insert_hourly([])

    assert await both.reader.recount_totals(request_of(CALLS)) == {("acme", "calls", MONTH): 1}


async def test_archive_position_only_moves_forward(both: Both) -> None:
    """A slower archive of the same partition must not make the recount believe in less, nor in more."""
    assert await both.store.load_position(3) is None

    await both.store.save_position(ArchivePosition(3, 20, NOW_MS, "log"))
    await both.store.save_position(ArchivePosition(3, 10, NOW_MS - 1, "log"))
    await both.store.save_position(ArchivePosition(4, 1, NOW_MS, "log"))

    assert await both.store.load_position(3) == ArchivePosition(3, 20, NOW_MS, "log")
    assert {3, 4} == set(await both.reader.archive_positions())


async def test_drain_position_only_moves_forward(both: Both) -> None:
    """Two drainers do no harm."""
    await both.store.save_drained(DrainPosition(3, 20, NOW_MS))
    await both.store.save_drained(DrainPosition(3, 10, NOW_MS - 1))

    assert await both.store.load_drained() == {3: DrainPosition(3, 20, NOW_MS)}


async def test_controls_come_back_oldest_first_with_only_the_latest_catalog_for_the_fold(both: Both) -> None:
    """A rebuild starts from the catalog and the account records of its start; ticks are noise by then."""
    kinds = ["genesis", "catalog", "tick", "account", "catalog", "close", "catalog"]
    rows = [ControlRow(3, at, kind, "", NOW_MS + at, f'{{"at":{at}}}') for at, kind in enumerate(kinds)]
    await both.store.insert_controls(list(reversed(rows)))
    await both.store.insert_controls(rows)

    assert [row.position for row in await both.store.load_controls(3, 6)] == [3, 4, 5]
    assert [row.position for row in await both.reader.controls(3, 6)] == [0, 1, 3, 4, 5]
    assert rows[0] == (await both.reader.controls(3, 6))[0]
    assert list(await both.reader.controls(4, 6)) == []


async def test_highest_version_of_a_cell_stands_whatever_comes_last(both: Both) -> None:
    """Absolute values by version make drainers repeatable; values beyond 64 bits stay exact."""
    await both.store.insert_hourly([cell("tokens", 10**30 + 1, version=7), cell("tokens", 1, version=6)])
    await both.store.insert_hourly([cell("tokens", 2, version=5)])

    assert list((await both.reader.hourly_cells(3)).values()) == [10**30 + 1]
    assert await both.reader.hourly_cells(4) == {}


async def test_conflict_is_a_later_arrival_with_other_content_and_no_mere_repetition(both: Both) -> None:
    """The same id with another payload is found; a retry with another timestamp or source is none (I3)."""
    await both.store.insert_events([event(1, {"tokens": 1}, event_id="a"), event(2, {"tokens": 1}, event_id="b")])
    repeated = DuplicateRow(*event(5, {"tokens": 1}, event_id="a", time_ms=NOW_MS + 1))
    other_data = DuplicateRow(*event(6, {"tokens": 2}, event_id="b"))
    other_type = DuplicateRow(*event(7, {"tokens": 1}, event_id="b", event_type="other"))
    unknown = DuplicateRow(*event(8, {"tokens": 1}, event_id="never archived"))
    await both.store.insert_duplicates([repeated, other_data, other_type, unknown])
    await both.store.insert_duplicates([other_data])

    assert await both.reader.conflicts() == [("acme", "b", 2)]


async def test_recount_evaluates_all_five_aggregations_per_cell(both: Both) -> None:
    """Latest goes by event time, then position; a unique cell counts what the period sees for the first time."""
    ten, eleven = ms("2026-11-21T10:00"), ms("2026-11-21T11:00")
    await both.store.insert_events(
        [
            event(1, {"tokens": 5, "user": "u1"}, time_ms=ten + 2),
            event(2, {"tokens": "1.5", "user": "u2"}, time_ms=ten + 1),
            event(3, {"tokens": 2, "user": "u1"}, time_ms=eleven, log_time_ms=eleven),
        ]
    )

    cells = await both.reader.recount_cells(request_of(*FIVE))

    def value(meter: str, hour_ms: int) -> int:
        return cells[RecountKey("acme", meter, *MONTH, hour_ms, "{}", hour_ms)]

    assert tuple(value(meter.slug, ten) for meter in FIVE) == (6_500, 2, 5_000, 5_000, 2)
    assert tuple(value(meter.slug, eleven) for meter in FIVE) == (2_000, 1, 2_000, 2_000, 0)
    assert len(cells) == 10


async def test_recount_totals_stop_at_position_log_time_and_accounts(both: Both) -> None:
    """What is compared with a fence must hold exactly what the fence holds."""
    await both.store.insert_events(
        [
            event(1, {"tokens": 1, "user": "a"}),
            event(2, {"tokens": 2, "user": "a"}, log_time_ms=NOW_MS + HOUR_MS),
            event(3, {"tokens": 4, "user": "b"}, log_time_ms=NOW_MS + 2 * HOUR_MS),
            event(4, {"tokens": 8}, account="other"),
            event(5, {"tokens": 16}, partition=4, account="elsewhere"),
        ]
    )

    async def total(request: RecountRequest, before_ms: int | None = None) -> dict[str, int]:
        totals = await both.reader.recount_totals(request, before_ms)
        return {f"{account}.{meter}": value for (account, meter, _), value in totals.items()}

    assert await total(request_of(TOKENS), NOW_MS + HOUR_MS) == {"acme.tokens": 1_000, "other.tokens": 8_000}
    assert await total(request_of(TOKENS, before_position=3)) == {"acme.tokens": 3_000}
    assert await total(request_of(USERS, accounts=["acme"])) == {"acme.users": 2}
    assert await total(request_of(PEAK, LAST, accounts=["acme"])) == {"acme.peak": 4_000, "acme.last": 4_000}
    assert await total(request_of(TOKENS, accounts=[])) == {}


async def test_meter_counts_only_at_positions_where_it_was_in_force(both: Both) -> None:
    """Events before the meter, or between its removal and return, were unmetered."""
    await both.store.insert_events([event(number, {}) for number in (1, 5, 9, 12)])
    spans = [MeterSpan(CALLS, 2, 6), MeterSpan(CALLS, 10, 20)]

    totals = await both.reader.recount_totals(request_of()._replace(meters=spans))

    assert totals == {("acme", "calls", MONTH): 2}


EXACT = {
    "integer": ("7", 7_000),
    "beyond 2^53": ("9007199254740993", 9_007_199_254_740_993_000),
    "decimal": ("0.001", 1),
    "decimal as text": ('"12.345"', 12_345),
    "38 digits": ("12345678901234567890123456789012345.678", 12345678901234567890123456789012345678),
    "38 digits as text": ('"12345678901234567890123456789012345.678"', 12345678901234567890123456789012345678),
    "exponent": ("1e3", 1_000_000),
    "exponent of a decoder": ("1E+3", 1_000_000),
    "fraction and exponent": ("2.50e1", 25_000),
    "negative exponent": ("1500e-3", 1_500),
    "trailing zeros beyond the scale": ("1.0000000", 1_000),
    "negative exponent with zeros": ("1000000E-6", 1_000),
    "zero with any exponent": ("0E+400", 0),
    "zero with a fraction": ("-0.000000", 0),
    "negative": ("-3.25", -3_250),
    "leading zeros in a text": ('"0010.500"', 10_500),
}


@pytest.mark.parametrize(("number", "minor"), EXACT.values(), ids=EXACT.keys())
async def test_recount_reads_quantities_exactly(both: Both, number: str, minor: int) -> None:
    """No float on the way: ClickHouse's JSON functions alone would round beyond 2^53 (I5)."""
    await both.store.insert_events([event(1, f'{{"#":"5","note":"\\"tokens\\":9","tokens":{number}}}')])

    assert await both.reader.recount_totals(request_of(TOKENS)) == {("acme", "tokens", MONTH): minor}


async def test_quantity_with_more_digits_than_its_scale_stops_the_recount(both: Both) -> None:
    """Such an event is rejected before the archive; one that stands there all the same must be looked at."""
    await both.store.insert_events([event(1, '{"tokens":0.0001}')])

    with pytest.raises(OperatorNeeded, match="more digits"):
        await both.reader.recount_totals(request_of(TOKENS))


async def test_dimensions_are_canonical_json_of_scalars_by_path(both: Both) -> None:
    """The text must be the fold's to the byte, or every cell would differ."""
    meter = CALLS.model_copy(update={"dimensions": {"region": "$.at.region", "kind": "$.kind"}})
    await both.store.insert_events(
        [
            event(1, {"at": {"region": 'eu/"x"\\\u00e9\u2028\n\x01'}, "kind": True}),
            event(2, {"at": "eu", "kind": -7}),
            event(3, {"kind": "12"}),
            event(4, {"kind": 12, "at": None}),
        ]
    )

    cells = await both.reader.recount_cells(request_of(meter))

    assert {key.dimensions: value for key, value in cells.items()} == {
        '{"kind":"true","region":"eu/\\"x\\"\\\\\u00e9\u2028\\n\\u0001"}': 1,
        '{"kind":"-7","region":""}': 1,
        '{"kind":"12","region":""}': 2,
    }


FILTERS = {
    "equal": (FilterOperator.EQUAL, ("pro",), {1}),
    "in, with integers and booleans as text": (FilterOperator.IN, ("5", "true", "pro"), {1, 2, 3}),
    "not equal passes what has no text": (FilterOperator.NOT_EQUAL, ("pro",), {2, 3, 4, 5, 6, 7, 8, 9}),
    "not in": (FilterOperator.NOT_IN, ("pro", "5", ""), {3, 5, 6, 7, 8, 9}),
    "missing is the empty text": (FilterOperator.EQUAL, ("",), {4}),
    "quotes": (FilterOperator.EQUAL, ('it\'s \\ "x"',), {8}),
    "an object is no number": (FilterOperator.IN, ("12", "1.5", "123456789012345678901"), set()),
}


@pytest.mark.parametrize(("operator", "values", "passing"), FILTERS.values(), ids=FILTERS.keys())
async def test_filters_compare_texts(
    both: Both, operator: FilterOperator, values: tuple[str, ...], passing: set[int]
) -> None:
    """A fraction, a list or an object equals nothing, not even its own spelling."""
    tiers = ['"pro"', "5", "true", "null", "1.5", "[1]", '{"#":"12"}', '"it\'s \\\\ \\"x\\""', "123456789012345678901"]
    await both.store.insert_events([event(n, f'{{"n":"{n}","tier":{tier}}}') for n, tier in enumerate(tiers, 1)])
    meter = Meter(
        slug="passing",
        event_type="llm",
        aggregation=Aggregation.COUNT,
        dimensions={"n": "$.n"},
        filters=(Filter(path="$.tier", operator=operator, values=values),),
    )

    cells = await both.reader.recount_cells(request_of(meter))

    assert passing == {int(json.loads(key.dimensions)["n"]) for key in cells}


async def test_late_event_is_carried_into_the_period_of_its_arrival_with_its_own_hour(both: Both) -> None:
    """Closed by grace from the very instant end + grace on (I9)."""
    october = ms("2026-10-31T23:30")
    just_before, just_closed = MONTH.start_ms + HOUR_MS - 1, MONTH.start_ms + HOUR_MS
    await both.store.insert_events(
        [
            event(1, {}, time_ms=october, log_time_ms=just_before),
            event(2, {}, time_ms=october, log_time_ms=just_closed),
        ]
    )

    cells = await both.reader.recount_cells(request_of(CALLS))

    hour = ms("2026-10-31T23:00")
    assert {
        RecountKey("acme", "calls", *OCTOBER, hour, "{}", MONTH.start_ms): 1,
        RecountKey("acme", "calls", *MONTH, hour, "{}", MONTH.start_ms + HOUR_MS): 1,
    } == cells


async def test_grace_in_force_is_the_one_of_the_events_position(both: Both) -> None:
    """The policy may change; each event is judged by the one it arrived under (I7)."""
    at, arrival = ms("2026-10-31T23:30"), MONTH.start_ms + 2 * HOUR_MS
    await both.store.insert_events([event(number, {}, time_ms=at, log_time_ms=arrival) for number in (1, 10)])
    request = request_of(CALLS, graces=((0, HOUR_MS), (10, 3 * HOUR_MS)))

    assert await both.reader.recount_totals(request) == {("acme", "calls", MONTH): 1, ("acme", "calls", OCTOBER): 1}


async def test_explicitly_closed_period_takes_nothing_after_the_record_and_skips_to_the_next_open_one(
    both: Both,
) -> None:
    """The running month and the next may both be closed by an operator; usage goes on after them."""
    december = Period(MONTH.end_ms, ms("2027-01-01"))
    january = Period(december.end_ms, ms("2027-02-01"))
    await both.store.insert_events([event(number, {}) for number in (1, 5, 9)])
    closings = {"acme": [(MONTH, 4), (december, 8)]}

    totals = await both.reader.recount_totals(request_of(CALLS, closings=closings))

    expected = {("acme", "calls", MONTH): 1, ("acme", "calls", december): 1, ("acme", "calls", january): 1}
    assert expected == totals


async def test_bound_account_has_its_own_periods_and_two_cells_in_a_straddled_hour(both: Both) -> None:
    """An hour that straddles a boundary is two cells (I8); the neighbour keeps calendar months."""
    cut = ms("2026-11-21T10:30")
    periods = [Period(ms("2026-10-21T10:30"), cut), Period(cut, ms("2026-12-21T10:30"))]
    await both.store.insert_events(
        [
            event(1, {}, time_ms=cut - 1),
            event(2, {}, time_ms=cut),
            event(3, {}, time_ms=cut, account="plain"),
        ]
    )

    cells = await both.reader.recount_cells(request_of(CALLS, boundaries={"acme": periods}))

    ten = ms("2026-11-21T10:00")
    assert {
        RecountKey("acme", "calls", *periods[0], ten, "{}", ten): 1,
        RecountKey("acme", "calls", *periods[1], ten, "{}", ten): 1,
        RecountKey("plain", "calls", *MONTH, ten, "{}", ten): 1,
    } == cells


async def test_bound_account_carries_into_its_own_open_period(both: Both) -> None:
    """Boundaries and closings together: the period of the log time is closed, so the one after it counts."""
    days = [Period(MONTH.start_ms + day * DAY_MS, MONTH.start_ms + (day + 1) * DAY_MS) for day in range(30)]
    arrival = days[10].start_ms + 5
    await both.store.insert_events([event(7, {}, time_ms=days[3].start_ms, log_time_ms=arrival)])

    async def counted_in(closings: Sequence[tuple[Period, int]]) -> Period:
        request = request_of(CALLS, boundaries={"acme": days}, closings={"acme": closings})
        ((_, _, period),) = await both.reader.recount_totals(request)
        return period

    assert days[10] == await counted_in([])
    assert days[12] == await counted_in([(days[10], 2), (days[11], 3)])
    assert days[10] == await counted_in([(days[10], 8)])


async def test_boundaries_that_miss_an_event_stop_the_recount(both: Both) -> None:
    """A guess would be a wrong number that looks right."""
    await both.store.insert_events([event(1, {})])

    with pytest.raises(OperatorNeeded, match="boundaries"):
        await both.reader.recount_totals(request_of(CALLS, boundaries={"acme": [OCTOBER]}))


async def test_usage_merges_arrival_buckets_by_aggregation(both: Both) -> None:
    """Count and sum add, max takes the highest, latest the last by event time and position."""
    eleven = ms("2026-11-21T11:00")
    for aggregation, name in ((Aggregation.SUM, "s"), (Aggregation.MAX, "m"), (Aggregation.LATEST, "l")):
        await both.store.insert_hourly(
            [
                cell(name, 5, aggregation=aggregation, latest=(9, 1)),
                cell(name, 3, aggregation=aggregation, latest=(10, 1), bucket_ms=eleven),
                cell(name, 4, aggregation=aggregation, latest=(9, 2), bucket_ms=eleven + HOUR_MS),
            ]
        )

    async def value(meter: str, aggregation: Aggregation) -> int:
        (row,) = await both.reader.usage(UsageQuery(meter, MONTH.start_ms, MONTH.end_ms), aggregation)
        return row.value_minor

    assert await value("s", Aggregation.SUM) == 12
    assert await value("m", Aggregation.MAX) == 5
    assert await value("l", Aggregation.LATEST) == 3


async def test_usage_by_day_and_month_follows_the_asked_time_zone_through_both_clock_changes(both: Both) -> None:
    """A day of 23 and one of 25 hours; windows begin at local midnight."""
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


async def test_usage_by_hour_and_groups_leaves_out_what_was_not_asked(both: Both) -> None:
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


async def test_unique_usage_counts_distinct_values_of_each_window_while_the_meter_was_in_force(both: Both) -> None:
    """Cells hold first sightings only, so an hour's distinct values come from the events."""
    meter = USERS.model_copy(update={"dimensions": {"region": "$.region"}})
    catalogs = [Catalog(version=1, meters=()), Catalog(version=2, meters=(meter,)), Catalog(version=3, meters=())]
    await both.store.insert_controls(
        [
            ControlRow(3, at, "catalog", "", NOW_MS, json.dumps({"catalog": catalog.model_dump(mode="json")}))
            for at, catalog in zip((0, 10, 90), catalogs, strict=True)
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


BAD_QUERIES = {
    "half hour": ({"from_ms": 1}, "whole hours"),
    "backwards": ({"to_ms": 0, "from_ms": HOUR_MS}, "before"),
    "zone": ({"time_zone": "Mars/Olympus'"}, "time zone"),
    "twice": ({"group_by": ("a", "a")}, "twice"),
}


@pytest.mark.parametrize(("change", "message"), BAD_QUERIES.values(), ids=BAD_QUERIES.keys())
async def test_usage_query_that_is_not_understood_is_refused(
    both: Both, change: dict[str, object], message: str
) -> None:
    """The query API turns this into a 4xx."""
    query = UsageQuery("tokens", 0, HOUR_MS)._replace(**change)  # type: ignore[arg-type]  # a table of fields

    with pytest.raises(InvalidInput, match=message):
        await both.reader.usage(query, Aggregation.SUM)


_INSTANTS = st.integers(ms("2026-10-28"), ms("2026-12-03"))
_NUMBERS = st.one_of(
    st.integers(-(10**15), 10**15).map(str),
    st.decimals(-1000, 1000, places=3).map(str),
    st.decimals(-1000, 1000, places=2).map(lambda number: f'"{number:E}"'),
    st.integers(0, 999).map(lambda number: f"{number}e2"),
)
_EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["plain", "bound"]),
        st.integers(0, 30),
        _INSTANTS,
        st.integers(0, 40 * DAY_MS),
        _NUMBERS,
        st.sampled_from(['"a"', '"b\\u00fc\\"#"', "1", "true"]),
    ),
    max_size=25,
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=_EVENTS, closed_at=st.lists(st.integers(0, 25), max_size=3), cut_ms=_INSTANTS)
async def test_recount_by_sql_and_by_python_agree_on_random_events(
    clickhouse: ClickHouse, rows: list[tuple[str, int, int, int, str, str]], closed_at: list[int], cut_ms: int
) -> None:
    """Two implementations that share nothing: periods, closings, carrying, decimals, texts, first arrivals."""
    meters = [meter.model_copy(update={"dimensions": {"user": "$.user"}}) for meter in FIVE]
    log_time_ms, events = ms("2026-10-28"), []
    for number, (account, event_id, time_ms, delay_ms, tokens, user) in enumerate(rows):
        log_time_ms = max(log_time_ms, min(time_ms + delay_ms, ms("2026-12-20")))
        data = f'{{"tokens":{tokens},"user":{user}}}'
        events.append(
            event(number, data, account=account, event_id=str(event_id), time_ms=time_ms, log_time_ms=log_time_ms)
        )
    bound = [
        Period(ms("2026-10-01"), cut_ms),
        Period(cut_ms, cut_ms + 9 * DAY_MS),
        Period(cut_ms + 9 * DAY_MS, 1 << 43),
    ]
    request = request_of(
        *meters,
        boundaries={"bound": bound},
        closings={"bound": [(bound[1], at) for at in closed_at], "plain": [(MONTH, at) for at in closed_at[:1]]},
    )
    twin, store, reader = MemoryClickHouse(), ClickHouseStore(clickhouse), ClickHouseReader(clickhouse)
    await clickhouse.command("TRUNCATE TABLE usage_events")
    await twin.insert_events(events)
    await store.insert_events(events)

    assert await twin.recount_cells(request) == await reader.recount_cells(request)
    assert await twin.recount_totals(request) == await reader.recount_totals(request)
