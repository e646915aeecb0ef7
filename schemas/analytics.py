"""Rows of the analytical store (ClickHouse) and the protocols of its writers and readers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from enum import StrEnum
from typing import Final, NamedTuple, Protocol

from schemas.aggregations import Aggregation
from schemas.errors import InvalidInput
from schemas.meters import Meter
from schemas.periods import Period

# Limits the memory of one answer, in ClickHouse's client and in the gateway.
USAGE_ROWS_MAX: Final = 100_000
PERIODS_MAX: Final = 1_000


# The range of DateTime64: 1900-01-01 to 2299-12-31
# (clickhouse.com/docs/sql-reference/data-types/datetime64).
EVENT_TIME_MIN_US: Final = -2_208_988_800_000_000
EVENT_TIME_MAX_US: Final = 10_413_791_999_999_999


class EventRow(NamedTuple):
    """One accepted event in `usage_events`; identity (account, id), the lowest position wins.

    `data` is the event's data as JSON text: keys sorted, equal keys resolved, numbers exact. A `deferred` event counts
    at the position of its dedup decision, or not at all (`DedupDecisionRow`).
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


class EventBlock(NamedTuple):
    """`rows` event rows as one block of ClickHouse's Native format. Blocks can be joined."""

    rows: int
    native: memoryview


class DedupOutcome(StrEnum):
    """What a dedup decision did with its event: counted it (also if no meter wants the event), found it to be a
    duplicate, or quarantined it because its period was closed."""

    COUNTED = "counted"
    DUPLICATE = "duplicate"
    LATE = "late"


class DedupDecisionRow(NamedTuple):
    """The decision on an account's deferred event; the first of (partition, position, account) wins.

    `decision_position` and `stream_time_ms` are those of the decision in the log. The event counts there.
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
    """One cell in `usage_hourly`. The identity is all fields up to `arrival_bucket_ms` except the period's end, which a
    binding may move while the period runs. The highest version wins.

    `value_minor` is the cell's aggregate in minor units. `latest_time_us` and `latest_position` order the values of
    `latest`, and are 0 otherwise. `version` = generation and position of the last contributing event or restatement.
    A cell that a restatement has emptied stays, with a period that ends at its start.
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


def check_times(rows: Sequence[EventRow] | Sequence[DuplicateRow]) -> None:
    """Raise `InvalidInput` if an event's time is outside the range of DateTime64."""
    for row in rows:
        if not EVENT_TIME_MIN_US <= row.time_us <= EVENT_TIME_MAX_US:
            raise InvalidInput("time_us", f"event {row.id!r} lies outside the years 1900 to 2299; quarantine it")


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
    """All usage that arrived on this partition before `stream_time_ms` is in `usage_hourly`.

    `stream_time_ms` does not pass a deferred event and moves back during a partial restatement. `next_offset` is the
    fold's position; the highest one wins.
    """

    partition: int
    next_offset: int
    stream_time_ms: int


class ArchiveStore(Protocol):
    """Where the archive role writes. Every write is idempotent by identity and blocks until the rows are stored.

    Raises `Transient` if the server did not confirm; the rows may be stored all the same.
    """

    async def migrate(self) -> None:
        """Apply the numbered migrations that are missing. Repeatable."""
        ...

    async def insert_events(self, rows: Sequence[EventRow]) -> None: ...

    async def insert_event_blocks(self, blocks: Sequence[EventBlock]) -> None: ...

    async def insert_dedup_decisions(self, rows: Sequence[DedupDecisionRow]) -> None: ...

    async def insert_controls(self, rows: Sequence[ControlRow]) -> None: ...

    async def first_positions(self, identities: Sequence[tuple[str, str]]) -> Mapping[tuple[str, str], int]:
        """The position of the first arrival of each (account, id). Identities that were never archived are absent."""
        ...

    async def events_rebuilt(self) -> int | None:
        """The number of the last rebuild of `usage_events`, 0 if there was none, or None while rows are missing that
        were written around the exchange. Reads between two equal answers saw a table that matches its position."""
        ...

    async def save_position(self, position: ArchivePosition) -> None: ...

    async def load_position(self, partition: int) -> ArchivePosition | None: ...

    async def load_controls(
        self, partition: int, before_position: int, accounts: Collection[str] | None = None
    ) -> Sequence[ControlRow]:
        """All meter set, binding, close and restatement rows before `before_position`, oldest first. With `accounts`,
        only meter sets and the rows of these accounts."""
        ...

    async def close(self) -> None: ...


class HourlyStore(Protocol):
    """Where relays write. Rows have absolute values and versions: writes are repeatable. Errors as `ArchiveStore`."""

    async def insert_hourly(self, rows: Sequence[HourlyRow]) -> None: ...

    async def insert_duplicates(self, rows: Sequence[DuplicateRow]) -> None: ...

    async def save_relayed(self, position: RelayPosition) -> None: ...

    async def load_relayed(self) -> Mapping[int, RelayPosition]: ...

    async def generation_since(self, partition: int, bucket_ms: int) -> int:
        """The highest generation of a partition's cells in arrival buckets from `bucket_ms` on; 0 without cells."""
        ...

    async def close(self) -> None: ...


class Window(StrEnum):
    """The span of time of one row of a usage answer, in the time zone of the query."""

    HOUR = "hour"
    DAY = "day"
    MONTH = "month"


