"""The recount by SQL on the real engine and by Python in the fake, for tables of cases and for random events."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas.aggregations import Aggregation
from schemas.analytics import (
    DedupDecisionRow,
    DedupOutcome,
    EventRow,
    MeterSpan,
    RecountKey,
    RecountRequest,
)
from schemas.clock import DAY_MS, HOUR_MS
from schemas.errors import OperatorNeeded
from schemas.meters import Filter, FilterOperator, Meter
from schemas.periods import Period
from sinks.clickhouse.client import ClickHouse
from sinks.clickhouse.fake import FakeClickHouse
from sinks.clickhouse.reader import ClickHouseReader
from sinks.clickhouse.writer import ClickHouseStore
from tests.conformance.clickhouse_rows import (
    CALLS,
    EVERY,
    LAST,
    LEAST,
    LEVEL,
    MONTH,
    NOW_MS,
    OCTOBER,
    PEAK,
    STORED,
    TOKENS,
    USERS,
    Both,
    event,
    ms,
    request_of,
)


async def test_recount_evaluates_every_aggregation_per_cell(both: Both) -> None:
    """`latest` goes by event time, then position; a unique cell counts the values that the period sees first."""
    ten, eleven = ms("2026-11-21T10:00"), ms("2026-11-21T11:00")
    await both.store.insert_events(
        [
            event(1, {"tokens": 5, "user": "u1"}, time_ms=ten + 2),
            event(2, {"tokens": "1.5", "user": "u2"}, time_ms=ten + 1),
            event(3, {"tokens": 2, "user": "u1"}, time_ms=eleven, stream_time_ms=eleven),
        ]
    )

    cells = await both.reader.recount_cells(request_of(*EVERY))

    def value(meter: str, hour_ms: int) -> int:
        return cells[RecountKey("acme", meter, MONTH.start_ms, hour_ms, "{}", hour_ms)]

    assert tuple(value(meter.slug, ten) for meter in EVERY) == (6_500, 2, 5_000, 1_500, 5_000, 2)
    assert tuple(value(meter.slug, eleven) for meter in EVERY) == (2_000, 1, 2_000, 2_000, 2_000, 0)
    assert len(cells) == 12


async def test_recount_adds_adjustments_and_leaves_samples_out(both: Both) -> None:
    """Of each additive meter, by the dimensions that the adjustment names (S14); a count may become negative."""
    ten, calls = ms("2026-11-21T10:00"), CALLS.model_copy(update={"dimensions": {"region": "$.quantity"}})

    def adjusted(number: int, slug: str, quantity: str, **dimensions: str) -> EventRow:
        data = {"quantity": quantity, "dimensions": dimensions, "tokens": 99}
        return event(number, data, time_ms=ten, event_type=f"tidemark.adjusted.{slug}")

    await both.store.insert_events(
        [
            event(1, {"tokens": 5, "quantity": "eu"}, time_ms=ten),
            event(2, {"tokens": 5, "quantity": "us"}, time_ms=ten),
            adjusted(3, "calls", "-3", region="eu"),
            adjusted(4, "tokens", "-0.5"),
            adjusted(5, "stored", "1.234", region="us"),
            adjusted(6, "stored", "-0.001", region="us"),
            adjusted(7, "peak", "1000"),
        ]
    )
    request = request_of(TOKENS, calls, STORED, PEAK)

    cells = await both.reader.recount_cells(request)
    rows = await both.reader.recount_totals(request)

    assert {(key.meter, key.dimensions): value for key, value in cells.items()} == {
        ("tokens", "{}"): 9_500, ("calls", '{"region":"eu"}'): -2, ("calls", '{"region":"us"}'): 1,
        ("stored", '{"region":"us"}'): 1_233, ("peak", "{}"): 5_000,
    }  # fmt: skip
    assert {meter: value for (_, meter, _), value in rows.items()} == {
        "tokens": 9_500, "calls": -1, "stored": 1_233, "peak": 5_000,
    }  # fmt: skip


async def test_least_and_greatest_of_negative_quantities_are_not_0(both: Both) -> None:
    """A rule that starts from 0, adds up, or keeps the first or last value would fail here."""
    await both.store.insert_events([event(number, {"tokens": each}) for number, each in enumerate((-2, -7, -7, -4))])

    totals = await both.reader.recount_totals(request_of(PEAK, LEAST))

    assert totals == {("acme", "peak", MONTH): -2_000, ("acme", "least", MONTH): -7_000}


async def test_recount_totals_stop_at_position_stream_time_and_accounts(both: Both) -> None:
    """A comparison with a checkpoint needs exactly the events of the checkpoint."""
    await both.store.insert_events(
        [
            event(1, {"tokens": 1, "user": "a"}),
            event(2, {"tokens": 2, "user": "a"}, stream_time_ms=NOW_MS + HOUR_MS),
            event(3, {"tokens": 4, "user": "b"}, stream_time_ms=NOW_MS + 2 * HOUR_MS),
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


async def test_a_level_stands_in_later_periods_until_an_event_changes_it(both: Both) -> None:
    """Also in months without an event, up to an instant. An account's own periods follow its calendar months."""
    march, april, until = ms("2026-03-01"), ms("2026-04-01"), ms("2026-06-15")
    days = [Period(april + day * DAY_MS, april + (day + 1) * DAY_MS) for day in range(100)]
    await both.store.insert_events(
        [
            event(1, {"tokens": 5}, time_ms=march + 5, stream_time_ms=march + 5),
            event(2, {"tokens": 0}, time_ms=ms("2026-05-05"), stream_time_ms=ms("2026-05-05")),
            event(3, {"tokens": 7}, time_ms=march + 9, stream_time_ms=march + 9, account="bound"),
            event(4, {"tokens": 8}, time_ms=march + 8, stream_time_ms=april + HOUR_MS - 1, account="bound"),
            event(5, {"tokens": 9}, time_ms=days[2].start_ms, stream_time_ms=days[2].start_ms, account="bound"),
        ]
    )
    request = request_of(LEVEL, boundaries={"bound": days})

    async def levels(account: str, until_ms: int, before_ms: int | None = None) -> list[tuple[int, int]]:
        found = await both.reader.recount_totals(request._replace(levels_ms={"level": until_ms}), before_ms)
        return sorted((period.start_ms, value) for (of, _, period), value in found.items() if of == account)

    months = [march, april, ms("2026-05-01"), ms("2026-06-01")]
    assert await levels("acme", until) == list(zip(months, (5_000, 5_000, 0, 0), strict=True))
    assert await levels("acme", until, april) == [(march, 5_000)]
    assert await levels("acme", until, april + 1) == [(march, 5_000), (april, 5_000)]
    starts = [march, *(day.start_ms for day in days[:4])]
    values = (7_000, 7_000, 7_000, 9_000, 9_000)
    assert await levels("bound", days[3].start_ms) == list(zip(starts, values, strict=True))


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
    """Without floats: ClickHouse's JSON functions alone would round beyond 2^53 (I5)."""
    await both.store.insert_events([event(1, f'{{"#":"5","note":"\\"tokens\\":9","tokens":{number}}}')])

    assert await both.reader.recount_totals(request_of(TOKENS)) == {("acme", "tokens", MONTH): minor}


