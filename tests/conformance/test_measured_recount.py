"""What the reconciler reads of measured meters: the fake and the real engine answer alike."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from schemas.analytics import ControlRow, DedupDecisionRow, DedupOutcome, EventRow
from schemas.clock import DAY_MS, HOUR_MS, MINUTE_MS
from schemas.measured_recount import MeasuredPage, MeasuredRecount, UsageKey
from schemas.measures import MeasuredSpan
from schemas.meters import Meter
from sinks.clickhouse.client import ClickHouse
from sinks.clickhouse.fake import FakeClickHouse
from sinks.clickhouse.fake_measured_recount import FakeMeasuredRecount
from sinks.clickhouse.measured_recount import ClickHouseMeasuredRecount
from sinks.clickhouse.writer import ClickHouseStore
from tests.conformance.clickhouse_rows import NOW_MS, Store, cell, event, ms

GAUGE: Mapping[str, Any] = {
    "slug": "disk", "event_type": "gauge", "aggregation": "time_weighted", "value_path": "$.gb", "scale": 2,
    "series_path": "$.box.name", "dimensions": {"site": "$.site"}, "on_bad": "skip_meter",
}  # fmt: skip
SITE = '{"site":"eu"}'
STORED_AT_MS = ms("2026-11-21T10:00")


@pytest.fixture(params=["fake", "service"])
def stores(request: pytest.FixtureRequest) -> tuple[Store, MeasuredRecount]:
    if request.param == "fake":
        fake = FakeClickHouse()
        return fake, FakeMeasuredRecount(fake)
    opened: ClickHouse = request.getfixturevalue("clickhouse")
    return ClickHouseStore(opened), ClickHouseMeasuredRecount(opened)


def meter(**changes: object) -> Meter:
    return Meter.model_validate({**GAUGE, **changes})


def page(of: Meter, *accounts: str, from_ms: int = NOW_MS - DAY_MS, before: int = 100, start: int = 0) -> MeasuredPage:
    return MeasuredPage(3, of, [MeasuredSpan(start, 90)], accounts or ("acme",), from_ms, before)


def sample(position: int, minute: int = 0, account: str = "acme", event_id: str = "", **data: object) -> EventRow:
    body = {"gb": 1, "site": "eu", "box": {"name": "a"}, **data}
    row = event(position, body, event_type="gauge", time_ms=NOW_MS + minute * MINUTE_MS)
    return row._replace(account=account, id=event_id or row.id, time_us=(NOW_MS + minute * MINUTE_MS) * 1000)


def adjusted(position: int, minor: str, time_ms: int, *, account: str = "acme", partition: int = 3) -> EventRow:
    data = {"quantity": minor, "dimensions": {"site": "eu"}, "from": "x"}
    row = event(position, data, event_type="tidemark.adjusted.disk", account=account, partition=partition)
    return row._replace(time_us=time_ms * 1000)


QUANTITIES: Mapping[str, tuple[dict[str, Any], tuple[int, str, str] | None]] = {
    "a number": ({"gb": 3}, (300, SITE, "a")),
    "a text": ({"gb": "0.25"}, (25, SITE, "a")),
    "an exponent and a boolean": ({"gb": "1e1", "site": True}, (1_000, '{"site":"true"}', "a")),
    "nothing": ({"gb": 0}, (0, SITE, "a")),
    "no series": ({"box": 7}, (100, SITE, "")),
    "a number as series": ({"box": {"name": 12}}, (100, SITE, "12")),
    "no text of a series": ({"box": {"name": 1.5}}, None),
    "below 0": ({"gb": -1}, None),
    "too many digits": ({"gb": "0.001"}, None),
    "no quantity": ({"gb": None}, None),
    "no dimension": ({"site": ["eu"]}, None),
}


async def test_a_sample_is_read_exactly_or_left_out(stores: tuple[Store, MeasuredRecount]) -> None:
    store, recount = stores
    rows = [sample(number, account=name, **data) for number, (name, (data, _)) in enumerate(QUANTITIES.items())]
    await store.insert_events(rows)

    found = await recount.samples_of(page(meter(), *QUANTITIES), 100)

    assert {each.account: (each.minor, each.dimensions, each.text) for each in found} == {
        name: expected for name, (_, expected) in QUANTITIES.items() if expected is not None
    }
    assert [(each.id, each.time_us, each.stream_time_ms) for each in found] == [
        (f"e{each.arrived}", NOW_MS * 1000, NOW_MS) for each in found
    ]


AT = "2026-11-21T10:00:00Z"
SESSION: Mapping[str, Any] = {"aggregation": "duration", "session_path": "$.call"}
SPAN: Mapping[str, Any] = {"aggregation": "duration", "start_path": "$.at"}
FILTER = {"path": "$.site", "operator": "ne", "values": ["us"]}
KINDS: Mapping[str, tuple[Mapping[str, Any], dict[str, Any], tuple[int, str] | None]] = {
    "a session": (SESSION, {"call": "c1"}, (1, "c1")),
    "a session without a name": (SESSION, {"call": ""}, None),
    "scaled": ({**SESSION, "scale": 2}, {"call": "c"}, (100, "c")),
    "a span": (SPAN, {"at": AT}, (1, AT)),
    "a weight": ({**SPAN, "value_path": "$.gb"}, {"at": "x", "gb": 4}, (4, "x")),
    "filtered out": ({"filters": [{"path": "$.site", "values": ["us"]}]}, {}, None),
    "filtered in": ({"filters": [FILTER]}, {}, (1, "a")),
}


async def test_each_kind_of_sample(stores: tuple[Store, MeasuredRecount]) -> None:
    store, recount = stores
    rows = [sample(number, account=name, **data) for number, (name, (_, data, _)) in enumerate(KINDS.items())]
    await store.insert_events(rows)

    for name, (changes, _, expected) in KINDS.items():
        dropped = {"value_path", "series_path"} if changes.get("aggregation") else set()
        fields = {**{field: value for field, value in GAUGE.items() if field not in dropped}, "scale": 0, **changes}
        found = await recount.samples_of(page(Meter.model_validate(fields), name), 10)
        assert [(each.minor, each.text) for each in found] == ([] if expected is None else [expected]), name


async def test_samples_of_the_page_and_those_that_stand_from_before(stores: tuple[Store, MeasuredRecount]) -> None:
    """A sample that a correction names is there, and the one before as well: who voids it may come to it."""
    store, recount = stores
    old = -2 * 24 * 60
    elsewhere = sample(7, event_id="elsewhere")._replace(partition=4)
    await store.insert_events(
        [sample(1, old - 5), sample(2, old - 4), sample(3, old - 3, event_id="voided"),
         sample(4, old, box={"name": "b"}), sample(5), sample(6, account="globex"), elsewhere, sample(95),
         sample(8, old - 1, gb=None)]
    )  # fmt: skip
    value = {"account": "acme", "event": "voided", "kind": "void", "counts": True}
    await store.insert_controls([ControlRow(3, 20, "correction", "acme", NOW_MS, json.dumps(value))])

    found = {each.arrived for each in await recount.samples_of(page(meter()), 10)}

    assert found >= {2, 3, 4, 5}
    assert found <= {1, 2, 3, 4, 5}
    assert len(await recount.samples_of(page(meter()), 2)) == 2
    assert {each.arrived for each in await recount.samples_of(page(meter(), start=5, before=6), 10)} == {5}
    both = await recount.samples_of(page(meter(), "acme", "globex", from_ms=NOW_MS), 10)
    assert {each.account for each in both} == {"acme", "globex"}


async def test_adjustments_and_their_dedup_decisions(stores: tuple[Store, MeasuredRecount]) -> None:
    """One that waits for its decision is told, and counts nowhere yet; one that was kept out is not told."""
    store, recount = stores
    rows = [adjusted(number, f"{number}.5", STORED_AT_MS - number * HOUR_MS) for number in (1, 2, 3, 4)]
    waiting = [row._replace(deferred=True) for row in rows[1:]]
    await store.insert_events(
        [rows[0], *waiting, adjusted(5, "9", STORED_AT_MS - 2 * DAY_MS), adjusted(6, "9", STORED_AT_MS, partition=4),
         adjusted(7, "9", STORED_AT_MS, account="globex")]
    )  # fmt: skip
    await store.insert_dedup_decisions(
        [DedupDecisionRow(3, 3, "acme", 30, NOW_MS + 7, DedupOutcome.COUNTED),
         DedupDecisionRow(3, 4, "acme", 31, NOW_MS + 8, DedupOutcome.LATE)]
    )  # fmt: skip

    found = await recount.adjusted(page(meter()), 10)

    assert sorted((each.time_ms, each.minor, each.stream_time_ms or 0) for each in found) == [
        (STORED_AT_MS - 3 * HOUR_MS, 350, NOW_MS + 7),
        (STORED_AT_MS - 2 * HOUR_MS, 250, 0),
        (STORED_AT_MS - HOUR_MS, 150, NOW_MS),
    ]
    assert {(each.account, each.dimensions) for each in found} == {("acme", SITE)}
    assert len(await recount.adjusted(page(meter()), 2)) == 2
    assert len(await recount.adjusted(page(meter(), before=2), 10)) == 1


async def test_usage_by_hour_adds_up_periods_and_arrival_buckets(stores: tuple[Store, MeasuredRecount]) -> None:
    store, recount = stores
    ten, nine = STORED_AT_MS, STORED_AT_MS - HOUR_MS
    cells = [
        cell("disk", 5, dimensions=SITE), cell("disk", 7, dimensions=SITE, bucket_ms=nine),
        cell("disk", 11, dimensions=SITE, bucket_ms=ten + HOUR_MS), cell("disk", 13, hour_ms=nine),
        cell("other", 17), cell("disk", 19, account="globex"), cell("disk", 23, partition=4, hour_ms=ten - 2 * HOUR_MS),
        cell("disk", 29, hour_ms=ten - 9 * DAY_MS),
        cell("disk", 31, dimensions=SITE, bucket_ms=nine)._replace(period_start_ms=ten),
        cell("disk", 37, hour_ms=nine - HOUR_MS)._replace(period_end_ms=ms("2026-11-01")),
    ]  # fmt: skip
    await store.insert_hourly(cells)

    found = await recount.usage_by_hour(page(meter()), ten + HOUR_MS)

    assert found == {UsageKey("acme", SITE, ten): 43, UsageKey("acme", "{}", nine): 13}


async def test_accounts_with_samples_or_adjustments_in_their_order(stores: tuple[Store, MeasuredRecount]) -> None:
    store, recount = stores
    await store.insert_events(
        [sample(1, account="b"), sample(2, account="a"), adjusted(3, "1", STORED_AT_MS, account="c"),
         event(4, {}, account="d"), sample(5, account="e")._replace(partition=4), sample(6, account="b")]
    )  # fmt: skip

    assert await recount.measured_accounts(3, meter(), "", 2) == ["a", "b"]
    assert await recount.measured_accounts(3, meter(), "b", 2) == ["c"]
    assert await recount.measured_accounts(3, meter(), "c", 2) == []
