"""The rollup's state in Redis: read at the checkpoint, commit with the checkpoint (I2).

A commit takes two round trips. `read` sends WATCH on the checkpoint and all reads; `commit` sends MULTI with absolute
values and EXEC. EXEC writes nothing if the checkpoint changed in between. After a crash before EXEC reached the server,
nothing is written. After a later crash everything is, and the restarted process reads the new checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from aggregators.checkpoint_codec import token
from schemas.errors import Fenced, OperatorNeeded
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
from sinks.redis.checkpoints import write_checkpoint
from sinks.redis.client import Command, Connection, as_mapping, checked, chunked, pairs, with_members
from sinks.redis.keys import Keys, deferred_member, parse_total_member, total_member
from sinks.redis.keyspace import Keyspace, Read, Store
from sinks.redis.lookups import account_state, decode_deferred


class RedisState(Store):
    """Reads and commits for the fold (`schemas.live_view.CheckpointedState`)."""

    def __init__(self, space: Keyspace) -> None:
        super().__init__(space)
        self._connections: dict[int, Connection] = {}
        self._watched: dict[int, str] = {}

    async def load_checkpoint(self, partition: int) -> Checkpoint | None:
        _, checkpoint, _ = await self._space.read_at_checkpoint(partition)
        return checkpoint

    async def create_checkpoint(self, partition: int, checkpoint: Checkpoint) -> None:
        keys = self._space.keys(partition)

        def decide(read: Read) -> list[Command]:
            exists, live = read([("EXISTS", keys.checkpoint), ("GET", keys.live)])
            if exists or not self._space.is_current(partition, keys, live):
                raise Fenced(f"partition {partition} has a checkpoint already")
            return [write_checkpoint(keys.checkpoint, checkpoint)]

        if await self._space.write_watching([keys.checkpoint, keys.live], decide) is None:
            raise Fenced(f"another process created the checkpoint of partition {partition}")

    async def read(self, partition: int, believed: Checkpoint, request: ReadRequest) -> View:
        return await self._space.run(self._read, partition, believed, request)

    def _connection(self, partition: int) -> Connection:
        return self._connections.setdefault(partition, self._space.server.connection())

    def _watch(self, partition: int, believed: Checkpoint, commands: list[Command]) -> list[Any]:
        """Run reads in the same round trip as WATCH, and check that the stored checkpoint is `believed`."""
        keys = self._space.keys(partition)
        # UNWATCH first: a WATCH that an abandoned flush left would make EXEC fail without need.
        claimed = [self._space.claim.key] if self._space.claim else []
        head: list[Command] = [("UNWATCH",), ("WATCH", keys.checkpoint, keys.live, *claimed), ("GET", keys.live)]
        head += [("HGET", keys.checkpoint, "token"), *self._space.claim_reads()]
        self._watched.pop(partition, None)
        answers = checked(self._connection(partition).run(head + commands), self._space.server.where)
        if self._space.claim is not None:
            self._space.claim.check(answers[4])
        if not self._space.is_current(partition, keys, answers[2]):
            raise Fenced(
                f"partition {partition}: a rebuilt view was swapped in. Restart this process at its checkpoint."
            )
        if answers[3] is None:
            where = self._space.server.where
            raise OperatorNeeded(
                f"the checkpoint of partition {partition} is gone from {where}: the store was emptied or "
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
        keys = self._space.keys(partition)
        commands: list[Command] = []
        commands += [
            with_members("SMISMEMBER", keys.mark(key), members=members) for key, members in request.marks.items()
        ]
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
        if request.levels_max:
            commands.append(("ZRANGE", keys.levels, 0, request.levels_max - 1, "WITHSCORES"))
        answers = iter(self._watch(partition, believed, commands))

        marks: set[int] = set()
        for members in request.marks.values():
            present = next(answers)
            if 1 in present:
                marks.update(member for member, is_present in zip(members, present, strict=True) if is_present)
        totals = {key: as_mapping(next(answers)) for key in request.totals}
        cell_texts = _texts(cells, answers)
        report_texts = _texts(reports, answers)
        uniques = {
            key: frozenset(member for member, is_present in zip(members, next(answers), strict=True) if is_present)
            for key, members in request.uniques.items()
        }
        states = map(account_state, next(answers)) if request.accounts else ()
        accounts = dict(zip(request.accounts, states, strict=True))
        events = (decode_deferred(text) for text in next(answers) if text) if request.deferred else ()
        deferred = {event.position: event for event in events}
        due = _due_totals(next(answers)) if request.due_max else ()
        levels = _due_totals(next(answers)) if request.levels_max else ()
        return View(frozenset(marks), totals, cell_texts, report_texts, uniques, accounts, deferred, due, levels)

    async def commit(self, partition: int, believed: Checkpoint, changes: Changes) -> None:
        await self._space.run(self._commit, partition, believed, changes)

    def _commit(self, partition: int, believed: Checkpoint, changes: Changes) -> None:
        if self._watched.get(partition) != token(believed):
            self._watch(partition, believed, [])
        self._watched.pop(partition, None)
        writes = _writes(self._space.keys(partition), believed, changes)
        commands: list[Command] = [("MULTI",), *writes, ("EXEC",)]
        answer = checked(self._connection(partition).run(commands), self._space.server.where)[-1]
        if answer is None:
            raise Fenced(f"partition {partition}: the checkpoint moved during the flush; another process committed")
        checked(answer, self._space.server.where)

    def close(self) -> None:
        """Release connections."""
        for connection in self._connections.values():
            connection.reset()
        self._connections.clear()


def _writes(keys: Keys, believed: Checkpoint, changes: Changes) -> Iterator[Command]:
    yield write_checkpoint(keys.checkpoint, changes.checkpoint, believed)
    yield from _removals(keys, changes.replaced)
    for mark, members in changes.marks.items():
        yield with_members("SADD", keys.mark(mark), members=members)
    for total, fields in changes.totals.items():
        yield ("HSET", keys.total(total), *pairs(fields.items()))
    yield from _due_writes(keys, changes)
    for ranking, scores in changes.rankings.items():
        yield from chunked(("ZADD", keys.ranking(ranking)), pairs((v, k) for k, v in scores.items()))
    for bucket, cells in _pairs_by_bucket(changes.cells).items():
        yield from chunked(("HSET", keys.cells(bucket)), cells)
        yield ("SADD", keys.cell_buckets, bucket)
    for bucket, versions in _pairs_by_bucket(changes.dirty).items():
        yield from chunked(("HSET", keys.dirty(bucket)), versions)
    for bucket, entries in _pairs_by_bucket(changes.reports).items():
        yield from chunked(("HSET", keys.reports(bucket)), entries)
        yield ("SADD", keys.report_buckets, bucket)
    for unique, members in changes.uniques.items():
        yield from chunked(("SADD", keys.unique(unique)), list(members))
    for account, state in changes.accounts.items():
        yield ("SET", keys.account(account), state.model_dump_json())
        if state.pending is None:
            yield ("ZREM", keys.restating, account)
        else:
            yield ("ZADD", keys.restating, int(state.pending.until_ms is None), account)
    if changes.duplicates:
        rows = ((duplicate.position, msgspec.json.encode(duplicate)) for duplicate in changes.duplicates)
        yield from chunked(("HSET", keys.duplicates), pairs(rows))
    yield from _deferred_writes(keys, changes)
    yield from _removals(keys, changes.retired)
    if changes.expired_marks:
        yield from chunked(("UNLINK",), [keys.mark(mark) for mark in changes.expired_marks])


def _due_writes(keys: Keys, changes: Changes) -> Iterator[Command]:
    """Writes to the indexes of totals, which are sorted by the stream time at which a total is due."""
    due = ((due_ms, total_member(key)) for key, due_ms in changes.due.items())
    yield from chunked(("ZADD", keys.total_index), pairs(due))
    at_once = ((0, total_member(key)) for key in changes.totals if key not in changes.due)
    yield from chunked(("ZADD", keys.total_index, "NX"), pairs(at_once))
    standing = ((due_ms, total_member(key)) for key, due_ms in changes.levels.items() if due_ms is not None)
    yield from chunked(("ZADD", keys.levels), pairs(standing))
    carried = [total_member(key) for key, due_ms in changes.levels.items() if due_ms is None]
    yield from chunked(("ZREM", keys.levels), carried)


def _due_totals(flat: Sequence[Any]) -> list[DueTotal]:
    return [
        DueTotal(int(float(due_ms)), parse_total_member(name))
        for name, due_ms in zip(flat[::2], flat[1::2], strict=True)
    ]


def _removals(keys: Keys, totals: Mapping[TotalKey, Sequence[str]]) -> Iterator[Command]:
    """Delete these totals, with the distinct values and ranking entries of the listed meters."""
    rankings: dict[RankingKey, list[str]] = {}
    names = []
    for key, meters in totals.items():
        names.append(keys.total(key))
        for meter in meters:
            names.append(keys.unique(UniqueKey(key.account, meter, key.period_start_ms)))
            rankings.setdefault(RankingKey(meter, key.period_start_ms), []).append(key.account)
    yield from chunked(("UNLINK",), names)
    yield from chunked(("ZREM", keys.total_index), [total_member(key) for key in totals])
    for ranking, accounts in rankings.items():
        yield from chunked(("ZREM", keys.ranking(ranking)), accounts)


def _deferred_writes(keys: Keys, changes: Changes) -> Iterator[Command]:
    if changes.deferred:
        rows = ((deferred_member(event.position), msgspec.json.encode(event)) for event in changes.deferred)
        yield from chunked(("HSET", keys.deferred), pairs(rows))
    if changes.decided:
        yield from chunked(("HDEL", keys.deferred), [deferred_member(event.position) for event in changes.decided])
    for index, added in _by_index(keys, changes.deferred).items():
        scores = ((event.stream_time_ms, deferred_member(event.position)) for event in added)
        yield from chunked(("ZADD", index), pairs(scores))
    for index, gone in _by_index(keys, changes.decided).items():
        yield from chunked(("ZREM", index), [deferred_member(event.position) for event in gone])


def _by_index(keys: Keys, deferred: Iterable[Deferred]) -> dict[str, list[Deferred]]:
    """Deferred events by the sorted set that lists them. The partition and each account have a set."""
    grouped: dict[str, list[Deferred]] = {}
    for event in deferred:
        grouped.setdefault(keys.deferred_order, []).append(event)
        grouped.setdefault(keys.deferred_of(event.account), []).append(event)
    return grouped


def _by_bucket(keys: Iterable[BucketField]) -> dict[int, list[str]]:
    grouped: dict[int, list[str]] = {}
    for bucket, field in keys:
        grouped.setdefault(bucket, []).append(field)
    return grouped


def _pairs_by_bucket(values: Mapping[BucketField, str | int]) -> dict[int, list[str | int]]:
    grouped: dict[int, list[str | int]] = {}
    last, flat = None, list[str | int]()
    for (bucket, field), value in values.items():
        if bucket != last:
            last, flat = bucket, grouped.setdefault(bucket, [])
        flat.append(field)
        flat.append(value)
    return grouped


def _texts(grouped: dict[int, list[str]], answers: Iterator[Any]) -> dict[BucketField, str]:
    return {
        BucketField(bucket, field): text
        for bucket, fields in grouped.items()
        for field, text in zip(fields, next(answers), strict=True)
        if text is not None
    }
