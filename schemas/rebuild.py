"""What a rebuild needs of the stores: a second copy of a view beside the first, and an atomic swap."""

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
    """What one rebuild command claimed. `check` raises `Fenced` where another command has claimed since."""

    token: str
    check: Callable[[], Awaitable[None]]


class RebuildLease(Protocol):
    """Which command may rebuild the deployment, and which generation of the live view is being built.

    The last command that claimed owns the rebuilds. From then on, the live views of earlier commands raise `Fenced`
    when they change anything. Commits of a worker need no claim. Errors as `schemas.live_view.LiveView`.
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
        """Note durably that a generation is being built. Returns the generation that was noted first."""
        ...

    async def end_rebuild(self, generation: int) -> None:
        """Delete the note if it names this generation. Harmless when repeated."""
        ...


class Generations(Protocol):
    """The generations of each partition: one is live, another one may be built beside it. Errors as `RebuildLease`."""

    async def is_live(self, partition: int, generation: int) -> bool:
        """Whether the partition has been swapped to this generation."""
        ...

    async def swap(self, partition: int, live: Checkpoint | None, built: Checkpoint) -> bool:
        """Make the generation of `built` live and drop the live checkpoint, in one step.

        Returns True also if that generation is live already. Returns False, and changes nothing, if a stored
        checkpoint differs from the given one. Raises `Fenced` if that generation is no longer being built, `Transient`
        if the answer was lost: then ask `is_live`.
        """
        ...

    async def sweep(self, partition: int) -> int:
        """Unlink, in bounded steps, all keys except those of the live generation and the one being built. Returns
        how many keys. Harmless when repeated or cut short."""
        ...

    async def forget(self, partition: int) -> None:
        """Unlink, in bounded steps, every key of the partition in all generations. For shadow copies."""
        ...


class GenerationsSeen(HourlyStore, Protocol):
    """Where cells are relayed to, which outlives a lost live view."""

    async def latest_generation(self) -> int:
        """The highest generation among the stored cells' versions; 0 where there are none."""
        ...


class AnalyticalStore(ArchiveStore, GenerationsSeen, Protocol):
    """All that is written to ClickHouse."""


class Building(NamedTuple):
    """A rebuild of tables that was begun: the note it was begun with, which tables are live already, and beside which
    a table stands still: the one that is built, or the old one."""

    note: str
    swapped: frozenset[str]
    beside: frozenset[str]

    def is_partial(self, tables: Collection[str]) -> bool:
        """Whether it ended while its tables were made or dropped: what is left says more than there is."""
        return not self.swapped and self.beside != frozenset(tables)


class TableStaging(Protocol):
    """Tables of the analytical store built beside those of the same name, and swapped in one by one.

    What is being built, and what was swapped, stands with the tables themselves. It is for the command that claimed
    rebuilds last; `Fenced` is raised, and no table changes, where another one has claimed since. Other errors as
    `ArchiveStore`.
    """

    async def building(self, tables: Sequence[str]) -> Building | None:
        """What is being built of these tables, by whomever; from here on by this command. None where nothing is. It
        stays until the last table beside is dropped."""
        ...

    async def begin(self, tables: Sequence[str], note: str) -> Building:
        """Make empty tables beside; of a rebuild that was begun before, go on with those that are there, and with its
        note. Where some of them are missing and none is swapped, all are made anew."""
        ...

    def beside(self, tables: Collection[str]) -> AnalyticalStore:
        """A store that uses the tables beside in place of these, and the live ones of all others."""
        ...

    async def swap(self, table: str) -> None:
        """Make the table that was built the live one, in one step; what was live stands beside it afterwards.
        Nothing where it is live already."""
        ...

    async def drop(self, tables: Sequence[str]) -> None:
        """Drop what stands beside these tables."""
        ...

    async def account_before_last(self, partition: int, accounts: int) -> str:
        """The account with which the last so many of a partition in `usage_hourly` beside begin; "" where there are
        fewer."""
        ...

    async def carry_over(self, partition: int, from_position: int) -> None:
        """Copy the cells of a partition that took an event at or after a position from `usage_hourly` beside."""
        ...


class RowRecounts(UsageReader, Protocol):
    """Counts `usage_events` again, as rows of `usage_hourly`."""

    async def first_archived(self, partition: int) -> tuple[int, int] | None:
        """(position, stream time) of the partition's first event in `usage_events`; None where there is none."""
        ...

    async def archived_accounts(self, partition: int, from_account: str, count_max: int) -> Sequence[str]:
        """The accounts of a partition from one on (inclusive), sorted by their bytes."""
        ...

    async def recount_rows(self, request: RecountRequest, generation: int) -> Sequence[HourlyRow]:
        """The cells as the fold would have relayed them in a generation, by account. A period's end is the one known
        now. Errors as `recount_cells`."""
        ...

    async def recount_distinct(self, request: RecountRequest) -> Mapping[tuple[str, str, int], frozenset[str]]:
        """(account, meter, period start) of `unique` meters → their distinct values."""
        ...


class Progress(NamedTuple):
    """How far a rebuild is with one partition. `next_offset` of `end_offset`; `swapped` once it is live; `events` None
    where they are not counted."""

    partition: int
    next_offset: int
    end_offset: int
    events: int | None
    swapped: bool
