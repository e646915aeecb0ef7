"""The structures and functions of the C core, as ctypes sees them. They repeat `core.c` and its headers."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from ctypes import (
    POINTER,
    Structure,
    byref,
    c_char_p,
    c_int32,
    c_int64,
    c_uint8,
    c_uint16,
    c_uint64,
    c_void_p,
)
from hashlib import blake2b
from itertools import chain
from struct import Struct
from typing import Any, Final, NamedTuple

from aggregators.native.meter_table import CMeter, CType, Text, meter_table
from schemas.clock import MILLISECOND_US
from schemas.meters import MeterSet
from schemas.periods import INSTANT_MAX_MS

REFUSED: Final = -1
# `Place` of core.c.
_PLACE: Final = Struct("<5i")
TIME_MAX_US: Final = INSTANT_MAX_MS * MILLISECOND_US
# Records that are read ahead take up to this much; then all are read again when they are taken.
TAPE_BYTES_MAX: Final = 64 * 1024 * 1024


class CAccount(Structure):
    """An account as the core keeps it: see `Told`."""

    _fields_ = [("from_us", c_int64), ("until_us", c_int64), ("ask_us", c_int64), ("serial", c_int64)]


class Moment(NamedTuple):
    """The stream time of a record in microseconds; the first and the last event time that is taken there; and the end
    of the last period that is closed there."""

    stream_time_us: int
    earliest_us: int
    latest_us: int
    closed_us: int


class Told(NamedTuple):
    """What the core is told about an account: its open period `[from_us, until_us)`, both 0 if Python takes all its
    events; the stream time from which the core asks again; and a number that no other period or state of it has."""

    from_us: int
    until_us: int
    ask_us: int = TIME_MAX_US + 1
    serial: int = 0


class LeftOut(NamedTuple):
    """An event that the core leaves to Python: its place in the record, and its bytes."""

    place: int
    raw: bytes


class Read(NamedTuple):
    """What the core found in a record: the number of events or `REFUSED`, the place on its tape, the accounts that it
    does not know, and the events that Python must look at in any case, to find their accounts."""

    events: int
    at: int
    accounts: AbstractSet[str] = frozenset()
    odd: Sequence[LeftOut] = ()


class ToTake(NamedTuple):
    """A record that was read: its bytes, its place on the tape, its first position, and its moment."""

    value: bytes
    at: int
    base: int
    moment: Moment


_CORE: Final = c_void_p
_FUNCTIONS: Final[dict[str, tuple[Any, list[Any]]]] = {
    "tm_sources": (c_char_p, []),
    "tm_new": (
        c_void_p,
        [c_uint64 * 2, c_char_p, c_uint16, c_int32, c_int64, POINTER(CType), c_int32, POINTER(CMeter), c_int32],
    ),
    "tm_free": (None, [_CORE]),
    "tm_read": (
        c_int32,
        [_CORE, POINTER(c_char_p), POINTER(c_int64), c_int32, c_int64, POINTER(c_int64), POINTER(c_int64)],
    ),
    "tm_take": (
        c_int32,
        [_CORE, POINTER(c_char_p), POINTER(c_int64), POINTER(c_int64), POINTER(c_int64), POINTER(c_int64), c_int32],
    ),
    "tm_places": (c_void_p, [_CORE, POINTER(c_int64)]),
    "tm_tape_bytes": (c_int64, [_CORE]),
    "tm_clear_tape": (None, [_CORE]),
    "tm_tell": (c_int32, [_CORE, c_char_p, POINTER(c_int32), POINTER(CAccount), c_int32]),
    "tm_forget_accounts": (None, [_CORE]),
    "tm_cells": (c_int32, [_CORE]),
    "tm_cells_are_many": (c_int32, [_CORE]),
    "tm_cell_texts": (c_void_p, [_CORE, c_int32, POINTER(c_int64)]),
    "tm_settle": (c_int32, [_CORE, POINTER(c_int32), c_int32]),
    "tm_forget_cells": (None, [_CORE]),
    "tm_column": (c_void_p, [_CORE, c_int32, c_int32, POINTER(c_int64)]),
    "tm_clear_columns": (None, [_CORE]),
    "tm_repeats": (c_int64, [c_void_p, c_int64, c_void_p, c_int64, c_void_p]),
    "tm_by_set": (None, [c_void_p, c_void_p, c_int64, c_int64, c_void_p, c_void_p, c_void_p, c_void_p]),
    "tm_row": (c_int32, [_CORE, Text * 5, c_int64, c_int64, c_int64, c_uint8]),
    "tm_rows": (c_int64, [_CORE]),
    "tm_block_bytes": (c_int64, [_CORE]),
    "tm_block": (c_int64, [_CORE, POINTER(c_uint8), c_int64]),
}


def bind(library: ctypes.CDLL) -> ctypes.CDLL:
    """Give the library's functions their types. Raises `AttributeError` if the library lacks one."""
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


