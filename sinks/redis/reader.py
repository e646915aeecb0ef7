"""What readers and relays do with the rollup's state: none of it moves the checkpoint."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

import msgspec

from schemas.clock import HOUR_MS
from schemas.errors import Transient
from schemas.periods import AccountState
from schemas.rollup import BucketField, Checkpoint, Deferred, DirtyCell, Duplicate, Lost, RankingKey, TotalKey, Waiting
from sinks.redis.checkpoints import decode_checkpoint
from sinks.redis.client import Command, Server, as_mapping, checked
from sinks.redis.keys import Keys, parse_total_member

T = TypeVar("T")

decode_deferred: Final = msgspec.json.Decoder(Deferred).decode

# Deletes only what is still the version that was relayed. Safe half-way: what is left is relayed again.
_DELETE_IF_UNCHANGED: Final = """
for i = 1, #ARGV, 2 do
  if redis.call('HGET', KEYS[1], ARGV[i]) == ARGV[i + 1] then redis.call('HDEL', KEYS[1], ARGV[i]) end
end
"""
# Looks and acts at once: between two calls a replica may take over on which the bucket is open again.
_DROP_IF_CLOSED: Final = """
if tonumber(redis.call('HGET', KEYS[1], 'stream_time_ms') or '0') >= tonumber(ARGV[1])
    and redis.call('EXISTS', KEYS[2]) == 0 then
  redis.call('SREM', KEYS[4], ARGV[2])
  redis.call('UNLINK', KEYS[3])
