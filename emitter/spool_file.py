"""One file of the spool: events in the order of `emit`, and marks that say which of them have an answer.

A line is a checksum, an number and the event's JSON. A line without JSON is a mark: all events with a lower number have
an answer. A process holds the file's lock as long as it has the file open, so the files of dead processes are free.
"""

from __future__ import annotations

import errno
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from emitter.encoding import uuid7

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # `Spool` refuses to be made

HAS_LOCKS: Final = fcntl is not None
SUFFIX: Final = ".spool"
# A longer line is damage: the gateway takes no such event.
LINE_BYTES_MAX: Final = 16 * 1024 * 1024


class Record(NamedTuple):
    """An event of a file: its number, and its JSON."""

    number: int
    body: bytes


class SpoolFile:
    """One file whose lock this process holds. Not thread-safe. Every method but `forget` may raise `OSError`.

    Events are in memory first (`append` with `in_memory`), or unread: on disk only, until `read` returns them.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.descriptor = descriptor
        self.takes_more = True
        self.unread = 0
        self.size = 0
        self._read_to = 0
        self._next_number = 0
        # The events in memory that have no answer yet, in the order of their number, and the number behind the last.
        self._waiting: dict[int, None] = {}
        self._in_memory_to = 0
        self._marked = 0

    @classmethod
    def create(cls, folder: Path) -> SpoolFile:
        """Make a new file with a name that sorts by its time."""
        while True:
            path = folder / f"{uuid7()}{SUFFIX}"
            descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o600)
            if _locked(descriptor) and os.fstat(descriptor).st_nlink:
                return cls(path, descriptor)
            # Another process looked for files of dead processes in this moment. It removes the empty file, perhaps
            # before this process had the lock: what is written to a file without a name is lost with the process.
            os.close(descriptor)

    @classmethod
    def adopt(cls, path: Path) -> SpoolFile | None:
        """Open the file of a dead process, before `scan`. None if its process lives, or has removed the file."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or not _locked(descriptor) or os.fstat(descriptor).st_nlink == 0:
            os.close(descriptor)
            return None
        file = cls(path, descriptor)
        file.takes_more = False
        return file

    @property
    def is_settled(self) -> bool:
        """Whether every event so far has an answer."""
        return not self.unread and not self._waiting

    def append(self, body: bytes, *, in_memory: bool) -> int:
        """Write an event and return its number. After an error the file takes no more."""
        number = self._next_number
        self._write(_line(b"%d %s" % (number, body)))
        self._next_number += 1
        if in_memory:
            self._waiting[number] = None
            self._read_to, self._in_memory_to = self.size, number + 1
        else:
            self.unread += 1
        return number

    def settle(self, number: int) -> None:
        """The event has an answer. `mark` writes that down."""
        self._waiting.pop(number, None)

    def mark(self) -> None:
        """Write down up to where all events have an answer. A lost mark makes the events come again."""
        settled_below = next(iter(self._waiting), self._in_memory_to)
        if settled_below > self._marked:
            self._write(_line(b"%d" % settled_below))
            self._marked = settled_below
            if not self.unread:
                self._read_to = self.size

    def scan(self) -> int:
        """Read the file of a dead process: which events have no answer. Returns how many lines are damaged."""
        damaged = 0
        offsets: list[tuple[int, int]] = []
        with self._reader(0) as file:
            while line := file.readline(LINE_BYTES_MAX):
                record = _parsed(line)
                if record is None:
                    damaged += 1
                elif record.body and (not offsets or record.number > offsets[-1][0]):
                    offsets.append((record.number, self.size))
                elif not record.body:
                    self._marked = max(self._marked, record.number)
                if not line.endswith(b"\n") and len(line) < LINE_BYTES_MAX:
                    # The process died while it wrote. A mark behind half a line would be damaged too.
                    os.ftruncate(self.descriptor, self.size)
                    break
                self.size += len(line)
        left = [(number, offset) for number, offset in offsets if number >= self._marked]
        self.unread = len(left)
        self._read_to = left[0][1] if left else self.size
        return damaged

    def read(self, events_max: int, bytes_max: int) -> tuple[list[Record], int]:
        """The next unread events, at least one, and how many lines are lost because somebody damaged the file."""
        records: list[Record] = []
        size, line = 0, b"none yet"
        with self._reader(self._read_to) as file:
            while line and len(records) < events_max and size < bytes_max and self._read_to < self.size:
                line = file.readline(LINE_BYTES_MAX)
                self._read_to += len(line)
                record = _parsed(line)
                if record is not None and record.body and record.number >= self._in_memory_to:
                    records.append(record)
                    size += len(line)
                    self._waiting[record.number] = None
                    self._in_memory_to = record.number + 1
            at_end = self._read_to >= self.size or not line
        self.unread -= len(records)
        lost = self.unread if at_end else 0
        self.unread -= lost
        return records, lost

    def remove(self) -> None:
        """Delete the file and give its lock back. If the file cannot be deleted, its lock is kept: nobody must send
        its events again and again."""
        self.takes_more = False
        self.path.unlink(missing_ok=True)
        self.forget()

    def forget(self) -> None:
        """Close the file, as a process does that ends: another process may adopt it."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _write(self, line: bytes) -> None:
        # After an error the file may end with half a line, and a line behind that would be damaged too.
        took_more, self.takes_more = self.takes_more, False
        written = os.write(self.descriptor, line)
        if written != len(line):
            os.ftruncate(self.descriptor, self.size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.takes_more = took_more
        self.size += len(line)

    @contextmanager
    def _reader(self, offset: int) -> Iterator[BinaryIO]:
        with os.fdopen(self.descriptor, "rb", closefd=False) as file:
            file.seek(offset)
            yield file


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _line(text: bytes) -> bytes:
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _parsed(line: bytes) -> Record | None:
    """The record or mark (an empty body) of a line; None if the line is damaged or its end is missing."""
    text = line[9:-1]
    if line != _line(text):
        return None
    number, _, body = text.partition(b" ")
    return Record(int(number), body) if number.isdigit() else None
