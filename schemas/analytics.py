"""Rows of the analytical store (ClickHouse) and the protocols of its writers and readers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from enum import StrEnum
from typing import Final, NamedTuple, Protocol

from schemas.aggregations import Aggregation
from schemas.meters import Meter
from schemas.periods import Period

# What one answer holds in memory, of ClickHouse's client and of the gateway.
USAGE_ROWS_MAX: Final = 100_000


class EventRow(NamedTuple):
    """One accepted event in `usage_events`; identity (account, id), the lowest position wins.

    `data` is the event's data as JSON text, normalised: keys sorted, duplicates resolved, numbers exact. `deferred`: it
    came later than the dedup window, so that it counts where its decision stands, or not at all (`DedupDecisionRow`).
    """

    account: str
    id: str
    type: str
    source: str
    time_us: int
    data: str
    partition: int
    position: int
    stream_time_ms: int
    deferred: bool = False


class DedupOutcome(StrEnum):
    """What a decision did with its event: counted it (also where no meter wants it), dropped it as a later arrival, or
    kept it out because its period was closed and a meter quarantines."""

    COUNTED = "counted"
    DUPLICATE = "duplicate"
    LATE = "late"


class DedupDecisionRow(NamedTuple):
    """The decision on an account's deferred event; the first of (partition, position, account) wins.

    `decision_position` and `stream_time_ms` are where and when it stands in the log: there the event counts.
    """

    partition: int
    position: int
    account: str
    decision_position: int
    stream_time_ms: int
    outcome: DedupOutcome


class DuplicateRow(NamedTuple):
    """An event that arrived again, in `usage_duplicates`; identity (partition, position)."""

    account: str
    id: str
    type: str
    source: str
    time_us: int
    data: str
    partition: int
    position: int
    stream_time_ms: int


class HourlyRow(NamedTuple):
    """One cell in `usage_hourly`; identity is everything up to `arrival_bucket_ms` but the period's end, which a
    binding may cut while the period runs; the highest version wins.

    `value_minor` is the cell's own aggregate in minor units; `latest_time_us` and `latest_position` order the values of
    `latest` (0 otherwise). `version` = generation and position of the last contributing event, or of the restatement
    that put the usage there. A cell that a restatement has emptied stays, of a period that ends where it begins.
    """

    account: str
    meter: str
    period_start_ms: int
    period_end_ms: int
    hour_ms: int
    dimensions: str
    arrival_bucket_ms: int
    aggregation: Aggregation
    scale: int
    value_minor: int
    latest_time_us: int
    latest_position: int
    partition: int
    version: int


class ControlRow(NamedTuple):
    """One control record in `control_log`; identity (partition, position). `value` is its JSON text."""

    partition: int
    position: int
    kind: str
    account: str
    stream_time_ms: int
    value: str


class ArchivePosition(NamedTuple):
    """How far `usage_events` of a partition reaches; written after the rows it covers."""

    partition: int
    next_offset: int
    stream_time_ms: int
    log_id: str


class RelayPosition(NamedTuple):
    """Everything that arrived on this partition before `stream_time_ms` is in `usage_hourly`: it stays behind where an
    event waits for its decision, and goes back where a restatement is there in part. `next_offset` is where the fold
    stood: of two positions the further one holds."""

    partition: int
    next_offset: int
    stream_time_ms: int


class ArchiveStore(Protocol):
    """Where the archive agent writes. Every write is idempotent by identity; blocks until stored.

    Raises `Transient` where the server did not confirm; the rows may be there all the same.
    """

    async def migrate(self) -> None:
        """Apply the numbered migrations that are missing. Harmless when repeated."""
        ...

    async def insert_events(self, rows: Sequence[EventRow]) -> None: ...

    async def insert_dedup_decisions(self, rows: Sequence[DedupDecisionRow]) -> None: ...

    async def insert_controls(self, rows: Sequence[ControlRow]) -> None: ...

    async def first_positions(self, identities: Sequence[tuple[str, str]]) -> Mapping[tuple[str, str], int]:
        """Where the first arrival of each (account, id) stands; what was never archived is absent."""
        ...

    async def events_rebuilt(self) -> int | None:
        """Which rebuild made `usage_events` (0: none); None while it misses what was written around its exchange.

        What was read between two equal answers was read of a table that reaches as far as its position says.
        """
        ...

    async def save_position(self, position: ArchivePosition) -> None: ...

    async def load_position(self, partition: int) -> ArchivePosition | None: ...

    async def load_controls(
        self, partition: int, before_position: int, accounts: Collection[str] | None = None
    ) -> Sequence[ControlRow]:
        """All meter set, account, close and restatement rows before `before_position`, oldest first: the policy in
        force when a binding arrived decides when it takes effect. With `accounts`, those of no account and of these."""
        ...

    async def close(self) -> None: ...


class HourlyStore(Protocol):
    """Where relays write. Absolute by version, hence repeatable. Errors as `ArchiveStore`."""

    async def insert_hourly(self, rows: Sequence[HourlyRow]) -> None: ...

    async def insert_duplicates(self, rows: Sequence[DuplicateRow]) -> None: ...

    async def save_relayed(self, position: RelayPosition) -> None: ...

    async def load_relayed(self) -> Mapping[int, RelayPosition]: ...

    async def generation_since(self, partition: int, bucket_ms: int) -> int:
        """The highest generation among the versions of a partition's cells of arrival buckets from `bucket_ms` on;
        0 where there are none."""
        ...

    async def close(self) -> None: ...


class Window(StrEnum):
    """How a usage answer is cut in time, in the asked time zone."""

    HOUR = "hour"
    DAY = "day"
    MONTH = "month"


class UsageQuery(NamedTuple):
    """A question about one meter. `account` None means all accounts; `[from_ms, to_ms)` is event time.

    `from_ms` and `to_ms` are whole hours. `group_by` names declared dimensions, or `account`.
    """

    meter: str
    from_ms: int
    to_ms: int
    account: str | None = None
    window: Window | None = None
    time_zone: str = "UTC"
    group_by: tuple[str, ...] = ()


class UsageRow(NamedTuple):
    """One answer row: the window's start (None without a window), the groups and the value in minor units."""

    window_start_ms: int | None
    groups: Mapping[str, str]
    value_minor: int


