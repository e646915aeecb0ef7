"""What the reconciler reads of measured meters: samples, adjustments and usage, each by SQL of its own (S15)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from schemas.measures import MeasuredSpan
from schemas.meters import Meter


class RecountedSample(NamedTuple):
    """A sample that its meter can use, once. `arrived` is the position of its arrival; `stream_time_ms` that at which
    it counts. `minor` is the level or the weight, `text` the text at `series_path`, `session_path` or `start_path`, and
    `dimensions` canonical JSON."""

    account: str
    id: str
    time_us: int
    arrived: int
    stream_time_ms: int
    minor: int
    dimensions: str
    text: str


class Adjusted(NamedTuple):
    """An adjustment, once. `stream_time_ms` is that at which it counts, or None while it waits for its dedup
    decision."""

    account: str
    dimensions: str
    time_ms: int
    stream_time_ms: int | None
    minor: int


class UsageKey(NamedTuple):
    """An hour of usage of an account, with one set of dimensions."""

    account: str
    dimensions: str
    hour_ms: int


class MeasuredPage(NamedTuple):
    """Some accounts of a partition and a measured meter, from an instant on, below a position. `spans` are the
    positions at which the meter was in the meter set."""

    partition: int
    meter: Meter
    spans: Sequence[MeasuredSpan]
    accounts: Sequence[str]
    from_ms: int
    before: int


class MeasuredRecount(Protocol):
    """Reads the archive. Every call may raise `Transient`."""

    async def measured_accounts(self, partition: int, meter: Meter, after: str, accounts_max: int) -> Sequence[str]:
        """The first accounts behind `after` that have samples or adjustments of a meter."""
        ...

    async def samples_of(self, page: MeasuredPage, rows_max: int) -> Sequence[RecountedSample]:
        """The samples of the page, and of earlier ones at least those that a correction names and the newest other one
        of each series and session; at most `rows_max`. A voided sample is there too."""
        ...

    async def adjusted(self, page: MeasuredPage, rows_max: int) -> Sequence[Adjusted]:
        """The adjustments of the page, except those that do not count by their dedup decision; at most `rows_max`."""
        ...

    async def usage_by_hour(self, page: MeasuredPage, before_ms: int) -> Mapping[UsageKey, int]:
        """What `usage_hourly` has of hours of the page and arrival buckets before `before_ms`, in minor units."""
        ...
