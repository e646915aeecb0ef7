"""A store as a rebuild command uses it: nothing is written once another command has claimed.

The look comes before each write, not with it, so one write of the earlier command may still be under way when the
later one goes on. It does no harm: what it writes was read before that look, so the later command finds it still to
be written (dirty in Redis, or beyond the stored position), and writes the same rows itself before its next exchange.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from typing import TypeVar

from schemas.analytics import (
    ArchivePosition,
    ControlRow,
    DrainPosition,
    DuplicateRow,
    EventRow,
    HourlyRow,
    VerdictRow,
)
from schemas.errors import OperatorNeeded
from schemas.rebuild import AnalyticalStore, RebuildClaim

Value = TypeVar("Value")


class ClaimedStore(AnalyticalStore):
    """As the store. Raises `Fenced` where another command has claimed."""

    def __init__(self, store: AnalyticalStore, claim: RebuildClaim) -> None:
        self._store = store
        self._claim = claim

    async def _read(self, call: Awaitable[Value]) -> Value:
        try:
            return await call
        except OperatorNeeded:
            # A later command has taken the tables beside over: the name that this one knows is unknown.
            await self._claim.check()
            raise

    async def migrate(self) -> None:
        await self._store.migrate()

    async def insert_events(self, rows: Sequence[EventRow]) -> None:
        await self._claim.check()
        await self._read(self._store.insert_events(rows))

    async def insert_verdicts(self, rows: Sequence[VerdictRow]) -> None:
        await self._claim.check()
        await self._read(self._store.insert_verdicts(rows))

    async def insert_controls(self, rows: Sequence[ControlRow]) -> None:
        await self._claim.check()
        await self._read(self._store.insert_controls(rows))

    async def save_position(self, position: ArchivePosition) -> None:
        await self._claim.check()
        await self._read(self._store.save_position(position))

    async def insert_hourly(self, rows: Sequence[HourlyRow]) -> None:
        await self._claim.check()
        await self._read(self._store.insert_hourly(rows))

    async def insert_duplicates(self, rows: Sequence[DuplicateRow]) -> None:
        await self._claim.check()
        await self._read(self._store.insert_duplicates(rows))

    async def save_drained(self, position: DrainPosition) -> None:
        await self._claim.check()
        await self._read(self._store.save_drained(position))

    async def first_positions(self, identities: Sequence[tuple[str, str]]) -> Mapping[tuple[str, str], int]:
        return await self._read(self._store.first_positions(identities))

    async def events_rebuilt(self) -> int | None:
        return await self._read(self._store.events_rebuilt())

    async def load_position(self, partition: int) -> ArchivePosition | None:
        return await self._read(self._store.load_position(partition))

    async def load_controls(self, partition: int, before_position: int) -> Sequence[ControlRow]:
        return await self._read(self._store.load_controls(partition, before_position))

    async def load_drained(self) -> Mapping[int, DrainPosition]:
        return await self._read(self._store.load_drained())

    async def latest_generation(self) -> int:
        return await self._read(self._store.latest_generation())

    async def generation_since(self, partition: int, bucket_ms: int) -> int:
        return await self._read(self._store.generation_since(partition, bucket_ms))

    async def close(self) -> None:
        await self._store.close()
