"""The rollup's state in Redis: read at the checkpoint, commit with the checkpoint (I2).

A commit is two round trips: `read` sends WATCH on the checkpoint and all reads; `commit` sends MULTI with absolute
values and EXEC. EXEC fails as a whole where the checkpoint moved in between. What a crash leaves: before EXEC
reached the server, nothing; after it, everything, and the process finds the new checkpoint when it starts again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec

from schemas.errors import Fenced, OperatorNeeded, Transient
from schemas.periods import AccountState
from schemas.rollup import (
    BucketField,
    Changes,
    Checkpoint,
    Deferred,
    DueTotal,
    RankingKey,
    ReadRequest,
    TotalKey,
    UniqueKey,
    View,
)
from sinks.redis.checkpoints import decode_checkpoint, encode_checkpoint, token
from sinks.redis.client import Command, Connection, Server, as_mapping, checked, pairs
from sinks.redis.generations import Claim, Read
from sinks.redis.keys import Keys, deferred_member, parse_total_member, total_member
from sinks.redis.reader import decode_deferred
from sinks.redis.snapshots import RedisSnapshots

# One command with very many arguments would hold up the single-threaded server.
ARGUMENTS_MAX = 10_000


class RedisRollupStore(RedisSnapshots):
    """`schemas.rebuild.GenerationStore` on a Redis or Valkey server. Blocking calls run in `threads_max` threads.

    With a `generation` it acts on that one, whether live or not; with a `claim`, only while that holds.
    """

    def __init__(
        self,
        url: str,
        namespace: str = "tidemark",
        threads_max: int = 16,
        generation: int | None = None,
        claim: Claim | None = None,
    ) -> None:
        executor = ThreadPoolExecutor(threads_max, thread_name_prefix="redis")
        super().__init__(Server(url), namespace, executor, generation, claim)
        self._url = url
        self._connections: dict[int, Connection] = {}
        self._watched: dict[int, str] = {}

    async def check(self) -> list[str]:
        return await self._run(self._check)

    def _check(self) -> list[str]:
        (answer,) = self.server.run([("INFO",)])
        info = dict(line.split(":", 1) for line in answer.splitlines() if ":" in line)
        problems = []
        policy = info.get("maxmemory_policy", "noeviction")
        if policy != "noeviction":
            problems.append(f"maxmemory-policy is {policy}: an evicted counter reads as zero usage; set noeviction")
        (entries,) = self.server.connection().run([("CONFIG", "GET", "set-max-intset-entries")])
        if isinstance(entries, list) and len(entries) == 2 and int(entries[1]) < 32_768:
            problems.append(
                f"set-max-intset-entries is {entries[1]}: marks would take five times the memory; set it to 65536"
            )
        if info.get("aof_enabled") == "0":
            problems.append("append-only file is off: a restart of the server loses the checkpoint; set appendonly yes")
        return problems

    async def load_checkpoint(self, partition: int) -> Checkpoint | None:
        _, (answer,) = await self._read_live(partition, lambda keys: [("HGETALL", keys.checkpoint)])
        fields = as_mapping(answer)
        return decode_checkpoint(fields) if fields else None

    async def create_checkpoint(self, partition: int, checkpoint: Checkpoint) -> None:
        keys = self.keys(partition)

        def decide(read: Read) -> list[Command]:
            exists, live = read([("EXISTS", keys.checkpoint), ("GET", keys.live)])
            if exists or not self._is_current(partition, keys, live):
                raise Fenced(f"partition {partition} has a checkpoint already")
            return [("HSET", keys.checkpoint, *pairs(encode_checkpoint(checkpoint).items()))]

        if await self._run(self._watching, [keys.checkpoint, keys.live], decide) is None:
            raise Fenced(f"another process created the checkpoint of partition {partition}")

    async def read(self, partition: int, believed: Checkpoint, request: ReadRequest) -> View:
        return await self._run(self._read, partition, believed, request)

    def _connection(self, partition: int) -> Connection:
        return self._connections.setdefault(partition, self.server.connection())

    def _watch(self, partition: int, believed: Checkpoint, commands: list[Command]) -> list[Any]:
        """Run reads in the same round trip as WATCH and check that the checkpoint is what we believe."""
        keys = self.keys(partition)
        # UNWATCH first: a WATCH left by an abandoned flush would make a later EXEC fail for nothing.
        claimed = [self.claim.key] if self.claim else []
        head: list[Command] = [("UNWATCH",), ("WATCH", keys.checkpoint, keys.live, *claimed), ("GET", keys.live)]
        head += [("HGET", keys.checkpoint, "token"), *self._claim_reads()]
        self._watched.pop(partition, None)
        answers = checked(self._connection(partition).run(head + commands), self.server.where)
        if self.claim is not None:
            self.claim.check(answers[4])
        if not self._is_current(partition, keys, answers[2]):
            raise Fenced(
                f"partition {partition}: a rebuilt view was swapped in. Restart this process at its checkpoint."
            )
        if answers[3] is None:
            raise OperatorNeeded(
                f"the checkpoint of partition {partition} is gone from {self.server.where}: the store was emptied or "
                "replaced while the log went on. Nothing was written. Restore the append-only file or a replica that "
                "has the checkpoint, or build it again with `tidemark rebuild redis` (if that was never used, "
                "`tidemark worker --replay-from-start` does it too)."
            )
        if answers[3] != token(believed):
            raise Fenced(
                f"partition {partition}: the stored checkpoint is {answers[3]}, this process believes "
                f"{token(believed)}; another process committed. Restart this one."
            )
        self._watched[partition] = answers[3]
        return answers[len(head) :]

    def _read(self, partition: int, believed: Checkpoint, request: ReadRequest) -> View:
        keys = self.keys(partition)
        commands: list[Command] = []
        commands += [("SMISMEMBER", keys.mark(key), *members) for key, members in request.marks.items()]
        commands += [("HGETALL", keys.total(key)) for key in request.totals]
        cells = _by_bucket(request.cells)
        commands += [("HMGET", keys.cells(bucket), *fields) for bucket, fields in cells.items()]
        reports = _by_bucket(request.reports)
        commands += [("HMGET", keys.reports(bucket), *fields) for bucket, fields in reports.items()]
        commands += [("SMISMEMBER", keys.unique(key), *members) for key, members in request.uniques.items()]
        if request.accounts:
            commands.append(("MGET", *(keys.account(account) for account in request.accounts)))
        if request.deferred:
            commands.append(("HMGET", keys.deferred, *map(deferred_member, request.deferred)))
        if request.due_max:
            commands.append(("ZRANGE", keys.total_index, 0, request.due_max - 1, "WITHSCORES"))
        answers = iter(self._watch(partition, believed, commands))

        marks: set[int] = set()
        for members in request.marks.values():
            found = next(answers)
            if 1 in found:
                marks.update(member for member, here in zip(members, found, strict=True) if here)
        totals = {key: as_mapping(next(answers)) for key in request.totals}
        cell_texts = _texts(cells, answers)
        report_texts = _texts(reports, answers)
        uniques = {
            key: frozenset(member for member, here in zip(members, next(answers), strict=True) if here)
            for key, members in request.uniques.items()
        }
        accounts = {}
        if request.accounts:
            for account, text in zip(request.accounts, next(answers), strict=True):
                accounts[account] = AccountState.model_validate_json(text) if text else AccountState()
        held = (decode_deferred(text) for text in next(answers) if text) if request.deferred else ()
        deferred = {each.position: each for each in held}
        flat = next(answers) if request.due_max else ()
        due = [
            DueTotal(int(float(at)), parse_total_member(name)) for name, at in zip(flat[::2], flat[1::2], strict=True)
        ]
        return View(frozenset(marks), totals, cell_texts, report_texts, uniques, accounts, deferred, due)

    async def commit(self, partition: int, believed: Checkpoint, changes: Changes) -> None:
        await self._run(self._commit, partition, believed, changes)

    def _commit(self, partition: int, believed: Checkpoint, changes: Changes) -> None:
        if self._watched.get(partition) != token(believed):
            self._watch(partition, believed, [])
        self._watched.pop(partition, None)
        commands: list[Command] = [("MULTI",), *self._writes(self.keys(partition), changes), ("EXEC",)]
        answer = checked(self._connection(partition).run(commands), self.server.where)[-1]
        if answer is None:
            raise Fenced(f"partition {partition}: the checkpoint moved during the flush; another process committed")
        checked(answer, self.server.where)

    def _writes(self, keys: Keys, changes: Changes) -> Iterator[Command]:
        yield ("HSET", keys.checkpoint, *pairs(encode_checkpoint(changes.checkpoint).items()))
        yield from _removals(keys, changes.replaced)
        for mark, members in changes.marks.items():
            yield ("SADD", keys.mark(mark), *members)
        for total, fields in changes.totals.items():
            yield ("HSET", keys.total(total), *pairs(fields.items()))
        yield from _due_writes(keys, changes)
        for ranking, scores in changes.rankings.items():
            yield from _chunked(("ZADD", keys.ranking(ranking)), pairs((v, k) for k, v in scores.items()))
        for bucket, names in _by_bucket(changes.cells).items():
            cells = ((name, changes.cells[BucketField(bucket, name)]) for name in names)
            yield from _chunked(("HSET", keys.cells(bucket)), pairs(cells))
            versions = ((name, changes.dirty[BucketField(bucket, name)]) for name in names)
            yield from _chunked(("HSET", keys.dirty(bucket)), pairs(versions))
            yield ("SADD", keys.cell_buckets, bucket)
        for bucket, names in _by_bucket(changes.reports).items():
            entries = ((name, changes.reports[BucketField(bucket, name)]) for name in names)
            yield from _chunked(("HSET", keys.reports(bucket)), pairs(entries))
            yield ("SADD", keys.report_buckets, bucket)
        for unique, members in changes.uniques.items():
            yield from _chunked(("SADD", keys.unique(unique)), list(members))
        for account, state in changes.accounts.items():
            yield ("SET", keys.account(account), state.model_dump_json())
            if state.pending is None:
                yield ("ZREM", keys.restating, account)
            else:
                yield ("ZADD", keys.restating, int(state.pending.until_ms is None), account)
        if changes.duplicates:
            rows = ((each.position, msgspec.json.encode(each)) for each in changes.duplicates)
            yield from _chunked(("HSET", keys.duplicates), pairs(rows))
        yield from _deferred_writes(keys, changes)
        yield from _removals(keys, changes.retired)
        if changes.expired_marks:
            yield from _chunked(("UNLINK",), [keys.mark(mark) for mark in changes.expired_marks])

    def built(self, generation: int) -> RedisRollupStore:
        """The store of a generation, with connections of its own."""
        return RedisRollupStore(self._url, self.namespace, threads_max=4, generation=generation, claim=self.claim)

    async def close(self) -> None:
        """Release connections and threads."""
        self._executor.shutdown(wait=True)
        for connection in self._connections.values():
            connection.reset()
        self._connections.clear()
        self.server.close()


def _due_writes(keys: Keys, changes: Changes) -> Iterator[Command]:
    """The index of all totals by when they are due."""
    due = ((at, total_member(key)) for key, at in changes.due.items())
    yield from _chunked(("ZADD", keys.total_index), pairs(due))
    at_once = ((0, total_member(key)) for key in changes.totals if key not in changes.due)
    yield from _chunked(("ZADD", keys.total_index, "NX"), pairs(at_once))


def _removals(keys: Keys, totals: Mapping[TotalKey, Sequence[str]]) -> Iterator[Command]:
    """Totals, of the meters named, with all that belongs to them."""
    rankings: dict[RankingKey, list[str]] = {}
    names = []
    for key, meters in totals.items():
        names.append(keys.total(key))
        for meter in meters:
            names.append(keys.unique(UniqueKey(key.account, meter, key.period_start_ms)))
            rankings.setdefault(RankingKey(meter, key.period_start_ms), []).append(key.account)
    yield from _chunked(("UNLINK",), names)
    yield from _chunked(("ZREM", keys.total_index), [total_member(key) for key in totals])
    for ranking, accounts in rankings.items():
        yield from _chunked(("ZREM", keys.ranking(ranking)), accounts)


def _deferred_writes(keys: Keys, changes: Changes) -> Iterator[Command]:
    if changes.deferred:
        rows = ((deferred_member(each.position), msgspec.json.encode(each)) for each in changes.deferred)
        yield from _chunked(("HSET", keys.deferred), pairs(rows))
    if changes.judged:
        yield from _chunked(("HDEL", keys.deferred), [deferred_member(each.position) for each in changes.judged])
    for index, added in _by_index(keys, changes.deferred).items():
        scores = ((each.stream_time_ms, deferred_member(each.position)) for each in added)
        yield from _chunked(("ZADD", index), pairs(scores))
    for index, gone in _by_index(keys, changes.judged).items():
        yield from _chunked(("ZREM", index), [deferred_member(each.position) for each in gone])


def _by_index(keys: Keys, deferred: Iterable[Deferred]) -> dict[str, list[Deferred]]:
    """Deferred events by the sorted sets they stand in: the partition's and their account's."""
    grouped: dict[str, list[Deferred]] = {}
    for each in deferred:
        grouped.setdefault(keys.deferred_order, []).append(each)
        grouped.setdefault(keys.deferred_of(each.account), []).append(each)
    return grouped


def _by_bucket(keys: Iterable[BucketField]) -> dict[int, list[str]]:
    grouped: dict[int, list[str]] = {}
    for bucket, field in keys:
        grouped.setdefault(bucket, []).append(field)
    return grouped


def _texts(grouped: dict[int, list[str]], answers: Iterator[Any]) -> dict[BucketField, str]:
    return {
        BucketField(bucket, field): text
        for bucket, fields in grouped.items()
        for field, text in zip(fields, next(answers), strict=True)
        if text is not None
    }


def _chunked(head: Command, arguments: list[Any]) -> Iterator[Command]:
    for start in range(0, len(arguments), ARGUMENTS_MAX):
        yield (*head, *arguments[start : start + ARGUMENTS_MAX])


async def wait_until_answering(url: str, attempts_max: int = 100) -> None:
    """Return once the server answers; raises `Transient` after `attempts_max` tries of 50 ms."""
    server = Server(url)
    try:
        for attempt in range(attempts_max):
            try:
                await asyncio.to_thread(server.run, [("PING",)])
                break
            except Transient:
                if attempt + 1 == attempts_max:
                    raise
                await asyncio.sleep(0.05)
    finally:
        server.close()
