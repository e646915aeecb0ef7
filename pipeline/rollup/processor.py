"""The rollup: turns records of `usage.events` into one atomic commit of marks, totals, cells, outbox and checkpoint.

The steps of a flush, and the state after a crash in each step:
1. Scan, plan, and read at the checkpoint: nothing is written.
2. Append rejected events to `usage.rejected`: the restart appends them again with the same positions.
3. Commit all changes and the new checkpoint, or nothing. A restart reads on from the checkpoint (I2).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Final, NamedTuple

from aggregators.columns import Books, MakerOf, PythonColumns
from aggregators.expiry import NEVER_MS, expire, looks_max, with_expired
from aggregators.flush import Flush
from aggregators.fold import fold, moved
from aggregators.restatement import replaced_reports, restatement_changes
from aggregators.signing import hash_key
from aggregators.steps import AccountControl
from pipeline.logs.control_records import find_genesis
from pipeline.logs.quarantine import quarantine
from pipeline.logs.start_position import check_fresh, check_position
from pipeline.rollup.checkpoint import check_log, check_secret, first_checkpoint
from pipeline.rollup.quarantine_ceiling import QuarantineCeiling
from pipeline.rollup.snapshots import Snapshots
from schemas.clock import Clock
from schemas.control import Genesis
from schemas.errors import Fenced, OperatorNeeded, Transient
from schemas.live_view import CheckpointedState
from schemas.log import EVENTS_TOPIC, Bounds, Log, Record
from schemas.periods import AccountState
from schemas.reasons import Reason
from schemas.rollup import Changes, Checkpoint, DueTotal, ReadRequest

ROLLUP_GROUP: Final = "tidemark-rollup"
COMMIT_ATTEMPTS_MAX: Final = 6
REMEDY: Final = (
    "Restore the store's append-only file or a replica that has the checkpoint, or build it again from the log with "
    "`tidemark rebuild redis` (if that was never used, `tidemark worker --replay-from-start` does it too)."
)


class RollupSettings(NamedTuple):
    """Limits of one flush. `replay_from_start` allows folding a partition without state from offset 0 again.
    `quarantine_percent_max`: see `QuarantineCeiling`."""

    flush_events_max: int = 20_000
    cache_entries_max: int = 1_000_000
    replay_from_start: bool = False
    quarantine_percent_max: int = 100


class RollupProcessor:
    """The processor of `usage.events`; holds the checkpoint of each owned partition."""

    def __init__(
        self,
        log: Log,
        store: CheckpointedState,
        clock: Clock,
        secret: bytes,
        settings: RollupSettings | None = None,
        snapshots: Snapshots | None = None,
        note_skipped: Callable[[str, Reason, int], None] = lambda _slug, _reason, _events: None,
        maker_of: MakerOf = PythonColumns,
    ) -> None:
        """`note_skipped` is called with a meter, a reason and the number of events that the meter skipped, after the
        commit; it must not block. `maker_of` makes a partition's maker of columns."""
        self._log = log
        self._store = store
        self._clock = clock
        self._secret = secret
        self._hash_key = hash_key(secret)
        self._settings = settings or RollupSettings()
        self._snapshots = snapshots
        self._note_skipped = note_skipped
        self._maker_of = maker_of
        self._ceiling = QuarantineCeiling(self._settings.quarantine_percent_max)
        self._checkpoints: dict[int, Checkpoint] = {}
        self._books: dict[int, Books] = {}

    @property
    def topic(self) -> str:
        """`usage.events`."""
        return EVENTS_TOPIC

    @property
    def checkpoints(self) -> Mapping[int, Checkpoint]:
        """The last committed checkpoint of each owned partition."""
        return self._checkpoints

    def owned(self) -> set[int]:
        """The partitions that this process currently folds."""
        return set(self._checkpoints)

    async def start_offset(self, partition: int) -> int:
        """The next offset of the checkpoint. Checks that log, store and secret belong together.

        Raises `OperatorNeeded` if they do not, or if records were counted but there is no checkpoint (S3).
        """
        committed = await self._log.committed(ROLLUP_GROUP, EVENTS_TOPIC, partition)
        checkpoint = await self._store.load_checkpoint(partition)
        bounds = await self._log.bounds(EVENTS_TOPIC, partition)
        log_id = checkpoint.log_id if checkpoint else None
        genesis = await find_genesis(self._log, self._secret, partition, log_id, bounds)
        if checkpoint is None:
            checkpoint = await self._first_checkpoint(partition, committed, bounds, genesis)
        check_secret(partition, checkpoint, self._secret)
        # If retention removed the log's start, the genesis comes from later ticks, and there may be none yet.
        if genesis is not None or bounds.first == 0:
            check_log(partition, checkpoint, genesis.log_id if genesis else "without genesis")
        check_position(EVENTS_TOPIC, partition, checkpoint.next_offset, bounds, REMEDY)
        self._checkpoints[partition] = checkpoint
        self._books.pop(partition, None)
        return checkpoint.next_offset

    async def _first_checkpoint(
        self, partition: int, committed: int | None, bounds: Bounds, genesis: Genesis | None
    ) -> Checkpoint:
        if not self._settings.replay_from_start:
            check_fresh(EVENTS_TOPIC, partition, ROLLUP_GROUP, committed, bounds, REMEDY)
        if bounds.first > 0 or genesis is None:
            raise OperatorNeeded(f"{EVENTS_TOPIC}-{partition} has no genesis record at its start. {REMEDY}")
        checkpoint = first_checkpoint(genesis, self._secret)
        await self._store.create_checkpoint(partition, checkpoint)
        return checkpoint

    async def step(self, partition: int, records: Sequence[Record]) -> None:
        """Fold the records in one or more flushes. Returns when all are committed."""
        left = _left(records, self._checkpoints[partition])
        while left:
            await self._flush(partition, left)
            checkpoint = self._checkpoints[partition]
            left = _left(left, checkpoint)
            if self._snapshots:
                await self._snapshots.after_flush(partition, checkpoint)

    async def _flush(self, partition: int, records: Sequence[Record]) -> None:
        # The books are changed before the commit. They are kept only if the commit was made.
        books = self._books.pop(partition, None) or Books(self._hash_key, self._maker_of)
        checkpoint = self._checkpoints[partition]
        flush = Flush(partition, checkpoint, books, self._secret)
        for needed in flush.take(records, self._settings.flush_events_max):
            flush.know(await self._store.read(partition, checkpoint, needed))
        if flush.restatement is not None:
            await self._restate(partition, flush, flush.restatement)
            return
        due = await self._due(partition, flush)
        expired = expire(flush.passed, due, await self._states(partition, flush, due))
        request = flush.request()
        request = request._replace(totals=[*request.totals, *expired.retired])
        view = await self._store.read(partition, checkpoint, request)
        folded = fold(flush, view)
        changes = with_expired(folded.changes, expired, view)
        self._ceiling.check(partition, flush.received, len(folded.quarantined))
        await quarantine(self._log, EVENTS_TOPIC, partition, folded.quarantined)
        await self._commit(partition, checkpoint, changes)
        self._checkpoints[partition] = changes.checkpoint
        for (slug, reason), events in flush.exceptions.skipped.items():
            self._note_skipped(slug, reason, events)
        if due:
            books.ledger.due_ms = expired.next_due_ms
        books.ledger.commit(changes)
        if books.ledger.size <= self._settings.cache_entries_max:
            self._books[partition] = books

    async def _restate(self, partition: int, flush: Flush, step: AccountControl) -> None:
        """Flush one record, which moves an account's usage into other periods. The ledger knows nothing of that."""
        checkpoint, policy = flush.checkpoint, flush.policies[min(flush.policies)]
        state = flush.ledger.accounts[step.control.account].state
        request = ReadRequest(reports=replaced_reports(step, policy, state))
        view = await self._store.read(partition, checkpoint, request)
        changes = restatement_changes(moved(flush), policy, step, state, dict(view.reports))
        await self._commit(partition, checkpoint, changes)
        self._checkpoints[partition] = changes.checkpoint

    async def _due(self, partition: int, flush: Flush) -> Sequence[DueTotal]:
        """The totals that may retire at these records' stream time. Reads the store only if a total may be due."""
        # A total does not retire before its level is carried over.
        if flush.log.stream_time_ms < flush.ledger.due_ms or flush.levels_wait:
            return ()
        request = ReadRequest(due_max=looks_max(flush.moments) + 1)
        due = (await self._store.read(partition, flush.checkpoint, request)).due
        if not due:
            flush.ledger.due_ms = NEVER_MS
        return due

    async def _states(self, partition: int, flush: Flush, due: Sequence[DueTotal]) -> Mapping[str, AccountState]:
        """The states at the checkpoint of the accounts of these totals."""
        accounts, known = {total.key.account for total in due}, flush.ledger.accounts
        states = {account: known[account].state for account in accounts if account in known}
        states.update({account: state for account, state in flush.before.items() if account in accounts})
        unknown = sorted(accounts - states.keys())
        if unknown:
            states.update((await self._store.read(partition, flush.checkpoint, ReadRequest(accounts=unknown))).accounts)
        return states

    async def _commit(self, partition: int, checkpoint: Checkpoint, changes: Changes) -> None:
        """Commit. After a lost answer, the stored checkpoint tells whether the commit was applied.

        Raises `Transient` after `COMMIT_ATTEMPTS_MAX` attempts, `Fenced` if another process committed.
        """
        for attempt in range(COMMIT_ATTEMPTS_MAX):
            try:
                await self._store.commit(partition, checkpoint, changes)
            except Transient as error:
                if attempt + 1 == COMMIT_ATTEMPTS_MAX:
                    raise
                await self._clock.sleep(error.retry_after_s * 2**attempt / 10)
                stored = await self._stored_checkpoint(partition)
                if stored == changes.checkpoint:
                    return
                if stored is not None and stored != checkpoint:
                    raise Fenced(f"partition {partition}: another process committed while this one waited") from error
            else:
                return

    async def _stored_checkpoint(self, partition: int) -> Checkpoint | None:
        try:
            return await self._store.load_checkpoint(partition)
        except Transient:
            return None

    async def revoked(self, partition: int) -> None:
        """Forget the partition's checkpoint and books."""
        self._checkpoints.pop(partition, None)
        self._books.pop(partition, None)

    async def idle(self, partition: int) -> None:
        """Do nothing: stream time moves by ticks in the log."""


def _left(records: Sequence[Record], checkpoint: Checkpoint) -> Sequence[Record]:
    """The records that the checkpoint does not contain."""
    return records[bisect_left(records, checkpoint.next_offset, key=attrgetter("offset")) :]
