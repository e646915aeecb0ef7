"""A second generation of a partition's keys beside the live one, and the swap.

One small key per partition names the live generation. Every commit watches it and every read looks at it, so that a
swap is one SET for all of them: whoever worked on the old generation commits nothing any more.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Final

from schemas.errors import OperatorNeeded
from schemas.rebuild import GENERATION_MAX
from schemas.rollup import Fence
from sinks.redis.client import Command, checked
from sinks.redis.fences import token
from sinks.redis.keys import GENERATIONS, Keys, literal
from sinks.redis.outbox import RedisOutbox

# Keys looked at in one step of a sweep: some milliseconds of a server that answers others in between.
_SCAN_COUNT: Final = 1_000


class RedisGenerations(RedisOutbox):
    """The part of `GenerationStore` that goes beyond `RollupStore`."""

    @property
    def _note(self) -> str:
        return f"{self.namespace}:rebuilding"

    async def rebuilding(self) -> int | None:
        (text,) = await self._commands([("GET", self._note)])
        return int(text) if text else None

    async def begin_rebuild(self, generation: int) -> int:
        _, text = await self._commands([("SET", self._note, generation, "NX"), ("GET", self._note)])
        return int(text)

    async def end_rebuild(self, generation: int) -> None:
        if await self.rebuilding() == generation:
            await self._commands([("DEL", self._note)])

    async def is_live(self, partition: int, generation: int) -> bool:
        (text,) = await self._commands([("GET", self.keys(partition).live)])
        return int(text or 0) == generation

    async def swap(self, partition: int, live: Fence | None, built: Fence) -> bool:
        return await self._run(self._swap, partition, live, built)

    def _swap(self, partition: int, live: Fence | None, built: Fence) -> bool:
        old, new = self.keys(partition), Keys(self.namespace, partition, built.generation)
        connection = self.server.connection()
        try:
            reads: list[Command] = [("WATCH", old.live, old.fence, new.fence), ("GET", old.live)]
            reads += [("HGET", old.fence, "token"), ("HGET", new.fence, "token")]
            _, name, old_token, new_token = checked(connection.run(reads), self.server.where)
            if int(name or 0) == built.generation:
                # Another rebuild was first: what would be dropped as the old fence is the new one.
                connection.run([("UNWATCH",)])
                return True
            expected = token(live) if live else None
            if not self._is_current(partition, old, name) or old_token != expected or new_token != token(built):
                connection.run([("UNWATCH",)])
                return False
            # Without its fence nothing of the old generation can be taken for state, however little is left of it.
            writes: list[Command] = [("SET", new.live, built.generation), ("UNLINK", old.fence)]
            answer = checked(connection.run([("MULTI",), *writes, ("EXEC",)]), self.server.where)[-1]
            if answer is None:
                return False
            checked(answer, self.server.where)
            self._live[partition] = built.generation
            return True
        finally:
            connection.release()

    async def sweep(self, partition: int) -> int:
        keys = self.keys(partition)
        live, building = await self._commands([("GET", keys.live), ("GET", self._note)])
        kept = {int(live or 0), int(building or 0)} if building else {int(live or 0)}
        return await self._unlink(partition, lambda key: key != keys.live and _generation(keys.root, key) not in kept)

    async def forget(self, partition: int) -> None:
        await self._unlink(partition, lambda _: True)

    async def _unlink(self, partition: int, wanted: Callable[[str], bool]) -> int:
        # Fences first: cut short, what is left of a generation is no state, and nothing resumes from it.
        fences = [Keys(self.namespace, partition, number).fence for number in range(GENERATION_MAX + 1)]
        (swept,) = await self._commands([("UNLINK", *filter(wanted, fences))])
        async for found in self._pages(self.keys(partition)):
            if left := [key for key in found if wanted(key)]:
                (gone,) = await self._commands([("UNLINK", *left)])
                swept += gone
        return int(swept)

    async def _pages(self, keys: Keys) -> AsyncIterator[list[str]]:
        """The keys of a partition, some at a time; those that come or go meanwhile may be among them or not."""
        cursor = ""
        while cursor != "0":
            (answer,) = await self._commands(
                [("SCAN", cursor or "0", "MATCH", literal(keys.root) + "*", "COUNT", _SCAN_COUNT)]
            )
            cursor, found = answer
            yield found


def _generation(root: str, key: str) -> int:
    """The generation that a key of a partition belongs to."""
    rest = key.removeprefix(root)
    if not rest.startswith(GENERATIONS):
        return 0
    number = rest.removeprefix(GENERATIONS + ":").split(":", 1)[0]
    if not number.isdigit():
        raise OperatorNeeded(f"the key {key} is none of this version's: it was not removed; see who wrote it")
    return int(number)
