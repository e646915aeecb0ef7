"""States of accounts, and which accounts wait for a restatement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from schemas.errors import Transient
from schemas.periods import AccountState
from schemas.rollup import Checkpoint
from sinks.redis.client import Command
from sinks.redis.keys import Keys
from sinks.redis.keyspace import Keyspace

_LOOKS_MAX: Final = 20


class RedisAccounts:
    """`schemas.live_view.AccountDirectory`."""

    def __init__(self, space: Keyspace) -> None:
        self._space = space

    async def account(self, partition: int, account: str) -> AccountState:
        _, (text,) = await self._space.read_live(partition, lambda keys: [("GET", keys.account(account))])
        return _state(text)

    async def accounts(
        self, partition: int, accounts: Sequence[str]
    ) -> tuple[Checkpoint | None, dict[str, AccountState]]:
        def commands(keys: Keys) -> list[Command]:
            return [("GET", keys.account(account)) for account in accounts]

        _, checkpoint, texts = await self._space.read_at_checkpoint(partition, commands)
        return checkpoint, {account: _state(text) for account, text in zip(accounts, texts, strict=True)}

    async def restating(self, partition: int, count_max: int) -> tuple[Checkpoint | None, dict[str, AccountState]]:
        def listed(keys: Keys) -> list[Command]:
            return [("ZRANGE", keys.restating, 0, count_max - 1)]

        for _ in range(_LOOKS_MAX):
            _, (accounts,) = await self._space.read_live(partition, listed)
            checkpoint, waiting = await self._restating_of(partition, accounts)
            # If all of these were answered between the two reads, others may still wait.
            if waiting or not accounts:
                return checkpoint, waiting
        raise Transient(f"partition {partition}: other accounts waited for a restatement at every look; try again")

    async def restating_among(self, partition: int, accounts: Sequence[str]) -> dict[str, AccountState]:
        if not accounts:
            return {}
        _, (waits,) = await self._space.read_live(partition, lambda keys: [("ZMSCORE", keys.restating, *accounts)])
        restating = [account for account, score in zip(accounts, waits, strict=True) if score is not None]
        return (await self._restating_of(partition, restating))[1] if restating else {}

    async def _restating_of(
        self, partition: int, accounts: Sequence[str]
    ) -> tuple[Checkpoint | None, dict[str, AccountState]]:
        """The checkpoint and the states of those of the accounts that wait for a restatement."""
        checkpoint, states = await self.accounts(partition, accounts)
        return checkpoint, {account: state for account, state in states.items() if state.pending is not None}


def _state(text: str | None) -> AccountState:
    return AccountState.model_validate_json(text) if text else AccountState()
