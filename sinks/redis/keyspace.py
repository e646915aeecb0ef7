"""The Redis keys of one live view: which generation is live, reads from it, and guarded writes.

All stores of the live view share one `Keyspace`. One small key per partition names the live generation. Every commit
watches this key and every read checks it, so one SET swaps the generation for all processes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NamedTuple, TypeVar

from aggregators.checkpoint_codec import DIGEST, check_format, decode_checkpoint
from schemas.errors import Fenced, Transient
from schemas.meters import MeterSet
from schemas.rebuild import SUPERSEDED
from schemas.rollup import Checkpoint
from sinks.redis.checkpoints import read_checkpoint, stored_fields
from sinks.redis.client import SOCKET_TIMEOUT_S, Command, Server, checked
from sinks.redis.keys import Keys, literal

T = TypeVar("T")
Read = Callable[[list[Command]], list[Any]]

ATTEMPTS_MAX: Final = 5
# Repeats of a listing whose entries other processes keep settling.
LOOKS_MAX: Final = 20
_METER_SETS_MAX: Final = 16
# Keys per SCAN step: a few milliseconds, between which the server answers others.
_SCAN_COUNT: Final = 1_000


class Claim(NamedTuple):
    """The key into which rebuild commands write their tokens, and this command's token. The last writer owns it."""

    key: str
    token: str

    def check(self, stored: str | None) -> None:
        """Raise `Fenced` if another command has claimed since."""
        if stored != self.token:
            raise Fenced(SUPERSEDED)


class Keyspace:
    """The keys under a namespace. Calls to the server block threads of its pool, not the event loop.

    With a `generation`, all calls use that generation, live or not. With a `claim`, guarded writes raise `Fenced` after
    another command has claimed. `timeout_s` bounds each wait for the server. With `abandons`, `timeout_s` bounds each
    whole call, the wait for a thread included; only callers that just read may abandon a call.
    """

    def __init__(
        self,
        url: str,
        namespace: str,
        threads_max: int,
        generation: int | None = None,
        claim: Claim | None = None,
        timeout_s: float = SOCKET_TIMEOUT_S,
        abandons: bool = False,
    ) -> None:
        self.url = url
        self.timeout_s = timeout_s
        self.server = Server(url, timeout_s=timeout_s)
        self._abandon_after_s = timeout_s if abandons else None
        self.namespace = namespace
        self.claim = claim
        self.rebuilding = f"{namespace}:rebuilding"
        self.measured = f"{namespace}:measured"
        self._executor = ThreadPoolExecutor(threads_max, thread_name_prefix="redis")
        self._pinned = generation
        self._live: dict[int, int] = {}
        self._meter_sets: dict[str, MeterSet] = {}

    def keys(self, partition: int) -> Keys:
        """The key names of a partition in the generation that was live at the last read."""
        generation = self._live.get(partition, 0) if self._pinned is None else self._pinned
        return Keys(self.namespace, partition, generation)

    def is_current(self, partition: int, keys: Keys, live: str | int | None) -> bool:
        """Whether these keys belong to the live generation. `live` is its number, just read; the keyspace keeps it."""
        self._live[partition] = int(live or 0)
        return self._pinned is not None or keys.generation == self._live[partition]

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a blocking function in a thread. Raises `Transient` if the call is abandoned."""
        try:
            async with asyncio.timeout(self._abandon_after_s):
                return await asyncio.get_running_loop().run_in_executor(self._executor, function, *arguments)
        except TimeoutError as error:
            raise Transient(f"{self.server.where} did not answer in {self._abandon_after_s} s") from error

    async def commands(self, commands: list[Command]) -> list[Any]:
        """The answers to these commands. Raises `Transient` and `OperatorNeeded`."""
        return await self.run(self.server.run, commands)

    async def transaction(self, commands: list[Command]) -> list[Any]:
        """The answers to these commands, executed as one transaction. Errors as `commands`."""
        answers = await self.commands([("MULTI",), *commands, ("EXEC",)])
        return checked(answers[-1], self.server.where)

    async def read_live(
        self, partition: int, commands: Callable[[Keys], list[Command]], *, at_once: bool = False
    ) -> tuple[Keys, list[Any]]:
        """Read from the live generation. Repeats the read if a rebuild was swapped in meanwhile.

        The generation is read last: if it is still live then, its keys were complete during the read.
        """
        for _ in range(ATTEMPTS_MAX):
            keys = self.keys(partition)
            wanted = [*commands(keys), ("GET", keys.live)]
            *answers, live = await (self.transaction(wanted) if at_once else self.commands(wanted))
            if self.is_current(partition, keys, live):
                return keys, answers
        raise Transient(f"partition {partition}: the live generation changed during every read; try again")

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
        """The command that reads the token for `Claim.check`; no command without a claim."""
        return [("GET", self.claim.key)] if self.claim else []

    async def check_claim(self) -> None:
        """Raise `Fenced` if another command has claimed since."""
        if self.claim is not None:
            (stored,) = await self.commands(self.claim_reads())
            self.claim.check(stored)

    async def write_watching(
        self, watched: Sequence[str], decide: Callable[[Read], Sequence[Command]]
    ) -> list[Any] | None:
        """Execute the commands that `decide` returns after its reads as one transaction; return their answers.

        Returns None, and writes nothing, if a watched key changed meanwhile. Raises `Fenced` if another command has
        claimed. `decide` runs in a thread and its reads block.
        """
        return await self.run(self._write_watching, watched, decide)

    def _write_watching(self, watched: Sequence[str], decide: Callable[[Read], Sequence[Command]]) -> list[Any] | None:
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
            # Without an EXEC, the WATCH would stay on the pooled connection.
            connection.reset()

    async def write_unmoved(self, watched: Sequence[str], decide: Callable[[Read], Sequence[Command]]) -> list[Any]:
        """As `write_watching`, but repeats it if a watched key changed; at last raises `Transient`."""
        for _ in range(ATTEMPTS_MAX):
            answers = await self.write_watching(watched, decide)
            if answers is not None:
                return answers
        raise Transient(f"{self.server.where}: {watched[0]} changed during every attempt; try again")

    async def pages(self, keys: Keys) -> AsyncIterator[list[str]]:
        """All keys of a partition, page by page. Keys that are created or deleted meanwhile may be missing."""
        # One connection for the whole walk: a restarted or promoted server does not know the cursor.
        connection, cursor = self.server.connection(), ""
        try:
            while cursor != "0":
                page: Command = ("SCAN", cursor or "0", "MATCH", literal(keys.root) + "*", "COUNT", _SCAN_COUNT)
                ((cursor, names),) = checked(await self.run(connection.run, [page]), self.server.where)
                yield names
        finally:
            connection.release()

    async def stop(self) -> None:
        """Wait for running calls, for up to `timeout_s` each, and release the threads."""
        await asyncio.to_thread(self._executor.shutdown, wait=True, cancel_futures=True)


class Store:
    """A part of the live view that works on one keyspace."""

    def __init__(self, space: Keyspace) -> None:
        self._space = space
