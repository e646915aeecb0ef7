"""Remembers, outside the fold, how far records were handed to a worker, so that replays after a crash can be counted.

Not part of the state: losing it loses a statistic. One small file a partition, written before each step.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, Protocol

_WIDTH: Final = 20


class Witness(Protocol):
    """What a rollup tells about deliveries."""

    def delivered(self, partition: int) -> int:
        """The highest next offset that was ever noted for the partition; 0 for none."""
        ...

    def note_delivery(self, partition: int, next_offset: int) -> None:
        """Records before `next_offset` are about to be folded. Never blocks for long."""
        ...

    def note_replay(self, partition: int, events: int) -> None:
        """So many events were delivered a second time and have now been committed."""
        ...


class FileWitness:
    """A witness in files of a folder; survives kill -9, not a lost machine."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._files: dict[int, int] = {}

    def _file(self, partition: int) -> int:
        if partition not in self._files:
            path = self._folder / f"partition-{partition}"
            self._files[partition] = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        return self._files[partition]

    def _numbers(self, partition: int) -> tuple[int, int]:
        text = os.pread(self._file(partition), 2 * _WIDTH, 0).decode()
        return int(text[:_WIDTH] or 0), int(text[_WIDTH:] or 0)

    def _write(self, partition: int, delivered: int, replayed: int) -> None:
        os.pwrite(self._file(partition), f"{delivered:{_WIDTH}d}{replayed:{_WIDTH}d}".encode(), 0)

    def delivered(self, partition: int) -> int:
        """See `Witness`."""
        return self._numbers(partition)[0]

    def replayed(self, partition: int) -> int:
        """Events noted by `note_replay` so far."""
        return self._numbers(partition)[1]

    def note_delivery(self, partition: int, next_offset: int) -> None:
        """See `Witness`."""
        delivered, replayed = self._numbers(partition)
        self._write(partition, max(delivered, next_offset), replayed)

    def note_replay(self, partition: int, events: int) -> None:
        """See `Witness`."""
        delivered, replayed = self._numbers(partition)
        self._write(partition, delivered, replayed + events)
