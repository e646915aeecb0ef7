"""Copies of the live view's whole state at one checkpoint, kept outside of Redis: where a rebuild starts when the log
no longer reaches back to its first record."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple, Protocol

from schemas.rollup import Checkpoint

# What of a snapshot is read or written at a time: so many chunks, and no further one once they are of this size.
CHUNKS_AT_ONCE = 20
BYTES_AT_ONCE = 4_000_000


class Snapshot(NamedTuple):
    """A complete snapshot: `chunks` chunks of state, and the checkpoint they belong to as JSON text."""

    partition: int
    next_offset: int
    name: str
    log_id: str
    stream_time_ms: int
    chunks: int
    checkpoint: str


class CopyableState(Protocol):
    """Copies a partition's state out and in. A chunk is text that only the same store understands.

    Errors as `schemas.live_view.LiveView`.
    """

    def snapshot(self, partition: int, believed: Checkpoint) -> AsyncIterator[str]:
        """The partition's state without its checkpoint, in chunks of up to some 100 kB, or of one larger item.

        Only a complete walk is one state. Raises `Fenced` if the stored checkpoint is not `believed`, or moves during
        the walk. Entries that relays confirm during the walk may be missing: they are in the other store by then.
        """
        ...

    async def begin_restore(self, partition: int, owner: str) -> None:
        """Claim the partition for one restoring process and empty it. Raises `Fenced` if it has a checkpoint."""
        ...

    async def take_in(self, partition: int, owner: str, chunks: Sequence[str]) -> None:
        """Store chunks. Raises `Fenced` if another process has claimed the partition."""
        ...

    async def end_restore(self, partition: int, owner: str, checkpoint: Checkpoint) -> None:
        """Write the checkpoint, which makes the chunks state. Errors as `take_in`."""
        ...


class SnapshotStore(Protocol):
    """Where snapshots are kept. Raises `Transient` where the store does not answer; repeating is harmless."""

    async def insert_chunks(self, at: Snapshot, first_number: int, chunks: Sequence[str]) -> None:
        """Store some chunks of a snapshot that is being written."""
        ...

    async def complete(self, at: Snapshot) -> None:
        """Say that all its chunks are there."""
        ...

    async def snapshots(self, partition: int) -> Sequence[Snapshot]:
        """The complete snapshots of a partition, the newest first."""
        ...

    async def chunks(self, at: Snapshot, first_number: int, count_max: int) -> Sequence[str]:
        """Up to `count_max` chunks from one on."""
        ...

    async def keep(self, partition: int, kept: Sequence[Snapshot]) -> None:
        """Drop every snapshot of a partition below the newest kept one, complete or not, that is not kept."""
        ...
