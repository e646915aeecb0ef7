"""Adjustments (S14) and the samples of measured meters (S15) in the fold: what they count, and where."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import pytest
from pydantic import ValidationError

from aggregators.codec import parse_cell_field, parse_cell_text, parse_value
from aggregators.corrections import Change, change_id
from aggregators.measures import Difference, PieceKey, difference_id
from aggregators.meters import Failure, Sample, compiled, definition_change, sample_reader
from aggregators.placement import place
from aggregators.scan import LogState, scan
from oracle import rules
from pipeline.logs.adjustments import append_adjustments
from schemas.adjustments import adjusting, adjustment, is_reserved, reserved, slug_of
from schemas.clock import DAY_MS, HOUR_MS
from schemas.meters import Meter, MeterSet
from schemas.periods import AccountState
from sinks.redis.fake import FakeLiveView
from tests.traffic.generate import rfc3339
from tests.worlds.deployment import SECRET, World

APRIL_MS: Final = 1_775_001_600_000  # 2026-04-01T00:00:00Z
NOON_MS: Final = APRIL_MS + 12 * HOUR_MS
CALLS: Final = {"slug": "calls", "event_type": "call", "aggregation": "count", "dimensions": {"how": "$.how"}}
TOKENS: Final = {"slug": "tokens", "event_type": "call", "aggregation": "sum", "value_path": "$.n", "scale": 2}
STORED: Final = {
    "slug": "stored", "event_type": "level", "aggregation": "time_weighted", "value_path": "$.gb", "scale": 3,
    "dimensions": {"tier": "$.tier"}, "series_path": "$.bucket", "late": "quarantine",
}  # fmt: skip
RAN: Final = {
    "slug": "ran", "event_type": "job", "aggregation": "duration", "value_path": "$.cpus", "start_path": "$.from",
    "scale": 1,
}  # fmt: skip
ONLINE: Final = {"slug": "online", "event_type": "beat", "aggregation": "duration", "session_path": "$.session"}
METERS: Final[dict[str, Any]] = {"version": 1, "meters": [CALLS, TOKENS, STORED, RAN, ONLINE]}


def meter(fields: Mapping[str, Any]) -> Meter:
    return Meter.model_validate(fields)


def event(type_: str, time_ms: int, event_id: str, **data: Any) -> dict[str, Any]:
    return {
        "specversion": "1.0", "id": event_id, "source": "app", "type": type_, "subject": "acme",
        "time": rfc3339(time_ms * 1000), "data": data,
    }  # fmt: skip


def adjusted(slug: str, minor: int, time_ms: int, event_id: str, **dimensions: str) -> dict[str, Any]:
    of = next(meter(each) for each in METERS["meters"] if each["slug"] == slug)
    return adjustment(of, "acme", event_id, rfc3339(time_ms * 1000), minor, dimensions, {"reason": "a test"})


@pytest.mark.parametrize("event_id", ["m:disk:1", "c:42", "m:disk:44136fa3:1775001600000:0", "C:1", "mail:1:2:3:4"])
def test_only_ids_of_the_form_of_an_adjustment_are_taken(event_id: str) -> None:
    """An application that had an adjustment's id first would never be billed: the adjustment would be a duplicate."""
    of = meter(CALLS)
    change = change_id("op-1", Change(of, '{"how":"x"}', -1, 3))
    difference = difference_id(of, Difference(PieceKey("{}", APRIL_MS), APRIL_MS + HOUR_MS, 1, 0))

    assert (reserved("call", change)[:3], reserved("call", difference)[:3]) == ("id:", "id:")
    assert reserved("call", event_id) == ""


class Folded(NamedTuple):
    """What a fold has counted: the totals of April by meter, cells by (meter, hour, dimensions), and the counters."""

    totals: dict[str, int]
    cells: dict[tuple[str, int, str], int]
    counters: dict[str, int]
    world: World


async def folded(*batches: Sequence[Mapping[str, Any]], now_ms: int = NOON_MS) -> Folded:
    """Fold records with these events, which arrive at `now_ms`."""
    view = FakeLiveView()
    world = World(APRIL_MS - 5 * DAY_MS, 1, view)
    await world.start(METERS)
    world.clock.ms = now_ms
    for events in batches:
        await append_adjustments(world.log, 0, events)
    await world.fold_all()
    state = view.server.partitions[0]
    assert state.checkpoint is not None
    totals = {
        slug: parse_value(text).minor
        for key, texts in state.totals.items()
        for slug, text in texts.items()
        if key.period_start_ms == APRIL_MS
    }
    cells: Counter[tuple[str, int, str]] = Counter()
    for cell, text in state.cells.items():
        of = parse_cell_field(cell.field)
        cells[of.meter, of.hour_ms, of.dimensions] += parse_cell_text(text)[3].minor
    counters = {name: number for name, number in state.checkpoint.counters._asdict().items() if number}
    return Folded(totals, dict(cells), counters, world)


