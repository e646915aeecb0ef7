"""A store as a rebuild command uses it: nothing is written once another command has claimed.

The look comes before each write, not with it, so one write of the earlier command may still be under way when the
later one goes on. It does no harm: what it writes was read before that look, so the later command finds it still to
be written (dirty in Redis, or beyond the stored position), and writes the same rows itself before its next exchange.
"""

from __future__ import annotations

from collections.abc import Awaitable, Collection, Mapping, Sequence
from typing import TypeVar

from schemas.analytics import (
    ArchivePosition,
    ControlRow,
    DedupDecisionRow,
    DuplicateRow,
    EventRow,
    HourlyRow,
    RelayPosition,
)
from schemas.errors import OperatorNeeded
from schemas.rebuild import AnalyticalStore, RebuildClaim

Value = TypeVar("Value")


async def answered(call: Awaitable[Value], claim: RebuildClaim) -> Value:
    """The call's answer. Where the table that it names is unknown because a later command has renamed it, `Fenced`."""
    try:
        return await call
    except OperatorNeeded:
        await claim.check()
        raise


class ClaimedStore(AnalyticalStore):
    """As the store. Raises `Fenced` where another command has claimed."""

    def __init__(self, store: AnalyticalStore, claim: RebuildClaim) -> None:
        self._store = store
        self._claim = claim

    async def migrate(self) -> None:
        await self._store.migrate()

    async def insert_events(self, rows: Sequence[EventRow]) -> None:
        await self._claim.check()
        await answered(self._store.insert_events(rows), self._claim)

    async def insert_dedup_decisions(self, rows: Sequence[DedupDecisionRow]) -> None:
        await self._claim.check()
        await answered(self._store.insert_dedup_decisions(rows), self._claim)

    async def insert_controls(self, rows: Sequence[ControlRow]) -> None:
        await self._claim.check()
        await answered(self._store.insert_controls(rows), self._claim)

    async def save_position(self, position: ArchivePosition) -> None:
        await self._claim.check()
        await answered(self._store.save_position(position), self._claim)

    async def insert_hourly(self, rows: Sequence[HourlyRow]) -> None:
        await self._claim.check()
        await answered(self._store.insert_hourly(rows), self._claim)

    async def insert_duplicates(self, rows: Sequence[DuplicateRow]) -> None:
        await self._claim.check()
        await answered(self._store.insert_duplicates(rows), self._claim)

    async def save_relayed(self, position: RelayPosition) -> None:
        await self._claim.check()
        await answered(self._store.save_relayed(position), self._claim)

    async def first_positions(self, identities: Sequence[tuple[str, str]]) -> Mapping[tuple[str, str], int]:
        return await answered(self._store.first_positions(identities), self._claim)

    async def events_rebuilt(self) -> int | None:
        return await answered(self._store.events_rebuilt(), self._claim)

    async def load_position(self, partition: int) -> ArchivePosition | None:
        return await answered(self._store.load_position(partition), self._claim)

    async def load_controls(
        self, partition: int, before_position: int, accounts: Collection[str] | None = None
    ) -> Sequence[ControlRow]:
        return await answered(self._store.load_controls(partition, before_position, accounts), self._claim)

    async def load_relayed(self) -> Mapping[int, RelayPosition]:
        return await answered(self._store.load_relayed(), self._claim)

    async def latest_generation(self) -> int:
        return await answered(self._store.latest_generation(), self._claim)

    async def generation_since(self, partition: int, bucket_ms: int) -> int:
        return await answered(self._store.generation_since(partition, bucket_ms), self._claim)

    async def close(self) -> None:
        await self._store.close()
