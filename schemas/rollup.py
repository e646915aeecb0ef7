"""State of the rollup: the checkpoint, what a flush reads, and what a flush writes (S3, S4).

Only `aggregators.codec` writes and parses the texts in `cells` and `reports`; stores do not look into them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from schemas.meters import MeterSet
from schemas.periods import AccountState


class Counters(NamedTuple):
    """Events of one partition since the log began. I1: `received` is the sum of the others.

    `deferred` events wait for their dedup decision now; the decision moves them to another counter.
    """

    received: int = 0
    counted: int = 0
    duplicate: int = 0
    unmetered: int = 0
    late: int = 0
    rejected: int = 0
    deferred: int = 0

    @property
    def conserved(self) -> bool:
        """Whether I1 holds."""
        return self.received == sum(self[1:])


class MarkSlice(NamedTuple):
    """Marks of half a window of stream time, `[start_ms, end_ms)`, spread over `buckets` sets."""

    start_ms: int
    end_ms: int
    buckets: int
    members: int = 0


class Checkpoint(msgspec.Struct, frozen=True):
    """The position and settings from which a partition's fold goes on, committed together with the state (I2).

    `secret_fingerprint` identifies the secret that keyed the marks. `generation` rises with each rebuild.
    """

    log_id: str
    partitions: int
    livemode: bool
    stripe_account: str
    generation: int
    next_offset: int
    stream_time_ms: int
    secret_fingerprint: str
    meter_set: MeterSet | None
    counters: Counters
    slices: tuple[MarkSlice, ...]


class TotalKey(NamedTuple):
    """The key of an account's totals in one period. The start identifies the period: a binding may move the end."""

    account: str
    period_start_ms: int


class UniqueKey(NamedTuple):
    """The key of the set of distinct values of an account, meter and period."""

    account: str
    meter: str
    period_start_ms: int


class DueTotal(NamedTuple):
    """A total and the stream time at which the fold checks whether its period ended long enough ago to expire."""

    due_ms: int
    key: TotalKey


class BucketField(NamedTuple):
    """The key of a cell or a report entry: a field of one bucket's hash."""

    bucket_ms: int
    field: str


class MarkKey(NamedTuple):
    """The key of one set of marks."""

    slice_start_ms: int
    bucket: int


class Deferred(NamedTuple):
    """An event between its arrival and its dedup decision.

    `raw` is the original JSON text. `contributions` are (meter, minor, distinct text, dimensions) by the meter set at
    the event's arrival. `quarantine`: one of those meters quarantines usage of closed periods.
    """

    position: int
    stream_time_ms: int
    account: str
    id: str
    type: str
    source: str
    time_us: int
    raw: str
    quarantine: bool
    contributions: tuple[tuple[str, int, str, str], ...]


class Waiting(NamedTuple):
    """How many deferred events there are, and the stream time at which the oldest arrived."""

    events: int = 0
    oldest_stream_time_ms: int | None = None


class ReadRequest(NamedTuple):
    """What a flush reads besides the checkpoint. All keys are known, so a store can answer in one round trip."""

    marks: Mapping[MarkKey, Sequence[int]] = {}
    totals: Sequence[TotalKey] = ()
    cells: Sequence[BucketField] = ()
    reports: Sequence[BucketField] = ()
    uniques: Mapping[UniqueKey, Sequence[int]] = {}
    accounts: Sequence[str] = ()
    deferred: Sequence[int] = ()
    due_max: int = 0
    levels_max: int = 0


class View(NamedTuple):
    """The answer to a `ReadRequest`: the marks and distinct values that exist, totals by meter, cell and report texts,
    account states, deferred events by position.

    Every requested total and account has an entry; other absent keys have none. `due` are the first `due_max` totals by
    due time, then by the bytes of `start:account`. `levels` are the first `levels_max` totals whose levels must be
    carried over, in the same order.
    """

    marks: frozenset[int] = frozenset()
    totals: Mapping[TotalKey, Mapping[str, str]] = {}
    cells: Mapping[BucketField, str] = {}
    reports: Mapping[BucketField, str] = {}
    uniques: Mapping[UniqueKey, frozenset[int]] = {}
    accounts: Mapping[str, AccountState] = {}
    deferred: Mapping[int, Deferred] = {}
    due: Sequence[DueTotal] = ()
    levels: Sequence[DueTotal] = ()


class RankingKey(NamedTuple):
    """The key of the ranking of a meter and period."""

    meter: str
    period_start_ms: int


class Duplicate(NamedTuple):
    """A duplicate with its full identity, payload and position, for the table `usage_duplicates`."""

    position: int
    account: str
    id: str
    type: str
    source: str
    time_us: int
    data: str
    stream_time_ms: int


class Changes(NamedTuple):
    """One commit. All values are absolute, so a commit is repeatable.

    `dirty` maps changed cells to their new versions; the store keeps a version until a relay confirms it. `deferred`
    events begin to wait with this commit; `decided` events got their dedup decision. `due` sets the due times of
    totals; a total without a time is due at once. `retired` maps totals to their meters; they are deleted with their
    ranking entries and distinct values. `replaced` totals are deleted likewise, but before anything else is written.
    `levels` sets the stream times at which the levels of totals must be carried over; None: no more (S13).
    """

    checkpoint: Checkpoint
    marks: Mapping[MarkKey, Sequence[int]] = {}
    totals: Mapping[TotalKey, Mapping[str, str]] = {}
    rankings: Mapping[RankingKey, Mapping[str, int]] = {}
    cells: Mapping[BucketField, str] = {}
    dirty: Mapping[BucketField, int] = {}
    reports: Mapping[BucketField, str] = {}
    uniques: Mapping[UniqueKey, Sequence[int]] = {}
    accounts: Mapping[str, AccountState] = {}
    duplicates: Sequence[Duplicate] = ()
    expired_marks: Sequence[MarkKey] = ()
    deferred: Sequence[Deferred] = ()
    decided: Sequence[Deferred] = ()
    due: Mapping[TotalKey, int] = {}
    retired: Mapping[TotalKey, Sequence[str]] = {}
    replaced: Mapping[TotalKey, Sequence[str]] = {}
    levels: Mapping[TotalKey, int | None] = {}


class DirtyCell(NamedTuple):
    """A cell that a relay must write: its key, text and version."""

    key: BucketField
    text: str
    version: int


class Dropped(NamedTuple):
    """How many outbox entries were dropped before a relay wrote them: cells by arrival bucket, and duplicates.

    ClickHouse lacks them until `usage_hourly` is rebuilt, or the live view, which relays all cells again.
    """

    cells: Mapping[int, int] = {}
    duplicates: int = 0
