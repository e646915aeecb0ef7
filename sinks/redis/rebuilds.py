"""Which command may rebuild, and which generation is being built."""

from __future__ import annotations

from sinks.redis.client import Command
from sinks.redis.keyspace import Claim, Keyspace, Read


class RedisRebuilds:
    """`schemas.rebuild.RebuildLease`."""

    def __init__(self, space: Keyspace) -> None:
        self._space = space

    async def claim_rebuild(self, token: str) -> None:
        claim = Claim(f"{self._space.namespace}:rebuilder", token)
        self._space.claim = claim
        await self._space.commands([("SET", claim.key, token)])

    async def check_claim(self) -> None:
        await self._space.check_claim()

    async def rebuilding(self) -> int | None:
        (text,) = await self._space.commands([("GET", self._space.rebuilding)])
        return int(text) if text else None

    async def begin_rebuild(self, generation: int) -> int:
        note = self._space.rebuilding
        writes: list[Command] = [("SET", note, generation, "NX"), ("GET", note)]
        _, text = await self._space.write_unmoved([note], lambda _: writes)
        return int(text)

    async def end_rebuild(self, generation: int) -> None:
        def decide(read: Read) -> list[Command]:
            (note,) = read([("GET", self._space.rebuilding)])
            return [("DEL", self._space.rebuilding)] if note == str(generation) else []

        await self._space.write_unmoved([self._space.rebuilding], decide)
