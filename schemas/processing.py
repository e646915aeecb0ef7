"""The protocol of the processors that the runner calls. A processor has all state and does not use Faust (S12)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from schemas.log import Record


class Processor(Protocol):
    """Turns the records of one topic into durable changes.

    Calls for one partition never overlap; calls for different partitions may. Any exception ends the process. The
    runner retries nothing, and the records of a failed step are read again after the restart.
    """

    @property
    def topic(self) -> str:
        """The topic whose records this processor takes."""
        ...

    async def start_offset(self, partition: int) -> int | None:
        """The offset to read first. Called on every assignment, before any record is read.

        None means that this processor stores no position: reading starts at the group's committed offset, or at the
        first record if there is none. May raise `OperatorNeeded` or `Fenced`.
        """
        ...

    async def step(self, partition: int, records: Sequence[Record]) -> None:
        """Process `records` (at least one, in the log's order) and return after the durable commit of all of them.

        May block as long as the commit takes: the partition's queue is bounded, so fetching waits. After a crash or a
        rebalance, some records come again, in other groups.
        """
        ...

    async def revoked(self, partition: int) -> None:
        """The partition is lost: clear its caches. `step` is not called again until the partition is assigned again."""
        ...

    async def idle(self, partition: int) -> None:
        """Background work such as relays. Called about every `idle_interval_s`, never during a step."""
        ...