async def test_quantity_with_more_digits_than_its_scale_stops_the_recount(both: Both) -> None:
    """The fold rejects such an event before the archive, so its presence needs an operator."""
    await both.store.insert_events([event(1, '{"tokens":0.0001}')])

    with pytest.raises(OperatorNeeded, match="more digits"):
        await both.reader.recount_totals(request_of(TOKENS))


async def test_dimensions_are_canonical_json_of_scalars_by_path(both: Both) -> None:
    """The text must have the fold's bytes, or every cell would differ."""
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
    "an object is no number": (FilterOperator.IN, ("12", "1.5"), set()),
    "an integer of any length": (FilterOperator.IN, ("123456789012345678901",), {9}),
}


@pytest.mark.parametrize(("operator", "values", "passing"), FILTERS.values(), ids=FILTERS.keys())
async def test_filters_compare_texts(
    both: Both, operator: FilterOperator, values: tuple[str, ...], passing: set[int]
) -> None:
    """A fraction, a list or an object equals nothing, not even its own text."""
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


async def test_late_event_is_carried_into_the_period_of_its_arrival_and_keeps_its_hour(both: Both) -> None:
    """Grace closes the period at exactly end + grace (I9)."""
    october = ms("2026-10-31T23:30")
    just_before, just_closed = MONTH.start_ms + HOUR_MS - 1, MONTH.start_ms + HOUR_MS
    await both.store.insert_events(
        [
            event(1, {}, time_ms=october, stream_time_ms=just_before),
            event(2, {}, time_ms=october, stream_time_ms=just_closed),
        ]
    )

    cells = await both.reader.recount_cells(request_of(CALLS))

    hour = ms("2026-10-31T23:00")
    assert {
        RecountKey("acme", "calls", OCTOBER.start_ms, hour, "{}", MONTH.start_ms): 1,
        RecountKey("acme", "calls", MONTH.start_ms, hour, "{}", MONTH.start_ms + HOUR_MS): 1,
    } == cells