class RecountKey(NamedTuple):
    """What a recount is per: account, meter, period (known by its start), event hour, dimensions (canonical JSON),
    arrival bucket."""

    account: str
    meter: str
    period_start_ms: int
    hour_ms: int
    dimensions: str
    arrival_bucket_ms: int


class MeterSpan(NamedTuple):
    """A meter and the positions `[from_position, before_position)` of one partition at which it was in force."""

    meter: Meter
    from_position: int
    before_position: int


class RecountRequest(NamedTuple):
    """Recount one partition's events at positions below `before_position`.

    `meters` are the definitions in force and where; a definition never changes under its slug.
    `graces` are (from position, grace_ms), ascending: the policy's grace in force from there on.
    `boundaries` gives the periods of accounts that have bindings (sorted, contiguous), as they are cut now, which is
    right at every position; before them, and for accounts without an entry, there are calendar months (UTC).
    `closings` are explicit closings: account → (start of the period, position of the record). A deferred event has the
    position and stream time of its decision; without one, or where that dropped it, it is left out.
    `accounts` None means all of them.
    """

    partition: int
    before_position: int
    meters: Sequence[MeterSpan]
    graces: Sequence[tuple[int, int]]
    boundaries: Mapping[str, Sequence[Period]]
    closings: Mapping[str, Sequence[tuple[int, int]]]
    accounts: Sequence[str] | None = None


class Conflicts(NamedTuple):
    """`rows` are (account, event id, count); `events` is how many there are, at least as many as rows."""

    rows: Sequence[tuple[str, str, int]]
    events: int


class UsageReader(Protocol):
    """Where the query API and the reconciler read. Raises `Transient` where the server does not answer."""

    async def usage(
        self, query: UsageQuery, aggregation: Aggregation, rows_max: int = USAGE_ROWS_MAX
    ) -> Sequence[UsageRow]:
        """Answer from `usage_hourly` (exact view); unique per hour or day is counted over `usage_events`. At most one
        row more than `rows_max`, which says that there are more."""
        ...

    async def recount_cells(self, request: RecountRequest) -> Mapping[RecountKey, int]:
        """Value per cell, by SQL of its own over `usage_events`, in minor units."""
        ...

    async def recount_totals(
        self, request: RecountRequest, before_ms: int | None = None
    ) -> Mapping[tuple[str, str, Period], int]:
        """Total per (account, meter, period); only events that arrived before stream time `before_ms` if given."""
        ...

    async def hourly_cells(self, partition: int) -> Mapping[RecountKey, int]:
        """What `usage_hourly` says of the same cells."""
        ...

    async def archived_events(self, partition: int, before_position: int) -> int:
        """How many events of a partition `usage_events` counts below a position, each identity once."""
        ...

    async def conflicts(self, rows_max: int) -> Conflicts:
        """Events that arrived again with another type or data: the first by account and id, and how many in all."""
        ...

    async def controls(self, partition: int, before_position: int) -> Sequence[ControlRow]:
        """All control records of a partition except ticks, oldest first."""
        ...

    async def archive_positions(self) -> Mapping[int, ArchivePosition]: ...

    async def close(self) -> None: ...
