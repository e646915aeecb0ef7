"""What a rebuild needs of the stores: a second generation of the live view beside the first, and an atomic swap."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from schemas.analytics import HourlyStore
from schemas.rollup import Fence, RollupStore

# (generation, position) is the version of a row of usage_hourly: 8 bits over 56.
GENERATION_MAX = 255


class GenerationStore(RollupStore, Protocol):
    """A rollup store that can hold another generation beside the live one, under keys of its own.

    Every method of `RollupStore` acts on the live generation; a process that works on one that was swapped out
    meanwhile is `Fenced`. Errors as `RollupStore`.
    """

    async def rebuilding(self) -> int | None:
        """The generation that is being built, or None."""
        ...

    async def begin_rebuild(self, generation: int) -> int:
        """Note durably that a generation is being built; the one that was noted first, by whomever."""
        ...

    async def end_rebuild(self, generation: int) -> None:
        """Forget the note, where it is of this generation. Harmless when repeated."""
        ...

    async def is_live(self, partition: int, generation: int) -> bool:
        """Whether the partition has been swapped to this generation."""
        ...

    def built(self, generation: int) -> RollupStore:
        """The store of a generation, whether live or not. The caller closes it."""
        ...

    async def swap(self, partition: int, live: Fence | None, built: Fence) -> bool:
        """Make the generation of `built` live and drop the live fence, in one step.

        True also where that generation is live already. False, and nothing changed, where either stored fence is not
        the given one. Raises `Transient` where the answer was lost: `is_live` then tells.
        """
        ...

    async def sweep(self, partition: int) -> int:
        """Unlink, in bounded steps, what belongs to neither the live generation nor the one being built; how many
        keys. Harmless when repeated or cut short."""
        ...


class GenerationsSeen(HourlyStore, Protocol):
    """Where cells are drained to, which outlives a lost live view."""

    async def latest_generation(self) -> int:
        """The highest generation among the stored cells' versions; 0 where there are none."""
        ...


class Progress(NamedTuple):
    """How far a rebuild is with one partition. `next_offset` of `end_offset`; `swapped` once it is live."""

    partition: int
    next_offset: int
    end_offset: int
    events: int
    swapped: bool
