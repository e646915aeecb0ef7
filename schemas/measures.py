"""Samples of measured meters, and what was told of them: what the measurer reads from the archive (S15)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from schemas.meters import Meter


class ArchivedSample(NamedTuple):
    """An event of a measured meter's type as the archive has it, once. `position`: that of its first arrival. `data`:
    its JSON text."""

    account: str
    time_us: int
    position: int
    data: str


class ArchivedAdjustment(NamedTuple):
    """An adjustment as the archive has it, once. `data`: its JSON text."""

    account: str
    id: str
    data: str


class MeasuredSpan(NamedTuple):
    """Positions of one partition, `[from_position, before_position)`, in which a meter was in the meter set."""

    from_position: int
    before_position: int


class MeasuredTo(NamedTuple):
    """The adjustments of all pieces that end by `until_ms` are in the log, as far as they follow from what arrived
    before stream time `as_of_ms`."""

    log_id: str
    until_ms: int
    as_of_ms: int


class MeasureArchive(Protocol):
    """What the measurer reads. Every call may raise `Transient`. Events count once, at the position of their first
    arrival; deferred events from their dedup decision on. Samples that arrived outside of all `spans`, and those that a
    correction has voided, are no samples."""

    async def sampled(
        self, partition: int, meter: Meter, spans: Sequence[MeasuredSpan], since: int, before: int
    ) -> Mapping[str, int]:
        """The accounts with samples that count at positions in `[since, before)`, or with corrections there, and the
        earliest time of these samples in microseconds: for a meter with a `start_path`, the earliest start."""
        ...

    async def corrected(self, partition: int, meter: Meter, since_ms: int, before: int) -> Mapping[str, int]:
        """The accounts with corrections of events of the meter's type that arrived at stream time `since_ms` or later,
        at positions below `before`, and the time in microseconds of the earliest of these events."""
        ...

    async def samples(
        self,
        partition: int,
        meter: Meter,
        spans: Sequence[MeasuredSpan],
        accounts: Sequence[str],
        from_us: int,
        before: int,
        rows_max: int,
        until_us: int | None = None,
    ) -> Sequence[ArchivedSample]:
        """The samples of accounts with times from `from_us` on and before `until_us`, and before that at least the
        newest sample of each series and session that may still have effect; at most `rows_max`."""
        ...

    async def bound(self, partition: int, since: int, before: int) -> Mapping[str, int]:
        """The accounts with binding records at positions in `[since, before)`, and the earliest instant (int
        milliseconds) from which one of these bindings is to have effect."""
        ...

    async def told(
        self,
        partition: int,
        accounts: Sequence[str],
        prefix: str,
        before: int,
        from_us: int = 0,
        until_us: int | None = None,
        rows_max: int | None = None,
    ) -> Sequence[ArchivedAdjustment]:
        """The adjustments of accounts whose ids begin with `prefix`, with times from `from_us` on and before
        `until_us`; the first `rows_max` in the order of positions. An application may give its own events any id, so
        only events of the types of adjustments are among them."""
        ...
