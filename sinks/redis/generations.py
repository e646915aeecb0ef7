"""Which command may rebuild, and the generations of each partition: built beside the live one, swapped, swept."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from schemas.errors import Fenced, OperatorNeeded
from schemas.rebuild import GENERATION_MAX
from schemas.rollup import Checkpoint
from sinks.redis.checkpoints import token
from sinks.redis.client import Command
from sinks.redis.keys import GENERATIONS, Keys
from sinks.redis.keyspace import Claim, Read, Store


class RedisRebuilds(Store):
    """The claim on rebuilds, and the generation that is being built (`schemas.rebuild.RebuildLease`)."""

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


class RedisGenerations(Store):
    """Swaps a new generation in and removes old ones (`schemas.rebuild.Generations`)."""

    async def is_live(self, partition: int, generation: int) -> bool:
        (text,) = await self._space.commands([("GET", self._space.keys(partition).live)])
        return int(text or 0) == generation

    async def swap(self, partition: int, live: Checkpoint | None, built: Checkpoint) -> bool:
        old, new = self._space.keys(partition), Keys(self._space.namespace, partition, built.generation)
        is_live = False

        def decide(read: Read) -> list[Command]:
            nonlocal is_live
            reads: list[Command] = [("GET", old.live), ("GET", self._space.rebuilding)]
            reads += [("HGET", old.checkpoint, "token"), ("HGET", new.checkpoint, "token")]
            name, note, old_token, new_token = read(reads)
            # Another command has swapped already: the key to unlink as the old checkpoint would be the new one.
            is_live = int(name or 0) == built.generation
            if is_live:
                return []
            if note != str(built.generation):
                raise Fenced(f"generation {built.generation} was given up or finished by another command; run it again")
            expected = token(live) if live else None
            if not self._space.is_current(partition, old, name) or old_token != expected or new_token != token(built):
                return []
            # Without a checkpoint, no process can take remaining keys of the old generation for state.
            return [("SET", new.live, built.generation), ("UNLINK", old.checkpoint)]

        if await self._space.write_watching([old.live, old.checkpoint, new.checkpoint, self._space.rebuilding], decide):
            self._space.is_current(partition, new, built.generation)
            return True
        return is_live

    async def sweep(self, partition: int) -> int:
        keys = self._space.keys(partition)

        def superfluous(names: Sequence[str], read: Read) -> list[str]:
            live, building = read([("GET", keys.live), ("GET", self._space.rebuilding)])
            kept = {int(live or 0), int(building)} if building else {int(live or 0)}
            return [key for key in names if key != keys.live and _generation(keys.root, key) not in kept]

        return await self._unlink(partition, superfluous)

    async def forget(self, partition: int) -> None:
        await self._unlink(partition, lambda names, _: list(names))

    async def _unlink(self, partition: int, wanted: Callable[[Sequence[str], Read], list[str]]) -> int:
        # Checkpoints first: if the call is interrupted, no process resumes from an incomplete generation.
        namespace = self._space.namespace
        checkpoints = [Keys(namespace, partition, number).checkpoint for number in range(GENERATION_MAX + 1)]
        swept = await self._unlink_page(partition, checkpoints, wanted)
        async for names in self._space.pages(self._space.keys(partition)):
            swept += await self._unlink_page(partition, names, wanted)
        return swept

    async def _unlink_page(
        self, partition: int, names: Sequence[str], wanted: Callable[[Sequence[str], Read], list[str]]
    ) -> int:
        """Unlink the keys that `wanted` selects; decide again if the live or the built generation changes meanwhile."""

        def decide(read: Read) -> list[Command]:
            left = wanted(names, read)
            return [("UNLINK", *left)] if left else []

        if not names:
            return 0
        watched = [self._space.keys(partition).live, self._space.rebuilding]
        return sum(map(int, await self._space.write_unmoved(watched, decide)))


def _generation(root: str, key: str) -> int:
    """The generation that a key of a partition belongs to."""
    rest = key.removeprefix(root)
    if not rest.startswith(GENERATIONS):
        return 0
    number = rest.removeprefix(GENERATIONS + ":").split(":", 1)[0]
    if not number.isdigit():
        raise OperatorNeeded(f"the key {key} is none of this version's: it was not removed; see who wrote it")
    return int(number)
