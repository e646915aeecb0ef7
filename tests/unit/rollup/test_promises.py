"""Sentences of docs/guarantees.md that no other suite shows: the settings behind them, and their limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import aggregators.ledger
import pipeline.logs.kafka
from aggregators.marks import BUCKET_MEMBERS_TARGET, BUCKETS_MIN, current_slice
from aggregators.signing import hash_key, mark, marker
from pipeline.ingest.archive import ArchiveProcessor
from pipeline.logs.control_records import append_everywhere
from pipeline.logs.embedded_writer import connect
from pipeline.logs.kafka import KafkaLog
from reconciler.causes import Cause, Pair, Verdict
from schemas.clock import DAY_MS, HOUR_MS
from schemas.control import MeterSetRecord
from schemas.meters import MeterSet
from schemas.rollup import MarkSlice
from tests.worlds.deployment import SECRET
from tests.worlds.reconciler import DECEMBER_MS, METER_SET, NOVEMBER_MS, Deployment

WINDOW_MS = 72 * HOUR_MS
SQLITE_FULL = 2


async def test_the_log_answers_once_all_in_sync_replicas_have_a_record(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The driver's own retry does not add a second record."""
    asked: dict[str, Any] = {}

    class Stop(Exception):
        pass

    def producer(**settings: Any) -> Any:
        asked.update(settings)
        raise Stop

    monkeypatch.setattr(pipeline.logs.kafka, "AIOKafkaProducer", producer)
    with pytest.raises(Stop):
        await KafkaLog("nowhere:1").start()

    assert (asked["acks"], asked["enable_idempotence"]) == ("all", True)


def test_the_embedded_log_answers_once_the_disk_has_a_record(tmp_path: Path) -> None:
    """https://www.sqlite.org/pragma.html#pragma_synchronous: in WAL mode FULL fsyncs each commit, NORMAL does not."""
    connection = connect(tmp_path / "log.db")

    assert connection.execute("PRAGMA synchronous").fetchone() == (SQLITE_FULL,)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


@pytest.mark.parametrize(
    ("by_record", "periods"),
    [
        pytest.param(False, [NOVEMBER_MS], id="closed by its grace: open again"),
        pytest.param(True, [DECEMBER_MS], id="closed by a record: closed for ever"),
    ],
)
async def test_a_longer_grace_reopens_what_the_shorter_one_had_closed(by_record: bool, periods: list[int]) -> None:
    """The only change that reopens a closed period; an operator makes it, and the log records it."""
    deployment = await Deployment().start()
    await deployment.advance(DECEMBER_MS + 3 * HOUR_MS - deployment.clock.ms)
    if by_record:
        await deployment.close_period("ada", DECEMBER_MS - DAY_MS)
    longer = MeterSet.model_validate({**METER_SET, "version": 2, "policy": {"grace_ms": DAY_MS}})
    await append_everywhere(deployment.log, SECRET, MeterSetRecord(meter_set=longer))
    await deployment.emit("ada", at_ms=DECEMBER_MS - HOUR_MS, gb="1", user="u", region="eu")
    await deployment.settle()

    totals = deployment.store.server.partitions[deployment.partition("ada")].totals
    assert [key.period_start_ms for key in totals] == periods
    assert (await deployment.reconcile()).differences == 0


