"""A store as a rebuild command uses it: the command writes nothing after another command has claimed.

The claim is checked before each write, not in the same step. So one write of an earlier command may still be running
when a later command goes on. This is harmless: the rows of that write are still dirty in Redis or behind the stored
position when the later command reads them, and it writes the same rows itself before its next exchange.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, Final, TypeVar, cast

from schemas.errors import OperatorNeeded
from schemas.rebuild import AnalyticalStore, RebuildClaim

Value = TypeVar("Value")

_READS: Final = ("first_positions", "events_rebuilt", "latest_generation", "generation_since", "load_")


async def answered(call: Awaitable[Value], claim: RebuildClaim) -> Value:
    """The call's answer. Raises `Fenced` if the table is unknown because a later command has renamed it."""
    try:
        return await call
    except OperatorNeeded:
        await claim.check()
        raise


class ClaimedStore:
    """Passes every call to the store. Errors as the store.

    Writes also raise `Fenced` after another command has claimed. Reads raise `Fenced` only if that command has renamed
    their table. `migrate` and `close` are not checked.
    """

    def __init__(self, store: AnalyticalStore, claim: RebuildClaim) -> None:
        self._store = store
        self._claim = claim

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        if name in ("migrate", "close"):
            return method

        async def call(*arguments: Any, **named: Any) -> Any:
            if not name.startswith(_READS):
                await self._claim.check()
            return await answered(method(*arguments, **named), self._claim)

        return call


def claimed_store(store: AnalyticalStore, claim: RebuildClaim) -> AnalyticalStore:
    """The store for the command that has this claim."""
    return cast("AnalyticalStore", ClaimedStore(store, claim))