class UsageQuery(NamedTuple):
    """A question about one meter. `account` None means all accounts. `[from_ms, to_ms)` is event time in whole hours.
    `group_by` are declared dimensions, or `account`. `after` is the window and groups of a row, after which the answer
    begins."""

    meter: str
    from_ms: int
    to_ms: int
    account: str | None = None
    window: Window | None = None
    time_zone: str = "UTC"
    group_by: tuple[str, ...] = ()
    after: tuple[int, tuple[str, ...]] | None = None


class UsageRow(NamedTuple):
    """One answer row: the window's start (None without a window), the groups and the value in minor units."""

    window_start_ms: int | None
    groups: Mapping[str, str]
    value_minor: int


class PeriodQuery(NamedTuple):
    """A question about the billing periods of one account that overlap `[from_ms, to_ms)`."""

    meter: str
    account: str
    from_ms: int
    to_ms: int


class PeriodUsage(NamedTuple):
    """A billing period, all usage that is counted in it, and of that the usage of hours that ended before the period
    began, in minor units. None if no usage was carried into the period."""

    period: Period
    value_minor: int
    carried_minor: int | None


class PeriodLevel(NamedTuple):
    """A billing period with events of a meter with levels, and the level at its end: the value of the newest event of
    this period and all before, in minor units."""

    period: Period
    value_minor: int


class RecountKey(NamedTuple):
    """Identifies a recounted cell. The period's start identifies the period; `dimensions` is canonical JSON."""

    account: str
    meter: str
    period_start_ms: int
    hour_ms: int
    dimensions: str
    arrival_bucket_ms: int


class MeterSpan(NamedTuple):
    """A meter and the positions `[from_position, before_position)` of one partition at which it was in force, with
    these `on_bad` and `allow_negative`."""

    meter: Meter
    from_position: int
    before_position: int


class RecountRequest(NamedTuple):
    """Recount one partition's events at positions below `before_position`.

    `meters` are the definitions and the positions at which they were in force. A slug's definition never changes.
    `graces` are (from position, grace_ms), ascending: the policy's grace in force from there on.
    `boundaries` are the present periods of accounts that have bindings, sorted and contiguous; they are right at every
    position. Before them, and for accounts without an entry, periods are calendar months (UTC).
    `closings` are close records: account → (start of the period, position of the record). A deferred event counts with
    the position and stream time of its decision, and not at all without a decision or as a duplicate.
    `accounts` None means all accounts. `levels_ms` has the meters whose levels stand beyond their period (S13), by
    slug: a level stands in all later periods that begin by that stream time. Only totals have such levels.
    """

    partition: int
    before_position: int
    meters: Sequence[MeterSpan]
    graces: Sequence[tuple[int, int]]
    boundaries: Mapping[str, Sequence[Period]]
    closings: Mapping[str, Sequence[tuple[int, int]]]
    accounts: Sequence[str] | None = None
    levels_ms: Mapping[str, int] = {}


# What a repetition of an event does not change. Another time is a retry: the time is no part of the payload.
CONFLICT_FIELDS: Final = ("type", "source", "data")


class Conflict(NamedTuple):
    """An identity that arrived `times` more times with another payload. `differing` are those of `CONFLICT_FIELDS` that
    differ from the event that counts."""

    account: str
    id: str
    times: int
    differing: tuple[str, ...]


class Conflicts(NamedTuple):
    """`events` is how many conflicts there are, at least as many as rows."""

    rows: Sequence[Conflict]
    events: int


class UsageReader(Protocol):
    """Where the query API and the reconciler read. Raises `Transient` if the server does not answer."""

    async def usage(
        self, query: UsageQuery, aggregation: Aggregation, rows_max: int = USAGE_ROWS_MAX
    ) -> Sequence[UsageRow]:
        """Answer from `usage_hourly` (exact view); unique per hour or day is counted over `usage_events`. One row more
        than `rows_max` means that there are more rows."""
        ...

    async def period_usage(
        self, query: PeriodQuery, aggregation: Aggregation, rows_max: int = PERIODS_MAX
    ) -> Sequence[PeriodUsage]:
        """The periods with usage in `usage_hourly`, oldest first. One row more than `rows_max` means that there are
        more."""
        ...

    async def period_levels(self, meter: str, account: str, to_ms: int) -> Sequence[PeriodLevel]:
        """The newest `PERIODS_MAX` periods with events of a meter with levels that begin before `to_ms`, oldest
        first."""
        ...

    async def recount_cells(self, request: RecountRequest) -> Mapping[RecountKey, int]:
        """Value per cell in minor units, by separate SQL over `usage_events`."""
        ...

    async def recount_totals(
        self, request: RecountRequest, before_ms: int | None = None
    ) -> Mapping[tuple[str, str, Period], int]:
        """Total per (account, meter, period); only events that arrived before stream time `before_ms` if given."""
        ...

    async def hourly_cells(self, partition: int) -> Mapping[RecountKey, int]:
        """The values of the same cells in `usage_hourly`."""
        ...

    async def archived_events(self, partition: int, before_position: int) -> int:
        """How many events of a partition `usage_events` counts below a position, each identity once."""
        ...

    async def conflicts(self, rows_max: int) -> Conflicts:
        """Events that arrived again with another type, source or data: the first `rows_max` by account and id, and the
        number of all."""
        ...

    async def controls(self, partition: int, before_position: int) -> Sequence[ControlRow]:
        """All control records of a partition except ticks, oldest first."""
        ...

    async def archive_positions(self) -> Mapping[int, ArchivePosition]: ...

    async def close(self) -> None: ...
