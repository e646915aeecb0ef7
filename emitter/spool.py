"""The folder in which events that have no answer yet survive their process."""

from __future__ import annotations

import errno
import os
import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal, NamedTuple

from emitter.spool_file import HAS_LOCKS, LINE_BYTES_MAX, SUFFIX, SpoolFile

SyncPolicy = Literal["each", "interval"]

SPOOL_BYTES_MIN: Final = 65_536
FILES: Final = 32
# After an error or at the limit, and between two looks for files of dead processes.
RETRY_INTERVAL_S: Final = 1.0
ADOPT_INTERVAL_S: Final = 5.0
EVENT_BYTES_MAX: Final = LINE_BYTES_MAX - 64


class SpoolSettings(NamedTuple):
    """Settings of the spool; see `Emitter`."""

    folder: Path
    bytes_max: int
    sync: SyncPolicy
    sync_interval_s: float

    def checked(self) -> SpoolSettings:
        """These settings. Raises `ValueError` if they are none."""
        if not HAS_LOCKS:
            raise ValueError("spool_path needs a Unix system: the spool locks its files with flock")
        if self.bytes_max < SPOOL_BYTES_MIN:
            raise ValueError(f"spool_bytes_max must be {SPOOL_BYTES_MIN} or more")
        if self.sync not in ("each", "interval") or self.sync_interval_s <= 0:
            raise ValueError("spool_sync must be each or interval, and spool_sync_interval_s more than 0")
        return self


class Place(NamedTuple):
    """Where an event is in the spool."""

    file: SpoolFile
    number: int


class Unread(NamedTuple):
    """An event that was on disk only, and its JSON."""

    place: Place
    body: bytes


