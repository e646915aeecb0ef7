"""Period totals as they are now, and their ranking."""

from __future__ import annotations

from collections.abc import Sequence

from schemas.rollup import Checkpoint, RankingKey, TotalKey
from sinks.redis.client import Command, as_mapping
from sinks.redis.keys import Keys, parse_total_member
from sinks.redis.keyspace import Keyspace


class RedisTotals:
    """`schemas.live_view.LiveTotals`."""

    def __init__(self, space: Keyspace) -> None:
        self._space = space

    async def account_totals(
        self, partition: int, keys: Sequence[TotalKey]
    ) -> tuple[Checkpoint | None, dict[TotalKey, dict[str, str]]]:
        def commands(names: Keys) -> list[Command]:
            return [("HGETALL", names.total(key)) for key in keys]

        _, checkpoint, totals = await self._space.read_at_checkpoint(partition, commands)
        return checkpoint, {key: as_mapping(total) for key, total in zip(keys, totals, strict=True)}

    async def total_keys(self, partition: int, cursor: int, count: int) -> tuple[int, list[TotalKey]]:
        _, (answer,) = await self._space.read_live(
            partition, lambda keys: [("ZSCAN", keys.total_index, cursor, "COUNT", count)]
        )
        return int(answer[0]), [parse_total_member(member) for member in answer[1][::2]]

    async def ranking(self, partition: int, key: RankingKey, count: int) -> list[tuple[str, int]]:
        _, (flat,) = await self._space.read_live(
            partition, lambda keys: [("ZRANGE", keys.ranking(key), 0, count - 1, "REV", "WITHSCORES")]
        )
        return [(account, int(float(score))) for account, score in zip(flat[::2], flat[1::2], strict=True)]
