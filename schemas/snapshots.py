"""Snapshots: copies of a partition's live view at one checkpoint, stored outside of Redis. A rebuild starts at a
snapshot if the log no longer has its first records."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple, Protocol

from schemas.rollup import Checkpoint

# Limits of one read or write of a snapshot: the number of chunks, and the size after which no further chunk is added.
CHUNKS_AT_ONCE = 20
BYTES_AT_ONCE = 4_000_000


class Snapshot(NamedTuple):
    """A complete snapshot: the number of its chunks, and its checkpoint as JSON text."""

    partition: int
    next_offset: int
    name: str
    log_id: str
    stream_time_ms: int
    chunks: int
    checkpoint: str


class CopyableState(Protocol):
    """Exports and restores a partition's state. A chunk is text that only the same kind of store can parse. Errors as
    `schemas.live_view.LiveView`."""

    def snapshot(self, partition: int, believed: Checkpoint) -> AsyncIterator[str]:
        """The partition's state without its checkpoint, in chunks of about 100 kB, or of one larger item.

        Only a complete iteration is a state. Raises `Fenced` if the stored checkpoint is not `believed` or moves
        meanwhile. Outbox entries that relays confirm meanwhile may be missing: the other store has them.
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
    """Where snapshots are stored. Raises `Transient` if the store does not answer; every call is repeatable."""

    async def insert_chunks(self, at: Snapshot, first_number: int, chunks: Sequence[str]) -> None:
        """Store some chunks of a snapshot that is being written."""
        ...

    async def complete(self, at: Snapshot) -> None:
        """Mark a snapshot as complete, after all its chunks are stored."""
        ...

    async def snapshots(self, partition: int) -> Sequence[Snapshot]:
        """The complete snapshots of a partition, the newest first."""
        ...

    async def chunks(self, at: Snapshot, first_number: int, count_max: int) -> Sequence[str]:
        """Up to `count_max` chunks from `first_number` on."""
        ...

    async def keep(self, partition: int, kept: Sequence[Snapshot]) -> None:
        """Delete all snapshots of a partition, complete or not, that are older than the newest of `kept` and not in
        `kept`."""
        ...
