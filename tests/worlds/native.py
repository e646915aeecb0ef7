"""Compares what the C core makes of records with what Python makes of the same records."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from aggregators.columns import ColumnMaker, PythonColumns, Segment
from aggregators.decode import Rejected
from aggregators.judge import Home, rules_at
from aggregators.ledger import Ledger
from aggregators.marks import Members
from aggregators.meters import compiled
from aggregators.native.columns import NativeColumns
from aggregators.native.interface import bind
from aggregators.partitioning import partition_of
from aggregators.placement import place
from aggregators.scan import LogState, scan
from aggregators.signing import hash_key
from pipeline.ingest.event_blocks import EventBlocks, event_rows
from pipeline.native.build import build
from pipeline.native.load import load
from schemas.events import EventStruct
from schemas.log import EVENTS_TOPIC, Record, position
from schemas.meters import MeterSet
from schemas.periods import AccountState
from schemas.rollup import MarkSlice
from sinks.clickhouse.fake_native import rows_of
from tests.worlds.deployment import SECRET

HASH_KEY: Final = hash_key(SECRET)
Left = EventStruct | Rejected
SLICE: Final = MarkSlice(0, 1, 64)


def native_library(path: str = "") -> ctypes.CDLL:
    """The C core, built if it is not there, or the one at a path. Raises `RuntimeError` where it cannot be built."""
    if path:
        return bind(ctypes.CDLL(path))
    said, loaded = build(), load(enabled=True)
    if loaded.library is None:
        raise RuntimeError(f"{said}; {loaded.why}")
    return loaded.library


class Share(NamedTuple):
    """How many events there were, and how many of them the core took."""

    events: int
    taken: int


class BothMakers:
    """Both makers of columns over one ledger. So equal contributions have equal targets."""

    def __init__(
        self,
        library: ctypes.CDLL,
        meter_set: Mapping[str, Any],
        partitions: int = 1,
        states: Mapping[str, AccountState] | None = None,
    ) -> None:
        self._meters = compiled(MeterSet.model_validate(meter_set))
        self._partitions = partitions
        self._states = dict(states or {})
        self.ledger = Ledger(HASH_KEY)
        self.python: ColumnMaker = PythonColumns(self.ledger, self._meters)
        self.native: ColumnMaker = NativeColumns(library, self.ledger, self._meters)

    def go_to(self, stream_time_ms: int) -> None:
        """Go to a stream time, before the next record."""
        self.stream_time_ms = stream_time_ms
        if not self.ledger.is_at(self._meters.meter_set.policy, stream_time_ms):
            self.ledger.go_to(self._meters.meter_set.policy, stream_time_ms)
        rules = rules_at(stream_time_ms, self._meters, Home(0, self._partitions, set()))
        self.python.go_to(stream_time_ms, rules)
        self.native.go_to(stream_time_ms, rules)

    def enter(self, names: set[str]) -> None:
        """Enter the accounts that live on partition 0."""
        states = {
            name: self._states.get(name, AccountState()) for name in names if partition_of(name, self._partitions) == 0
        }
        self.ledger.enter(states, self._meters.meter_set.policy, self.stream_time_ms)

    def compare(self, offset: int, *values: bytes, ahead: bool = True) -> Share:
        """Take records together with both, a millisecond apart, and assert that the core took a part of what Python
        took, with the same values, and that it left out the rest as it is."""
        run = [
            Record(EVENTS_TOPIC, 0, offset + number, self.stream_time_ms + number, None, value)
            for number, value in enumerate(values)
        ]
        if ahead:
            unknown = self.native.unknown(run)
            assert self.python.unknown(run) == unknown, run
            self.enter(unknown)
        # Python empties the list of entered accounts, so the core must come first.
        received, ours, native = self._taken(self.native, run)
        python_received, theirs, python = self._taken(self.python, run)

        assert received == python_received, run
        assert {at: item for at, item in ours.items() if at in theirs} == theirs, run
        assert all(isinstance(item, EventStruct) for at, item in ours.items() if at not in theirs), run
        assert _plain(native) == _without(python, ours), run
        self.compare_marks([native, python], frozenset(ours))
        return Share(sum(received), sum(received) - len(ours))

    def compare_marks(self, segments: Sequence[Segment], some: frozenset[int], mark_slice: MarkSlice = SLICE) -> None:
        """Assert that both say the same of the marks of segments, with and without the positions `some`."""
        present = frozenset(segments[0].members[::3])
        assert self.native.repeats(segments, present) == self.python.repeats(segments, present)
        assert self.native.repeats(segments[:1], frozenset()) == self.python.repeats(segments[:1], frozenset())
        for unmarked in (frozenset[int](), some):
            sets = self.native.marks(segments, mark_slice, unmarked)
            assert sets == self.python.marks(segments, mark_slice, unmarked)
            for members in sets.values():
                assert not isinstance(members, Members) or members.bulk == b"".join(map(_bulk, members))

    def _taken(self, maker: ColumnMaker, run: Sequence[Record]) -> tuple[list[int], dict[int, Left], Segment]:
        received, left = list[int](), dict[int, Left]()
        for record in run:
            self.go_to(record.timestamp_ms)
            base = position(record.offset)

            def leave(place: int, item: Left, base: int = base) -> None:
                left[base | place] = item

            received.append(maker.take(record, leave))
        self.go_to(run[0].timestamp_ms)
        segment = maker.taken()
        valid = [at for at, item in left.items() if isinstance(item, EventStruct)]
        assert valid == sorted(valid), run
        return received, left, segment


class BothRows:
    """Both makers of the archive's rows, of accounts without bindings."""

    def __init__(self, library: ctypes.CDLL, meter_set: Mapping[str, Any]) -> None:
        self._meter_set = MeterSet.model_validate(meter_set)
        self._blocks = EventBlocks(library, SECRET, 0)

    def compare(self, offset: int, stream_time_ms: int, value: bytes) -> int:
        """Make the rows of a record with both, assert that they are equal, and return how many there are."""
        record = Record(EVENTS_TOPIC, 0, offset, stream_time_ms, None, value)
        state = LogState("log", 1, stream_time_ms, self._meter_set)
        python = event_rows(place(scan(0, state, SECRET, [record], events_max=1), {}), 0)
        self._blocks.take(state, {}, record)
        native = [row for block in self._blocks.blocks() for row in rows_of(block)]
        assert sorted(native, key=lambda row: row.position) == python, (offset, value)
        return len(python)


def _bulk(member: int) -> bytes:
    return b"$%d\r\n%d\r\n" % (len(str(member)), member)


def _plain(segment: Segment) -> dict[str, Any]:
    return {
        "marks": list(zip(segment.positions, segment.buckets, segment.members, strict=True)),
        "unmetered": list(segment.unmetered),
        "columns": {
            column.meter.slug: (column.numbers, column.positions, column.minors, column.times_us)
            for column in segment.columns
        },
    }


def _without(segment: Segment, left: Mapping[int, object]) -> dict[str, Any]:
    """The segment without the events at some positions."""
    out = {at for at in segment.positions if at in left}
    marks = zip(segment.positions, segment.buckets, segment.members, strict=True)
    columns = (column.without(out) for column in segment.columns)
    return {
        "marks": [mark for mark in marks if mark[0] not in out],
        "unmetered": [at for at in segment.unmetered if at not in out],
        "columns": {
            column.meter.slug: (column.numbers, column.positions, column.minors, column.times_us)
            for column in columns
            if column.numbers
        },
    }
