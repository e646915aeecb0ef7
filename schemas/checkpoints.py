"""Copies of the live view's whole state at one fence, kept outside of Redis: where a rebuild starts when the log no
longer reaches back to its first record."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple, Protocol

from schemas.rollup import Fence

# What of a checkpoint is read or written at a time: so many chunks, and no further one once they are of this size.
CHUNKS_AT_ONCE = 20
BYTES_AT_ONCE = 4_000_000


class Checkpoint(NamedTuple):
    """A complete checkpoint: `chunks` chunks of state, and the fence they belong to as JSON text."""

    partition: int
    next_offset: int
    name: str
    log_id: str
    log_time_ms: int
    chunks: int
    fence: str


class SnapshotStore(Protocol):
    """A rollup store whose state can be copied out and in. A chunk is text that only the store understands."""

    def snapshot(self, partition: int, believed: Fence) -> AsyncIterator[str]:
        """The partition's state but for its fence, in chunks of up to some 100 kB, or of one larger item.

        Only a walk that came to its end is one state. Raises `Fenced` where the stored fence is not `believed`, or
        moved during the walk. What drains take away meanwhile may be in it or not: it is in the other store by then.
        """
        ...

    async def begin_restore(self, partition: int, owner: str) -> None:
        """Claim the partition for one restoring process and empty it. Raises `Fenced` where it has a fence."""
        ...

    async def take_in(self, partition: int, owner: str, chunks: Sequence[str]) -> None:
        """Take chunks in. Raises `Fenced` where another process has claimed the partition."""
        ...

    async def end_restore(self, partition: int, owner: str, fence: Fence) -> None:
        """Write the fence: from here on it is state. Errors as `take_in`."""
        ...


class CheckpointStore(Protocol):
    """Where checkpoints are kept. Raises `Transient` where the store does not answer; repeating is harmless."""

    async def insert_chunks(self, at: Checkpoint, first_number: int, chunks: Sequence[str]) -> None:
        """Store some chunks of a checkpoint that is being written."""
        ...

    async def complete(self, at: Checkpoint) -> None:
        """Say that all its chunks are there."""
        ...

    async def checkpoints(self, partition: int) -> Sequence[Checkpoint]:
        """The complete checkpoints of a partition, the newest first."""
        ...

    async def chunks(self, at: Checkpoint, first_number: int, count_max: int) -> Sequence[str]:
        """Up to `count_max` chunks from one on."""
        ...

    async def keep(self, partition: int, kept: Sequence[Checkpoint]) -> None:
        """Drop every checkpoint of a partition below the newest kept one, complete or not, that is not kept."""
        ...
