"""The live view on a Redis or Valkey server: its stores over one keyspace."""

from __future__ import annotations

from sinks.redis.client import SOCKET_TIMEOUT_S
from sinks.redis.copies import RedisCopies
from sinks.redis.generations import RedisGenerations, RedisRebuilds
from sinks.redis.keyspace import Claim, Keyspace
from sinks.redis.lookups import RedisAccounts, RedisDeferred, RedisMarks, RedisTotals
from sinks.redis.measured import RedisMeasured
from sinks.redis.outbox import RedisDrops, RedisOutbox, RedisReports
from sinks.redis.state import RedisState


class RedisLiveView:
    """The whole live view on a server (`schemas.live_view.LiveView`). Blocking calls run in `threads_max` threads.

    With a `generation`, the view uses that generation, live or not. With a `claim`, guarded writes raise `Fenced` after
    another rebuild command has claimed. `timeout_s` and `abandons`: see `Keyspace`.
    """

    def __init__(
        self,
        url: str,
        namespace: str = "tidemark",
        threads_max: int = 16,
        generation: int | None = None,
        claim: Claim | None = None,
        timeout_s: float = SOCKET_TIMEOUT_S,
        abandons: bool = False,
    ) -> None:
        self.keyspace = Keyspace(url, namespace, threads_max, generation, claim, timeout_s, abandons)
        self.state = RedisState(self.keyspace)
        self.outbox = RedisOutbox(self.keyspace)
        self.drops = RedisDrops(self.keyspace)
        self.reports = RedisReports(self.keyspace)
        self.deferred = RedisDeferred(self.keyspace)
        self.marks = RedisMarks(self.keyspace)
        self.accounts = RedisAccounts(self.keyspace)
        self.totals = RedisTotals(self.keyspace)
        self.measured = RedisMeasured(self.keyspace)
        self.rebuilds = RedisRebuilds(self.keyspace)
        self.generations = RedisGenerations(self.keyspace)
        self.copies = RedisCopies(self.keyspace)

    def built(self, generation: int) -> RedisLiveView:
        """The view of a generation, with its own connections."""
        space = self.keyspace
        return RedisLiveView(
            space.url,
            space.namespace,
            threads_max=4,
            generation=generation,
            claim=space.claim,
            timeout_s=space.timeout_s,
        )

    async def check(self) -> list[str]:
        return await self.keyspace.run(self._check)

    def _check(self) -> list[str]:
        (answer,) = self.keyspace.server.run([("INFO",)])
        info = dict(line.split(":", 1) for line in answer.splitlines() if ":" in line)
        problems = []
        policy = info.get("maxmemory_policy", "noeviction")
        if policy != "noeviction":
            problems.append(f"maxmemory-policy is {policy}: an evicted counter reads as zero usage; set noeviction")
        (entries,) = self.keyspace.server.connection().run([("CONFIG", "GET", "set-max-intset-entries")])
        if isinstance(entries, list) and len(entries) == 2 and int(entries[1]) < 32_768:
            problems.append(
                f"set-max-intset-entries is {entries[1]}: marks would take five times the memory; set it to 65536"
            )
        if info.get("aof_enabled") == "0":
            problems.append("append-only file is off: a restart of the server loses the checkpoint; set appendonly yes")
        return problems

    async def close(self) -> None:
        """Release connections and threads."""
        await self.keyspace.stop()
        self.state.close()
        self.keyspace.server.close()
