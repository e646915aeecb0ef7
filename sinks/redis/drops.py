"""The cap of the outbox to ClickHouse, and the note of what was dropped."""

from __future__ import annotations

from typing import Final

from schemas.clock import HOUR_MS
from schemas.rollup import Dropped
from sinks.redis.client import Command, as_mapping
from sinks.redis.keyspace import Keyspace

_DUPLICATES: Final = "duplicates"


class RedisDrops:
    """`schemas.live_view.OutboxDrops`."""

    def __init__(self, space: Keyspace) -> None:
        self._space = space

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
