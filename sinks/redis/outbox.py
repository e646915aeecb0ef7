"""What waits to be written elsewhere: cells and duplicates (to ClickHouse), report entries (to `billing.reports`).

Nothing in this module moves the checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from schemas.clock import HOUR_MS
from schemas.errors import Transient
from schemas.rollup import BucketField, Checkpoint, DirtyCell, Dropped, Duplicate
from sinks.redis.client import Command, as_mapping, pairs
from sinks.redis.keys import Keys, literal
from sinks.redis.keyspace import LOOKS_MAX, Store

# Deletes only unchanged entries. If the script is interrupted, the remaining entries are relayed again.
_DELETE_IF_UNCHANGED: Final = """
for i = 1, #ARGV, 2 do
  if redis.call('HGET', KEYS[1], ARGV[i]) == ARGV[i + 1] then redis.call('HDEL', KEYS[1], ARGV[i]) end
end
"""
_CALL_FIELDS_MAX: Final = 500
# One script, because between two calls a replica may be promoted on which the bucket is open again.
_DROP_IF_CLOSED: Final = """
if tonumber(redis.call('HGET', KEYS[1], 'stream_time_ms') or '0') >= tonumber(ARGV[1])
    and redis.call('EXISTS', KEYS[2]) == 0 then
  redis.call('SREM', KEYS[4], ARGV[2])
  redis.call('UNLINK', KEYS[3])
end
"""
# More than any hash has entries: one call returns all that match, so all are of one checkpoint.
_WHOLE: Final = 1_000_000_000
_FORGET_IF_EMPTY: Final = """
if redis.call('EXISTS', KEYS[1]) == 0 then redis.call('SREM', KEYS[2], ARGV[1]) end
"""
_DUPLICATES: Final = "duplicates"


class RedisOutbox(Store):
    """Cells and duplicates that wait for the relay to ClickHouse (`schemas.live_view.AnalyticsOutbox`)."""

    async def dirty(self, partition: int, cells_max: int) -> tuple[Checkpoint | None, list[DirtyCell]]:
        for _ in range(LOOKS_MAX):
            checkpoint, cells, more = await self._listed(partition, cells_max)
            if len(cells) >= cells_max or not more:
                return checkpoint, cells
        raise Transient(f"partition {partition}: another process relays its cells at the same time; try again")

    async def _listed(self, partition: int, cells_max: int) -> tuple[Checkpoint | None, list[DirtyCell], bool]:
        """As `dirty`, and whether more cells may be dirty: beyond the limit, or in another generation."""
        # The checkpoint is read first, because the cells need not contain later commits.
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
        # Without a checkpoint, this generation was swapped out and its keys may be deleted.
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
            commands += _delete_if_unchanged(keys.dirty(bucket), [(cell.key.field, cell.version) for cell in cells])
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


class RedisDrops(Store):
    """The limit of the outbox, and the record of dropped entries (`schemas.live_view.OutboxDrops`)."""

    async def drop_excess(self, partition: int, entries_max: int) -> int:
        keys, (stream_time, names, duplicates) = await self._space.read_live(
            partition,
            lambda keys: [
                ("HGET", keys.checkpoint, "stream_time_ms"),
                ("SMEMBERS", keys.cell_buckets),
                ("HLEN", keys.duplicates),
            ],
        )
        dropped = 0
        if duplicates > entries_max:
            note = ("HINCRBY", keys.dropped, _DUPLICATES, duplicates)
            await self._space.transaction([("UNLINK", keys.duplicates), note])
            dropped += duplicates
        buckets = sorted(map(int, names))
        counts = await self._space.commands([("HLEN", keys.dirty(bucket)) for bucket in buckets])
        waiting = sum(counts)
        for bucket, count in zip(buckets, counts, strict=True):
            if waiting <= entries_max or not stream_time or bucket + HOUR_MS > int(stream_time):
                break
            if count:
                drop: list[Command] = [("UNLINK", keys.dirty(bucket), keys.cells(bucket))]
                drop += [("SREM", keys.cell_buckets, bucket), ("HSET", keys.dropped, bucket, count)]
                await self._space.transaction(drop)
                waiting, dropped = waiting - count, dropped + count
        return dropped

    async def dropped(self, partition: int) -> Dropped:
        _, (answer,) = await self._space.read_live(partition, lambda keys: [("HGETALL", keys.dropped)])
        counts = {name: int(count) for name, count in as_mapping(answer).items()}
        duplicates = counts.pop(_DUPLICATES, 0)
        return Dropped({int(bucket): counts[bucket] for bucket in sorted(counts, key=int)}, duplicates)

    async def backfilled(self, partition: int, dropped: Dropped) -> None:
        await self._space.check_claim()
        key = self._space.keys(partition).dropped
        commands: list[Command] = [("HDEL", key, *dropped.cells)] if dropped.cells else []
        if dropped.duplicates:
            commands.append(("HINCRBY", key, _DUPLICATES, -dropped.duplicates))
        if commands:
            await self._space.transaction(commands)


class RedisReports(Store):
    """Report entries that wait for the relay to `billing.reports` (`schemas.live_view.ReportOutbox`)."""

    async def report_buckets(self, partition: int) -> tuple[Checkpoint | None, list[int]]:
        _, checkpoint, (buckets,) = await self._space.read_at_checkpoint(
            partition, lambda keys: [("SMEMBERS", keys.report_buckets)]
        )
        return checkpoint, sorted(map(int, buckets))

    async def reports(self, partition: int, bucket_ms: int, count_max: int) -> tuple[Checkpoint | None, dict[str, str]]:
        _, (fields,) = await self._space.read_live(
            partition, lambda keys: [("HRANDFIELD", keys.reports(bucket_ms), count_max)]
        )

        def commands(keys: Keys) -> list[Command]:
            return [("HMGET", keys.reports(bucket_ms), *fields)] if fields else []

        _, checkpoint, texts = await self._space.read_at_checkpoint(partition, commands)
        entries = zip(fields, texts[0], strict=True) if fields else ()
        return checkpoint, {field: text for field, text in entries if text is not None}

    async def reports_of(
        self, partition: int, bucket_ms: int, account: str
    ) -> tuple[Checkpoint | None, dict[str, str]]:
        pattern = f"*\x1f{literal(account)}"
        _, checkpoint, ((_, found),) = await self._space.read_at_checkpoint(
            partition, lambda keys: [("HSCAN", keys.reports(bucket_ms), 0, "MATCH", pattern, "COUNT", _WHOLE)]
        )
        # The pattern also finds an account whose name ends with a separator and this name.
        entries = as_mapping(found).items()
        return checkpoint, {field: text for field, text in entries if field.split("\x1f", 1)[-1] == account}

    async def confirm_reports(self, partition: int, bucket_ms: int, published: Mapping[str, str]) -> None:
        keys = self._space.keys(partition)
        commands = _delete_if_unchanged(keys.reports(bucket_ms), list(published.items()))
        commands.append(("EVAL", _FORGET_IF_EMPTY, 2, keys.reports(bucket_ms), keys.report_buckets, bucket_ms))
        await self._space.commands(commands)


def _delete_if_unchanged(key: str, entries: Sequence[tuple[str, str | int]]) -> list[Command]:
    """Commands that delete these entries (field, value) from a hash if the stored value is still the given one."""
    return [
        ("EVAL", _DELETE_IF_UNCHANGED, 1, key, *pairs(entries[start : start + _CALL_FIELDS_MAX]))
        for start in range(0, len(entries), _CALL_FIELDS_MAX)
    ]