class Spool:
    """The files of this process in the folder, and those that this process adopted from dead ones.

    Not thread-safe: `PendingEvents` calls it under its lock. No method raises `OSError`: `problem` says what is wrong.
    """

    def __init__(self, settings: SpoolSettings) -> None:
        """Touches nothing yet."""
        self._settings = settings
        self._file_bytes = settings.bytes_max // FILES
        self._files: deque[SpoolFile] = deque()
        self._active: SpoolFile | None = None
        self._unsynced: dict[SpoolFile, None] = {}
        self._is_folder_unsynced = False
        self._syncing: list[int] = []
        self._retry_at_s = self._look_at_s = time.monotonic()
        self._is_busy = False
        self.unread = self.read_total = self.damaged = 0
        self._problems: dict[str, str] = {}

    @property
    def problem(self) -> str:
        """Why the last write, or the last look for files of dead processes, failed; "" if neither did."""
        return "; ".join(self._problems.values())

    @property
    def is_left_behind(self) -> bool:
        """Whether the folder has files. Their processes may be alive."""
        try:
            return any(self._settings.folder.glob("*" + SUFFIX))
        except OSError as error:
            self._failed("look", error)
            return False

    def append(self, body: bytes, *, in_memory: bool) -> Place | None:
        """Write an event. With `in_memory` the caller keeps the event, else `read` returns it in its turn.

        None if the event cannot be kept: the limit is reached, the disk is full, or the folder cannot be written.
        """
        # A signal handler that emits may interrupt this very method.
        if self._is_busy or time.monotonic() < self._retry_at_s:
            return None
        self._is_busy = True
        try:
            file = self._with_room(len(body))
            number = file.append(body, in_memory=in_memory)
            self.unread += not in_memory
            self._problems.pop("write", None)
            self._sync(file)
        except OSError as error:
            self._failed("write", error)
            return None
        finally:
            self._is_busy = False
        return Place(file, number)

    def read(self, events_max: int, bytes_max: int) -> tuple[list[Unread], int]:
        """The next events that are on disk only, and how many were lost because somebody damaged their file."""
        for file in list(self._files):
            if not file.unread:
                continue
            before = file.unread
            try:
                records, lost = file.read(events_max, bytes_max)
            except OSError as error:
                self._failed("read", error)
                return [], self._given_up(file)
            self.unread -= before - file.unread
            self.read_total += before - file.unread
            self.damaged += lost
            self._removed_if_settled(file)
            return [Unread(Place(file, record.number), record.body) for record in records], lost
        return [], 0

    def adopt(self) -> int:
        """Take over the oldest file of a dead process, at most one at a time. Returns how many events it has left."""
        if time.monotonic() < self._look_at_s:
            return 0
        self._look_at_s = time.monotonic() + ADOPT_INTERVAL_S
        self._problems.pop("look", None)
        try:
            paths = sorted(self._settings.folder.glob("*" + SUFFIX))
        except OSError as error:
            self._failed("look", error)
            return 0
        for path in paths:
            try:
                file = SpoolFile.adopt(path)
                if file is None:
                    continue
                self.damaged += file.scan()
            except OSError as error:
                # A file that cannot be read keeps its lock: the next process may have more luck.
                self._failed("look", error)
                continue
            self._files.append(file)
            self.unread += file.unread
            if file.unread:
                # There may be more.
                self._look_at_s = time.monotonic()
                return file.unread
            self._removed_if_settled(file)
        return 0

    def settle(self, places: Iterable[Place]) -> None:
        """These events have an answer: they need not survive."""
        touched: dict[SpoolFile, None] = {}
        for file, number in places:
            file.settle(number)
            touched[file] = None
        for file in touched:
            if self._removed_if_settled(file):
                continue
            try:
                file.mark()
            except OSError as error:
                self._failed("write", error)

    def to_sync(self) -> list[int]:
        """Descriptors of what was written since the last call: the caller syncs them, and then calls `synced`."""
        try:
            for file in list(self._unsynced):
                if file.descriptor >= 0:
                    self._syncing.append(os.dup(file.descriptor))
                del self._unsynced[file]
            if self._is_folder_unsynced:
                self._syncing.append(os.open(self._settings.folder, os.O_RDONLY))
                self._is_folder_unsynced = False
        except OSError as error:
            # No descriptor is free. What is left is synced at the next call.
            self._failed("write", error)
        return self._syncing

    def synced(self, error: OSError | None) -> None:
        """Close the descriptors of `to_sync`."""
        if error is not None:
            self._failed("write", error)
        while self._syncing:
            os.close(self._syncing.pop())

    def close(self) -> None:
        """Remove what is settled and leave the rest to the next process."""
        if self._active is not None:
            self._active.takes_more = False
        for file in list(self._files):
            if not self._removed_if_settled(file):
                file.forget()
        self._files.clear()

    def forget(self) -> None:
        """Close the files and leave them, in the child of a fork: they belong to the parent."""
        for file in self._files:
            file.forget()
        self.synced(None)

    def _with_room(self, body_bytes: int) -> SpoolFile:
        """The file to write to. Raises `OSError` at the limits, too."""
        if body_bytes > EVENT_BYTES_MAX:
            raise OSError(errno.EFBIG, f"an event of {body_bytes} bytes is too large for the spool")
        active = self._active
        if active is not None and active.takes_more and (
            not active.size or active.size + body_bytes <= self._file_bytes
        ):  # fmt: skip
            return active
        if active is not None:
            active.takes_more = False
            self._removed_if_settled(active)
        folder = self._settings.folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        used = _bytes_of(folder)
        if used + max(self._file_bytes, body_bytes) > self._settings.bytes_max:
            raise OSError(errno.EDQUOT, f"the spool has reached its limit of {self._settings.bytes_max} bytes")
        self._active = SpoolFile.create(folder)
        self._files.append(self._active)
        self._is_folder_unsynced = True
        return self._active

    def _sync(self, file: SpoolFile) -> None:
        """Sync at once, or leave that to the caller of `to_sync`."""
        self._unsynced[file] = None
        if self._settings.sync == "each":
            failure = None
            try:
                for descriptor in self.to_sync():
                    os.fsync(descriptor)
            except OSError as error:
                # The event is in the file, and perhaps not on the disk.
                failure = error
            self.synced(failure)

    def _given_up(self, file: SpoolFile) -> int:
        """Stop reading a file, and return how many of its events are left. Its lock is kept: the next process may have
        more luck."""
        file.takes_more = False
        self._files.remove(file)
        self.unread -= file.unread
        self.read_total += file.unread
        self.damaged += file.unread
        return file.unread

    def _removed_if_settled(self, file: SpoolFile) -> bool:
        if file.takes_more or not file.is_settled:
            return False
        if file in self._files:
            self._files.remove(file)
        try:
            file.remove()
        except OSError as error:
            self._failed("remove", error)
        return True

    def _failed(self, what: str, error: OSError) -> None:
        where = f": {error.filename}" if error.filename else ""
        self._problems[what] = f"{error.strerror or error}{where}"
        if what == "write":
            self._retry_at_s = time.monotonic() + RETRY_INTERVAL_S


def _bytes_of(folder: Path) -> int:
    used = 0
    for path in folder.glob("*" + SUFFIX):
        # Another process may remove its file at this moment.
        with suppress(FileNotFoundError):
            used += path.stat().st_size
    return used