async def test_an_adjustment_adds_to_the_total_the_hour_and_the_dimensions_that_it_names() -> None:
    """Of a count too, which may become negative; and an id counts once (S14)."""
    eleven_ms = NOON_MS - HOUR_MS
    plain = [event("call", NOON_MS, str(number), how="web", n="1.5") for number in range(3)]
    taken = [
        adjusted("calls", -5, NOON_MS, "a", how="web"),
        adjusted("calls", 1, eleven_ms, "b", how="api"),
        adjusted("tokens", -50, NOON_MS, "c"),
        adjusted("stored", 1_234, eleven_ms, "d", tier="hot"),
        adjusted("online", -7, NOON_MS, "e"),
    ]

    found = await folded(plain, taken, taken)

    assert found.totals == {"calls": -1, "tokens": 400, "stored": 1_234, "online": -7}
    assert found.cells == {
        ("calls", NOON_MS, '{"how":"web"}'): -2, ("calls", eleven_ms, '{"how":"api"}'): 1,
        ("tokens", NOON_MS, "{}"): 400, ("stored", eleven_ms, '{"tier":"hot"}'): 1_234, ("online", NOON_MS, "{}"): -7,
    }  # fmt: skip
    assert found.counters == {"received": 13, "counted": 8, "duplicate": 5}


async def test_a_sample_is_counted_and_adds_nothing() -> None:
    """And archived, also where the period of its time is closed, and the meter quarantines late usage (S15)."""
    samples = [
        event("level", NOON_MS, "1", gb="1.5", tier="hot"),
        event("job", NOON_MS, "2", **{"from": rfc3339(APRIL_MS * 1000), "cpus": 4}),
        event("beat", NOON_MS, "3", session="s"),
        event("level", APRIL_MS - DAY_MS, "4", gb=0),
        event("level", NOON_MS, "1", gb="1.5", tier="hot"),
    ]
    late = adjusted("stored", 1, APRIL_MS - DAY_MS, "5", tier="")

    found = await folded(samples, [late])

    assert (found.totals, found.cells) == ({}, {})
    assert found.counters == {"received": 6, "counted": 4, "duplicate": 1, "late": 1}
    records = await found.world.records(0)
    state = LogState(found.world.log_id, 1, 0, None)
    archived = place(scan(0, state, SECRET, records, events_max=100), {}).arrivals
    assert {arrival.id for arrival in archived} == {"1", "2", "3", "4"}


async def test_a_sample_of_a_closed_period_does_not_open_the_period_for_the_archive() -> None:
    """The archive keeps out what the fold keeps out, also after a sample that needs no open period."""
    closed = AccountState(closed_start_ms=(APRIL_MS,))
    found = await folded([event("level", NOON_MS, "1", gb=1, tier="hot"), adjusted("stored", 1, NOON_MS, "2", tier="")])
    records = await found.world.records(0)
    state = LogState(found.world.log_id, 1, 0, None)

    archived = place(scan(0, state, SECRET, records, events_max=100), {"acme": closed}).arrivals

    assert {arrival.id for arrival in archived} == {"1"}


@pytest.mark.parametrize("type_", ["tidemark.adjusted.nothing", "tidemark.voided"])
async def test_other_events_of_this_system_are_unmetered(type_: str) -> None:
    assert (await folded([event(type_, NOON_MS, "1", corrects="x")])).counters == {"received": 1, "unmetered": 1}


SAMPLES: Final = [
    pytest.param(STORED, {"gb": "1.25", "tier": "hot", "bucket": 7}, (1_250, '{"tier":"hot"}', "7"), id="level"),
    pytest.param(STORED, {"gb": 0}, (0, '{"tier":""}', ""), id="level without a series"),
    pytest.param(STORED, {"gb": -1}, "negative_quantity", id="negative level"),
    pytest.param(STORED, {}, "missing_quantity", id="no level"),
    pytest.param(STORED, {"gb": 1, "bucket": [1]}, "bad_dimension", id="series is a list"),
    pytest.param(RAN, {"cpus": "1.5", "from": "2026-04-01T11:00:00Z"}, (15, "{}", "", 3_600), id="span"),
    pytest.param(RAN, {"cpus": 1, "from": "2026-04-01T14:00:00+02:00"}, (10, "{}", "", 0), id="span of no time"),
    pytest.param(RAN, {"cpus": 1, "from": "2026-04-01T12:00:01Z"}, "bad_quantity", id="start after the end"),
    pytest.param(RAN, {"cpus": 1, "from": "2026-02-25T12:00:00Z"}, (10, "{}", "", 35 * 86_400), id="35 days"),
    pytest.param(RAN, {"cpus": 1, "from": "2026-02-25T11:59:59Z"}, "bad_quantity", id="over 35 days"),
    pytest.param(RAN, {"cpus": 1, "from": "eleven"}, "bad_quantity", id="start is no time"),
    pytest.param(RAN, {"cpus": 1, "from": 5}, "bad_quantity", id="start is a number"),
    pytest.param(RAN, {"cpus": 1}, "missing_quantity", id="no start"),
    pytest.param(RAN, {"from": "2026-04-01T11:00:00Z"}, "missing_quantity", id="no weight"),
    pytest.param(ONLINE, {"session": 9}, (1, "{}", "9"), id="heartbeat"),
    pytest.param(ONLINE, {"session": ""}, "missing_quantity", id="empty session"),
    pytest.param(ONLINE, {"session": 1.5}, "bad_quantity", id="session is a fraction"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "data", "expected"), SAMPLES)
