"""State of the rollup: the checkpoint, what a flush reads, what it writes, and the store that holds it (S3, S4).

Field texts inside `cells` and `reports` are made and parsed by `aggregators.codec` only; stores treat them
as opaque text.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, Protocol

import msgspec

from schemas.meters import MeterSet
from schemas.periods import AccountState


class Counters(NamedTuple):
    """Events of one partition since the log began. I1: `received` is the sum of the others.

    `deferred` are those that wait for their decision now; with it they move on to another counter.
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
    """Marks of half a window of stream time, `[start_ms, end_ms)`; its members are spread over `buckets` sets."""

    start_ms: int
    end_ms: int
    buckets: int
    members: int = 0


class Checkpoint(msgspec.Struct, frozen=True):
    """Everything a partition's fold starts from; stored in one hash and committed with the state (I2).

    `secret_fingerprint` names the secret that keyed the marks. `generation` rises with each rebuild.
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
    """One hash of totals: all meters of an account in one period.

    A period is known by its start: a binding may cut its end while it runs.
    """

    account: str
    period_start_ms: int


class UniqueKey(NamedTuple):
    """The set of distinct values of an account, meter and period."""

    account: str
    meter: str
    period_start_ms: int


class DueTotal(NamedTuple):
    """A total and the stream time at which it is looked at again, and leaves if its period ended long enough ago."""

    due_ms: int
    key: TotalKey


class BucketField(NamedTuple):
    """A field of one bucket's hash (cells or reports)."""

    bucket_ms: int
    field: str


class MarkKey(NamedTuple):
    """One integer set of marks."""

    slice_start_ms: int
    bucket: int


class Deferred(NamedTuple):
    """A far-late event between its arrival and its decision.

    `raw` is its JSON text as it came. `contributions` are (meter, minor, distinct text, dimensions) by the meter set at
    its arrival; `quarantine` says that one of those meters keeps out usage of closed periods.
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
    """How many deferred events wait for their decision, and when the oldest of them arrived in stream time."""

    events: int = 0
    oldest_stream_time_ms: int | None = None


class ReadRequest(NamedTuple):
    """What a flush must see besides the checkpoint. Everything is keyed, so a store can answer in one round trip."""

    marks: Mapping[MarkKey, Sequence[int]] = {}
    totals: Sequence[TotalKey] = ()
    cells: Sequence[BucketField] = ()
    reports: Sequence[BucketField] = ()
    uniques: Mapping[UniqueKey, Sequence[int]] = {}
    accounts: Sequence[str] = ()
    deferred: Sequence[int] = ()
    due_max: int = 0


class View(NamedTuple):
    """The answer: marks and uniques that are present, totals by meter, cell and report texts, account states, deferred
    events by position.

    What is absent is absent from the mapping, except that every requested total and account has an entry. `due` are
    the `due_max` totals that are due first; of those due at once, in the order of the bytes of `start:account`.
    """

    marks: frozenset[int] = frozenset()
    totals: Mapping[TotalKey, Mapping[str, str]] = {}
    cells: Mapping[BucketField, str] = {}
    reports: Mapping[BucketField, str] = {}
    uniques: Mapping[UniqueKey, frozenset[int]] = {}
    accounts: Mapping[str, AccountState] = {}
    deferred: Mapping[int, Deferred] = {}
    due: Sequence[DueTotal] = ()


class RankingKey(NamedTuple):
    """The sorted set (account by total) of a meter and period."""

    meter: str
    period_start_ms: int


class Duplicate(NamedTuple):
    """A duplicate to be shown: its full identity, payload and position."""

    position: int
    account: str
    id: str
    type: str
    source: str
    time_us: int
    data: str
    stream_time_ms: int


class Changes(NamedTuple):
    """One commit: absolute values only, so that repeating it is harmless.

    `dirty` maps each changed cell to its new version; the store keeps it until a relay confirms that version.
    `deferred` begin to wait for their decision with this commit, `judged` have got it. `due` says when totals are
    looked at again; one of `totals` that has no such time yet and gets none is due at once. `retired` totals leave with
    all that belongs to them; they name their meters. `replaced` ones leave likewise, but before all else is written.
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
    judged: Sequence[Deferred] = ()
    due: Mapping[TotalKey, int] = {}
    retired: Mapping[TotalKey, Sequence[str]] = {}
    replaced: Mapping[TotalKey, Sequence[str]] = {}


class DirtyCell(NamedTuple):
    """A cell a relay has to write: its field, text and version."""

    key: BucketField
    text: str
    version: int


class Lost(NamedTuple):
    """What was dropped from the outbox unrelayed: cells by arrival bucket, and duplicates; how many of each.

    It stays lost until `usage_hourly` is rebuilt, or the live view, which relays everything again.
    """

    cells: Mapping[int, int] = {}
    duplicates: int = 0


