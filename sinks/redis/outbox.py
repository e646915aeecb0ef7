"""Cells and duplicates on their way to ClickHouse. Nothing here moves the checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from schemas.clock import HOUR_MS
from schemas.errors import Transient
from schemas.rollup import BucketField, Checkpoint, DirtyCell, Duplicate
from sinks.redis.client import Command
from sinks.redis.keyspace import Keyspace
from sinks.redis.scripts import delete_if_unchanged

# Checks and deletes in one step: between two calls a replica may take over on which the bucket is open again.
_DROP_IF_CLOSED: Final = """
if tonumber(redis.call('HGET', KEYS[1], 'stream_time_ms') or '0') >= tonumber(ARGV[1])
    and redis.call('EXISTS', KEYS[2]) == 0 then
  redis.call('SREM', KEYS[4], ARGV[2])
  redis.call('UNLINK', KEYS[3])
end
"""
_LOOKS_MAX: Final = 20


class RedisOutbox:
    """`schemas.live_view.AnalyticsOutbox`."""

    def __init__(self, space: Keyspace) -> None:
        self._space = space

    async def dirty(self, partition: int, cells_max: int) -> tuple[Checkpoint | None, list[DirtyCell]]:
        for _ in range(_LOOKS_MAX):
            checkpoint, cells, more = await self._listed(partition, cells_max)
            if len(cells) >= cells_max or not more:
                return checkpoint, cells
        raise Transient(f"partition {partition}: another process relays it at the same time; try again")

    async def _listed(self, partition: int, cells_max: int) -> tuple[Checkpoint | None, list[DirtyCell], bool]:
        """As `dirty`, and whether more may be dirty: beyond the limit, or in another generation."""
        # The checkpoint is read first: later commits need not be among the cells.
        keys, checkpoint, (buckets,) = await self._space.read_at_checkpoint(
            partition, lambda keys: [("SMEMBERS", keys.cell_buckets)]
        )
        wanted: list[tuple[int, list[str]]] = []
        left = cells_max
        for bucket in sorted(map(int, buckets)):
            if left <= 0:
                break
            (answer,) = await self._space.commands([("HRANDFIELD", keys.dirty(bucket), left)])
            if answer:
                wanted.append((bucket, answer))
                left -= len(answer)
        commands: list[Command] = [("EXISTS", keys.checkpoint)]
        for bucket, fields in wanted:
            commands.append(("HMGET", keys.dirty(bucket), *fields))
            commands.append(("HMGET", keys.cells(bucket), *fields))
        answers = iter(await self._space.transaction(commands))
        # A missing checkpoint means that the generation was swapped out; its keys may be gone.
        swapped = not next(answers) and checkpoint is not None
        cells = []
        for bucket, fields in wanted:
            for field, version, text in zip(fields, next(answers), next(answers), strict=True):
                if version is not None and text is not None:
                    cells.append(DirtyCell(BucketField(bucket, field), text, int(version)))
        return checkpoint, cells, swapped or left <= 0

    async def confirm_dirty(self, partition: int, relayed: Sequence[DirtyCell]) -> None:
        keys = self._space.keys(partition)
        grouped: dict[int, list[DirtyCell]] = {}
        for cell in relayed:
            grouped.setdefault(cell.key.bucket_ms, []).append(cell)
        commands: list[Command] = []
        for bucket, cells in grouped.items():
            commands += delete_if_unchanged(keys.dirty(bucket), [(cell.key.field, cell.version) for cell in cells])
        if commands:
            await self._space.commands(commands)

    async def drop_closed_buckets(self, partition: int) -> None:
        keys, (stream_time, buckets) = await self._space.read_live(
            partition, lambda keys: [("HGET", keys.checkpoint, "stream_time_ms"), ("SMEMBERS", keys.cell_buckets)]
        )
        closed = [bucket for bucket in map(int, buckets) if stream_time and bucket + HOUR_MS <= int(stream_time)]
        drops: list[Command] = [
            (
                "EVAL", _DROP_IF_CLOSED, 4, keys.checkpoint, keys.dirty(bucket), keys.cells(bucket), keys.cell_buckets,
                bucket + HOUR_MS, bucket,
            )
            for bucket in closed
        ]  # fmt: skip
        if drops:
            await self._space.commands(drops)

    async def duplicates(self, partition: int, count_max: int) -> list[Duplicate]:
        keys, (fields,) = await self._space.read_live(
            partition, lambda keys: [("HRANDFIELD", keys.duplicates, count_max)]
        )
        if not fields:
            return []
        (rows,) = await self._space.commands([("HMGET", keys.duplicates, *fields)])
        return sorted(Duplicate(*msgspec.json.decode(row)) for row in rows if row is not None)

    async def confirm_duplicates(self, partition: int, positions: Sequence[int]) -> None:
        if positions:
            await self._space.commands([("HDEL", self._space.keys(partition).duplicates, *positions)])
