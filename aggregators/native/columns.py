"""The maker of columns in C. See `aggregators.columns.ColumnMaker`: it fills the same columns as `PythonColumns`."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from ctypes import byref, c_int32, c_int64
from struct import Struct
from typing import Final, Literal

from aggregators.columns import Column, Columns, Leave, Segment
from aggregators.decode import Decoded, decode, is_batch
from aggregators.deferred import far_late_us
from aggregators.judge import Rules
from aggregators.ledger import Account, Ledger, Place
from aggregators.meters import NO_DIMENSIONS, CompiledMeterSet, dimensions_text
from aggregators.native import marks
from aggregators.native.interface import Core, LeftOut, Moment, Read, Told, ToTake
from aggregators.parallel_lists import cuts_of, merged
from schemas.clock import HOUR_MS, MILLISECOND_US
from schemas.log import Record, position
from schemas.meters import Meter
from schemas.rollup import MarkKey, MarkSlice

_CELL: Final = Struct("<qqi")
_LENGTH: Final = Struct("<i")
# The kinds of `tm_column` with the form of their numbers: of the events, and of a meter.
_OF_EVENTS: Final[tuple[Literal["i", "I", "q"], ...]] = ("q", "I", "q", "q")
_OF_A_METER: Final[tuple[Literal["i", "I", "q"], ...]] = ("i", "q", "q", "q")


class _ColumnCore(Core):
    """A core that makes columns. All that was taken must be settled before cells are forgotten."""

    @property
    def cells(self) -> int:
        count: int = self._library.tm_cells(self._handle)
        return count

    @property
    def cells_are_many(self) -> bool:
        return bool(self._library.tm_cells_are_many(self._handle))

    def cell_texts(self, first: int) -> bytes:
        size = c_int64()
        start = self._library.tm_cell_texts(self._handle, first, byref(size))
        return ctypes.string_at(start, size.value) if size.value else b""

    def settle(self, targets: Sequence[int]) -> None:
        if not self._library.tm_settle(self._handle, (c_int32 * len(targets))(*targets), len(targets)):
            raise MemoryError("the C core has no memory")

    def forget_cells(self) -> None:
        self._library.tm_forget_cells(self._handle)

    def column(self, meter: int, kind: int) -> array[int]:
        """What was taken: of all events if `meter` is -1, else of that meter."""
        size = c_int64()
        start = self._library.tm_column(self._handle, meter, kind, byref(size))
        column = array(_OF_EVENTS[kind] if meter < 0 else _OF_A_METER[kind])
        if size.value:
            column.frombytes(ctypes.string_at(start, size.value))
        return column

    def clear(self) -> None:
        self._library.tm_clear_columns(self._handle)


class NativeColumns:
    """The maker of columns in C. See `ColumnMaker`. After an error, drop it with its ledger."""

    def __init__(self, library: ctypes.CDLL, ledger: Ledger, compiled: CompiledMeterSet) -> None:
        meter_set = compiled.meter_set
        self._library = library
        self._ledger = ledger
        self._policy = meter_set.policy
        self._core = _ColumnCore(library, ledger.hash_key, meter_set, for_rows=False)
        self._meters = self._core.table.order
        self._index = {meter.slug: index for index, meter in enumerate(self._meters)}
        self._moment = Moment(0, 0, 0, 0)
        self._epoch = ledger.epoch
        self._ahead: dict[int, Read | Decoded] = {}
        # What an account was told as, and the account by that number.
        self._serials: dict[str, int] = {}
        self._accounts: dict[int, Account] = {}
        self._serial = 0
        # Records that are read and wait for `finish`.
        self._queue: list[tuple[ToTake, Leave]] = []
        self._settled = 0
        self._many = False
        self.columns = Columns({meter.slug: Column(meter) for meter in meter_set.meters})

    def go_to(self, stream_time_ms: int, rules: Rules) -> None:
        """See `ColumnMaker`."""
        self._moment = Moment(
            stream_time_ms * MILLISECOND_US,
            max(rules.earliest_us, far_late_us(self._policy, stream_time_ms)),
            rules.latest_us,
            (stream_time_ms - self._policy.grace_ms) * MILLISECOND_US,
        )

    def unknown(self, records: Sequence[Record]) -> set[str]:
        """See `ColumnMaker`."""
        self.finish()
        if self._core.tape_is_full:
            self._ahead.clear()
            self._core.clear_tape()
        new = [record for record in records if record.offset not in self._ahead]
        self._ahead.update(zip((record.offset for record in new), self._read(new), strict=True))
        names = set[str]()
        for record in records:
            read = self._ahead[record.offset]
            if isinstance(read, Decoded):
                names.update(event.subject for _, event in read.events)
            else:
                names.update(read.accounts)
                if read.odd:
                    names.update(event.subject for _, event in self._decoded(record.value or b"", read.odd).events)
        # A difference with the keys would look at every account of the ledger.
        return {name for name in names if name not in self._ledger.accounts}

    def take(self, record: Record, leave: Leave) -> int:
        """See `ColumnMaker`."""
        read = self._ahead.pop(record.offset, None) or self._read([record])[0]
        if isinstance(read, Decoded):
            self.finish()
            self._look()
            for rejected in read.rejected:
                leave(rejected.place, rejected)
            for place, event in read.events:
                leave(place, event)
            return read.received
        value = record.value or b""
        self._queue.append((ToTake(value, read.at, position(record.offset), self._moment), leave))
        return read.events

    def finish(self) -> None:
        """See `ColumnMaker`."""
        if not self._queue:
            return
        queue, self._queue = self._queue, []
        self._look()
        left_out = self._core.take([record for record, _ in queue])
        self._settle()
        if not self._ahead:
            self._core.clear_tape()
        for number, events in left_out.items():
            record, leave = queue[number]
            decoded = self._decoded(record.value, events)
            for rejected in decoded.rejected:
                place = events[rejected.place].place
                leave(place, rejected._replace(place=place))
            for index, event in decoded.events:
                leave(events[index].place, event)

    def taken(self) -> Segment:
        """See `ColumnMaker`."""
        self.finish()
        core, odd = self._core, self.columns.taken()
        positions, buckets, members, unmetered = (core.column(-1, kind) for kind in range(4))
        meters = self.columns.meters
        odd_columns = {column.meter.slug: column for column in odd.columns if _is_of(column, meters)}
        columns = [self._column(column.meter, odd_columns.get(slug)) for slug, column in meters.items()]
        # The core has no column of the adjustments of a count.
        columns += [column for column in odd.columns if not _is_of(column, meters)]
        core.clear()
        cuts = cuts_of(positions, odd.positions)
        return Segment(
            merged(positions, odd.positions, cuts),
            merged(buckets, odd.buckets, cuts),
            merged(members, odd.members, cuts),
            merged(unmetered, odd.unmetered, cuts_of(unmetered, odd.unmetered)),
            [column for column in columns if column.numbers],
        )

    def repeats(self, segments: Sequence[Segment], present: AbstractSet[int]) -> set[int]:
        """See `ColumnMaker`."""
        return marks.repeats(self._library, segments, present)

    def marks(
        self, segments: Sequence[Segment], mark_slice: MarkSlice, unmarked: AbstractSet[int] = frozenset()
    ) -> dict[MarkKey, Sequence[int]]:
        """See `ColumnMaker`."""
        return marks.marks(self._library, segments, mark_slice, unmarked)

    def _column(self, meter: Meter, odd: Column | None) -> Column:
        index, made = self._index[meter.slug], Column(meter)
        made.numbers, made.positions, made.minors, made.times_us = (
            self._core.column(index, kind).tolist() for kind in range(4)
        )
        if odd is not None:
            cuts = cuts_of(made.positions, odd.positions)
            made.numbers = merged(made.numbers, odd.numbers, cuts)
            made.positions = merged(made.positions, odd.positions, cuts)
            made.minors = merged(made.minors, odd.minors, cuts)
            made.times_us = merged(made.times_us, odd.times_us, cuts)
        return made

    def _read(self, records: Sequence[Record]) -> list[Read | Decoded]:
        values = [record.value or b"" for record in records]
        # The core asks for an account that it was not told, at any stream time.
        found, bytes_max = self._core.read(values, 0), self._policy.event_bytes_max
        accounts = self._ledger.accounts
        self._tell(accounts[name] for read in found for name in read.accounts if name in accounts)
        return [
            decode(value, bytes_max) if read.events < 0 else read for value, read in zip(values, found, strict=True)
        ]

    def _decoded(self, value: bytes, events: Sequence[LeftOut]) -> Decoded:
        """Events of a record, as if they alone were in the record."""
        alone = b"[" + b",".join(each.raw for each in events) + b"]" if is_batch(value) else value
        return decode(alone, self._policy.event_bytes_max)

    def _look(self) -> None:
        ledger = self._ledger
        if ledger.entered:
            self._tell(ledger.entered)
            ledger.entered.clear()
        if self._epoch != ledger.epoch or self._many:
            self._epoch, self._settled, self._many = ledger.epoch, 0, False
            self._core.forget_cells()

    def _tell(self, accounts: Iterable[Account]) -> None:
        told = dict[str, Told]()
        for account in accounts:
            self._accounts.pop(self._serials.get(account.name, 0), None)
            self._serial += 1
            self._serials[account.name] = self._serial
            self._accounts[self._serial] = account
            told[account.name] = Told(account.from_us, account.until_us, serial=self._serial)
        if told and not self._core.tell(told):
            # The core has no more room: it forgets all, and asks for those that send events.
            self._core.forget_accounts()
            self._serials.clear()
            self._accounts.clear()

    def _settle(self) -> None:
        """Find the targets of the cells that are new to the core."""
        if self._core.cells == self._settled:
            self._core.settle(())
            return
        texts, targets, at = self._core.cell_texts(self._settled), list[int](), 0
        while at < len(texts):
            serial, hour, index = _CELL.unpack_from(texts, at)
            at += _CELL.size
            meter, account, values = self._meters[index], self._accounts[serial], dict[str, str]()
            for name in sorted(meter.dimensions):
                (size,) = _LENGTH.unpack_from(texts, at)
                at += _LENGTH.size + size
                values[name] = texts[at - size : at].decode()
            place = Place(account.name, account.period, account.state.flushed_ms)
            dimensions = dimensions_text(values) if values else NO_DIMENSIONS
            targets.append(self._ledger.target(place, meter, hour * HOUR_MS, dimensions))
        self._settled += len(targets)
        self._core.settle(targets)
        self._many = self._core.cells_are_many


def _is_of(column: Column, meters: dict[str, Column]) -> bool:
    return meters[column.meter.slug].meter is column.meter
