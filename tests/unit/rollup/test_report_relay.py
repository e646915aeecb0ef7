"""Report entries become intents once their bucket is closed, also after a fail-over to a replica that lags."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import msgspec
import pytest

from aggregators.codec import (
    FLUSH_TEXT,
    FlushKey,
    ReportKey,
    ReportValue,
    flush_field,
    flushes_bucket_ms,
    report_field,
    report_text,
)
from pipeline.logs.fake import FakeLog
from pipeline.rollup.relays import ReportRelay
from schemas.clock import HOUR_MS
from schemas.live_view import AccountDirectory, ReportOutbox
from schemas.log import REPORTS_TOPIC, TopicSpec
from schemas.meters import MeterSet, Policy
from schemas.reports import Intent
from schemas.rollup import BucketField, Changes, Checkpoint
from simulation.services import LosingView
from tests.conformance.rollup_states import checkpoint
from tests.worlds.clock import ManualClock

BUCKET = 5 * HOUR_MS
FIELD = report_field(ReportKey(0, "tokens", "acme"))
OPEN = msgspec.structs.replace(
    checkpoint(1),
    meter_set=MeterSet(version=1, meters=(), policy=Policy(report_interval_ms=HOUR_MS)),
    stream_time_ms=BUCKET + 1,
)


class FailingOver(LosingView):
    """Returns to the state of the last call of `keep`, right after one chosen call."""

    kept: dict[int, Any]
    after = ""

    def keep(self) -> None:
        self.kept = self.copy()

    def called(self, name: str) -> None:
        if name == self.after:
            self.after = ""
            self.restore(self.kept)

    def relay(self, log: FakeLog) -> ReportRelay:
        reports = cast("ReportOutbox", Called(self.reports, self.called))
        return ReportRelay(reports, cast("AccountDirectory", Called(self.accounts, self.called)), log)


class Called:
    """A store that reports each call after its answer."""

    def __init__(self, inner: object, called: Callable[[str], None]) -> None:
        self._inner, self._called = inner, called

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)

        async def call(*arguments: Any) -> Any:
            answer = await method(*arguments)
            self._called(name)
            return answer

        return call


async def filled(store: FailingOver) -> Checkpoint:
    """One unit while the bucket is open (`keep` saves it), a second one, then stream time passes the bucket's end."""
    await store.state.create_checkpoint(0, OPEN)
    believed = OPEN
    for total, stream_time_ms in ((1, BUCKET + 2), (2, BUCKET + 3), (2, BUCKET + HOUR_MS)):
        after = msgspec.structs.replace(believed, next_offset=believed.next_offset + 1, stream_time_ms=stream_time_ms)
        reports = {BucketField(BUCKET, FIELD): report_text(ReportValue(0, total, 30 * 24 * HOUR_MS, 0, "tokens"))}
        await store.state.commit(0, believed, Changes(checkpoint=after, reports=reports))
        if stream_time_ms == BUCKET + 2:
            store.keep()
        believed = after
    return believed


async def deltas(log: FakeLog) -> list[int]:
    records = await log.read(REPORTS_TOPIC, 0, 0, 100)
    return [Intent.model_validate_json(record.value or b"").delta_minor for record in records]


@pytest.fixture
async def log() -> FakeLog:
    log = FakeLog(ManualClock(0))
    await log.create_topics([TopicSpec(REPORTS_TOPIC, 1, -1)])
    return log


async def test_closed_bucket_is_published_and_forgotten(log: FakeLog) -> None:
    store = FailingOver(ManualClock(0))
    closed = await filled(store)

    assert await store.relay(log).relay(0) == 1
    assert await deltas(log) == [2]
    assert await store.reports.report_buckets(0) == (closed, [])
    assert await store.relay(log).relay(0) == 0


@pytest.mark.parametrize(("after", "published"), [("report_buckets", []), ("reports", []), ("accounts", [2])])
async def test_entry_of_an_open_bucket_is_kept_when_a_replica_takes_over(
    log: FakeLog, after: str, published: list[int]
) -> None:
    """Published early, the entry would lack a part of the bucket. Removed, it would make a second intent later."""
    store = FailingOver(ManualClock(0))
    await filled(store)
    store.after = after

    await store.relay(log).relay(0)

    assert await deltas(log) == published
    _, entries = await store.reports.reports(0, BUCKET, 10)
    assert entries == {FIELD: report_text(ReportValue(0, 1, 30 * 24 * HOUR_MS, 0, "tokens"))}


FLUSHED_MS = BUCKET + 4
FLUSHES = flushes_bucket_ms(BUCKET + HOUR_MS)
FLUSH = flush_field(FlushKey(BUCKET, FLUSHED_MS, "acme"))


async def flushed(store: FailingOver) -> None:
    """One unit (`keep` saves it), a second one, a flush, and a third unit behind it; the bucket is still open."""
    await store.state.create_checkpoint(0, OPEN)
    believed = OPEN
    for number, (bucket_ms, base, total) in enumerate([(BUCKET, 0, 1), (BUCKET, 0, 2), (FLUSHED_MS, 2, 3)]):
        after = msgspec.structs.replace(believed, next_offset=believed.next_offset + 1, stream_time_ms=FLUSHED_MS)
        reports = {BucketField(bucket_ms, FIELD): report_text(ReportValue(base, total, 30 * 24 * HOUR_MS, 0, "tokens"))}
        if bucket_ms == FLUSHED_MS:
            reports[BucketField(FLUSHES, FLUSH)] = FLUSH_TEXT
        await store.state.commit(0, believed, Changes(checkpoint=after, reports=reports))
        if number == 0:
            store.keep()
        believed = after


async def test_flushed_entry_is_published_at_once_with_its_own_end(log: FakeLog) -> None:
    store = FailingOver(ManualClock(0))
    await flushed(store)

    assert await store.relay(log).relay(0) == 1
    (record,) = await log.read(REPORTS_TOPIC, 0, 0, 100)
    intent = Intent.model_validate_json(record.value or b"")
    assert (intent.bucket_start_ms, intent.bucket_end_ms, intent.delta_minor) == (BUCKET, FLUSHED_MS, 2)
    assert (await store.reports.report_buckets(0))[1] == [FLUSHED_MS]
    assert await store.relay(log).relay(0) == 0


@pytest.mark.parametrize(
    ("after", "published"), [("reports", []), ("reports_of", []), ("accounts", [2]), ("confirm_reports", [2])]
)
async def test_flushed_entry_is_kept_when_a_replica_takes_over(log: FakeLog, after: str, published: list[int]) -> None:
    """The replica has one unit and no flush. When it has caught up, the relay publishes the same intent, once more if
    need be."""
    store = FailingOver(ManualClock(0))
    await flushed(store)
    caught_up = store.copy()
    store.after = after

    await store.relay(log).relay(0)

    assert await deltas(log) == published
    _, entries = await store.reports.reports(0, BUCKET, 10)
    assert entries == {FIELD: report_text(ReportValue(0, 1, 30 * 24 * HOUR_MS, 0, "tokens"))}
    store.restore(caught_up)
    await store.relay(log).relay(0)
    records = await log.read(REPORTS_TOPIC, 0, 0, 100)
    assert len({record.value for record in records}) == 1
    assert await deltas(log) == [*published, 2]
