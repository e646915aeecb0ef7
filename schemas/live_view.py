"""The protocols of the live view, one small protocol for each group of readers and writers.

Implemented by `sinks.redis`, on a server and in memory. All keys of a partition exist together or not at all. Every
method may raise `Transient` (the server did not answer) and `OperatorNeeded` (a key has another type than this version
writes, or a setting endangers the counts). A method that returns a checkpoint with its answer reads both in one
transaction; the checkpoint is None if the partition has none.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from schemas.measures import MeasuredTo
from schemas.periods import AccountState
from schemas.rebuild import Generations, RebuildLease
from schemas.rollup import (
    Changes,
    Checkpoint,
    Deferred,
    DirtyCell,
    Dropped,
    Duplicate,
    RankingKey,
    ReadRequest,
    TotalKey,
    View,
    Waiting,
)
from schemas.snapshots import CopyableState


class CheckpointedState(Protocol):
    """What the fold reads and commits."""

    async def load_checkpoint(self, partition: int) -> Checkpoint | None:
        """The stored checkpoint, or None if this partition has none."""
        ...

    async def create_checkpoint(self, partition: int, checkpoint: Checkpoint) -> None:
        """Write the first checkpoint. Raises `Fenced` if there is one already."""
        ...

    async def read(self, partition: int, believed: Checkpoint, request: ReadRequest) -> View:
        """Read at the checkpoint. Raises `Fenced` if the stored checkpoint is not `believed`, `OperatorNeeded` if there
        is none (the store was emptied or restored)."""
        ...

    async def commit(self, partition: int, believed: Checkpoint, changes: Changes) -> None:
        """Apply all changes, if the stored checkpoint is `believed`, or none. Errors as `read`.

        After `Transient` the changes may or may not have been applied: load the checkpoint and compare.
        """
        ...


class AnalyticsOutbox(Protocol):
    """Cells and duplicates that wait to be relayed to ClickHouse."""

    async def dirty(self, partition: int, cells_max: int) -> tuple[Checkpoint | None, list[DirtyCell]]:
        """The checkpoint, and up to `cells_max` dirty cells as of then or later; fewer only if no more are dirty.
        Raises `Transient` if another process keeps relaying cells at the same time."""
        ...

    async def confirm_dirty(self, partition: int, relayed: Sequence[DirtyCell]) -> None:
        """Delete dirty entries whose version is still the relayed one. Repeatable."""
        ...

    async def drop_closed_buckets(self, partition: int) -> None:
        """Delete the cells of past arrival buckets that have no dirty entry left."""
        ...

    async def duplicates(self, partition: int, count_max: int) -> list[Duplicate]:
        """Duplicates that are not confirmed yet, oldest first."""
        ...

    async def confirm_duplicates(self, partition: int, positions: Sequence[int]) -> None:
        """Delete duplicates that another store now holds."""
        ...


class OutboxDrops(Protocol):
    """The cap of the outbox to ClickHouse, and what was dropped to keep it."""

    async def drop_excess(self, partition: int, entries_max: int) -> int:
        """Drop and note the entries over the cap. Returns how many.

        Over `entries_max` dirty cells, the oldest closed arrival buckets are dropped until the rest fits. Over
        `entries_max` duplicates, all duplicates are dropped. Only relays read closed buckets, so no total changes.
        """
        ...

    async def dropped(self, partition: int) -> Dropped:
        """The entries that were dropped since this generation of the live view began and are not backfilled."""
        ...

    async def backfilled(self, partition: int, dropped: Dropped) -> None:
        """Delete these notes after a backfill. Later drops stay noted. Raises `Fenced` as `RebuildLease`."""
        ...


class ReportOutbox(Protocol):
    """Report entries that wait to be published as intents, by report bucket, and flushes (`codec.flushes_bucket_ms`)
    that the relay has not seen. A field ends with a unit separator and its account."""

    async def report_buckets(self, partition: int) -> tuple[Checkpoint | None, list[int]]:
        """The checkpoint and the report buckets that still hold entries, oldest first."""
        ...

    async def reports(self, partition: int, bucket_ms: int, count_max: int) -> tuple[Checkpoint | None, dict[str, str]]:
        """The checkpoint and up to `count_max` entries (field → text) of one report bucket."""
        ...

    async def reports_of(
        self, partition: int, bucket_ms: int, account: str
    ) -> tuple[Checkpoint | None, dict[str, str]]:
        """The checkpoint and all entries of one account in one report bucket. The store looks at all entries of the
        bucket: a millisecond for some thousand."""
        ...

    async def confirm_reports(self, partition: int, bucket_ms: int, published: Mapping[str, str]) -> None:
        """Delete entries of a closed bucket whose intents are durable in the log, if their texts are still the
        published ones: after a failover, the bucket may be open again."""
        ...


class DeferredEvents(Protocol):
    """Deferred events, which wait for their dedup decision."""

    async def deferred(
        self, partition: int, count_max: int, skipped: Collection[int] = ()
    ) -> tuple[Checkpoint | None, list[Deferred]]:
        """The checkpoint and up to `count_max` events in order of arrival, without the `skipped` positions."""
        ...

    async def waiting(self, partition: int, account: str | None = None) -> tuple[Checkpoint | None, Waiting]:
        """The checkpoint and how many deferred events there are, of one account or of all."""
        ...


class DedupMarks(Protocol):
    """The marks of identities that arrived within the dedup window."""

    async def marked(self, partition: int, marks: Sequence[tuple[int, int]]) -> set[tuple[int, int]]:
        """Those of the marks (`aggregators.signing.mark`) that the fold would find at the checkpoint. Empty without a
        checkpoint."""
        ...


class AccountDirectory(Protocol):
    """Bindings and closings of accounts, and which accounts wait for a restatement."""

    async def account(self, partition: int, account: str) -> AccountState:
        """The state of one account; an empty state if nothing is known."""
        ...

    async def accounts(
        self, partition: int, accounts: Sequence[str]
    ) -> tuple[Checkpoint | None, dict[str, AccountState]]:
        """The checkpoint and the states of these accounts; empty states if nothing is known."""
        ...

    async def restating(self, partition: int, count_max: int) -> tuple[Checkpoint | None, dict[str, AccountState]]:
        """The checkpoint and the states of up to `count_max` accounts that wait for a restatement: those whose
        restatement has begun first, then by the bytes of their names. Empty only if no account waits. Raises
        `Transient` if the listed accounts keep changing at the same time."""
        ...

    async def restating_among(self, partition: int, accounts: Sequence[str]) -> dict[str, AccountState]:
        """The states of those of the accounts that wait for a restatement."""
        ...


class MeasuredInstants(Protocol):
    """How far each partition's measured meters are told. A note about the log: no generation of the view owns it, and
    a lost note is written again by the measurer's next pass."""

    async def measured_to(self, partition: int) -> MeasuredTo | None:
        """The note of the last pass; None before the first one, or after the server was emptied."""
        ...

    async def note_measured(self, partition: int, reached: MeasuredTo) -> None:
        """Keep the note in the place of the last one. Repeatable."""
        ...


