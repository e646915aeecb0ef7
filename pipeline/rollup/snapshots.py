"""Copies the live view's state to ClickHouse every so many hours of stream time, so that it can be rebuilt when the log
no longer reaches back to its first record.

Two steps, because only the first one holds up counting:
1. between two flushes, while the state stands still, it is copied into a file of this machine.
2. beside the flushes, the file is written to ClickHouse; the row that says it is complete comes last.

Neither ever stops counting: a copy that fails is thrown away, said and taken again later. A crash leaves rows of a
snapshot that is not complete, which the next one drops.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
import uuid
from collections.abc import Callable
from typing import IO, Final, Literal, NamedTuple

import msgspec

from schemas.clock import MINUTE_MS
from schemas.errors import TidemarkError
from schemas.rollup import Checkpoint
from schemas.snapshots import BYTES_AT_ONCE, CHUNKS_AT_ONCE, CopyableState, Snapshot, SnapshotStore
from sinks.redis.checkpoints import decode_checkpoint, encode_checkpoint

KEPT_MAX: Final = 3
RETRY_MS: Final = 10 * MINUTE_MS

SnapshotOutcome = Literal["written", "failed"]

_log = logging.getLogger(__name__)


class _Copied(NamedTuple):
    """A state on this machine, one chunk a line as JSON text."""

    head: Snapshot
    file: IO[bytes]


class Snapshots:
    """Takes the snapshots of the partitions of one worker, one at a time."""

    def __init__(
        self,
        copies: CopyableState,
        kept: SnapshotStore,
        interval_ms: int,
        folder: str | None = None,
        note: Callable[[SnapshotOutcome, Snapshot | None], None] = lambda *_: None,
    ) -> None:
        """`interval_ms` is of stream time, 0 takes none. `folder`: where copies lie until they are written. `note` is
        told of every end."""
        self._copies = copies
        self._kept = kept
        self._interval_ms = interval_ms
        self._folder = folder
        self._note = note
        # From which stream time on the next one is due; partitions whose last one is not known yet are not in it.
        self._due_ms: dict[int, int] = {}
        self._copied: _Copied | None = None
        self._busy = False

    async def after_flush(self, partition: int, checkpoint: Checkpoint) -> None:
        """Copy the state where a snapshot is due. The state must stand still meanwhile. Raises nothing of ours.

        Blocks for as long as reading the partition's keys takes.
        """
        due_ms = self._due_ms.get(partition)
        if due_ms is None or checkpoint.stream_time_ms < due_ms or self._busy:
            return
        # Before anything is awaited: the partitions' flushes run side by side, and only one copy has room.
        self._busy = True
        file = None
        try:
            # Closed by whoever throws the copy away; deleted with it, or with the process.
            file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115
            chunks = 0
            async for chunk in self._copies.snapshot(partition, checkpoint):
                await asyncio.to_thread(file.write, msgspec.json.encode(chunk) + b"\n")
                chunks += 1
            text = msgspec.json.encode(encode_checkpoint(checkpoint)).decode()
            name = uuid.uuid4().hex[:16]
            head = Snapshot(
                partition, checkpoint.next_offset, name, checkpoint.log_id, checkpoint.stream_time_ms, chunks, text
            )
            self._copied = _Copied(head, file)
            self._due_ms[partition] = checkpoint.stream_time_ms + self._interval_ms
        except (TidemarkError, OSError) as error:
            self._failed(partition, checkpoint.stream_time_ms, error)
        finally:
            # Also where the flush is cancelled.
            if self._copied is None:
                self._busy = False
                if file is not None:
                    file.close()

    async def write(self, partition: int) -> None:
        """Write what was copied, of whichever partition; learn when the next one of this one is due.

        Raises nothing of ours: what cannot be written is thrown away and due again later.
        """
        try:
            if self._interval_ms and partition not in self._due_ms:
                found = await self._kept.snapshots(partition)
                self._due_ms[partition] = found[0].stream_time_ms + self._interval_ms if found else 0
        except TidemarkError as error:
            _log.warning("snapshots of partition %d are not known yet: %s", partition, error)
        copied = self._copied
        if copied is None:
            return
        head = copied.head
        try:
            await self._write(copied)
            found = await self._kept.snapshots(head.partition)
            await self._kept.keep(head.partition, found[:KEPT_MAX])
            self._note("written", head)
        except (TidemarkError, OSError) as error:
            self._failed(head.partition, head.stream_time_ms, error)
        finally:
            copied.file.close()
            self._copied, self._busy = None, False

    async def _write(self, copied: _Copied) -> None:
        file, number = copied.file, 0
        file.seek(0)
        while lines := await asyncio.to_thread(_next_lines, file):
            await self._kept.insert_chunks(copied.head, number, [msgspec.json.decode(line, type=str) for line in lines])
            number += len(lines)
        await self._kept.complete(copied.head)

    def _failed(self, partition: int, stream_time_ms: int, error: Exception) -> None:
        self._due_ms[partition] = stream_time_ms + min(RETRY_MS, self._interval_ms)
        _log.warning("the snapshot of partition %d is taken again later, nothing is lost: %s", partition, error)
        self._note("failed", None)


def _next_lines(file: IO[bytes]) -> list[bytes]:
    """As many chunks as are written at a time; none at the end."""
    lines, size = list[bytes](), 0
    while len(lines) < CHUNKS_AT_ONCE and size < BYTES_AT_ONCE and (line := file.readline()):
        lines.append(line)
        size += len(line)
    return lines


def checkpoint_of(snapshot: Snapshot) -> Checkpoint:
    """The checkpoint at which a snapshot was taken. Raises `OperatorNeeded` where another version wrote it."""
    return decode_checkpoint(msgspec.json.decode(snapshot.checkpoint, type=dict[str, str]))