class RollupStore(Protocol):
    """Redis, or its in-memory fake. All keys of a partition live and die together.

    Every method may raise `Transient` (the server did not answer) and `OperatorNeeded` (a key has another
    type than this version writes, or a setting endangers the counts).
    """

    async def check(self) -> Sequence[str]:
        """What is wrong with the server's settings, each with its remedy (`noeviction`, `set-max-intset-entries`)."""
        ...

    async def load_checkpoint(self, partition: int) -> Checkpoint | None:
        """The stored checkpoint, or None where this partition has none."""
        ...

    async def create_checkpoint(self, partition: int, checkpoint: Checkpoint) -> None:
        """Write the first checkpoint; raises `Fenced` where there is one already."""
        ...

    async def read(self, partition: int, believed: Checkpoint, request: ReadRequest) -> View:
        """Read at the checkpoint. Raises `Fenced` where the stored checkpoint is not `believed`,
        `OperatorNeeded` where it is gone (the store was emptied or restored)."""
        ...

    async def commit(self, partition: int, believed: Checkpoint, changes: Changes) -> None:
        """All or nothing, only if the stored checkpoint is `believed`. Errors as `read`.

        After `Transient` it may or may not have been applied: load the checkpoint and compare.
        """
        ...

    async def dirty(self, partition: int, cells_max: int) -> tuple[Checkpoint | None, list[DirtyCell]]:
        """The checkpoint, and up to `cells_max` dirty cells as they are there or later; fewer only where no more are
        dirty.

        Raises `Transient` where another process relays them at the same time, at every look.
        """
        ...

    async def confirm_dirty(self, partition: int, relayed: Sequence[DirtyCell]) -> None:
        """Forget dirty entries whose version is still the one relayed. Harmless when repeated."""
        ...

    async def drop_closed_buckets(self, partition: int) -> None:
        """Drop the cells of arrival buckets that stream time has passed and that have no dirty entry left."""
        ...

    async def shed(self, partition: int, entries_max: int) -> int:
        """Where more than `entries_max` cells wait to be relayed, drop the oldest closed arrival buckets until no more
        do; where more duplicates wait, drop those; and note what was lost. How many were dropped.

        Nothing but readers of the outbox ever looks at a closed bucket again, so no total is touched.
        """
        ...

    async def lost(self, partition: int) -> Lost:
        """What was dropped since this generation of the live view began, and not refilled."""
        ...

    async def refilled(self, partition: int, lost: Lost) -> None:
        """Forget that these were lost: ClickHouse has them from elsewhere. What was dropped later stays noted."""
        ...

    async def duplicates(self, partition: int, count_max: int) -> list[Duplicate]:
        """Duplicates not yet confirmed, oldest first."""
        ...

    async def confirm_duplicates(self, partition: int, positions: Sequence[int]) -> None:
        """Forget duplicates that another store now holds."""
        ...

    async def reports(self, partition: int, bucket_ms: int, count_max: int) -> tuple[Checkpoint | None, dict[str, str]]:
        """The checkpoint and up to `count_max` report entries (field → text) of one report bucket, in one
        transaction."""
        ...

    async def report_buckets(self, partition: int) -> tuple[Checkpoint | None, list[int]]:
        """The checkpoint and the report buckets that still hold entries, oldest first."""
        ...

    async def confirm_reports(self, partition: int, bucket_ms: int, published: Mapping[str, str]) -> None:
        """Forget report entries of a closed bucket whose intents are durable in the log, as far as their text is still
        the one published: a replica that took over may hold an earlier one, of a bucket that is open again."""
        ...

    async def deferred(
        self, partition: int, count_max: int, but: Collection[int] = ()
    ) -> tuple[Checkpoint | None, list[Deferred]]:
        """The checkpoint and up to `count_max` events that wait for their decision, in the order of their arrival,
        leaving out the positions in `but`."""
        ...

    async def waiting(self, partition: int, account: str | None = None) -> tuple[Checkpoint | None, Waiting]:
        """The checkpoint and how many events wait for their decision, of one account or of all; in one transaction."""
        ...

    async def restating(self, partition: int, count_max: int) -> tuple[Checkpoint | None, dict[str, AccountState]]:
        """The checkpoint and the states of up to `count_max` accounts that wait for a restatement, in one transaction:
        first those for which it was begun, then by their names' bytes. Empty only where nobody waits. Raises
        `Transient` where every one looked at is answered meanwhile, again and again."""
        ...

    async def restating_among(self, partition: int, accounts: Sequence[str]) -> dict[str, AccountState]:
        """The states of those of the accounts that wait for a restatement."""
        ...

    async def account(self, partition: int, account: str) -> AccountState:
        """Bindings and closings of one account; an empty state where nothing is known."""
        ...

    async def accounts(
        self, partition: int, accounts: Sequence[str]
    ) -> tuple[Checkpoint | None, dict[str, AccountState]]:
        """The checkpoint and the states of these accounts, as `account` gives each, in one transaction."""
        ...

    async def account_totals(
        self, partition: int, keys: Sequence[TotalKey]
    ) -> tuple[Checkpoint | None, dict[TotalKey, dict[str, str]]]:
        """The checkpoint and totals, read in one transaction: what a live usage answer and a recount compare."""
        ...

    async def total_keys(self, partition: int, cursor: int, count: int) -> tuple[int, list[TotalKey]]:
        """Walk all totals of a partition: (next cursor, keys); the walk ends at cursor 0. Keys may repeat."""
        ...

    async def ranking(self, partition: int, key: RankingKey, count: int) -> list[tuple[str, int]]:
        """The accounts with the highest totals. Ranks by float; read the exact totals from the hashes."""
        ...

    async def close(self) -> None:
        """Release connections. Safe to call twice."""
        ...
