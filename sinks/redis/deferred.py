"""Far-late events that wait for their dedup decision."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import msgspec

from schemas.rollup import Checkpoint, Deferred, Waiting
from sinks.redis.client import Command
from sinks.redis.keys import Keys
from sinks.redis.keyspace import Keyspace

decode_deferred: Final = msgspec.json.Decoder(Deferred).decode


class RedisDeferred:
    """`schemas.live_view.DeferredEvents`."""

    def __init__(self, space: Keyspace) -> None:
        self._space = space

    async def deferred(
        self, partition: int, count_max: int, skipped: Collection[int] = ()
    ) -> tuple[Checkpoint | None, list[Deferred]]:
        last = len(skipped) + count_max - 1
        keys, checkpoint, (names,) = await self._space.read_at_checkpoint(
            partition, lambda keys: [("ZRANGE", keys.deferred_order, 0, last)]
        )
        wanted = [name for name in names if int(name) not in skipped][:count_max]
        texts = (await self._space.commands([("HMGET", keys.deferred, *wanted)]))[0] if wanted else []
        return checkpoint, [decode_deferred(text) for text in texts if text is not None]

    async def waiting(self, partition: int, account: str | None = None) -> tuple[Checkpoint | None, Waiting]:
        def commands(keys: Keys) -> list[Command]:
            index = keys.deferred_order if account is None else keys.deferred_of(account)
            return [("ZCARD", index), ("ZRANGE", index, 0, 0, "WITHSCORES")]

        _, checkpoint, (count, oldest) = await self._space.read_at_checkpoint(partition, commands)
        return checkpoint, Waiting(int(count), int(float(oldest[1])) if oldest else None)