class Core:
    """One core in memory, for one partition and one meter set. One thread may use it at a time; a call lets go of the
    interpreter's lock. After `MemoryError` the core is of no use any more."""

    def __init__(
        self, library: ctypes.CDLL, hash_key: bytes, meter_set: MeterSet, partition: int = 0, *, for_rows: bool
    ) -> None:
        """`for_rows`: the core makes rows of the archive, of that partition; otherwise columns of the fold."""
        self._library = library
        # The core reads this memory.
        self.table = meter_table(meter_set)
        seed = (c_uint64 * 2).from_buffer_copy(blake2b(key=hash_key, digest_size=16, person=b"native tables").digest())
        types, meters, _ = self.table
        handle = library.tm_new(
            seed, hash_key, partition, for_rows, meter_set.policy.event_bytes_max,
            types, len(types), meters, len(meters),
        )  # fmt: skip
        self._handle: int = _good(handle)
        weakref.finalize(self, library.tm_free, handle)

    def read(self, values: Sequence[bytes], stream_time_us: int) -> list[Read]:
        """Read records ahead of `take`. Clear the tape from time to time."""
        count = len(values)
        if not 0 <= stream_time_us <= TIME_MAX_US:
            return [Read(REFUSED, 0)] * count
        at, events = (c_int64 * count)(), (c_int64 * count)()
        done = self._library.tm_read(
            self._handle, (c_char_p * count)(*values), (c_int64 * count)(*map(len, values)), count, stream_time_us,
            at, events,
        )  # fmt: skip
        _good(done)
        found = list(map(Read, events, at))
        accounts, odd = dict[int, set[str]](), dict[int, list[LeftOut]]()
        for record, index, start, end, asks in self._places():
            raw = values[record][start:end]
            if asks:
                accounts.setdefault(record, set()).add(raw.decode())
            else:
                odd.setdefault(record, []).append(LeftOut(index, raw))
        for record in accounts.keys() | odd.keys():
            found[record] = found[record]._replace(accounts=accounts.get(record, set()), odd=odd.get(record, ()))
        return found

    def take(self, records: Sequence[ToTake]) -> dict[int, list[LeftOut]]:
        """Take the plain events of records that were read. Returns the others by the record's place in the list."""
        count = len(records)
        values, at, bases, moments = zip(*records, strict=True)
        done = self._library.tm_take(
            self._handle, (c_char_p * count)(*values), (c_int64 * count)(*map(len, values)), (c_int64 * count)(*at),
            (c_int64 * count)(*bases), (c_int64 * (4 * count))(*chain.from_iterable(moments)), count,
        )  # fmt: skip
        _good(done)
        left_out = dict[int, list[LeftOut]]()
        for record, index, start, end, _ in self._places():
            left_out.setdefault(record, []).append(LeftOut(index, values[record][start:end]))
        return left_out

    def _places(self) -> list[tuple[int, int, int, int, int]]:
        count = c_int64()
        first = self._library.tm_places(self._handle, byref(count))
        if not count.value:
            return []
        return list(_PLACE.iter_unpack(ctypes.string_at(first, count.value * _PLACE.size)))

    @property
    def tape_is_full(self) -> bool:
        """Whether the tape must be cleared before another record is read."""
        full: bool = self._library.tm_tape_bytes(self._handle) > TAPE_BYTES_MAX
        return full

    def clear_tape(self) -> None:
        """Forget all records that were read. Their places on the tape are no longer valid."""
        self._library.tm_clear_tape(self._handle)

    def tell(self, accounts: dict[str, Told]) -> bool:
        """Tell the core accounts. False: it has no room for all of them, and leaves out the events of the others."""
        names = [name.encode() for name in accounts]
        lens = (c_int32 * len(names))(*map(len, names))
        told = (CAccount * len(names))(*(CAccount(*each) for each in accounts.values()))
        return bool(self._library.tm_tell(self._handle, b"".join(names), lens, told, len(names)))

    def forget_accounts(self) -> None:
        """Forget all accounts."""
        self._library.tm_forget_accounts(self._handle)


def _good(answer: int | None) -> int:
    if not answer:
        raise MemoryError("the C core has no memory")
    return answer


def texts(*values: str) -> Any:
    """An array of texts for the core. The array keeps the bytes alive."""
    return (Text * len(values))(*(Text(encoded, len(encoded), 0) for encoded in map(str.encode, values)))