end
"""
_FORGET_IF_EMPTY: Final = """
if redis.call('EXISTS', KEYS[1]) == 0 then redis.call('SREM', KEYS[2], ARGV[1]) end
"""
_CALL_FIELDS_MAX: Final = 500
_SWAPS_MAX: Final = 5
_LOOKS_MAX: Final = 20
_LOST_DUPLICATES: Final = "duplicates"


class RedisOutbox:
    """The readers' half of `RollupStore`."""

    def __init__(
        self, server: Server, namespace: str, executor: ThreadPoolExecutor, generation: int | None = None
    ) -> None:
        self.server = server
        self.namespace = namespace
        self._executor = executor
        self._pinned = generation
        self._live: dict[int, int] = {}

    def keys(self, partition: int) -> Keys:
        """The key names of a partition, in the generation that was live when last looked at."""
        generation = self._live.get(partition, 0) if self._pinned is None else self._pinned
        return Keys(self.namespace, partition, generation)

    def _is_current(self, partition: int, keys: Keys, live: str | None) -> bool:
        """Whether these keys are of the live generation, as just read; remembers it."""
        self._live[partition] = int(live or 0)
        return self._pinned is not None or keys.generation == self._live[partition]

    async def _read_live(
        self, partition: int, commands: Callable[[Keys], list[Command]], *, at_once: bool = False
    ) -> tuple[Keys, list[Any]]:
        """Read from the live generation; again where a rebuild was swapped in meanwhile.

        The generation is read last: what was read before it was read while its keys were whole.
        """
        for _ in range(_SWAPS_MAX):
            keys = self.keys(partition)
            wanted = [*commands(keys), ("GET", keys.live)]
            *answers, live = await (self._transaction(wanted) if at_once else self._commands(wanted))
            if self._is_current(partition, keys, live):
                return keys, answers
        raise Transient(f"partition {partition}: the live generation changed at every look; try again")

    async def _run(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *arguments)

    async def _commands(self, commands: list[Command]) -> list[Any]:
        return await self._run(self.server.run, commands)

    async def _transaction(self, commands: list[Command]) -> list[Any]:
        answers = await self._commands([("MULTI",), *commands, ("EXEC",)])
        return checked(answers[-1], self.server.where)

    async def dirty(self, partition: int, cells_max: int) -> tuple[Checkpoint | None, list[DirtyCell]]:
        for _ in range(_LOOKS_MAX):
            checkpoint, cells, more = await self._listed(partition, cells_max)
            if len(cells) >= cells_max or not more:
                return checkpoint, cells
        raise Transient(f"partition {partition}: another process relays it at the same time; try again")

    async def _listed(self, partition: int, cells_max: int) -> tuple[Checkpoint | None, list[DirtyCell], bool]:
        """Up to so many dirty cells, and whether there may be more: beyond the limit, or in another generation."""
        # The checkpoint comes first: what is committed after it need not be among the cells.
        keys, (checkpoint_answer, buckets) = await self._read_live(
            partition, lambda keys: [("HGETALL", keys.checkpoint), ("SMEMBERS", keys.cell_buckets)], at_once=True
        )
        wanted: list[tuple[int, list[str]]] = []
        left = cells_max
        for bucket in sorted(map(int, buckets)):
            if left <= 0:
                break
            (answer,) = await self._commands([("HRANDFIELD", keys.dirty(bucket), left)])
            if answer:
                wanted.append((bucket, answer))
                left -= len(answer)
        commands: list[Command] = [("EXISTS", keys.checkpoint)]
        for bucket, fields in wanted:
            commands.append(("HMGET", keys.dirty(bucket), *fields))
            commands.append(("HMGET", keys.cells(bucket), *fields))
        answers = iter(await self._transaction(commands))
        # Without its checkpoint the generation was swapped out, and its keys may be gone.
        still = next(answers)
        swapped = bool(checkpoint_answer) and not still
        checkpoint_fields = as_mapping(checkpoint_answer)
        cells = []
        for bucket, fields in wanted:
            for field, version, text in zip(fields, next(answers), next(answers), strict=True):
                if version is not None and text is not None:
                    cells.append(DirtyCell(BucketField(bucket, field), text, int(version)))
        return (decode_checkpoint(checkpoint_fields) if checkpoint_fields else None), cells, swapped or left <= 0

    async def confirm_dirty(self, partition: int, relayed: Sequence[DirtyCell]) -> None:
        keys = self.keys(partition)
        grouped: dict[int, list[DirtyCell]] = {}
        for cell in relayed:
            grouped.setdefault(cell.key.bucket_ms, []).append(cell)
        commands: list[Command] = []
        for bucket, cells in grouped.items():
            commands += _deletions(keys.dirty(bucket), [(cell.key.field, cell.version) for cell in cells])
        if commands:
            await self._commands(commands)

    async def drop_closed_buckets(self, partition: int) -> None:
        keys, (stream_time, buckets) = await self._read_live(
            partition, lambda keys: [("HGET", keys.checkpoint, "stream_time_ms"), ("SMEMBERS", keys.cell_buckets)]
        )
        closed = [bucket for bucket in map(int, buckets) if stream_time and bucket + HOUR_MS <= int(stream_time)]
        drops: list[Command] = [
            (
                "EVAL", _DROP_IF_CLOSED, 4, keys.checkpoint, keys.dirty(bucket), keys.cells(bucket), keys.cell_buckets,
                bucket + HOUR_MS, bucket,
            )
            for bucket in closed
        ]  # fmt: skip
        if drops:
            await self._commands(drops)

    async def shed(self, partition: int, entries_max: int) -> int:
        keys, (stream_time, names, duplicates) = await self._read_live(
            partition,
            lambda keys: [
                ("HGET", keys.checkpoint, "stream_time_ms"),
                ("SMEMBERS", keys.cell_buckets),
                ("HLEN", keys.duplicates),
            ],
        )
        dropped = 0
        if duplicates > entries_max:
            note = ("HINCRBY", keys.lost, _LOST_DUPLICATES, duplicates)
            await self._transaction([("UNLINK", keys.duplicates), note])
            dropped += duplicates
        buckets = sorted(map(int, names))
        counts = await self._commands([("HLEN", keys.dirty(bucket)) for bucket in buckets])
        waiting = sum(counts)
        for bucket, count in zip(buckets, counts, strict=True):
            if waiting <= entries_max or not stream_time or bucket + HOUR_MS > int(stream_time):
                break
            if count:
                drop: list[Command] = [("UNLINK", keys.dirty(bucket), keys.cells(bucket))]
                drop += [("SREM", keys.cell_buckets, bucket), ("HSET", keys.lost, bucket, count)]
                await self._transaction(drop)
                waiting, dropped = waiting - count, dropped + count
        return dropped

    async def lost(self, partition: int) -> Lost:
        _, (answer,) = await self._read_live(partition, lambda keys: [("HGETALL", keys.lost)])
        counts = {name: int(count) for name, count in as_mapping(answer).items()}
        duplicates = counts.pop(_LOST_DUPLICATES, 0)
        return Lost({int(bucket): counts[bucket] for bucket in sorted(counts, key=int)}, duplicates)

    async def refilled(self, partition: int, lost: Lost) -> None:
        key = self.keys(partition).lost
        commands: list[Command] = [("HDEL", key, *lost.cells)] if lost.cells else []
        if lost.duplicates:
            commands.append(("HINCRBY", key, _LOST_DUPLICATES, -lost.duplicates))
        if commands:
            await self._transaction(commands)

    async def duplicates(self, partition: int, count_max: int) -> list[Duplicate]:
        keys, (fields,) = await self._read_live(partition, lambda keys: [("HRANDFIELD", keys.duplicates, count_max)])
        if not fields:
            return []
        (rows,) = await self._commands([("HMGET", keys.duplicates, *fields)])
        return sorted(Duplicate(*msgspec.json.decode(row)) for row in rows if row is not None)

    async def confirm_duplicates(self, partition: int, positions: Sequence[int]) -> None:
        if positions:
            await self._commands([("HDEL", self.keys(partition).duplicates, *positions)])

    async def reports(self, partition: int, bucket_ms: int, count_max: int) -> tuple[Checkpoint | None, dict[str, str]]:
        keys, (fields,) = await self._read_live(
            partition, lambda keys: [("HRANDFIELD", keys.reports(bucket_ms), count_max)]
        )
        commands: list[Command] = [("HGETALL", keys.checkpoint)]
        if fields:
            commands.append(("HMGET", keys.reports(bucket_ms), *fields))
        checkpoint, *texts = await self._transaction(commands)
        stored = as_mapping(checkpoint)
        found = zip(fields, texts[0], strict=True) if fields else ()
        return (
            decode_checkpoint(stored) if stored else None,
            {field: text for field, text in found if text is not None},
        )

    async def report_buckets(self, partition: int) -> tuple[Checkpoint | None, list[int]]:
        _, (checkpoint, buckets) = await self._read_live(
            partition, lambda keys: [("HGETALL", keys.checkpoint), ("SMEMBERS", keys.report_buckets)], at_once=True
        )
        fields = as_mapping(checkpoint)
        return (decode_checkpoint(fields) if fields else None), sorted(map(int, buckets))

    async def confirm_reports(self, partition: int, bucket_ms: int, published: Mapping[str, str]) -> None:
        keys = self.keys(partition)
        commands = _deletions(keys.reports(bucket_ms), list(published.items()))
        commands.append(("EVAL", _FORGET_IF_EMPTY, 2, keys.reports(bucket_ms), keys.report_buckets, bucket_ms))
        await self._commands(commands)

    async def deferred(
        self, partition: int, count_max: int, but: Collection[int] = ()
    ) -> tuple[Checkpoint | None, list[Deferred]]:
        last = len(but) + count_max - 1
        keys, (checkpoint, names) = await self._read_live(
            partition,
            lambda keys: [("HGETALL", keys.checkpoint), ("ZRANGE", keys.deferred_order, 0, last)],
            at_once=True,
        )
        fields = as_mapping(checkpoint)
        wanted = [name for name in names if int(name) not in but][:count_max]
        texts = (await self._commands([("HMGET", keys.deferred, *wanted)]))[0] if wanted else []
        return (decode_checkpoint(fields) if fields else None), [
            decode_deferred(text) for text in texts if text is not None
        ]

    async def waiting(self, partition: int, account: str | None = None) -> tuple[Checkpoint | None, Waiting]:
        def commands(keys: Keys) -> list[Command]:
            index = keys.deferred_order if account is None else keys.deferred_of(account)
            return [("HGETALL", keys.checkpoint), ("ZCARD", index), ("ZRANGE", index, 0, 0, "WITHSCORES")]

        _, (checkpoint, count, oldest) = await self._read_live(partition, commands, at_once=True)
        fields = as_mapping(checkpoint)
        waiting = Waiting(int(count), int(float(oldest[1])) if oldest else None)
        return (decode_checkpoint(fields) if fields else None), waiting

    async def restating(self, partition: int, count_max: int) -> tuple[Checkpoint | None, dict[str, AccountState]]:
        def named(keys: Keys) -> list[Command]:
            return [("ZRANGE", keys.restating, 0, count_max - 1)]

        for _ in range(_LOOKS_MAX):
            _, (accounts,) = await self._read_live(partition, named)
            checkpoint, waiting = await self._restating_of(partition, accounts)
            # Where all of these were answered between the two reads, others may wait still.
            if waiting or not accounts:
                return checkpoint, waiting
        raise Transient(f"partition {partition}: other accounts waited for a restatement at every look; try again")

    async def restating_among(self, partition: int, accounts: Sequence[str]) -> dict[str, AccountState]:
        if not accounts:
            return {}
        _, (waits,) = await self._read_live(partition, lambda keys: [("ZMSCORE", keys.restating, *accounts)])
        named = [account for account, score in zip(accounts, waits, strict=True) if score is not None]
        return (await self._restating_of(partition, named))[1] if named else {}

    async def _restating_of(
        self, partition: int, accounts: Sequence[str]
    ) -> tuple[Checkpoint | None, dict[str, AccountState]]:
        """The checkpoint and the states of those of the accounts that wait for a restatement, in one transaction."""
        checkpoint, states = await self.accounts(partition, accounts)
        return checkpoint, {account: state for account, state in states.items() if state.pending is not None}

    async def accounts(
        self, partition: int, accounts: Sequence[str]
    ) -> tuple[Checkpoint | None, dict[str, AccountState]]:
        def commands(keys: Keys) -> list[Command]:
            return [("HGETALL", keys.checkpoint), *(("GET", keys.account(account)) for account in accounts)]

        _, (checkpoint, *texts) = await self._read_live(partition, commands, at_once=True)
        fields = as_mapping(checkpoint)
        states = {account: _state(text) for account, text in zip(accounts, texts, strict=True)}
        return (decode_checkpoint(fields) if fields else None), states

    async def account(self, partition: int, account: str) -> AccountState:
        _, (text,) = await self._read_live(partition, lambda keys: [("GET", keys.account(account))])
        return _state(text)

    async def account_totals(
        self, partition: int, keys: Sequence[TotalKey]
    ) -> tuple[Checkpoint | None, dict[TotalKey, dict[str, str]]]:
        def commands(names: Keys) -> list[Command]:
            return [("HGETALL", names.checkpoint), *(("HGETALL", names.total(key)) for key in keys)]

        _, (checkpoint, *totals) = await self._read_live(partition, commands, at_once=True)
        fields = as_mapping(checkpoint)
        found = {key: as_mapping(total) for key, total in zip(keys, totals, strict=True)}
        return (decode_checkpoint(fields) if fields else None), found

    async def total_keys(self, partition: int, cursor: int, count: int) -> tuple[int, list[TotalKey]]:
        _, (answer,) = await self._read_live(
            partition, lambda keys: [("ZSCAN", keys.total_index, cursor, "COUNT", count)]
        )
        return int(answer[0]), [parse_total_member(member) for member in answer[1][::2]]

    async def ranking(self, partition: int, key: RankingKey, count: int) -> list[tuple[str, int]]:
        _, (flat,) = await self._read_live(
            partition, lambda keys: [("ZRANGE", keys.ranking(key), 0, count - 1, "REV", "WITHSCORES")]
        )
        return [(account, int(float(score))) for account, score in zip(flat[::2], flat[1::2], strict=True)]


def _deletions(key: str, held: Sequence[tuple[str, str | int]]) -> list[Command]:
    """Calls that delete the fields of a hash whose values are still these."""
    return [
        ("EVAL", _DELETE_IF_UNCHANGED, 1, key, *(part for entry in held[at : at + _CALL_FIELDS_MAX] for part in entry))
        for at in range(0, len(held), _CALL_FIELDS_MAX)
    ]


def _state(text: str | None) -> AccountState:
    return AccountState.model_validate_json(text) if text else AccountState()
