"""Writes notices into a file, one JSON object on a line: for developers, and for programs on the same machine."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
from pathlib import Path
from typing import Final

from schemas.errors import Transient
from schemas.notices import Notice

# Over this size, the file is renamed to `NAME.1`, in the place of the one before.
BYTES_MAX: Final = 16 * 1024 * 1024


class FileChannel:
    """Appends each notice's body as a line, and waits until the disk has it."""

    def __init__(self, path: Path, bytes_max: int = BYTES_MAX) -> None:
        self._path = path
        self._bytes_max = bytes_max

    async def send(self, notice: Notice) -> bool:
        """See `schemas.notices.Channel`."""
        try:
            await asyncio.to_thread(self._append, f"{notice.body}\n".encode())
        except OSError as error:
            raise Transient(f"{self._path} cannot be written: {error.strerror}") from error
        return True

    def _append(self, line: bytes) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            # One call writes the whole line, so that two processes do not mix theirs.
            if os.write(descriptor, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(descriptor)
            if os.fstat(descriptor).st_size > self._bytes_max:
                self._rename(descriptor)
        finally:
            os.close(descriptor)

    def _rename(self, descriptor: int) -> None:
        """Rename the full file, unless another writer did so since it was opened."""
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), self._path.stat()):
                self._path.replace(self._path.with_name(f"{self._path.name}.1"))