async def test_event_is_judged_by_the_grace_in_force_at_its_position(both: Both) -> None:
    """The policy may change; an event keeps the policy of its arrival (I7)."""
    at, arrival = ms("2026-10-31T23:30"), MONTH.start_ms + 2 * HOUR_MS
    await both.store.insert_events([event(number, {}, time_ms=at, stream_time_ms=arrival) for number in (1, 10)])
    request = request_of(CALLS, graces=((0, HOUR_MS), (10, 3 * HOUR_MS)))

    assert await both.reader.recount_totals(request) == {("acme", "calls", MONTH): 1, ("acme", "calls", OCTOBER): 1}


async def test_explicitly_closed_period_takes_nothing_after_the_record_and_skips_to_the_next_open_one(
    both: Both,
) -> None:
    """An operator may close the running month and the next one; usage continues in the month after."""
    december = Period(MONTH.end_ms, ms("2027-01-01"))
    january = Period(december.end_ms, ms("2027-02-01"))
    await both.store.insert_events([event(number, {}) for number in (1, 5, 9)])
    closings = {"acme": [(MONTH.start_ms, 4), (december.start_ms, 8)]}

    totals = await both.reader.recount_totals(request_of(CALLS, closings=closings))

    expected = {("acme", "calls", MONTH): 1, ("acme", "calls", december): 1, ("acme", "calls", january): 1}
    assert expected == totals


async def test_bound_account_has_its_own_periods_and_two_cells_in_a_straddled_hour(both: Both) -> None:
    """An hour that contains a boundary is two cells (I8); the other account keeps calendar months."""
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
        RecountKey("acme", "calls", periods[0].start_ms, ten, "{}", ten): 1,
        RecountKey("acme", "calls", periods[1].start_ms, ten, "{}", ten): 1,
        RecountKey("plain", "calls", MONTH.start_ms, ten, "{}", ten): 1,
    } == cells


async def test_bound_account_carries_into_its_own_open_period(both: Both) -> None:
    """Boundaries and closings together: the period of the stream time is closed, so the next one counts the event."""
    days = [Period(MONTH.start_ms + day * DAY_MS, MONTH.start_ms + (day + 1) * DAY_MS) for day in range(30)]
    arrival = days[10].start_ms + 5
    await both.store.insert_events([event(7, {}, time_ms=days[3].start_ms, stream_time_ms=arrival)])

    async def counted_in(closings: Sequence[tuple[int, int]]) -> Period:
        request = request_of(CALLS, boundaries={"acme": days}, closings={"acme": closings})
        ((_, _, period),) = await both.reader.recount_totals(request)
        return period

    assert days[10] == await counted_in([])
    assert days[12] == await counted_in([(days[10].start_ms, 2), (days[11].start_ms, 3)])
    assert days[10] == await counted_in([(days[10].start_ms, 8)])


