"""What a rebuild needs from the stores: a second copy of a view, and an atomic swap."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import NamedTuple, Protocol

from schemas.analytics import ArchiveStore, HourlyRow, HourlyStore, RecountRequest, UsageReader
from schemas.log import POSITION_BITS
from schemas.rollup import Checkpoint

# A row's version in usage_hourly is (generation, position), a UInt64.
GENERATION_MAX = (1 << 64 - POSITION_BITS) - 1
SUPERSEDED = (
    "another rebuild command was started after this one; what this one built so far stands. Once the other has ended, "
    "run this one again"
)


class RebuildClaim(NamedTuple):
    """The claim of one rebuild command. `check` raises `Fenced` if another command has claimed since."""

    token: str
    check: Callable[[], Awaitable[None]]


class RebuildLease(Protocol):
    """Which command may rebuild the deployment, and which generation of the live view is being built.

    The last command that claimed owns the rebuilds. Every change through the live view of an earlier command raises
    `Fenced`. Commits of a worker need no claim. Other errors as `schemas.live_view.LiveView`.
    """

    async def claim_rebuild(self, token: str) -> None:
        """Become the one rebuild command of the deployment, until the next claim."""
        ...

    async def check_claim(self) -> None:
        """Raise `Fenced` if another command has claimed since. Does nothing without a claim."""
        ...

    async def rebuilding(self) -> int | None:
        """The generation that is being built, or None."""
        ...

    async def begin_rebuild(self, generation: int) -> int:
        """Note durably that a generation is being built, unless there is a note. Returns the noted generation."""
        ...

    async def end_rebuild(self, generation: int) -> None:
        """Delete the note if it is of this generation. Repeatable."""
        ...


class Generations(Protocol):
    """The generations of each partition: one is live, another one may be in the making. Errors as `RebuildLease`."""

    async def is_live(self, partition: int, generation: int) -> bool:
        """Whether the partition has been swapped to this generation."""
        ...

    async def swap(self, partition: int, live: Checkpoint | None, built: Checkpoint) -> bool:
        """Make the generation of `built` live and delete the live checkpoint, in one step.

        Returns True also if that generation is live already. Returns False, and changes nothing, if a stored
        checkpoint differs from the given one. Raises `Fenced` if that generation is no longer being built, `Transient`
        if the answer was lost: then call `is_live`.
        """
        ...

    async def sweep(self, partition: int) -> int:
        """Unlink, in bounded steps, all keys except those of the live generation and the one being built. Returns the
        number of keys. Safe to repeat or cancel."""
        ...

    async def forget(self, partition: int) -> None:
        """Unlink, in bounded steps, every key of the partition in all generations. For shadow copies."""
        ...


class GenerationsSeen(HourlyStore, Protocol):
    """The store of relayed cells, from which the last generation is known even if the live view is lost."""

    async def latest_generation(self) -> int:
        """The highest generation among the stored cells' versions; 0 without cells."""
        ...


class AnalyticalStore(ArchiveStore, GenerationsSeen, Protocol):
    """All that is written to ClickHouse."""


class Building(NamedTuple):
    """A rebuild of tables that has begun: its note, the tables that are swapped, and the tables that still have a
    staging table. After the swap of a table, its staging table has the old rows."""

    note: str
    swapped: frozenset[str]
    beside: frozenset[str]

    def is_partial(self, tables: Collection[str]) -> bool:
        """Whether the rebuild was cut short while its staging tables were created or dropped: some are missing."""
        return not self.swapped and self.beside != frozenset(tables)


class TableStaging(Protocol):
    """The staging tables of the analytical store, which are filled and swapped in one by one.

    The state of a rebuild is stored with its tables. Only the command that claimed last may change tables: others get
    `Fenced`, and no table changes. Other errors as `ArchiveStore`.
    """

    async def building(self, tables: Sequence[str]) -> Building | None:
        """The rebuild of these tables that any command has begun, or None. This command takes the rebuild over. The
        rebuild lasts until its last staging table is dropped."""
        ...

    async def begin(self, tables: Sequence[str], note: str) -> Building:
        """Create empty staging tables, or continue a rebuild that has begun, with its tables and note. If some of its
        tables are missing and none is swapped, all are created again."""
        ...

    def beside(self, tables: Collection[str]) -> AnalyticalStore:
        """A store that uses the staging tables of `tables`, and the live ones of all other tables."""
        ...

    async def swap(self, table: str) -> None:
        """Exchange a table with its staging table in one step. Does nothing if that has happened already."""
        ...

    async def drop(self, tables: Sequence[str]) -> None:
        """Drop the staging tables of these tables."""
        ...

    async def account_before_last(self, partition: int, accounts: int) -> str:
        """The first of the last `accounts` accounts of a partition in the staging table of `usage_hourly`; "" if there
        are fewer."""
        ...

    async def carry_over(self, partition: int, from_position: int) -> None:
        """Copy a partition's cells with an event at or after a position from `usage_hourly` to its staging table."""
        ...


class RowRecounts(UsageReader, Protocol):
    """Recounts `usage_events` as rows of `usage_hourly`."""

    async def first_archived(self, partition: int) -> tuple[int, int] | None:
        """(position, stream time) of the partition's first event in `usage_events`; None if there is none."""
        ...

    async def archived_accounts(self, partition: int, from_account: str, count_max: int) -> Sequence[str]:
        """Up to `count_max` accounts of a partition from `from_account` (inclusive) on, sorted by their bytes."""
        ...

    async def recount_rows(self, request: RecountRequest, generation: int) -> Sequence[HourlyRow]:
        """The rows that the relay would have written in a generation, by account, with the periods' present ends.
        Errors as `recount_cells`."""
        ...

    async def recount_distinct(self, request: RecountRequest) -> Mapping[tuple[str, str, int], frozenset[str]]:
        """(account, meter, period start) of `unique` meters → their distinct values."""
        ...


class Progress(NamedTuple):
    """The progress of a rebuild with one partition: `next_offset` of `end_offset`. `swapped`: the new copy is live.
    `events` is None if events are not counted."""

    partition: int
    next_offset: int
    end_offset: int
    events: int | None
    swapped: bool