class LiveTotals(Protocol):
    """Period totals, as they are now."""

    async def account_totals(
        self, partition: int, keys: Sequence[TotalKey]
    ) -> tuple[Checkpoint | None, dict[TotalKey, dict[str, str]]]:
        """The checkpoint and the totals by meter; an empty mapping for a total that does not exist."""
        ...

    async def account_total(
        self, partition: int, key: TotalKey
    ) -> tuple[Checkpoint | None, AccountState, dict[str, str]]:
        """The checkpoint, the state of the key's account, and one total by meter, in one read."""
        ...

    async def total_keys(self, partition: int, cursor: int, count: int) -> tuple[int, list[TotalKey]]:
        """Walk all totals of a partition: (next cursor, keys). The walk ends at cursor 0. Keys may repeat."""
        ...

    async def ranking(self, partition: int, key: RankingKey, count: int) -> list[tuple[str, int]]:
        """Up to `count` accounts with the highest totals. Equal totals are sorted by the bytes of the account's name.

        Ranks by float; read the exact totals with `account_totals`.
        """
        ...


class LiveView(Protocol):
    """One generation of the live view, as one process uses it; by default the live generation. Raises `Fenced` if that
    generation was swapped out meanwhile."""

    @property
    def state(self) -> CheckpointedState: ...

    @property
    def outbox(self) -> AnalyticsOutbox: ...

    @property
    def drops(self) -> OutboxDrops: ...

    @property
    def reports(self) -> ReportOutbox: ...

    @property
    def deferred(self) -> DeferredEvents: ...

    @property
    def marks(self) -> DedupMarks: ...

    @property
    def accounts(self) -> AccountDirectory: ...

    @property
    def totals(self) -> LiveTotals: ...

    @property
    def measured(self) -> MeasuredInstants: ...

    @property
    def rebuilds(self) -> RebuildLease: ...

    @property
    def generations(self) -> Generations: ...

    @property
    def copies(self) -> CopyableState: ...

    def built(self, generation: int) -> LiveView:
        """The view of a generation, live or not, under the same claim. The caller closes the returned view."""
        ...

    async def check(self) -> Sequence[str]:
        """The problems of the server's settings with their remedies (`noeviction`, `set-max-intset-entries`)."""
        ...

    async def close(self) -> None:
        """Release connections. Safe to call twice."""
        ...
