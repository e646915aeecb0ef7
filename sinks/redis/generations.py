"""A second generation of a partition's keys beside the live one, and the swap.

One small key per partition names the live generation. Every commit watches it and every read looks at it, so that a
swap is one SET for all of them: whoever worked on the old generation commits nothing any more.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NamedTuple

from schemas.errors import Fenced, OperatorNeeded, Transient
from schemas.rebuild import GENERATION_MAX, SUPERSEDED
from schemas.rollup import Checkpoint, Lost
from sinks.redis.checkpoints import token
from sinks.redis.client import Command, Server, checked
from sinks.redis.keys import GENERATIONS, Keys, literal
from sinks.redis.reader import RedisOutbox

Read = Callable[[list[Command]], list[Any]]

# Keys looked at in one step of a sweep: some milliseconds of a server that answers others in between.
_SCAN_COUNT: Final = 1_000
_LOOKS_MAX: Final = 5


class Claim(NamedTuple):
    """Where a rebuild command has written its token; another one there is a later command's."""

    key: str
    token: str

    def check(self, held: str | None) -> None:
        """Raise `Fenced` where this is not what stands there."""
        if held != self.token:
            raise Fenced(SUPERSEDED)


class RedisGenerations(RedisOutbox):
    """The part of `GenerationStore` that goes beyond `RollupStore`."""

    def __init__(
        self,
        server: Server,
        namespace: str,
        executor: ThreadPoolExecutor,
        generation: int | None = None,
        claim: Claim | None = None,
    ) -> None:
        super().__init__(server, namespace, executor, generation)
        self.claim = claim

    @property
    def _note(self) -> str:
        return f"{self.namespace}:rebuilding"

    async def claim_rebuild(self, token: str) -> None:
        self.claim = Claim(f"{self.namespace}:rebuilder", token)
        await self._commands([("SET", self.claim.key, token)])

    async def check_claim(self) -> None:
        if self.claim is not None:
            (held,) = await self._commands([("GET", self.claim.key)])
            self.claim.check(held)

    def _claim_reads(self) -> list[Command]:
        """What follows a WATCH and says who has claimed."""
        return [("GET", self.claim.key)] if self.claim else []

    def _watching(self, watched: Sequence[str], decide: Callable[[Read], Sequence[Command]]) -> list[Any] | None:
        """The answers to what `decide` says to write after its reads, written in one step; nothing is written where it
        says nothing. None where a watched key moved meanwhile, `Fenced` where another command has claimed."""
        connection = self.server.connection()
        claimed = [self.claim.key] if self.claim else []

        def read(commands: list[Command]) -> list[Any]:
            return checked(connection.run(commands), self.server.where)

        try:
            _, *held = read([("WATCH", *watched, *claimed), *self._claim_reads()])
            if self.claim is not None:
                self.claim.check(held[0])
            writes = decide(read)
            if not writes:
                return []
            answers = read([("MULTI",), *writes, ("EXEC",)])[-1]
            return None if answers is None else checked(answers, self.server.where)
        finally:
            # A WATCH that was not answered by EXEC must not stay with the pooled connection.
            connection.reset()

    async def _unmoved(self, watched: Sequence[str], decide: Callable[[Read], Sequence[Command]]) -> list[Any]:
        """As `_watching`, deciding anew where a watched key moved."""
        for _ in range(_LOOKS_MAX):
            answers = await self._run(self._watching, watched, decide)
            if answers is not None:
                return answers
        raise Transient(f"{self.server.where}: {watched[0]} changed at every look; try again")

    async def rebuilding(self) -> int | None:
        (text,) = await self._commands([("GET", self._note)])
        return int(text) if text else None

    async def begin_rebuild(self, generation: int) -> int:
        writes: list[Command] = [("SET", self._note, generation, "NX"), ("GET", self._note)]
        _, text = await self._unmoved([self._note], lambda _: writes)
        return int(text)

    async def end_rebuild(self, generation: int) -> None:
        def decide(read: Read) -> list[Command]:
            (held,) = read([("GET", self._note)])
            return [("DEL", self._note)] if held == str(generation) else []

        await self._unmoved([self._note], decide)

    async def refilled(self, partition: int, lost: Lost) -> None:
        await self.check_claim()
        await super().refilled(partition, lost)

    async def is_live(self, partition: int, generation: int) -> bool:
        (text,) = await self._commands([("GET", self.keys(partition).live)])
        return int(text or 0) == generation

    async def swap(self, partition: int, live: Checkpoint | None, built: Checkpoint) -> bool:
        return await self._run(self._swap, partition, live, built)

    def _swap(self, partition: int, live: Checkpoint | None, built: Checkpoint) -> bool:
        old, new = self.keys(partition), Keys(self.namespace, partition, built.generation)
        is_live = False

        def decide(read: Read) -> list[Command]:
            nonlocal is_live
            reads: list[Command] = [("GET", old.live), ("GET", self._note)]
            reads += [("HGET", old.checkpoint, "token"), ("HGET", new.checkpoint, "token")]
            name, note, old_token, new_token = read(reads)
            # Another rebuild was first: what would be dropped as the old checkpoint is the new one.
            is_live = int(name or 0) == built.generation
            if is_live:
                return []
            if note != str(built.generation):
                raise Fenced(f"generation {built.generation} was given up or finished by another command; run it again")
            expected = token(live) if live else None
            if not self._is_current(partition, old, name) or old_token != expected or new_token != token(built):
                return []
            # Without its checkpoint nothing of the old generation can be taken for state, however little is left of it.
            return [("SET", new.live, built.generation), ("UNLINK", old.checkpoint)]

        if self._watching([old.live, old.checkpoint, new.checkpoint, self._note], decide):
            self._live[partition] = built.generation
            return True
        return is_live

    async def sweep(self, partition: int) -> int:
        keys = self.keys(partition)

        def superfluous(found: Sequence[str], read: Read) -> list[str]:
            live, building = read([("GET", keys.live), ("GET", self._note)])
            kept = {int(live or 0), int(building)} if building else {int(live or 0)}
            return [key for key in found if key != keys.live and _generation(keys.root, key) not in kept]

        return await self._unlink(partition, superfluous)

    async def forget(self, partition: int) -> None:
        await self._unlink(partition, lambda found, _: list(found))

    async def _unlink(self, partition: int, wanted: Callable[[Sequence[str], Read], list[str]]) -> int:
        # Checkpoints first: cut short, what is left of a generation is no state, and nothing resumes from it.
        checkpoints = [Keys(self.namespace, partition, number).checkpoint for number in range(GENERATION_MAX + 1)]
        swept = await self._unlink_page(partition, checkpoints, wanted)
        async for found in self._pages(self.keys(partition)):
            swept += await self._unlink_page(partition, found, wanted)
        return swept

    async def _unlink_page(
        self, partition: int, found: Sequence[str], wanted: Callable[[Sequence[str], Read], list[str]]
    ) -> int:
        """Unlink what is wanted of these keys; what is live or being built must not change in between."""

        def decide(read: Read) -> list[Command]:
            left = wanted(found, read)
            return [("UNLINK", *left)] if left else []

        answers = await self._unmoved([self.keys(partition).live, self._note], decide) if found else []
        return sum(map(int, answers))

    async def _pages(self, keys: Keys) -> AsyncIterator[list[str]]:
        """The keys of a partition, some at a time; those that come or go meanwhile may be among them or not."""
        # One connection for all: to a server that was started again, or that took over, a cursor says nothing.
        connection, cursor = self.server.connection(), ""
        try:
            while cursor != "0":
                page: Command = ("SCAN", cursor or "0", "MATCH", literal(keys.root) + "*", "COUNT", _SCAN_COUNT)
                ((cursor, found),) = checked(await self._run(connection.run, [page]), self.server.where)
                yield found
        finally:
            connection.release()


def _generation(root: str, key: str) -> int:
    """The generation that a key of a partition belongs to."""
    rest = key.removeprefix(root)
    if not rest.startswith(GENERATIONS):
        return 0
    number = rest.removeprefix(GENERATIONS + ":").split(":", 1)[0]
    if not number.isdigit():
        raise OperatorNeeded(f"the key {key} is none of this version's: it was not removed; see who wrote it")
    return int(number)