async def test_event_outside_all_boundaries_stops_the_recount(both: Both) -> None:
    """A guess would be a wrong number that looks right."""
    await both.store.insert_events([event(1, {})])

    with pytest.raises(OperatorNeeded, match="boundaries"):
        await both.reader.recount_totals(request_of(CALLS, boundaries={"acme": [OCTOBER]}))


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
        st.sampled_from([None, None, None, "", *DedupOutcome]),
        st.sampled_from(["llm", "llm", "tidemark.adjusted.tokens", "tidemark.adjusted.stored"]),
    ),
    max_size=25,
)
# Dedup decisions come after all events.
_DECISIONS_FROM = 100


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=_EVENTS,
    closed_at=st.lists(st.integers(0, 25) | st.integers(_DECISIONS_FROM, _DECISIONS_FROM + 25), max_size=3),
    cut_ms=_INSTANTS,
    until_ms=_INSTANTS,
)
async def test_recount_by_sql_and_by_python_agree_on_random_events(
    clickhouse: ClickHouse,
    rows: list[tuple[str, int, int, int, str, str, DedupOutcome | str | None, str]],
    closed_at: list[int],
    cut_ms: int,
    until_ms: int,
) -> None:
    """The implementations share nothing. Deferred events of any age occur, with and without decisions."""
    meters = [meter.model_copy(update={"dimensions": {"user": "$.user"}}) for meter in (*EVERY, LEVEL, STORED)]
    stream_time_ms, events, decisions = ms("2026-10-28"), [], []
    for number, (account, event_id, time_ms, delay_ms, tokens, user, decision, type_) in enumerate(rows):
        stream_time_ms = max(stream_time_ms, min(time_ms + delay_ms, ms("2026-12-20")))
        data = f'{{"dimensions":{{"user":{user}}},"quantity":{tokens},"tokens":{tokens},"user":{user}}}'
        own_ms = time_ms if decision is None else time_ms - delay_ms * 100
        archived = event(
            number, data, account=account, event_id=str(event_id), time_ms=own_ms, stream_time_ms=stream_time_ms,
            event_type=type_,
        )  # fmt: skip
        events.append(archived._replace(deferred=decision is not None))
        if decision:
            at, judged_ms = _DECISIONS_FROM + number, ms("2026-12-20") + number * DAY_MS
            decisions.append(DedupDecisionRow(3, number, account, at, judged_ms, DedupOutcome(decision)))
    bound = [
        Period(ms("2026-10-01"), cut_ms),
        Period(cut_ms, cut_ms + 9 * DAY_MS),
        Period(cut_ms + 9 * DAY_MS, 1 << 43),
    ]
    request = request_of(
        *meters,
        boundaries={"bound": bound},
        closings={
            "bound": [(bound[1].start_ms, at) for at in closed_at],
            "plain": [(MONTH.start_ms, at) for at in closed_at[:1]],
        },
    )
    fake, store, reader = FakeClickHouse(), ClickHouseStore(clickhouse), ClickHouseReader(clickhouse)
    for table in ("usage_events", "dedup_decisions"):
        await clickhouse.command(f"TRUNCATE TABLE {table}")
    for each in (fake, store):
        await each.insert_events(events)
        await each.insert_dedup_decisions(decisions)

    assert await fake.recount_cells(request) == await reader.recount_cells(request)
    request = request._replace(levels_ms={"level": until_ms})
    for before_ms in (None, cut_ms):
        assert await fake.recount_totals(request, before_ms) == await reader.recount_totals(request, before_ms)
    for before in (10, _DECISIONS_FROM + 10):
        assert await fake.archived_events(3, before) == await reader.archived_events(3, before)
