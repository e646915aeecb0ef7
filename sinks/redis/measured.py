"""How far each partition's measured meters are told, for those who wait for it."""

from __future__ import annotations

from schemas.measures import MeasuredTo
from sinks.redis.keyspace import Store


class RedisMeasured(Store):
    """One hash for all partitions, beside the generations (`schemas.live_view.MeasuredInstants`)."""

    async def measured_to(self, partition: int) -> MeasuredTo | None:
        (text,) = await self._space.commands([("HGET", self._space.measured, partition)])
        if not text:
            return None
        log_id, until_ms, as_of_ms = str(text).split(" ")
        return MeasuredTo(log_id, int(until_ms), int(as_of_ms))

    async def note_measured(self, partition: int, reached: MeasuredTo) -> None:
        text = " ".join(map(str, reached))
        await self._space.commands([("HSET", self._space.measured, partition, text)])
