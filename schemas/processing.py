"""What processes a topic, as the runner sees it: it holds all state and knows no Faust (S12)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from schemas.log import Record


class Processor(Protocol):
    """Turns the records of one topic into durable changes.

    For one partition the runner never overlaps two of these calls; different partitions may overlap.
    Any exception ends the process: nothing is retried in it, and the records of a failed step are not acknowledged,
    so they are read again after the restart.
    """

    @property
    def topic(self) -> str:
        """The topic whose records it processes."""
        ...

    async def start_offset(self, partition: int) -> int | None:
        """The offset to read first, asked on every assignment before anything is read.

        None means that this processor keeps no position of its own: the group's committed offset is taken, or where
        there is none, the log's first record. May raise `OperatorNeeded` or `Fenced`.
        """
        ...

    async def step(self, partition: int, records: Sequence[Record]) -> None:
        """Process `records` (at least one, in the log's order) and return after the durable commit of all of them.

        May block as long as the commit takes; the partition's queue is bounded, so fetching waits for it. After a
        crash or a rebalance some of the same records come again, with other boundaries.
        """
        ...

    async def revoked(self, partition: int) -> None:
        """The partition is lost: forget its caches. No step of it runs after this, until it is assigned again."""
        ...

    async def idle(self, partition: int) -> None:
        """Called about every `idle_interval_s` between steps, for relays and the like; never during a step."""
        ...
