"""The keys of one live view on one server: which generation is live, reads of it, and guarded writes.

Every store of the live view works on one `Keyspace`. One small key per partition names the live generation. Every
commit watches it and every read looks at it, so a swap is one SET for all of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NamedTuple, TypeVar

from schemas.errors import Fenced, Transient
from schemas.meters import MeterSet
from schemas.rebuild import SUPERSEDED
from schemas.rollup import Checkpoint
from sinks.redis.checkpoints import DIGEST, check_format, decode_checkpoint, read_checkpoint, stored_fields
from sinks.redis.client import Command, Server, checked
from sinks.redis.keys import Keys, literal

T = TypeVar("T")
Read = Callable[[list[Command]], list[Any]]

ATTEMPTS_MAX: Final = 5
_METER_SETS_MAX: Final = 16
# Keys per SCAN step: some milliseconds of a server that answers others in between.
_SCAN_COUNT: Final = 1_000


class Claim(NamedTuple):
    """Where a rebuild command has written its token; another token there is a later command's."""

    key: str
    token: str

    def check(self, stored: str | None) -> None:
        """Raise `Fenced` if another command has claimed since."""
        if stored != self.token:
            raise Fenced(SUPERSEDED)


class Keyspace:
    """The keys under a namespace. Calls to the server block in threads of their own.

    With a `generation` it acts on that one, live or not. With a `claim`, guarded writes need it to hold.
    """

    def __init__(
        self, url: str, namespace: str, threads_max: int, generation: int | None = None, claim: Claim | None = None
    ) -> None:
        self.url = url
        self.server = Server(url)
        self.namespace = namespace
        self.claim = claim
        self.rebuilding = f"{namespace}:rebuilding"
        self._executor = ThreadPoolExecutor(threads_max, thread_name_prefix="redis")
        self._pinned = generation
        self._live: dict[int, int] = {}
        self._meter_sets: dict[str, MeterSet] = {}

    def keys(self, partition: int) -> Keys:
        """The key names of a partition, in the generation that was live when last read."""
        generation = self._live.get(partition, 0) if self._pinned is None else self._pinned
        return Keys(self.namespace, partition, generation)

    def is_current(self, partition: int, keys: Keys, live: str | int | None) -> bool:
        """Whether these keys are of the live generation, as just read; remembers it."""
        self._live[partition] = int(live or 0)
        return self._pinned is not None or keys.generation == self._live[partition]

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a blocking function in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *arguments)

    async def commands(self, commands: list[Command]) -> list[Any]:
        """The answers to these commands."""
        return await self.run(self.server.run, commands)

    async def transaction(self, commands: list[Command]) -> list[Any]:
        """The answers to these commands, executed in one step."""
        answers = await self.commands([("MULTI",), *commands, ("EXEC",)])
        return checked(answers[-1], self.server.where)

    async def read_live(
        self, partition: int, commands: Callable[[Keys], list[Command]], *, at_once: bool = False
    ) -> tuple[Keys, list[Any]]:
        """Read from the live generation; again if a rebuild was swapped in meanwhile.

        The generation is read last: what was read before it was read while its keys were whole.
        """
        for _ in range(ATTEMPTS_MAX):
            keys = self.keys(partition)
            wanted = [*commands(keys), ("GET", keys.live)]
            *answers, live = await (self.transaction(wanted) if at_once else self.commands(wanted))
            if self.is_current(partition, keys, live):
                return keys, answers
        raise Transient(f"partition {partition}: the live generation changed at every look; try again")

    async def read_at_checkpoint(
        self, partition: int, commands: Callable[[Keys], list[Command]] = lambda _: []
    ) -> tuple[Keys, Checkpoint | None, list[Any]]:
        """The checkpoint and the answers to the commands, read in one transaction from the live generation."""
        whole = False
        while True:

            def with_checkpoint(keys: Keys, whole: bool = whole) -> list[Command]:
                return [read_checkpoint(keys.checkpoint, whole=whole), *commands(keys)]

            keys, (stored, *answers) = await self.read_live(partition, with_checkpoint, at_once=True)
            fields = stored_fields(stored)
            if not fields:
                return keys, None, answers
            check_format(fields)
            meter_set = self._meter_sets.get(fields[DIGEST])
            if fields[DIGEST] and meter_set is None and not whole:
                whole = True
                continue
            checkpoint = decode_checkpoint(fields, meter_set)
            if checkpoint.meter_set is not None and meter_set is None:
                if len(self._meter_sets) >= _METER_SETS_MAX:
                    self._meter_sets.clear()
                self._meter_sets[fields[DIGEST]] = checkpoint.meter_set
            return keys, checkpoint, answers

    def claim_reads(self) -> list[Command]:
        """Reads the token of the last claim, for `Claim.check`; nothing without a claim."""
        return [("GET", self.claim.key)] if self.claim else []

    async def check_claim(self) -> None:
        """Raise `Fenced` if another command has claimed since."""
        if self.claim is not None:
            (stored,) = await self.commands(self.claim_reads())
            self.claim.check(stored)

    def write_watching(self, watched: Sequence[str], decide: Callable[[Read], Sequence[Command]]) -> list[Any] | None:
        """Write in one step what `decide` returns after its reads; the answers. Blocks.

        None, and nothing written, if a watched key moved meanwhile. Raises `Fenced` if another command has claimed.
        """
        connection = self.server.connection()
        claimed = [self.claim.key] if self.claim else []

        def read(commands: list[Command]) -> list[Any]:
            return checked(connection.run(commands), self.server.where)

        try:
            _, *stored = read([("WATCH", *watched, *claimed), *self.claim_reads()])
            if self.claim is not None:
                self.claim.check(stored[0])
            writes = decide(read)
            if not writes:
                return []
            answers = read([("MULTI",), *writes, ("EXEC",)])[-1]
            return None if answers is None else checked(answers, self.server.where)
        finally:
            # A WATCH that was not answered by EXEC must not stay with the pooled connection.
            connection.reset()

    async def write_unmoved(self, watched: Sequence[str], decide: Callable[[Read], Sequence[Command]]) -> list[Any]:
        """As `write_watching`, deciding again if a watched key moved."""
        for _ in range(ATTEMPTS_MAX):
            answers = await self.run(self.write_watching, watched, decide)
            if answers is not None:
                return answers
        raise Transient(f"{self.server.where}: {watched[0]} changed at every look; try again")

    async def pages(self, keys: Keys) -> AsyncIterator[list[str]]:
        """All keys of a partition, some at a time. Keys that come or go meanwhile may be missing."""
        # One connection for all: a cursor means nothing to a server that restarted or took over.
        connection, cursor = self.server.connection(), ""
        try:
            while cursor != "0":
                page: Command = ("SCAN", cursor or "0", "MATCH", literal(keys.root) + "*", "COUNT", _SCAN_COUNT)
                ((cursor, names),) = checked(await self.run(connection.run, [page]), self.server.where)
                yield names
        finally:
            connection.release()

    def stop(self) -> None:
        """Release the threads, once their calls have ended."""
        self._executor.shutdown(wait=True)
