"""`MeasureArchive` over the dictionaries of a `FakeClickHouse`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

from aggregators.meters import Sample, sample_reader
from schemas.adjustments import ADJUSTED_PREFIX
from schemas.analytics import ControlRow, EventRow
from schemas.clock import SECOND_US
from schemas.measures import ArchivedAdjustment, ArchivedSample, MeasureArchive, MeasuredSpan
from schemas.meters import SPAN_S_MAX, Meter
from sinks.clickhouse.fake import FakeClickHouse


class FakeMeasures(MeasureArchive):
    """Answers with what must be answered, and with no sample more."""

    def __init__(self, clickhouse: FakeClickHouse) -> None:
        self._clickhouse = clickhouse

    async def sampled(
        self, partition: int, meter: Meter, spans: Sequence[MeasuredSpan], since: int, before: int
    ) -> Mapping[str, int]:
        """See `MeasureArchive`."""
        corrected = {
            (row.account, json.loads(row.value)["event"])
            for row in self._corrections()
            if row.partition == partition and since <= row.position < before
        }
        found: dict[str, int] = {}
        for _, event in self._samples(partition, meter, spans):
            if since <= event.position < before or (event.account, event.id) in corrected:
                from_us = _covers_from_us(meter, event)
                found[event.account] = min(from_us, found.get(event.account, from_us))
        return found

    async def corrected(self, partition: int, meter: Meter, since_ms: int, before: int) -> Mapping[str, int]:
        """See `MeasureArchive`."""
        found: dict[str, int] = {}
        for row in self._corrections():
            event = self._clickhouse.events.get((row.account, json.loads(row.value)["event"]))
            is_in = row.partition == partition and row.stream_time_ms >= since_ms and row.position < before
            if is_in and event is not None and event.type == meter.event_type:
                found[row.account] = min(event.time_us, found.get(row.account, event.time_us))
        return found

    async def samples(
        self,
        partition: int,
        meter: Meter,
        spans: Sequence[MeasuredSpan],
        accounts: Sequence[str],
        from_us: int,
        before: int,
        rows_max: int,
        until_us: int | None = None,
    ) -> Sequence[ArchivedSample]:
        """See `MeasureArchive`."""
        voided = self._voided()
        rows = [
            ArchivedSample(event.account, event.time_us, arrived, event.data)
            for arrived, event in self._samples(partition, meter, spans)
            if event.account in accounts and event.position < before and (event.account, event.id) not in voided
            if until_us is None or event.time_us < until_us
        ]
        found = [row for row in rows if row.time_us >= from_us]
        if meter.start_path is None:
            found += _newest(meter, (row for row in rows if row.time_us < from_us), from_us)
        return found[:rows_max]

    async def bound(self, partition: int, since: int, before: int) -> Mapping[str, int]:
        """See `MeasureArchive`."""
        found: dict[str, int] = {}
        for row in self._clickhouse.control_log.values():
            if row.kind == "binding" and row.partition == partition and since <= row.position < before:
                from_ms = int(json.loads(row.value)["binding"]["effective_from_ms"])
                found[row.account] = min(from_ms, found.get(row.account, from_ms))
        return found

    async def told(
        self,
        partition: int,
        accounts: Sequence[str],
        prefix: str,
        before: int,
        from_us: int = 0,
        until_us: int | None = None,
        rows_max: int | None = None,
    ) -> Sequence[ArchivedAdjustment]:
        """See `MeasureArchive`."""
        rows = [
            row
            for row in self._clickhouse.events.values()
            if row.partition == partition
            and row.account in accounts
            and row.position < before
            and row.time_us >= from_us
            and (until_us is None or row.time_us < until_us)
            and row.type.startswith(ADJUSTED_PREFIX)
        ]
        found = [row for row in sorted(rows, key=lambda row: row.position) if row.id.startswith(prefix)]
        return [ArchivedAdjustment(row.account, row.id, row.data) for row in found][:rows_max]

    def _samples(self, partition: int, meter: Meter, spans: Sequence[MeasuredSpan]) -> Iterator[tuple[int, EventRow]]:
        for arrived, event in self._clickhouse.counted():
            in_force = any(start <= arrived < end for start, end in spans)
            if event.partition == partition and event.type == meter.event_type and in_force:
                yield arrived, event

    def _corrections(self) -> list[ControlRow]:
        rows = sorted(self._clickhouse.control_log.values(), key=lambda row: row.position)
        return [row for row in rows if row.kind == "correction"]

    def _voided(self) -> set[tuple[str, str]]:
        first: dict[tuple[str, str], dict[str, Any]] = {}
        for row in self._corrections():
            record = json.loads(row.value)
            first.setdefault((row.account, record["correction"]), record)
        counting = (record for record in first.values() if record["counts"])
        last = {(record["account"], record["event"]): record["kind"] for record in counting}
        return {event for event, kind in last.items() if kind == "void"}


def _covers_from_us(meter: Meter, event: EventRow) -> int:
    """The instant from which on a sample covers time; as early as it may be, if it cannot be read."""
    if meter.start_path is None:
        return event.time_us
    sample = sample_reader(meter)(json.loads(event.data, parse_float=Decimal), event.time_us)
    start_us = sample.start_us if isinstance(sample, Sample) else None
    return event.time_us - SPAN_S_MAX * SECOND_US if start_us is None else start_us


def _newest(meter: Meter, rows: Iterable[ArchivedSample], from_us: int) -> Iterable[ArchivedSample]:
    """The newest sample of each series and session that may still have effect at an instant."""
    reaches_s = meter.session_gap_s_max if meter.session_path is not None else meter.stands_s_max
    read, found = sample_reader(meter), dict[tuple[str, str, str], ArchivedSample]()
    for row in sorted(rows, key=lambda row: (row.time_us, row.position)):
        sample = read(json.loads(row.data, parse_float=Decimal), row.time_us)
        if isinstance(sample, Sample) and (reaches_s is None or row.time_us >= from_us - reaches_s * SECOND_US):
            found[row.account, sample.dimensions, sample.group] = row
    return found.values()
