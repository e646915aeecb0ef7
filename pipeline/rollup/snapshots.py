"""Copies the live view to ClickHouse at intervals of stream time, for rebuilds from a log that lost its first record.

Two steps, because only the first one delays counting:
1. Between two flushes, copy the unchanging state into a file on this machine.
2. During the following flushes, write the file to ClickHouse. The row that makes the snapshot complete comes last.

A failure never stops counting: the copy is deleted, the failure is logged, and the snapshot is taken again later. A
crash leaves rows of an incomplete snapshot, which the next snapshot drops.
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
    """A copied state in a file, one chunk per line as JSON text."""

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
        """`interval_ms` is stream time; 0 takes no snapshots. `folder` holds the copies until they are written. `note`
        receives the outcome of each snapshot, and the snapshot if it was written."""
        self._copies = copies
        self._kept = kept
        self._interval_ms = interval_ms
        self._folder = folder
        self._note = note
        # The stream time of the next snapshot, for partitions whose last snapshot is known.
        self._due_ms: dict[int, int] = {}
        self._copied: _Copied | None = None
        self._busy = False

    async def after_flush(self, partition: int, checkpoint: Checkpoint) -> None:
        """Copy the state if a snapshot is due. The state must not change meanwhile. Logs failures and does not raise.

        Blocks while the partition's keys are read.
        """
        due_ms = self._due_ms.get(partition)
        if due_ms is None or checkpoint.stream_time_ms < due_ms or self._busy:
            return
        # Set before the first await, because partitions are flushed concurrently and only one copy may exist.
        self._busy = True
        file = None
        try:
            # Closed by whoever discards the copy. Closing deletes the file, as does the end of the process.
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
            # Runs when the flush is cancelled too.
            if self._copied is None:
                self._busy = False
                if file is not None:
                    file.close()

    async def write(self, partition: int) -> None:
        """Write the copied state, of whichever partition. Also look up when this partition's first snapshot is due.

        Logs failures and does not raise: a copy that cannot be written is deleted and taken again later.
        """
        try:
            if self._interval_ms and partition not in self._due_ms:
                stored = await self._kept.snapshots(partition)
                self._due_ms[partition] = stored[0].stream_time_ms + self._interval_ms if stored else 0
        except TidemarkError as error:
            _log.warning("the snapshots of partition %d could not be listed yet: %s", partition, error)
        copied = self._copied
        if copied is None:
            return
        head = copied.head
        try:
            await self._write(copied)
            stored = await self._kept.snapshots(head.partition)
            await self._kept.keep(head.partition, stored[:KEPT_MAX])
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
        _log.warning(
            "the snapshot of partition %d failed and is taken again later, nothing is lost: %s", partition, error
        )
        self._note("failed", None)


def _next_lines(file: IO[bytes]) -> list[bytes]:
    """The chunks of the next write; empty at the end of the file."""
    lines, size = list[bytes](), 0
    while len(lines) < CHUNKS_AT_ONCE and size < BYTES_AT_ONCE and (line := file.readline()):
        lines.append(line)
        size += len(line)
    return lines


def checkpoint_of(snapshot: Snapshot) -> Checkpoint:
    """The checkpoint at which a snapshot was taken. Raises `OperatorNeeded` if another version wrote it."""
    return decode_checkpoint(msgspec.json.decode(snapshot.checkpoint, type=dict[str, str]))
