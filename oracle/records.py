"""What the oracle keeps of events: where they stand, what became of them, and what they count.

Times are int milliseconds UTC (`*_ms`) or microseconds (`*_us`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from oracle.rules import Contribution, Event, canonical

Period = tuple[int, int]


class Place(NamedTuple):
    """The position of an event in the log. A record that is rejected as a whole has index 0."""

    partition: int
    offset: int
    event_index: int


class Ruling(NamedTuple):
    """The result of one event. `outcome` is in `COUNTERS`, never `received`. Unknown accounts and ids are empty."""

    outcome: str
    reason: str | None = None
    account: str = ""
    id: str = ""


class Duplicate(NamedTuple):
    """An event whose identity arrived before. `conflict` is set if type, source or data differ from the first
    event."""

    place: Place
    account: str
    id: str
    conflict: bool


class Report(NamedTuple):
    """A total at the start of a report bucket and after the bucket's last event, and the first Stripe event name."""

    base: int
    current: int
    event_name: str


class Deferred(NamedTuple):
    """An event before its dedup decision. Its contributions are those under the meter set at its arrival."""

    event: Event
    fed: list[Contribution]
    meter_set: Mapping[str, Any]


class Accepted(NamedTuple):
    """A counted event: where it arrived first, what it adds or is a sample of, and the meter set at its arrival."""

    place: Place
    event: Event
    fed: Sequence[Contribution]
    meter_set: Mapping[str, Any]


class Counted(NamedTuple):
    """A counted event with the position, the stream time and the grace at which it counts."""

    place: Place
    event: Event
    fed: Sequence[Contribution]
    log_ms: int
    grace_ms: int


class Winner(NamedTuple):
    """The first arrival of an identity. `period` is None for unmetered events.

    `time_us` is set if a latest meter counts the event, because such meters compare event times.
    """

    event: Event
    period: Period | None
    time_us: int | None

    @property
    def payload(self) -> tuple[str, str, str]:
        """Type, source and data, which a duplicate must repeat."""
        return self.event.type, self.event.source, canonical(self.event.data)
