"""Reads of accounts, deferred events and totals, for those who do not commit."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

import msgspec

from aggregators.marks import lookups
from schemas.errors import Transient
from schemas.periods import AccountState
from schemas.rollup import Checkpoint, Deferred, RankingKey, TotalKey, Waiting
from sinks.redis.client import Command, as_mapping
from sinks.redis.keys import Keys, parse_total_member
from sinks.redis.keyspace import LOOKS_MAX, Store

decode_deferred: Final = msgspec.json.Decoder(Deferred).decode


class RedisMarks(Store):
    """Marks of identities that arrived before (`schemas.live_view.DedupMarks`)."""

    async def marked(self, partition: int, marks: Sequence[tuple[int, int]]) -> set[tuple[int, int]]:
        _, checkpoint, _ = await self._space.read_at_checkpoint(partition)
        wanted = lookups(checkpoint, marks) if checkpoint else {}
        if not wanted:
            return set()
        _, answers = await self._space.read_live(
            partition, lambda keys: [("SMISMEMBER", keys.mark(key), *members) for key, members in wanted.items()]
        )
        present = {
            member
            for members, answer in zip(wanted.values(), answers, strict=True)
            for member, is_present in zip(members, answer, strict=True)
            if is_present
        }
        return {(bucket_hash, member) for bucket_hash, member in marks if member in present}


class RedisAccounts(Store):
    """Bindings and closings, and accounts that wait for a restatement (`schemas.live_view.AccountDirectory`)."""

    async def account(self, partition: int, account: str) -> AccountState:
        _, (text,) = await self._space.read_live(partition, lambda keys: [("GET", keys.account(account))])
        return account_state(text)

    async def accounts(
        self, partition: int, accounts: Sequence[str]
    ) -> tuple[Checkpoint | None, dict[str, AccountState]]:
        def commands(keys: Keys) -> list[Command]:
            return [("GET", keys.account(account)) for account in accounts]

        _, checkpoint, texts = await self._space.read_at_checkpoint(partition, commands)
        return checkpoint, {account: account_state(text) for account, text in zip(accounts, texts, strict=True)}

    async def restating(self, partition: int, count_max: int) -> tuple[Checkpoint | None, dict[str, AccountState]]:
        def listed(keys: Keys) -> list[Command]:
            return [("ZRANGE", keys.restating, 0, count_max - 1)]

        for _ in range(LOOKS_MAX):
            _, (accounts,) = await self._space.read_live(partition, listed)
            checkpoint, waiting = await self._restating_of(partition, accounts)
            # If all listed accounts were restated between the two reads, other accounts may still wait.
            if waiting or not accounts:
                return checkpoint, waiting
        raise Transient(
            f"partition {partition}: the accounts that wait for a restatement changed during every read; try again"
        )

    async def restating_among(self, partition: int, accounts: Sequence[str]) -> dict[str, AccountState]:
        if not accounts:
            return {}
        _, (waits,) = await self._space.read_live(partition, lambda keys: [("ZMSCORE", keys.restating, *accounts)])
        restating = [account for account, score in zip(accounts, waits, strict=True) if score is not None]
        return (await self._restating_of(partition, restating))[1] if restating else {}

    async def _restating_of(
        self, partition: int, accounts: Sequence[str]
    ) -> tuple[Checkpoint | None, dict[str, AccountState]]:
        """The checkpoint, and the states of these accounts without those that wait for no restatement."""
        checkpoint, states = await self.accounts(partition, accounts)
        return checkpoint, {account: state for account, state in states.items() if state.pending is not None}


class RedisDeferred(Store):
    """Far-late events that wait for their dedup decision (`schemas.live_view.DeferredEvents`)."""

    async def deferred(
        self, partition: int, count_max: int, skipped: Collection[int] = ()
    ) -> tuple[Checkpoint | None, list[Deferred]]:
        last = len(skipped) + count_max - 1
        keys, checkpoint, (names,) = await self._space.read_at_checkpoint(
            partition, lambda keys: [("ZRANGE", keys.deferred_order, 0, last)]
        )
        wanted = [name for name in names if int(name) not in skipped][:count_max]
        texts = (await self._space.commands([("HMGET", keys.deferred, *wanted)]))[0] if wanted else []
        return checkpoint, [decode_deferred(text) for text in texts if text is not None]

    async def waiting(self, partition: int, account: str | None = None) -> tuple[Checkpoint | None, Waiting]:
        def commands(keys: Keys) -> list[Command]:
            index = keys.deferred_order if account is None else keys.deferred_of(account)
            return [("ZCARD", index), ("ZRANGE", index, 0, 0, "WITHSCORES")]

        _, checkpoint, (count, oldest) = await self._space.read_at_checkpoint(partition, commands)
        return checkpoint, Waiting(int(count), int(float(oldest[1])) if oldest else None)


class RedisTotals(Store):
    """Current period totals and rankings (`schemas.live_view.LiveTotals`)."""

    async def account_totals(
        self, partition: int, keys: Sequence[TotalKey]
    ) -> tuple[Checkpoint | None, dict[TotalKey, dict[str, str]]]:
        def commands(names: Keys) -> list[Command]:
            return [("HGETALL", names.total(key)) for key in keys]

        _, checkpoint, totals = await self._space.read_at_checkpoint(partition, commands)
        return checkpoint, {key: as_mapping(total) for key, total in zip(keys, totals, strict=True)}

    async def account_total(
        self, partition: int, key: TotalKey
    ) -> tuple[Checkpoint | None, AccountState, dict[str, str]]:
        def commands(names: Keys) -> list[Command]:
            return [("GET", names.account(key.account)), ("HGETALL", names.total(key))]

        _, checkpoint, (text, total) = await self._space.read_at_checkpoint(partition, commands)
        return checkpoint, account_state(text), as_mapping(total)

    async def total_keys(self, partition: int, cursor: int, count: int) -> tuple[int, list[TotalKey]]:
        _, (answer,) = await self._space.read_live(
            partition, lambda keys: [("ZSCAN", keys.total_index, cursor, "COUNT", count)]
        )
        return int(answer[0]), [parse_total_member(member) for member in answer[1][::2]]

    async def ranking(self, partition: int, key: RankingKey, count: int) -> list[tuple[str, int]]:
        _, (flat,) = await self._space.read_live(
            partition, lambda keys: [("ZRANGE", keys.ranking(key), 0, count - 1, "REV", "WITHSCORES")]
        )
        if not flat:
            return []
        # Redis sorts equal scores downwards by name. The first names of the last score may be behind the end.
        last = flat[-1]
        above = [(account, score) for account, score in zip(flat[::2], flat[1::2], strict=True) if score != last]
        _, (tied,) = await self._space.read_live(
            partition, lambda keys: [("ZRANGE", keys.ranking(key), last, last, "BYSCORE", "LIMIT", 0, count)]
        )
        scores = {**dict.fromkeys(tied, float(last)), **{account: float(score) for account, score in above}}
        ranked = sorted(scores.items(), key=lambda item: (-item[1], item[0].encode()))
        return [(account, int(score)) for account, score in ranked[:count]]


def account_state(text: str | None) -> AccountState:
    """The state of an account from its stored text; an empty state without one."""
    return AccountState.model_validate_json(text) if text else AccountState()
