"""What the measurer reads from the archive: the fake and the real engine answer alike."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import pytest

from schemas.analytics import ArchiveStore, ControlRow, EventRow
from schemas.measures import ArchivedSample, MeasureArchive, MeasuredSpan
from schemas.meters import Meter
from sinks.clickhouse.client import ClickHouse
from sinks.clickhouse.fake import FakeClickHouse
from sinks.clickhouse.fake_measures import FakeMeasures
from sinks.clickhouse.measures import ClickHouseMeasures
from sinks.clickhouse.writer import ClickHouseStore
from tests.conformance.clickhouse_rows import NOW_MS, event

GAUGE = Meter.model_validate(
    {"slug": "disk", "event_type": "gauge", "aggregation": "time_weighted", "value_path": "$.gb",
     "series_path": "$.box.name", "dimensions": {"site": "$.site"}}
)  # fmt: skip
EVER = (MeasuredSpan(0, 1 << 50),)
MINUTE_MS = 60_000


@pytest.fixture(params=["fake", "service"])
def stores(request: pytest.FixtureRequest) -> tuple[ArchiveStore, MeasureArchive]:
    if request.param == "fake":
        fake = FakeClickHouse()
        return fake, FakeMeasures(fake)
    opened: ClickHouse = request.getfixturevalue("clickhouse")
    return ClickHouseStore(opened), ClickHouseMeasures(opened)


def sample(position: int, gb: object, minute: int, box: object = "a", **more: str) -> EventRow:
    data = {"gb": gb, "box": {"name": box}, "site": "eu"}
    row = event(position, data, event_type="gauge", time_ms=NOW_MS + minute * MINUTE_MS)
    return row._replace(account=more.get("account", row.account), id=more.get("event_id", row.id))


def correction(
    position: int, event_id: str, kind: str, *, counts: bool = True, name: str = "", account: str = "acme"
) -> ControlRow:
    value = {
        "account": account, "correction": name or f"c-{position}", "event": event_id, "kind": kind, "counts": counts,
    }  # fmt: skip
    return ControlRow(3, position, "correction", account, NOW_MS + position, json.dumps(value))


def bound(position: int, account: str, from_ms: int) -> ControlRow:
    return ControlRow(3, position, "binding", account, NOW_MS, json.dumps({"binding": {"effective_from_ms": from_ms}}))


async def test_samples_from_an_instant_on_and_the_newest_one_of_each_series_before(
    stores: tuple[ArchiveStore, MeasureArchive],
) -> None:
    store, archive = stores
    await store.insert_events(
        [sample(1, 1, -50), sample(2, 2, -40), sample(3, 3, -30, "b"), sample(4, 4, 0), sample(5, 5, 10, "b"),
         sample(6, 9, 0, account="globex"), sample(9, 9, 5), event(7, {"gb": 1}, event_type="other")]
    )  # fmt: skip

    found = await archive.samples(3, GAUGE, EVER, ["acme"], NOW_MS * 1000, 9, 100)

    minutes = {(each.position, (each.time_us // 1000 - NOW_MS) // MINUTE_MS) for each in found}
    assert minutes >= {(2, -40), (3, -30), (4, 0), (5, 10)}
    assert minutes <= {(1, -50), (2, -40), (3, -30), (4, 0), (5, 10)}
    assert {each.account for each in found} == {"acme"}
    assert all(isinstance(each, ArchivedSample) and json.loads(each.data)["site"] == "eu" for each in found)
    assert len(await archive.samples(3, GAUGE, EVER, ["acme"], NOW_MS * 1000, 9, 2)) == 2


async def test_a_voided_sample_is_none_and_one_that_came_before_the_meter(
    stores: tuple[ArchiveStore, MeasureArchive],
) -> None:
    """The last correction that counts decides, and of those with one name the first, whatever its event; the newest
    sample before the instant is looked up without the voided."""
    store, archive = stores
    await store.insert_events(
        [sample(1, 1, -50, event_id="first"), sample(2, 2, -40, event_id="void"), sample(3, 3, 1, event_id="back"),
         sample(4, 4, 2, event_id="off"), sample(0, 7, 3, event_id="early")]
    )  # fmt: skip
    await store.insert_controls(
        [correction(10, "void", "void"), correction(11, "back", "void"), correction(12, "back", "amend"),
         correction(13, "off", "void", counts=False), correction(14, "first", "void", name="c-10"),
         correction(15, "first", "void", name="c-13")]
    )  # fmt: skip

    found = await archive.samples(3, GAUGE, (MeasuredSpan(1, 100),), ["acme"], NOW_MS * 1000, 50, 100)

    assert {each.position for each in found} == {1, 3, 4}


async def test_the_first_record_of_a_name_counts_whatever_its_event(
    stores: tuple[ArchiveStore, MeasureArchive],
) -> None:
    """A repeated name voids nothing and brings nothing back, also if the first record was settled outside. The name of
    another account is another name."""
    store, archive = stores
    await store.insert_events(
        [sample(1, 1, -50, event_id="first"), sample(2, 2, -40, event_id="second"), sample(3, 3, 1, event_id="third"),
         sample(4, 4, 2, event_id="fourth"), sample(5, 5, 3, event_id="theirs", account="globex")]
    )  # fmt: skip
    await store.insert_controls(
        [correction(14, "second", "void", name="once"), correction(11, "first", "void", name="once"),
         correction(12, "first", "amend", name="once"), correction(13, "third", "void", counts=False, name="settled"),
         correction(15, "third", "void", name="settled"), correction(16, "fourth", "amend", name="four"),
         correction(17, "fourth", "void", name="other"),
         correction(18, "theirs", "void", name="once", account="globex")]
    )  # fmt: skip

    found = await archive.samples(3, GAUGE, EVER, ["acme", "globex"], 0, 50, 100)

    assert {each.position for each in found} == {2, 3}


async def test_accounts_with_corrections_since_an_instant(stores: tuple[ArchiveStore, MeasureArchive]) -> None:
    """The earliest sample that was corrected, however old; not what was corrected before, nor other events."""
    store, archive = stores
    await store.insert_events(
        [sample(1, 1, -50, event_id="old"), sample(2, 1, -90, event_id="before"), sample(3, 1, -40, event_id="other"),
         sample(4, 1, -30, event_id="theirs", account="globex"), event(5, {}, event_type="job", event_id="job"),
         sample(6, 1, -95, event_id="ahead")]
    )  # fmt: skip
    await store.insert_controls(
        [correction(10, "before", "void"), correction(11, "old", "void"), correction(12, "other", "void"),
         correction(13, "theirs", "void", counts=False, account="globex"), correction(14, "job", "void"),
         correction(15, "ahead", "void")]
    )  # fmt: skip

    found = await archive.corrected(3, GAUGE, NOW_MS + 11, 15)

    assert found == {"acme": (NOW_MS - 50 * MINUTE_MS) * 1000 + 1, "globex": (NOW_MS - 30 * MINUTE_MS) * 1000 + 4}
    assert await archive.corrected(4, GAUGE, NOW_MS, 99) == {}


async def test_accounts_with_new_samples_and_with_corrections(stores: tuple[ArchiveStore, MeasureArchive]) -> None:
    store, archive = stores
    await store.insert_events(
        [sample(1, 1, -50, event_id="old"), sample(5, 2, -40, account="globex"), sample(6, 2, -45, account="globex"),
         sample(7, 3, 1, account="late")]
    )  # fmt: skip
    await store.insert_controls([correction(6, "old", "void")])

    found = await archive.sampled(3, GAUGE, EVER, 2, 7)

    assert found == {"acme": (NOW_MS - 50 * MINUTE_MS) * 1000 + 1, "globex": (NOW_MS - 45 * MINUTE_MS) * 1000 + 6}


async def test_accounts_with_bindings_and_their_earliest_instant(stores: tuple[ArchiveStore, MeasureArchive]) -> None:
    store, archive = stores
    await store.insert_controls(
        [bound(5, "acme", 70), bound(8, "acme", 50), bound(7, "acme", 60), bound(4, "acme", 10), bound(9, "acme", 20),
         bound(6, "globex", 80), correction(10, "old", "void"), bound(6, "umbrella", 90)._replace(partition=4)]
    )  # fmt: skip

    assert await archive.bound(3, 5, 9) == {"acme": 50, "globex": 80}
    assert await archive.bound(3, 10, 11) == {}


async def test_what_was_told(stores: tuple[ArchiveStore, MeasureArchive]) -> None:
    store, archive = stores

    def told(position: int, event_id: str) -> EventRow:
        return event(position, {"quantity": "1"}, event_id=event_id, event_type="tidemark.adjusted.disk")

    rows = [told(number, f"m:disk:x:{number}:0") for number in (1, 2, 9)]
    foreign = event(4, {"quantity": "7"}, event_id="m:disk:x:4:0", event_type="gauge")
    await store.insert_events([*rows, foreign, told(3, "m:disks:x:1:0")])

    found = await archive.told(3, ["acme", "globex"], "m:disk:", 9)

    assert [each.id for each in found] == ["m:disk:x:1:0", "m:disk:x:2:0"]
    assert json.loads(found[0].data) == {"quantity": "1"}
    assert [each.id for each in await archive.told(3, ["acme"], "m:disk:", 9, NOW_MS * 1000 + 2)] == ["m:disk:x:2:0"]
    assert await archive.told(3, ["acme"], "m:disk:", 9, 0, NOW_MS * 1000 + 2, 5) == found[:1]
    assert await archive.told(3, ["acme"], "m:disk:", 9, 0, None, 1) == found[:1]


async def test_what_is_answered_does_not_grow_with_what_has_ended(
    stores: tuple[ArchiveStore, MeasureArchive],
) -> None:
    """Sessions that ended long ago, levels that stand no more, and each of the levels that a series once had; but a
    sample that the meter cannot use hides none that it can, and long numbers name different series."""
    store, archive = stores
    boxes, minutes = (10**25, 10**25 + 1), range(-60, -2)
    await store.insert_events(
        [*(sample(minute + 100, minute / 8, minute, boxes[minute % 2]) for minute in minutes),
         sample(99, "much", -1, boxes[0]), sample(98, 5, -2, boxes[0]), sample(101, 6, 1, boxes[0]),
         sample(102, 6, 2, boxes[0])]
    )  # fmt: skip

    # Sample 99 is none that the meter can use.
    async def found(fields: Mapping[str, object], until_us: int | None = None) -> set[int]:
        meter = Meter.model_validate({**GAUGE.model_dump(exclude={"value_path"}), "value_path": "$.gb", **fields})
        rows = await archive.samples(3, meter, EVER, ["acme"], NOW_MS * 1000, 200, 1000, until_us)
        return {each.position for each in rows}

    level: dict[str, object] = {"on_bad": "skip_meter", "scale": 3, "allow_negative": True}
    session: dict[str, object] = {
        "aggregation": "duration", "session_path": "$.box.name", "session_gap_s_max": 60 * 4, "value_path": None,
        "series_path": None,
    }  # fmt: skip
    assert await found(level) - {99} == {97, 98, 101, 102}
    assert await found(level, (NOW_MS + 2 * MINUTE_MS) * 1000) - {99} == {97, 98, 101}
    assert await found({**level, "stands_s_max": 90}) - {99} == {101, 102}
    assert await found(session) == {97, 99, 101, 102}
    assert await found({**session, "session_gap_s_max": 90}) == {99, 101, 102}


async def test_spans_are_as_old_as_their_starts(stores: tuple[ArchiveStore, MeasureArchive]) -> None:
    """A start in a form that is not read in SQL, or none at all, may be 35 days old."""
    store, archive = stores
    meter = Meter.model_validate(
        {"slug": "jobs", "event_type": "job", "aggregation": "duration", "start_path": "$.at.began"}
    )
    end = datetime.fromtimestamp(NOW_MS / 1000, tz=UTC)
    starts: dict[str, object] = {
        "zulu": (end - timedelta(minutes=3)).strftime("%Y-%m-%dT%H:%M:%S.25Z"),
        "zone": (end - timedelta(hours=5)).strftime("%Y-%m-%dT%H:%M:%S-02:00"),
        "number": 7,
    }
    for position, (account, began) in enumerate(starts.items(), 1):
        row = event(position, {"at": {"began": began}}, account=account, event_type="job", time_ms=NOW_MS)
        await store.insert_events([row._replace(time_us=NOW_MS * 1000)])

    found = await archive.sampled(3, meter, EVER, 0, 9)

    second_us = NOW_MS // 1000 * 1_000_000
    assert found["zulu"] == second_us - 180_000_000 + 250_000
    assert found["zone"] == second_us - 3 * 3_600_000_000
    assert found["number"] == NOW_MS * 1000 - 35 * 86_400_000_000
