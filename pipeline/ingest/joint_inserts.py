"""Joint inserts: the rows of several partitions go to ClickHouse in one insert.

Each insert makes a part in every partition of the table, and ClickHouse merges small parts again and again. So few
large inserts cost a fraction of many small ones. Joining is safe: a partition saves its position after the insert with
its rows is stored, and the same rows may be inserted again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Generic, TypeVar

JOINT_ROWS_MAX: Final = 200_000


# Rows, or blocks of rows.
Item = TypeVar("Item")


class _Batch(Generic[Item]):
    """What one insert has, the number of its rows, and how the insert ended."""

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.rows = 0
        self.stored = False
        self.error: Exception | None = None


class JointInserts(Generic[Item]):
    """Joins the rows that arrive while an insert runs into the next insert, up to `rows_max` rows.

    Nobody waits for others to arrive: if no insert runs, the rows are inserted at once.
    """

    def __init__(self, insert: Callable[[Sequence[Item]], Awaitable[None]], rows_max: int = JOINT_ROWS_MAX) -> None:
        self._insert = insert
        self._rows_max = rows_max
        self._open = _Batch[Item]()
        self._inserting = asyncio.Lock()

    async def insert(self, items: Sequence[Item], rows: int) -> None:
        """Return after `items`, which have `rows` rows, are stored. Raises the error of the insert for all who joined
        it; then any of the rows may be stored."""
        if self._open.rows and self._open.rows + rows > self._rows_max:
            self._open = _Batch()
        batch = self._open
        batch.items += items
        batch.rows += rows
        async with self._inserting:
            # The first to come here inserts the rows of all. If that call was cancelled, the next one repeats it.
            if batch is self._open:
                self._open = _Batch()
            if batch.error is not None:
                raise batch.error
            if not batch.stored:
                try:
                    await self._insert(batch.items)
                except Exception as error:
                    batch.error = error
                    raise
                batch.stored = True
