"""Deliberate defects of account flushes: which usage is reported by itself, under which bucket, and when."""

from __future__ import annotations

from typing import Any, Final

import aggregators.bindings
import pipeline.rollup.relays
from aggregators.ledger import Ledger, Place
from pipeline.rollup.relays import ReportRelay
from schemas.control import FlushRecord
from schemas.reports import Intent
from tests.simulation.mutant import Method, Mutant, inner


def _goes_on_in_the_first_bucket(original: Any) -> Any:
    def new_target(self: Ledger, place: Place, *others: Any) -> Any:
        return original(self, place._replace(flushed_ms=0), *others)

    return new_target


def _closes_twice(original: Any) -> Any:
    return lambda state, record: False if isinstance(record, FlushRecord) else original(state, record)


def _first_bucket_start(original: Any) -> Any:
    def intent_of(checkpoint: Any, start_ms: int, *others: Any) -> Any:
        return original(checkpoint, checkpoint.meter_set.policy.report_bucket_ms(start_ms), *others)

    return intent_of


def _not_seen(_original: Method) -> Method:
    async def relay_flushes(self: ReportRelay, partition: int, bucket_ms: int) -> int:
        _, flushes = await self._reports.reports(partition, bucket_ms, 1_000)
        await self._reports.confirm_reports(partition, bucket_ms, flushes)
        return 0

    return relay_flushes


def _seen_last(original: Method) -> Method:
    async def relay(self: ReportRelay, partition: int) -> int:
        stored = inner(self._reports)._server.at(partition).reports
        flushes = {key: stored.pop(key) for key in list(stored) if key.bucket_ms < 0}
        count: int = await original(self, partition)
        stored.update(flushes)
        return count

    return relay


def _told_within_its_second(_original: Any) -> Any:
    return property(lambda self: max(min(self.bucket_end_ms, self.period_end_ms) - 1, self.period_start_ms + 59_000))


def _replaces_less(original: Any) -> Any:
    def restated(state: Any, record: Any, position: int, policy: Any, stream_time_ms: int) -> Any:
        unflushed = state.model_copy(update={"flushed_ms": 0})
        after = original(unflushed, record, position, policy, stream_time_ms)
        return after.model_copy(update={"flushed_ms": state.flushed_ms})

    return restated


def _ends_twice_at_once(_original: Any) -> Any:
    def flushed_again(state: Any, policy: Any, stream_time_ms: int) -> Any:
        instant_ms = max(stream_time_ms, policy.report_bucket_ms(stream_time_ms) + 1)
        return state.model_copy(update={"flushed_ms": instant_ms})

    return flushed_again


FLUSHES: Final = (
    Mutant("flush: publishes and keeps the base", Ledger, "_new_target", _goes_on_in_the_first_bucket),
    Mutant("flush: a repeated record ends the bucket again", aggregators.bindings, "is_repeated", _closes_twice),
    Mutant(
        "flush: the second part has the first part's bucket start", pipeline.rollup.relays, "intent_of",
        _first_bucket_start,
    ),
    Mutant("flush: told when the bucket of all accounts ends", ReportRelay, "_relay_flushes", _not_seen),
    Mutant("flush: seen after the ended buckets", ReportRelay, "relay", _seen_last),
    Mutant("flush: told within its own second", Intent, "instant_ms", _told_within_its_second),
    Mutant("flush: a restatement replaces only whole buckets", aggregators.bindings, "restated", _replaces_less),
    Mutant("flush: two in a millisecond end at one instant", aggregators.bindings, "flushed", _ends_twice_at_once),
)  # fmt: skip
