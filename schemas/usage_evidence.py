"""Why a total is what it is: the hours of an account's billing periods, and the events of an hour."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from schemas.meters import Meter
from schemas.periods import Period


class HourUsage(NamedTuple):
    """The usage of a meter in one hour that the asked periods count, in minor units."""

    hour_ms: int
    value_minor: int


class EventUsage(NamedTuple):
    """One event that a meter counts. `value`: the number or the text as the event has it; "1" where events count."""

    id: str
    time_us: int
    value: str


class Arrivals(NamedTuple):
    """What arrived of a meter's events within a span of their own time: how many different events are archived, how
    many times one of them arrived again, and of those with other content; how many came later than the dedup window."""

    events: int
    repeats: int
    conflicts: int
    deferred: int


class ArchivedEvent(NamedTuple):
    """An event as the archive has it. `arrived_ms`: the stream time of its first arrival. `counted_ms`: the stream time
    at which it was judged: the same, or that of its dedup decision; None while a deferred event waits. `outcome`: that
    of the decision, "" without one."""

    account: str
    id: str
    type: str
    source: str
    time_us: int
    data: str
    partition: int
    position: int
    arrived_ms: int
    is_deferred: bool
    counted_ms: int | None
    outcome: str


class Repeat(NamedTuple):
    """A later arrival of an event. `is_conflict`: its type, source or data is another one than what was counted."""

    id: str
    arrived_ms: int
    is_conflict: bool


class UsageEvidence(Protocol):
    """Reads ClickHouse. Raises `Transient` if the server does not answer."""

    async def hours(
        self, account: str, meter: Meter, span: Period, after_ms: int, rows_max: int
    ) -> Sequence[HourUsage]:
        """The hours that are counted in periods which begin in the span, by time, behind the hour `after_ms`. Their sum
        is what an invoice of the span bills of a meter that adds."""
        ...

    async def events(
        self, account: str, meter: Meter, hour_ms: int, after: str, rows_max: int, span: Period | None = None
    ) -> Sequence[EventUsage]:
        """The archived events of an hour that the meter counts, each once, by id, behind the id `after`. With a span,
        only those that arrived in an hour whose usage is counted in periods which begin in the span. If a period was
        closed within that hour, some of them are counted in the period before or after."""
        ...

    async def arrivals(self, account: str, event_type: str, span: Period) -> Arrivals:
        """What arrived of one type of events of an account, by the events' own time."""
        ...

    async def event(self, account: str, identifier: str) -> ArchivedEvent | None:
        """One event of the archive, if it is there."""
        ...

    async def accounts_of(self, identifier: str, rows_max: int) -> Sequence[str]:
        """The accounts that have an event with this id. Reads the ids of all events."""
        ...

    async def repeats(self, account: str, identifiers: Sequence[str], rows_max: int) -> Sequence[Repeat]:
        """The later arrivals of events, by id and arrival, at most `rows_max`."""
        ...

    async def used(self, meter: Meter, event: ArchivedEvent) -> EventUsage | None:
        """What a meter counts of an archived event; None if the meter does not want it or cannot use it."""
        ...

    async def periods(self, account: str, meter: Meter, hour_ms: int, arrived_ms: int) -> Sequence[Period]:
        """The periods in which the usage of an hour is counted that was judged in the hour of `arrived_ms`: one, or two
        if a period was closed within that hour."""
        ...