async def test_a_meter_that_two_concurrent_meter_sets_remove_is_retired_at_the_record() -> None:
    """Both meter sets were checked against the one in force, by a command that could not see the other."""
    deployment = await Deployment().start()
    views = {"slug": "views", "event_type": "page.viewed", "aggregation": "count"}
    clicks = {**views, "slug": "clicks"}
    otherwise = {**views, "filters": [{"path": "$.page", "values": ["/"]}]}
    meters: Any = METER_SET["meters"]
    for version, later in ((2, [views]), (3, [clicks]), (4, [clicks, otherwise])):
        meter_set = MeterSet.model_validate({**METER_SET, "version": version, "meters": [*meters, *later]})
        await append_everywhere(deployment.log, SECRET, MeterSetRecord(meter_set=meter_set))
    await deployment.emit("ada", type_="page.viewed", page="/")
    await deployment.settle()

    archive = ArchiveProcessor(deployment.log, deployment.clickhouse, SECRET)
    for partition in range(deployment.world.partitions):
        checkpoint = await deployment.store.state.load_checkpoint(partition)
        await archive.start_offset(partition)
        assert checkpoint is not None
        assert checkpoint.meter_set is not None
        assert checkpoint.meter_set.version == 3
        assert [meter.slug for meter in checkpoint.meter_set.retired] == ["views"]
        assert archive._partitions[partition].state.meter_set == checkpoint.meter_set
        assert checkpoint.counters.rejected == 1
    totals = deployment.store.server.partitions[deployment.partition("ada")].totals
    assert [set(fields) for fields in totals.values()] == [{"clicks"}]
    assert (await deployment.reconcile()).differences == 0


async def test_two_events_with_one_mark_are_both_archived_and_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The price of a collision of marks: one event is not counted, and the reconciler reports it."""

    class Colliding:
        """A hash that says of the id `other` what it says of `one`."""

        def __init__(self, digest: Any) -> None:
            self.copy = lambda: Colliding(digest.copy())
            self.update = lambda text: digest.update(b"one" if text == b"other" else text)
            self.digest = digest.digest

    monkeypatch.setattr(aggregators.ledger, "marker", lambda *identity: Colliding(marker(*identity)))
    deployment = await Deployment().start()
    for event_id in ("one", "other"):
        await deployment.emit("ada", id=event_id, gb="1", user="u", region="eu")
    await deployment.advance(2 * HOUR_MS)
    await deployment.settle()

    report = await deployment.reconcile()

    assert {event_id for _, event_id in deployment.clickhouse.events} == {"one", "other"}
    assert [row.id for row in deployment.clickhouse.duplicates.values()] == ["other"]
    assert report.verdict is Verdict.DRIFT
    (counters,) = [row for row in report.rows if row.pair is Pair.COUNTERS]
    assert (counters.expected, counters.found) == ("1", "2")


async def test_the_same_id_with_a_new_time_after_the_window_is_counted_again_and_reported() -> None:
    """The archive knows the identity for ever, the marks do not."""
    deployment = await Deployment().start()
    await deployment.emit("ada", id="one", gb="1", user="u", region="eu")
    await deployment.settle()
    for _ in range(2):
        await deployment.advance(WINDOW_MS)
        await deployment.settle()
    await deployment.emit("ada", id="one", gb="1", user="u", region="eu")
    await deployment.advance(2 * HOUR_MS)
    await deployment.settle()

    report = await deployment.reconcile()

    assert deployment.totals("ada")["requests"] == "2"
    assert report.verdict is Verdict.DRIFT
    assert {row.cause for row in report.rows if row.pair is Pair.COUNTERS} == {Cause.MISSING}


def test_marks_are_blake2b_as_specified() -> None:
    """A separate program that follows RFC 7693, section 3.2, calculated the numbers."""
    key = hash_key(b"a secret of thirty-two characters")

    assert mark(key, "acme", "1") == (1_391_534_537, 3_364_260_759_453_626_019)


@pytest.mark.parametrize("members", [0, 1, 10**6, 10**9, 10**11])
def test_sets_of_marks_are_sized_by_the_slice_before(members: int) -> None:
    """A mark is compared with a bounded number of others; a first slice has the fewest sets."""
    before = (MarkSlice(0, WINDOW_MS // 2, BUCKETS_MIN, members),)
    after = current_slice(before, WINDOW_MS, WINDOW_MS)

    assert members <= after.buckets * BUCKET_MEMBERS_TARGET
    assert after.buckets == BUCKETS_MIN or members > after.buckets * BUCKET_MEMBERS_TARGET / 2
    assert current_slice((), 0, WINDOW_MS).buckets == BUCKETS_MIN