def test_a_sample_is_read_exactly_or_rejected(
    fields: Mapping[str, Any], data: dict[str, Any], expected: str | tuple[Any, ...]
) -> None:
    """The time is noon. A sample that is no use is rejected like any other event, or skipped; the oracle agrees."""
    time_us = NOON_MS * 1000
    found = sample_reader(meter(fields))(data, time_us)
    fed = compiled(MeterSet(version=1, meters=(meter(fields),))).contributions(fields["event_type"], data, time_us)
    tolerant = compiled(MeterSet(version=1, meters=(meter({**fields, "on_bad": "skip_meter"}),)))
    of = rules.Event("acme", "1", fields["event_type"], "app", time_us, data)

    if isinstance(expected, str):
        assert isinstance(found, Failure)
        assert isinstance(fed, Failure)
        assert {found.reason, fed.reason} == {expected}
        assert tolerant.contributions(fields["event_type"], data, time_us) == ()
        assert [why.reason for _, why in tolerant.skips(fields["event_type"], data, time_us)] == [expected]
        with pytest.raises(rules.RejectedError, match=expected):
            rules.contributions(of, {"meters": [fields]})
        return
    minor, dimensions, group, *spans_s = expected
    start_us = time_us - spans_s[0] * 1_000_000 if spans_s else None
    assert found == Sample(minor, dimensions, group, start_us)
    assert not isinstance(fed, Failure)
    assert [each.is_sample for each in fed] == [True]
    assert [each.is_sample for each in rules.contributions(of, {"meters": [fields]})] == [True]


REFUSED: Final = [
    pytest.param({"aggregation": "sum", "event_type": "tidemark.adjusted.calls"}, "reserved", id="reserved type"),
    pytest.param({"aggregation": "time_weighted", "value_path": None}, "needs a value_path", id="no level"),
    pytest.param({"aggregation": "time_weighted", "start_path": "$.a"}, "has no start_path", id="level with a span"),
    pytest.param({"aggregation": "duration", "value_path": None}, "either start_path or session_path", id="neither"),
    pytest.param(
        {"aggregation": "duration", "value_path": None, "start_path": "$.a", "session_path": "$.b"},
        "either start_path or session_path",
        id="both",
    ),
    pytest.param({"aggregation": "duration", "session_path": "$.a"}, "no weight", id="session with a weight"),
    pytest.param({"aggregation": "duration", "start_path": "$.a", "allow_negative": True}, "0 or more", id="negative"),
    pytest.param({"aggregation": "duration", "start_path": "$.a", "carry_over": True}, "no level", id="carried over"),
    pytest.param({"aggregation": "sum", "series_path": "$.a"}, "has no series_path", id="series of a sum"),
    pytest.param({"aggregation": "sum", "per": "second"}, "has no per", id="unit of a sum"),
    pytest.param({"aggregation": "time_weighted", "session_gap_s_max": 5}, "session_path", id="gap without a session"),
    pytest.param({"aggregation": "time_weighted", "stands_s_max": 0}, "greater than or equal to 1", id="no time"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "problem"), REFUSED)
def test_a_meter_that_makes_no_sense_is_refused_with_its_remedy(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        meter({"slug": "m", "event_type": "t", "value_path": "$.n", **fields})


@pytest.mark.parametrize("field", ["series_path", "stands_s_max", "per"])
def test_what_a_meter_measures_never_changes(field: str) -> None:
    before = {**STORED, "series_path": "$.bucket", "stands_s_max": 60, "per": "minute"}
    after = {name: value for name, value in before.items() if name != field}

    change = definition_change(
        MeterSet(version=1, meters=(meter(before),)), MeterSet(version=2, meters=(meter(after),))
    )

    assert change is not None
    assert field in change


def test_only_additive_meters_take_adjustments() -> None:
    taking = {each["slug"] for each in METERS["meters"] if adjusting(meter(each)) is not None}
    level = {"slug": "seats", "event_type": "t", "aggregation": "latest", "value_path": "$.n"}

    assert taking == {"calls", "tokens", "stored", "ran", "online"}
    assert adjusting(meter(level)) is None
    assert adjusted("tokens", -5, NOON_MS, "a")["data"]["quantity"] == "-0.05"
    assert slug_of(adjusted("calls", 1, NOON_MS, "a")["type"]) == "calls"
    assert [is_reserved(each) for each in ("tidemark.voided", "tidemarks")] == [True, False]
    assert slug_of("call") is None
