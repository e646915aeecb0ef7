"""What corrections read from the archive: the fake and the real engine answer alike (S16)."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from schemas.analytics import ArchiveStore, ControlRow
from schemas.control import ControlKind, CorrectionRecord, MeterSetRecord
from schemas.corrections import ArchivedCorrection, CorrectionArchive
from schemas.meters import Meter, MeterSet
from sinks.clickhouse.client import ClickHouse
from sinks.clickhouse.corrections import ClickHouseCorrections
from sinks.clickhouse.fake import FakeClickHouse
from sinks.clickhouse.fake_corrections import FakeCorrections
from sinks.clickhouse.writer import ClickHouseStore
from tests.conformance.clickhouse_rows import NOW_MS, event


@pytest.fixture(params=["fake", "service"])
def stores(request: pytest.FixtureRequest) -> tuple[ArchiveStore, CorrectionArchive]:
    if request.param == "fake":
        fake = FakeClickHouse()
        return fake, FakeCorrections(fake)
    opened: ClickHouse = request.getfixturevalue("clickhouse")
    return ClickHouseStore(opened), ClickHouseCorrections(opened)


def correction(
    position: int, event_id: str, *, account: str = "acme", partition: int = 3, name: str = ""
) -> ControlRow:
    record = CorrectionRecord(
        account=account, correction=name or f"c-{position}", event=event_id, kind="amend", data='{"gb":"1.50"}',
        by="ann", reason="a 'wrong' \"unit\"",
    )  # fmt: skip
    kind = ControlKind.CORRECTION.value
    return ControlRow(partition, position, kind, account, NOW_MS + position, record.model_dump_json())


def meter_set(position: int, version: int, *, partition: int = 3) -> ControlRow:
    meter = Meter.model_validate({"slug": f"calls_{version}", "event_type": "llm", "aggregation": "count"})
    record = MeterSetRecord(meter_set=MeterSet(version=version, meters=(meter,)))
    return ControlRow(partition, position, ControlKind.METER_SET.value, "", NOW_MS, record.model_dump_json())


async def test_records_of_a_partition_and_of_an_account(stores: tuple[ArchiveStore, CorrectionArchive]) -> None:
    """In order, within the positions, and at most so many: the first of a partition, the last of an account."""
    store, archive = stores
    await store.insert_controls(
        [correction(7, "a"), correction(5, "b"), correction(9, "a"), correction(6, "a", account="globex"),
         correction(8, "a", account="far", partition=1), meter_set(4, 1)]
    )  # fmt: skip

    def positions(rows: Sequence[ArchivedCorrection]) -> list[int]:
        return [row.position for row in rows]

    assert positions(await archive.corrections(3, 5, 9, 10)) == [5, 6, 7]
    assert positions(await archive.corrections(3, 0, 100, 2)) == [5, 6]
    assert positions(await archive.corrections_of("acme", None, 10)) == [5, 7, 9]
    assert positions(await archive.corrections_of("acme", None, 2)) == [7, 9]
    assert positions(await archive.corrections_of("acme", "a", 10)) == [7, 9]
    assert positions(await archive.corrections_of("nobody", None, 10)) == []
    (row,) = await archive.corrections_of("globex", "a", 10)
    assert (row.stream_time_ms, row.record.data, row.record.reason) == (
        NOW_MS + 6,
        '{"gb":"1.50"}',
        "a 'wrong' \"unit\"",
    )


async def test_the_records_that_decide_of_an_event(stores: tuple[ArchiveStore, CorrectionArchive]) -> None:
    """A record whose name an earlier one of the account has, of whatever event, does not."""
    store, archive = stores
    await store.insert_controls(
        [correction(1, "a", name="x"), correction(2, "b", name="y"), correction(3, "a", name="y"),
         correction(4, "a", name="x"), correction(5, "a", name="z"), correction(6, "a", name="x", account="globex"),
         correction(7, "a", name="w")]
    )  # fmt: skip

    assert [row.position for row in await archive.deciding("acme", "a", 7)] == [1, 5]
    assert [row.position for row in await archive.deciding("acme", "b", 7)] == [2]
    assert [row.position for row in await archive.deciding("globex", "a", 7)] == [6]
    assert await archive.deciding("nobody", "a", 7) == []
    found = [await archive.named("acme", name) for name in ("x", "y", "v")]
    assert [row and row.position for row in found] == [1, 2, None]


async def test_the_meter_set_in_force_at_a_position(stores: tuple[ArchiveStore, CorrectionArchive]) -> None:
    store, archive = stores
    await store.insert_controls([meter_set(10, 1), meter_set(20, 2), meter_set(5, 7, partition=1)])

    found = [await archive.meter_set_at(3, position) for position in (10, 11, 20, 21)]

    assert [each and each.version for each in found] == [None, 1, 1, 2]


async def test_an_event_and_what_was_told_of_one(stores: tuple[ArchiveStore, CorrectionArchive]) -> None:
    store, archive = stores
    told = [
        event(number, {"quantity": "1"}, event_id=f"c:ab:calls:x:{number}", event_type="tidemark.adjusted.calls")
        for number in (1, 2, 9)
    ]
    await store.insert_events([*told, event(3, {"gb": "0.10"}, event_id="mine"), event(4, {}, event_id="c:abc:x:y:0")])

    found = await archive.event("acme", "mine")

    assert found is not None
    assert (found.type, found.partition, found.position, found.data) == ("llm", 3, 3, '{"gb":"0.10"}')
    assert (found.is_deferred, found.time_us) == (False, NOW_MS * 1000 + 3)
    assert await archive.event("globex", "mine") is None
    rows = await archive.told(3, ["acme"], "c:ab:", 9)
    assert [row.id for row in rows] == ["c:ab:calls:x:1", "c:ab:calls:x:2"]
