"""Report entries on their way to `billing.reports`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from schemas.rollup import Checkpoint
from sinks.redis.client import Command
from sinks.redis.keys import Keys
from sinks.redis.keyspace import Keyspace
from sinks.redis.scripts import delete_if_unchanged

_FORGET_IF_EMPTY: Final = """
if redis.call('EXISTS', KEYS[1]) == 0 then redis.call('SREM', KEYS[2], ARGV[1]) end
"""


class RedisReports:
    """`schemas.live_view.ReportOutbox`."""

    def __init__(self, space: Keyspace) -> None:
        self._space = space

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

    async def confirm_reports(self, partition: int, bucket_ms: int, published: Mapping[str, str]) -> None:
        keys = self._space.keys(partition)
        commands = delete_if_unchanged(keys.reports(bucket_ms), list(published.items()))
        commands.append(("EVAL", _FORGET_IF_EMPTY, 2, keys.reports(bucket_ms), keys.report_buckets, bucket_ms))
        await self._space.commands(commands)
