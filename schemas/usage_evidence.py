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


class UsageEvidence(Protocol):
    """Reads ClickHouse. Raises `Transient` if the server does not answer."""

    async def hours(
        self, account: str, meter: Meter, span: Period, after_ms: int, rows_max: int
    ) -> Sequence[HourUsage]:
        """The hours that are counted in periods which begin in the span, by time, behind the hour `after_ms`. Their sum
        is what an invoice of the span bills of a meter that adds."""
        ...

    async def events(self, account: str, meter: Meter, hour_ms: int, after: str, rows_max: int) -> Sequence[EventUsage]:
        """The archived events of an hour that the meter counts, each once, by id, behind the id `after`. Among them are
        late ones, which may be counted in another period than the others."""
        ...
